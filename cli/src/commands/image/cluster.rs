//! `berth image ls`, `df`, `pull`, `rm` and `prune` with `--cluster`: of many nodes at once, each asked through the controller.

mod rm;

use super::pull::took;
use super::{document, table};
use crate::images::{self, Needs};
use berth_agent::{ImagesAnswer, ListedImage};
use berth_client::agent::{self, ImagesQuery, WholeQuery};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::site::Site;
use berth_client::{ImageResolver, block_on, out};
use berth_images::Digest;
use berth_model::login::{Login, SealedLogin};
use berth_model::spec::ImageRef;
use berth_model::{NodeName, Uid};
use berth_rpc::Client;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// As [`PATIENCE`], where much may have to be removed.
const LONG: Duration = Duration::from_secs(600);
/// Digests that fit into a question.
const MOST_KEPT: usize = 800;
const DAY: u64 = 86_400;

/// On which nodes.
#[derive(Clone, Debug, clap::Args)]
pub struct Nodes {
    /// On all nodes of the cluster: as root all images there, else yours. Nodes that fail are named, and the exit code is 1 then
    #[arg(long, conflicts_with_all = ["own", "node"])]
    pub cluster: bool,
    /// On these nodes alone, as n1 or n[1-8]
    #[arg(long, short = 'w', value_name = "NODES", requires = "cluster")]
    nodelist: Option<String>,
}

/// What is done on each node.
pub enum Task<'a> {
    /// List images.
    Ls,
    /// Show what they take.
    Df,
    /// Fetch this one.
    Pull {
        /// What it means.
        image: &'a ImageRef,
        /// The login that its registry wanted: it is sent along, sealed.
        login: Option<&'a Login>,
        /// Tell its digest alone.
        quiet: bool,
    },
    /// Remove these.
    Rm {
        /// Names or digests.
        names: &'a [String],
        /// Also what jobs need.
        force: bool,
    },
    /// Remove what is not needed.
    Prune {
        /// All that are not in use.
        all: bool,
        /// Not used for so many days.
        older_than: Option<u32>,
        /// Also what jobs need.
        force: bool,
    },
}

/// How one node is asked.
struct Asker<'a> {
    site: &'a Site,
    /// All images of a node are the caller's affair.
    whole: bool,
    /// Images of jobs that are not over.
    needed: BTreeSet<Digest>,
    /// What jobs need, and which: to be refused.
    needs: Needs,
    task: Task<'a>,
}

/// Asks all nodes; prints what each says.
pub fn run(nodes: &Nodes, task: Task<'_>, json: bool, state: Option<&Path>) -> Outcome {
    let site = Site::find(state)?;
    let names = wanted(&site, nodes.nodelist.as_deref())?;
    let me = nix::unistd::geteuid().as_raw();
    let owner = site.state.as_ref().and_then(|dir| std::fs::metadata(&dir.0).ok()).map(|dir| dir.uid());
    let whole = me == 0 || owner == Some(me);
    let needs = match task {
        Task::Rm { force: false, .. } if whole => Needs::of_jobs(&site)?,
        _ => Needs::default(),
    };
    let needed = match task {
        Task::Prune { force: true, .. } => Vec::new(),
        Task::Prune { .. } if whole => images::needed_by_jobs(&site, &[])?,
        Task::Prune { .. } => images::needed_by_jobs(&site, &[Uid(me)])?,
        _ => Vec::new(),
    };
    if let Task::Pull { image: ImageRef { resolved: Some(image), .. }, login, .. } = task {
        // A controller that does not know of this has each node fetch by itself, which gives the same.
        let told = block_on(async {
            let client = site.connect().await?;
            let login = match login {
                Some(login) => sealed(&client, login).await?,
                None => None,
            };
            Ok(client.pull_image(image, &names, login.as_ref()).await?)
        });
        if let Err(why) = told {
            out::complain(&format!("berth: note: each node fetches the image by itself: {why}"));
        }
    }
    let asker = Asker { site: &site, whole, needed: needed.into_iter().collect(), needs, task };
    let answers = match &asker.task {
        Task::Rm { names: wanted, force } => {
            rm::judged(at_once(&names, |node| asker.remove(node, wanted, *force)), whole)
        }
        _ => at_once(&names, |node| asker.node(node)),
    };
    let mut failed = 0u8;
    for (node, answer) in names.iter().zip(&answers) {
        if let Err(why) = answer {
            failed = 1;
            let why = printable(why);
            out::complain(&format!("berth: error: {node}: {why}"));
        }
    }
    let all: Vec<(&NodeName, &Result<Value, String>)> = names.iter().zip(&answers).collect();
    if json {
        let all: Vec<Value> = all
            .iter()
            .map(|(node, answer)| match answer {
                Ok(value) => json!({"node": node.0, "answer": value}),
                Err(why) => json!({"node": node.0, "error": why}),
            })
            .collect();
        out::print(&document(&all)?)?;
    } else {
        let answered = all.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?)));
        out::print(&asker.text(answered))?;
    }
    Ok(failed)
}

/// The login, sealed to the cluster; nothing where its controller is of a version that takes none.
async fn sealed(client: &Client, login: &Login) -> Result<Option<SealedLogin>, Failure> {
    let key = client.status().await?.login_key;
    if key.is_empty() {
        return Ok(None);
    }
    images::Resolver.seal(&key, login).map(Some).map_err(Failure::user)
}

/// The nodes that are meant, in the order of the cluster's.
fn wanted(site: &Site, list: Option<&str>) -> Result<Vec<NodeName>, Failure> {
    let nodes = block_on(async { Ok(site.connect().await?.nodes().await?) })?;
    let known: Vec<NodeName> = nodes.iter().map(|node| node.name.clone()).collect();
    let Some(list) = list else { return Ok(known) };
    let asked = berth_model::hostlist::nodes(list)
        .map_err(|e| Failure::new(Kind::Usage, format!("--nodelist={list}: {e}")))?;
    let asked = berth_client::commands::meant(asked, &nodes);
    match asked.iter().find(|name| !known.contains(name)) {
        Some(name) => Err(Failure::user(format!(
            "--nodelist={list}: the cluster has no node {name}: 'sinfo -N' lists its nodes"
        ))),
        None => Ok(asked),
    }
}

/// Does something for each node, a few at a time; the answers are in the order of the nodes.
fn at_once<T: Send>(nodes: &[NodeName], work: impl Fn(&NodeName) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(nodes.len())));
    let ask = || {
        while let Some((at, node)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, nodes.get(at)?)))
        {
            let answer = work(node);
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, answer));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..AT_ONCE.min(nodes.len()) {
            // Fewer do it as well, be it this thread alone.
            if std::thread::Builder::new().spawn_scoped(scope, ask).is_err() {
                break;
            }
        }
        ask();
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, answer)| answer).collect()
}

fn unexpected() -> String {
    "its agent answered another question: is it of this version?".into()
}

/// What a node says, without what a terminal would take for commands.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

impl Asker<'_> {
    fn ask(&self, node: &NodeName, query: ImagesQuery, patience: Duration) -> Result<ImagesAnswer, String> {
        let document = agent::images_of(self.site, node, query, patience)?;
        serde_json::from_slice(&document).map_err(|e| format!("its agent says what is not understood ({e})"))
    }

    fn node(&self, node: &NodeName) -> Result<Value, String> {
        if let Task::Pull { image, .. } = self.task {
            let ImagesAnswer::Pulled { digest, bytes, hit, notes } =
                self.ask(node, ImagesQuery::Pull(image.clone()), PATIENCE)?
            else {
                return Err(unexpected());
            };
            return Ok(json!({"digest": digest, "bytes": bytes, "hit": hit, "notes": notes}));
        }
        if self.whole { self.whole(node) } else { self.mine(node) }
    }

    /// As who has a say in all images of the node.
    fn whole(&self, node: &NodeName) -> Result<Value, String> {
        let ask = |query, patience| self.ask(node, ImagesQuery::Whole(query), patience);
        match &self.task {
            Task::Pull { .. } | Task::Rm { .. } => Err(unexpected()),
            Task::Ls => match ask(WholeQuery::List, PATIENCE)? {
                ImagesAnswer::Whole(images) => Ok(json!({"images": images})),
                _ => Err(unexpected()),
            },
            Task::Df => match ask(WholeQuery::Usage, PATIENCE)? {
                ImagesAnswer::WholeUsage(usage) => Ok(json!(usage)),
                _ => Err(unexpected()),
            },
            Task::Prune { all, older_than, .. } => {
                let ImagesAnswer::Whole(there) = ask(WholeQuery::List, PATIENCE)? else {
                    return Err(unexpected());
                };
                // What is not there need not be named.
                let there = there.iter().map(|image| &image.digest);
                let keep: Vec<String> =
                    there.filter(|digest| self.needed.contains(digest)).map(Digest::to_string).collect();
                if keep.len() > MOST_KEPT {
                    return Err(format!(
                        "jobs need {} images of it, and at most {MOST_KEPT} can be named: name images to 'berth image rm'",
                        keep.len()
                    ));
                }
                let older_than = older_than.map(|days| u64::from(days) * DAY);
                match ask(WholeQuery::Prune { older_than, all: *all, keep }, LONG)? {
                    ImagesAnswer::WholeRemoved(one) => {
                        let removed: Vec<String> = one.images.iter().map(Digest::to_string).collect();
                        Ok(json!({"removed": removed, "bytes": one.bytes}))
                    }
                    _ => Err(unexpected()),
                }
            }
        }
    }

    fn listed(&self, node: &NodeName) -> Result<Vec<ListedImage>, String> {
        match self.ask(node, ImagesQuery::List, PATIENCE)? {
            ImagesAnswer::List(images) => Ok(images),
            _ => Err(unexpected()),
        }
    }

    /// As a user among others.
    fn mine(&self, node: &NodeName) -> Result<Value, String> {
        let chosen: Vec<Digest> = match &self.task {
            Task::Pull { .. } | Task::Rm { .. } => return Err(unexpected()),
            Task::Ls => return Ok(json!({"images": self.listed(node)?})),
            Task::Df => {
                return match self.ask(node, ImagesQuery::Usage, PATIENCE)? {
                    ImagesAnswer::Usage(usage, quota) => Ok(
                        json!({"images": usage.images, "layers": usage.layers, "bytes": usage.bytes, "quota": quota}),
                    ),
                    _ => Err(unexpected()),
                };
            }
            Task::Prune { all, older_than, .. } => {
                let now = u64::try_from(berth_client::now().secs()).unwrap_or(0);
                let old = |used: u64| {
                    older_than.is_some_and(|days| now.saturating_sub(used) >= u64::from(days) * DAY)
                };
                let goes = |listed: &ListedImage| {
                    let image = &listed.image;
                    let nameless = image.names.is_empty() && older_than.is_none();
                    (*all || nameless || old(image.last_used))
                        && !listed.kept
                        && !self.needed.contains(&image.digest)
                };
                self.listed(node)?.into_iter().filter(goes).map(|listed| listed.image.digest).collect()
            }
        };
        let (mut removed, mut bytes) = (Vec::new(), 0u64);
        for digest in chosen {
            match self.give_back(node, &digest) {
                Ok((went, less)) => {
                    removed.extend(went);
                    bytes = bytes.saturating_add(less);
                }
                Err(why) => return Err(after(&removed, why)),
            }
        }
        Ok(json!({"removed": removed, "bytes": bytes}))
    }

    fn text<'v>(&self, answers: impl Iterator<Item = (&'v NodeName, &'v Value)>) -> String {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let bytes = |value: &Value| value.as_u64().map_or_else(|| "-".to_string(), images::size);
        let mut rows = Vec::new();
        let mut lines = String::new();
        match self.task {
            Task::Ls => {
                rows.push(["NODE", "NAME", "DIGEST", "SIZE", "LAYERS"].map(str::to_string));
                for (node, answer) in answers {
                    for image in answer["images"].as_array().into_iter().flatten() {
                        let names = image["names"].as_array().into_iter().flatten();
                        let names: Vec<String> = names.filter_map(Value::as_str).map(printable).collect();
                        let name = if names.is_empty() { "<none>".to_string() } else { names.join(",") };
                        let digest = image["digest"].as_str().and_then(|d| d.parse::<Digest>().ok());
                        rows.push([
                            node.0.clone(),
                            name,
                            digest.map_or("-".to_string(), |d| d.short().to_string()),
                            bytes(&image["bytes"]),
                            number(&image["layers"]).to_string(),
                        ]);
                    }
                }
            }
            Task::Df => {
                let last = if self.whole { "FREE" } else { "QUOTA" };
                rows.push(["NODE", "IMAGES", "LAYERS", "SIZE", last].map(str::to_string));
                for (node, answer) in answers {
                    let bound = if self.whole { &answer["free_bytes"] } else { &answer["quota"] };
                    let count = |key: &str| number(&answer[key]).to_string();
                    rows.push([
                        node.0.clone(),
                        count("images"),
                        count("layers"),
                        bytes(&answer["bytes"]),
                        bytes(bound),
                    ]);
                }
            }
            Task::Pull { quiet: true, .. } => {
                // All have the same one.
                let mut digests = answers.filter_map(|(_, answer)| answer["digest"].as_str());
                return digests.next().map_or(String::new(), |digest| printable(digest) + "\n");
            }
            Task::Pull { .. } => {
                for (node, answer) in answers {
                    let digest = printable(answer["digest"].as_str().unwrap_or_default());
                    let took = took(number(&answer["bytes"]), answer["hit"] == true);
                    lines += &format!("{node}: {digest} ({took})\n");
                    for note in answer["notes"].as_array().into_iter().flatten() {
                        lines += &format!("{node}: note: {}\n", printable(note.as_str().unwrap_or_default()));
                    }
                }
                return lines;
            }
            Task::Rm { .. } | Task::Prune { .. } => {
                for (node, answer) in answers {
                    for digest in answer["removed"].as_array().into_iter().flatten() {
                        lines +=
                            &format!("{node}: removed {}\n", printable(digest.as_str().unwrap_or_default()));
                    }
                    lines += &format!("{node}: {} less\n", bytes(&answer["bytes"]));
                }
                return lines;
            }
        }
        table(&rows)
    }
}

/// A failure when something was done already.
fn after(removed: &[String], why: String) -> String {
    if removed.is_empty() { why } else { format!("{why} (removed before: {})", removed.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_in_the_order_of_the_nodes_and_few_are_asked_at_once() {
        let nodes: Vec<NodeName> = (0..100).map(|n| NodeName(format!("n{n}"))).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let answers = at_once(&nodes, |node| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            node.clone()
        });
        assert_eq!(answers, nodes);
        assert!(most.into_inner() <= AT_ONCE);
        assert!(at_once(&[], NodeName::clone).is_empty());
    }
}
