//! Shows partitions and nodes.
//!
//! Nodes of a partition that are alike in everything shown share a line; `*` behind a partition marks the
//! default one, `*` behind a state a node whose agent does not answer. Formats, letters and the variables
//! SINFO_FORMAT, SINFO_PARTITION, SINFO_SORT and SINFO_ALL are as in Slurm.

use super::{command_line, meant, nodes, view, words};
use crate::error::{Failure, Outcome};
use crate::fmt::cells::Cell;
use crate::fmt::sinfo::{self, Field, Group};
use crate::fmt::{View, json, node};
use crate::getopt::{Arg, Parsed, Refused, Spec, opt};
use crate::{Command, Invocation, block_on, listing, out, variables};
use berth_model::NodeName;
use berth_model::record::{NodeInfo, PartitionInfo};

crate::doc::about!("sinfo.rs");

/// The command.
pub const COMMAND: Command = Command { name: "sinfo", run, submits: false, help: || SPEC.help() };

/// Options.
pub const SPEC: Spec = Spec {
    name: "sinfo",
    usage: "[OPTION]...",
    about: ABOUT,
    options: &[
        opt("all", Some('a'), Arg::None, "All partitions (nothing is hidden anyway)"),
        opt("dead", Some('d'), Arg::None, "Nodes that do not answer"),
        opt("exact", Some('e'), Arg::None, "Nodes that differ in any shown figure get lines of their own"),
        listing::FORMAT,
        listing::FIELDS,
        listing::ITERATE,
        opt("json", None, Arg::None, "As JSON"),
        opt(
            "list-reasons",
            Some('R'),
            Arg::None,
            "Why nodes are down, drained or failing, or have fenced devices",
        ),
        listing::LONG,
        opt("Node", Some('N'), Arg::None, "A line for each node and partition"),
        opt("nodes", Some('n'), Arg::Required("NODES"), "These nodes"),
        listing::NOHEADER,
        opt("partition", Some('p'), Arg::Required("NAMES"), "These partitions"),
        opt("responding", Some('r'), Arg::None, "Nodes that answer"),
        listing::SORT,
        opt(
            "states",
            Some('t'),
            Arg::Required("STATES"),
            "Nodes in these states; '&' joins states that must all hold",
        ),
        opt("summarize", Some('s'), Arg::None, "A line for each partition"),
        opt("verbose", Some('v'), Arg::None, "Say which cluster is asked"),
    ],
    refused: &[
        Refused {
            long: "clusters",
            short: Some('M'),
            instead: "name another cluster's state directory with BERTH_STATE",
        },
        Refused { long: "federation", short: None, instead: "there are no federations" },
        Refused { long: "local", short: None, instead: "there are no federations, every listing is local" },
        Refused { long: "reservation", short: Some('T'), instead: "there are no reservations" },
        Refused {
            long: "future",
            short: Some('F'),
            instead: "nodes register themselves, there are no future ones",
        },
        Refused { long: "hide", short: None, instead: "no partition is hidden" },
        Refused { long: "yaml", short: None, instead: "use --json" },
    ],
};

fn run(call: &Invocation<'_>) -> Outcome {
    let parsed = variables::read(&SPEC, &call.args)?;
    if let Some(extra) = parsed.words.first() {
        return Err(Failure::user(format!(
            "Unrecognized option: {0}\npartitions are named with -p, nodes with -n",
            extra.to_string_lossy()
        )));
    }
    let every = listing::pause(&parsed)?;
    let mut filter = Filter::read(&parsed)?;
    let site = call.site()?;
    if parsed.has("verbose") {
        out::complain(&format!("sinfo: asking {}", site.endpoint.path().display()));
    }
    block_on(async {
        let client = site.connect().await?;
        loop {
            let all = client.nodes().await?;
            filter.nodes = filter.nodes.take().map(|names| meant(names, &all));
            let partitions = client.partitions().await?;
            let view = view(Some(&client)).await;
            out::print(&show(&all, &partitions, &filter, &parsed, call, &view)?)?;
            match every {
                None => return Ok(0),
                Some(pause) => tokio::time::sleep(pause).await,
            }
            out::print("\n")?;
        }
    })
}

/// Which nodes and partitions to show.
struct Filter {
    partitions: Vec<String>,
    nodes: Option<Vec<NodeName>>,
    states: Vec<Vec<node::Test>>,
    responding: Option<bool>,
    reasons: bool,
}

impl Filter {
    fn read(parsed: &Parsed) -> Result<Filter, Failure> {
        let mut states = Vec::new();
        for item in parsed.text("states").map(|l| words(&l)).unwrap_or_default() {
            if item.eq_ignore_ascii_case("all") {
                continue;
            }
            let tests = item.split('&').map(|s| {
                node::test(&s.trim().to_ascii_lowercase()).ok_or_else(|| {
                    Failure::user(format!("Bad state string: \"{s}\"\nvalid states: {}", node::STATES))
                })
            });
            states.push(tests.collect::<Result<Vec<_>, _>>()?);
        }
        let partitions = parsed.text("partition").or_else(|| std::env::var("SINFO_PARTITION").ok());
        Ok(Filter {
            partitions: partitions.map(|l| words(&l)).unwrap_or_default(),
            nodes: parsed.text("nodes").map(|l| nodes(&l)).transpose()?,
            states,
            responding: match (parsed.has("dead"), parsed.has("responding")) {
                (true, _) => Some(false),
                (_, true) => Some(true),
                _ => None,
            },
            reasons: parsed.has("list-reasons"),
        })
    }

    fn takes(&self, n: &NodeInfo) -> bool {
        (self.states.is_empty() || self.states.iter().any(|all| all.iter().all(|test| test(n))))
            && self.nodes.as_ref().is_none_or(|list| list.contains(&n.name))
            && self.responding.is_none_or(|yes| yes != n.condition.not_responding)
    }
}

fn columns(parsed: &Parsed) -> Vec<Cell<&'static Field>> {
    let (each, long) = (parsed.has("Node"), parsed.has("long"));
    let default = match (parsed.has("list-reasons"), parsed.has("summarize"), each, long) {
        (true, _, _, false) => sinfo::REASONS,
        (true, ..) => sinfo::REASONS_LONG,
        (_, true, ..) => sinfo::SUMMARY,
        (_, _, true, false) => sinfo::NODES,
        (_, _, true, true) => sinfo::NODES_LONG,
        (.., true) => sinfo::LONG,
        _ => sinfo::DEFAULT,
    };
    let format = match (parsed.text("Format"), parsed.text("format")) {
        (Some(names), _) => sinfo::by_names(&names),
        (None, Some(letters)) => sinfo::by_letters(&letters),
        (None, None) => match std::env::var("SINFO_FORMAT") {
            Ok(letters) => sinfo::by_letters(&letters),
            Err(_) => sinfo::by_letters(default),
        },
    };
    let kind = if parsed.has("Format") { "job" } else { "node" };
    for unknown in &format.unknown {
        out::complain(&format!("sinfo: error: Invalid {kind} format specification: {unknown}"));
    }
    format.cells
}

fn show(
    all: &[NodeInfo],
    partitions: &[PartitionInfo],
    filter: &Filter,
    parsed: &Parsed,
    call: &Invocation<'_>,
    view: &View,
) -> Result<String, Failure> {
    let (each, long) = (parsed.has("Node"), parsed.has("long"));
    let mut cells = columns(parsed);
    let given = parsed.has("format") || parsed.has("Format");
    let taken = all.iter().filter(|n| filter.takes(n));
    let fenced: Vec<NodeInfo> = taken.clone().filter(|_| filter.reasons).filter_map(sinfo::fenced).collect();
    let shown: Vec<&NodeInfo> =
        taken.filter(|n| !filter.reasons || n.condition.reason.is_some()).chain(&fenced).collect();
    let mut groups: Vec<Group<'_>> = Vec::new();
    if filter.reasons {
        groups = sinfo::group(None, shown.clone(), &cells, false, true, view);
    } else {
        for p in partitions {
            if !(filter.partitions.is_empty() || filter.partitions.contains(&p.config.name)) {
                continue;
            }
            let members: Vec<&NodeInfo> =
                shown.iter().copied().filter(|n| p.nodes.contains(&n.name)).collect();
            if members.is_empty() && !each {
                groups.push(Group { partition: Some(p), nodes: Vec::new() });
            } else {
                groups.extend(sinfo::group(Some(p), members, &cells, each, parsed.has("exact"), view));
            }
        }
    }
    let sort = parsed.text("sort").or_else(|| std::env::var("SINFO_SORT").ok());
    let default = if each { "N" } else { "" };
    let keys = sinfo::sort_keys(sort.as_deref().unwrap_or(default)).map_err(|k| {
        Failure::user(format!("Invalid sort specification: {k}\nkeys are letters of -o, such as P,-t"))
    })?;
    sinfo::sort(&mut groups, &keys, view);
    if parsed.has("json") {
        let items: Vec<_> =
            groups.iter().filter_map(|g| g.partition.map(|p| json::sinfo(p, &g.nodes, view))).collect();
        return Ok(json::document("sinfo", &items, &command_line("sinfo", &call.args), &view.cluster));
    }
    if !given {
        let longest = |names: Vec<usize>| names.into_iter().max().unwrap_or(0);
        let stars = partitions.iter().map(|p| p.config.name.len() + usize::from(p.config.default)).collect();
        sinfo::grow(&mut cells, 'P', longest(stars));
        if each {
            sinfo::grow(&mut cells, 'N', longest(all.iter().map(|n| n.name.0.len()).collect()));
        }
    }
    let mut text = String::new();
    if !parsed.has("noheader") {
        if long {
            text.push_str(&view.banner());
            text.push('\n');
        }
        text.push_str(&sinfo::header(&cells));
    }
    for group in &groups {
        text.push_str(&sinfo::row(&cells, group, view));
    }
    Ok(text)
}
