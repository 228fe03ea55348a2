//! Variables that stand for options of the commands that look at a cluster or act on it: each is followed as its option is, or
//! refused by name as that is; but those that ask for what is so anyway, or tune what is not done so here, are passed over, since a
//! site's profile sets them for everybody. What is typed comes first. Those of srun, sbatch and salloc stand in the table of their options, and
//! formats and filters that a command weighs against one another are read by it.

use crate::getopt::{Parsed, Spec, Stop};
use crate::out;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What of a variable counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// Its text, which is the option's value; an empty one is none.
    Text,
    /// That it is there, whatever it says.
    Presence,
    /// `true`, `t`, `yes` and `1`, or `false`, `f`, `no` and `0`.
    Truth,
    /// Nothing: without the option it is as with it.
    Nothing,
}

use Counts::{Nothing, Presence, Text, Truth};

#[derive(Clone, Copy, Debug)]
struct Variable {
    name: &'static str,
    option: &'static str,
    counts: Counts,
    /// Options that say the same in other words: where one of them is typed the variable does not count.
    others: &'static [&'static str],
}

const fn variable(name: &'static str, option: &'static str, counts: Counts) -> Variable {
    Variable { name, option, counts, others: &[] }
}

const CLUSTERS: Variable = variable("SLURM_CLUSTERS", "clusters", Text);

const SACCT: &[Variable] = &[
    CLUSTERS,
    variable("SACCT_FEDERATION", "federation", Presence),
    variable("SACCT_LOCAL", "local", Nothing),
];

const SBCAST: &[Variable] = &[
    variable("SBCAST_EXCLUDE", "exclude", Text),
    variable("SBCAST_FANOUT", "fanout", Nothing),
    variable("SBCAST_SEND_LIBS", "send-libs", Presence),
    variable("SBCAST_SIZE", "size", Nothing),
    variable("SBCAST_TIMEOUT", "timeout", Nothing),
];

const SCANCEL: &[Variable] = &[
    CLUSTERS,
    variable("SCANCEL_ACCOUNT", "account", Text),
    Variable { others: &["full"], ..variable("SCANCEL_BATCH", "batch", Truth) },
    variable("SCANCEL_CRON", "cron", Presence),
    variable("SCANCEL_CTLD", "ctld", Presence),
    Variable { others: &["batch"], ..variable("SCANCEL_FULL", "full", Truth) },
    variable("SCANCEL_HURRY", "hurry", Presence),
    variable("SCANCEL_INTERACTIVE", "interactive", Truth),
    Variable { others: &["jobname"], ..variable("SCANCEL_NAME", "name", Text) },
    variable("SCANCEL_PARTITION", "partition", Text),
    variable("SCANCEL_QOS", "qos", Text),
    variable("SCANCEL_STATE", "state", Text),
    Variable { others: &["me"], ..variable("SCANCEL_USER", "user", Text) },
    Variable { others: &["quiet"], ..variable("SCANCEL_VERBOSE", "verbose", Truth) },
    variable("SCANCEL_WCKEY", "wckey", Text),
];

const SCONTROL: &[Variable] = &[
    CLUSTERS,
    variable("SCONTROL_ALL", "all", Presence),
    variable("SCONTROL_FEDERATION", "federation", Presence),
    variable("SCONTROL_FUTURE", "future", Nothing),
    variable("SCONTROL_LOCAL", "local", Nothing),
    variable("SCONTROL_SIBLING", "sibling", Presence),
];

const SINFO: &[Variable] = &[
    CLUSTERS,
    variable("SINFO_ALL", "all", Presence),
    variable("SINFO_FEDERATION", "federation", Presence),
    variable("SINFO_FUTURE", "future", Nothing),
    variable("SINFO_LOCAL", "local", Nothing),
];

const SQUEUE: &[Variable] = &[
    CLUSTERS,
    variable("SQUEUE_ALL", "all", Presence),
    variable("SQUEUE_FEDERATION", "federation", Presence),
    variable("SQUEUE_LICENSES", "licenses", Text),
    variable("SQUEUE_LOCAL", "local", Nothing),
    variable("SQUEUE_PRIORITY", "priority", Presence),
    variable("SQUEUE_QOS", "qos", Text),
    variable("SQUEUE_SIBLING", "sibling", Presence),
];

fn of(command: &str) -> &'static [Variable] {
    match command {
        "sacct" => SACCT,
        "sbcast" => SBCAST,
        "scancel" => SCANCEL,
        "scontrol" => SCONTROL,
        "sinfo" => SINFO,
        "squeue" => SQUEUE,
        _ => &[],
    }
}

/// Reads the arguments after the command's name, and the variables that stand for options of it.
///
/// # Errors
/// As [`Spec::parse`]; and of a variable that stands for an option which is refused.
pub fn read(spec: &Spec, args: &[OsString]) -> Result<Parsed, Stop> {
    let mut parsed = spec.parse(args)?;
    for line in follow(spec, &mut parsed, std::env::var_os)? {
        out::complain(&line);
    }
    Ok(parsed)
}

/// Takes what the variables say, and returns what is to be said of those that say nothing.
fn follow(
    spec: &Spec,
    parsed: &mut Parsed,
    get: impl Fn(&'static str) -> Option<OsString>,
) -> Result<Vec<String>, Stop> {
    let mut passed_over = Vec::new();
    for variable in of(spec.name) {
        let mut says = std::iter::once(&variable.option).chain(variable.others);
        if says.any(|option| parsed.has(option)) {
            continue;
        }
        let Some(value) = get(variable.name) else { continue };
        let value = match variable.counts {
            Nothing => continue,
            Presence => None,
            Text | Truth if value.is_empty() => continue,
            Text => Some(value),
            Truth => match value.as_bytes().to_ascii_lowercase().as_slice() {
                b"true" | b"t" | b"yes" | b"1" => None,
                b"false" | b"f" | b"no" | b"0" => continue,
                _ => {
                    passed_over.push(neither(spec, variable, &value));
                    continue;
                }
            },
        };
        spec.take_variable(parsed, variable.option, variable.name, value)?;
    }
    Ok(passed_over)
}

fn neither(spec: &Spec, variable: &Variable, value: &OsStr) -> String {
    format!(
        "{0}: error: Unrecognized {1} value: {2}\n{0}: error: it is passed over: write true or false, or unset it",
        spec.name,
        variable.name,
        value.to_string_lossy()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{sacct, sbcast, scancel, scontrol, sinfo, squeue};

    const SPECS: &[&Spec] =
        &[&sacct::SPEC, &sbcast::SPEC, &scancel::SPEC, &scontrol::SPEC, &sinfo::SPEC, &squeue::SPEC];

    /// What commands read, as the reference lists it.
    const READ_BY_SLURM: &str = "SLURM_CONF SLURM_CLUSTERS SLURM_EXIT_ERROR SLURM_EXIT_IMMEDIATE SLURM_HOSTFILE \
        SLURM_TIME_FORMAT SLURM_BITSTR_LEN SLURM_DEBUG_FLAGS SQUEUE_ACCOUNT SQUEUE_ALL SQUEUE_ARRAY SQUEUE_FEDERATION \
        SQUEUE_FORMAT SQUEUE_FORMAT2 SQUEUE_LICENSES SQUEUE_LOCAL SQUEUE_NAMES SQUEUE_PARTITION SQUEUE_PRIORITY SQUEUE_QOS \
        SQUEUE_SIBLING SQUEUE_SORT SQUEUE_STATES SQUEUE_USERS SINFO_ALL SINFO_FEDERATION SINFO_FORMAT SINFO_FUTURE \
        SINFO_LOCAL SINFO_PARTITION SINFO_SORT SACCT_FORMAT SACCT_FEDERATION SACCT_LOCAL SCANCEL_ACCOUNT SCANCEL_BATCH \
        SCANCEL_CRON SCANCEL_CTLD SCANCEL_FULL SCANCEL_HURRY SCANCEL_INTERACTIVE SCANCEL_NAME SCANCEL_PARTITION SCANCEL_QOS \
        SCANCEL_STATE SCANCEL_USER SCANCEL_VERBOSE SCANCEL_WCKEY SCONTROL_FEDERATION SCONTROL_FUTURE SCONTROL_LOCAL \
        SCONTROL_SIBLING SPRIO_FORMAT SREPORT_CLUSTER SREPORT_TRES SBCAST_COMPRESS SBCAST_EXCLUDE SBCAST_FANOUT SBCAST_FORCE \
        SBCAST_PRESERVE SBCAST_SEND_LIBS SBCAST_SIZE SBCAST_TIMEOUT";

    /// Where commands read some by themselves.
    const SOURCES: &[&str] = &[
        include_str!("submit.rs"),
        include_str!("commands/mod.rs"),
        include_str!("commands/sacct.rs"),
        include_str!("commands/sbcast.rs"),
        include_str!("commands/sinfo.rs"),
        include_str!("commands/squeue.rs"),
    ];

    /// Those that nothing here could follow; the list of differences says why.
    const EXCUSED: &[&str] = &[
        "SLURM_BITSTR_LEN",
        "SLURM_CONF",
        "SLURM_DEBUG_FLAGS",
        "SPRIO_FORMAT",
        "SREPORT_CLUSTER",
        "SREPORT_TRES",
    ];

    fn with(spec: &Spec, line: &str, pairs: &[(&str, &str)]) -> Result<Parsed, Stop> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let mut parsed = spec.parse(&args)?;
        let get = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        follow(spec, &mut parsed, get)?;
        Ok(parsed)
    }

    fn error(spec: &Spec, line: &str, pairs: &[(&str, &str)]) -> String {
        match with(spec, line, pairs) {
            Err(Stop::Bad(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_variable_that_slurms_commands_read_is_followed_refused_or_excused() {
        let differences = include_str!("../../../docs/slurm-differences.md");
        let all: Vec<&Variable> = SPECS.iter().flat_map(|spec| of(spec.name)).collect();
        for name in READ_BY_SLURM.split_whitespace() {
            let in_table = all.iter().any(|variable| variable.name == name);
            let read = SOURCES.iter().any(|source| source.contains(&format!("\"{name}\"")));
            let excused = EXCUSED.contains(&name);
            let ways = [in_table, read, excused].into_iter().filter(|way| *way).count();
            assert_eq!(ways, 1, "{name}: in the table {in_table}, read {read}, excused {excused}");
            assert!(!excused || differences.contains(&format!("`{name}`")), "{name} is not in the list");
        }
        for name in EXCUSED {
            assert!(READ_BY_SLURM.split_whitespace().any(|listed| listed == *name), "{name}");
        }
    }

    #[test]
    fn every_variable_has_its_option() {
        for spec in SPECS {
            assert!(!of(spec.name).is_empty(), "{}", spec.name);
            for variable in of(spec.name) {
                let taken = spec.options.iter().find(|opt| opt.long == variable.option);
                let refused = spec.refused.iter().any(|refused| refused.long == variable.option);
                assert!(taken.is_some() != refused, "{} {}", spec.name, variable.name);
                if let Some(opt) = taken {
                    let value = opt.arg != crate::getopt::Arg::None;
                    assert_eq!(value, variable.counts == Text, "{} {}", spec.name, variable.name);
                }
                for other in variable.others {
                    assert!(spec.options.iter().any(|opt| opt.long == *other), "{} --{other}", spec.name);
                }
            }
        }
    }

    #[test]
    fn variables_count_as_their_options_and_what_is_typed_comes_first() {
        let pairs = [
            ("SCANCEL_USER", "alice"),
            ("SCANCEL_NAME", "env"),
            ("SCANCEL_STATE", "PENDING"),
            ("SCANCEL_PARTITION", ""),
            ("SCANCEL_VERBOSE", "True"),
            ("SCANCEL_BATCH", "f"),
        ];
        let parsed = with(&scancel::SPEC, "--jobname typed 7", &pairs).unwrap();
        assert_eq!(parsed.text("user").as_deref(), Some("alice"));
        assert_eq!(parsed.text("state").as_deref(), Some("PENDING"));
        assert_eq!(parsed.variable("state"), Some("SCANCEL_STATE"));
        assert!(parsed.has("verbose") && !parsed.has("batch") && !parsed.has("partition"));
        assert!(!parsed.has("name"), "--jobname says it");
        let parsed = with(&scancel::SPEC, "--me -Q -t RUNNING", &pairs).unwrap();
        assert!(!parsed.has("user") && !parsed.has("verbose"));
        assert_eq!((parsed.text("state").as_deref(), parsed.variable("state")), (Some("RUNNING"), None));
        let both = [("SCANCEL_BATCH", "yes"), ("SCANCEL_FULL", "1")];
        for (typed, other) in [("batch", "full"), ("full", "batch")] {
            let parsed = with(&scancel::SPEC, &format!("--{typed} 7"), &both).unwrap();
            assert!(parsed.has(typed) && !parsed.has(other), "--{typed}");
        }
        for (says, counts) in [("Yes", true), ("1", true), ("no", false), ("0", false)] {
            let parsed = with(&scancel::SPEC, "7", &[("SCANCEL_FULL", says)]).unwrap();
            assert_eq!(parsed.has("full"), counts, "{says}");
        }
        assert!(with(&sinfo::SPEC, "", &[("SINFO_ALL", "")]).unwrap().has("all"));
        assert!(with(&scontrol::SPEC, "ping", &[("SCONTROL_ALL", "1")]).unwrap().has("all"));
    }

    #[test]
    fn a_variable_of_a_refused_option_is_refused_by_name() {
        for (spec, name, option) in [
            (&sacct::SPEC, "SACCT_FEDERATION", "--federation"),
            (&sbcast::SPEC, "SBCAST_EXCLUDE", "--exclude"),
            (&scancel::SPEC, "SCANCEL_QOS", "--qos"),
            (&scontrol::SPEC, "SCONTROL_SIBLING", "--sibling"),
            (&sinfo::SPEC, "SLURM_CLUSTERS", "--clusters"),
            (&squeue::SPEC, "SQUEUE_PRIORITY", "--priority"),
        ] {
            let said = error(spec, "", &[(name, "1")]);
            let start =
                format!("{}: error: {option} (environment variable {name}) is not supported: ", spec.name);
            assert!(said.starts_with(&start), "{said}");
        }
        assert!(with(&sinfo::SPEC, "", &[("SLURM_CLUSTERS", "")]).is_ok());
    }

    #[test]
    fn what_asks_for_nothing_new_or_says_nothing_is_passed_over_and_refused_where_it_is_typed() {
        let differences = include_str!("../../../docs/slurm-differences.md");
        for spec in SPECS {
            for variable in of(spec.name).iter().filter(|variable| variable.counts == Nothing) {
                let parsed = with(spec, "", &[(variable.name, "5")]).unwrap();
                assert!(!parsed.has(variable.option) && parsed.variable(variable.option).is_none());
                assert!(differences.contains(&format!("`{}`", variable.name)), "{}", variable.name);
                let said = error(spec, &format!("--{}", variable.option), &[]);
                assert!(said.contains("is not supported"), "{said}");
            }
        }
        let mut parsed = scancel::SPEC.parse(&["7".into()]).unwrap();
        let get = |name: &str| (name == "SCANCEL_FULL").then(|| OsString::from("maybe"));
        let said = follow(&scancel::SPEC, &mut parsed, get).unwrap();
        assert!(!parsed.has("full") && said.len() == 1, "{said:?}");
        assert!(said[0].starts_with("scancel: error: Unrecognized SCANCEL_FULL value: maybe\n"), "{said:?}");
    }
}
