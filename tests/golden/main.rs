//! Replays recorded commands of Slurm on a cluster of one machine, and says how far the answers agree.
#![forbid(unsafe_code)]

mod compare;
mod scope;
mod stage;
mod transcript;

use compare::{Ids, Said, Verdict, diff};
use scope::{Kind, Scope};
use std::collections::BTreeMap;
use std::path::PathBuf;
use transcript::{Block, Entry};

const USAGE: &str = "usage: tests/golden.sh DIR [--only FILE]... [--show same|shape|fuller|purpose|replay|later]...\n\
                     DIR holds transcripts (*.txt); what differs is always shown, and gives exit code 1";

/// The order in which the transcripts were recorded. Those of one group share a cluster of so many nodes.
const GROUPS: &[(u32, &[&str])] = &[
    (
        8,
        &[
            "cluster_state",
            "squeue",
            "sinfo",
            "scontrol_show",
            "sprio_sshare_sstat_sdiag",
            "scontrol_update",
            "scancel",
            "preemption",
        ],
    ),
    (1, &["sbatch"]),
    (1, &["filename_patterns"]),
    (1, &["srun"]),
    (1, &["salloc"]),
    (1, &["env"]),
    (1, &["time_limit", "node_failure"]),
    (0, &["controller_down"]),
    (1, &["sacct", "sreport", "sshare_after_usage", "sacctmgr"]),
    (1, &["time_formats"]),
    (1, &["mem_formats"]),
    (1, &["array_specs"]),
    (1, &["begin_deadline"]),
    (1, &["dependency"]),
    (1, &["gres_forms"]),
    (1, &["hostlists"]),
];

/// Where a command ended up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Same,
    Shape,
    Fuller,
    Purpose,
    Differs,
    Replay,
    Later,
}

impl Class {
    const ALL: [Class; 7] = [
        Class::Same,
        Class::Shape,
        Class::Fuller,
        Class::Purpose,
        Class::Differs,
        Class::Replay,
        Class::Later,
    ];

    fn name(self) -> &'static str {
        match self {
            Class::Same => "same",
            Class::Shape => "shape",
            Class::Fuller => "fuller",
            Class::Purpose => "purpose",
            Class::Differs => "differs",
            Class::Replay => "replay",
            Class::Later => "later",
        }
    }
}

struct Request {
    directory: PathBuf,
    only: Vec<String>,
    show: Vec<String>,
}

fn request() -> Result<Request, String> {
    let mut request =
        Request { directory: PathBuf::new(), only: Vec::new(), show: vec!["differs".to_string()] };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--only" => request
                .only
                .push(words.next().ok_or("--only needs a file")?.trim_end_matches(".txt").to_string()),
            "--show" => request.show.push(words.next().ok_or("--show needs a word")?),
            other if other.starts_with('-') => return Err(format!("unknown option {other}")),
            other if request.directory.as_os_str().is_empty() => request.directory = other.into(),
            other => return Err(format!("one directory at a time, and not also '{other}'")),
        }
    }
    let known = |name: &str| GROUPS.iter().any(|(_, group)| group.contains(&name));
    if let Some(name) = request.only.iter().find(|name| !known(name)) {
        return Err(format!("--only: '{name}' is no transcript's name"));
    }
    if let Some(word) = request.show.iter().find(|word| Class::ALL.iter().all(|c| c.name() != *word)) {
        return Err(format!("--show: there is no '{word}'"));
    }
    let directory = request.directory.display();
    let entries =
        std::fs::read_dir(&request.directory).map_err(|e| format!("the directory '{directory}': {e}"))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|e| e == "txt") && !known(&name) {
            return Err(format!(
                "{} is in no group of tests/golden/main.rs: it would be left out",
                path.display()
            ));
        }
    }
    Ok(request)
}

fn main() {
    let request = request().unwrap_or_else(|e| {
        eprintln!("golden: error: {e}\n{USAGE}");
        std::process::exit(2)
    });
    let scope = Scope::parse(include_str!("scope.tsv")).unwrap_or_else(|e| panic!("{e}"));
    let scene = PathBuf::from(std::env::var_os("GOLDEN_SCENE").unwrap_or_else(|| {
        eprintln!("golden: error: run tests/golden.sh, which sets the scene");
        std::process::exit(2)
    }));
    let mut stage = stage::Stage::new(&scene);
    let mut totals: BTreeMap<String, BTreeMap<Class, usize>> = BTreeMap::new();
    for (nodes, group) in GROUPS {
        let wanted = |name: &&str| request.only.is_empty() || request.only.iter().any(|o| o == *name);
        let Some(last) = group.iter().rposition(wanted) else { continue };
        stage.fresh(*nodes);
        let mut ids = Ids::default();
        // Those before it make the state that it is about.
        for name in group[..=last].iter().filter(|n| wanted(n) || **n == "cluster_state") {
            let path = request.directory.join(format!("{name}.txt"));
            let entries = transcript::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let counts = replay(name, &entries, &mut stage, &mut ids, &scope, &request.show);
            totals.insert((*name).to_string(), counts);
        }
    }
    stage.down();
    summary(&totals);
    let differs: usize = totals.values().filter_map(|counts| counts.get(&Class::Differs)).sum();
    let idle = if request.only.is_empty() { scope.idle() } else { Vec::new() };
    idle.iter().for_each(|line| println!("{line}"));
    std::process::exit(i32::from(differs > 0 || !idle.is_empty()));
}

fn replay(
    name: &str,
    entries: &[Entry],
    stage: &mut stage::Stage,
    ids: &mut Ids,
    scope: &Scope,
    show: &[String],
) -> BTreeMap<Class, usize> {
    ids.harvest(entries.iter().flat_map(|entry| match entry {
        Entry::Command(block) => vec![block.out.as_str(), block.err.as_str()],
        Entry::File { .. } => Vec::new(),
    }));
    let chosen = chosen_keys(entries);
    let mut counts = BTreeMap::new();
    for entry in entries {
        let block = match entry {
            Entry::File { name, mode, data } => {
                stage.file(name, *mode, data);
                continue;
            }
            Entry::Command(block) => block,
        };
        let (class, lines) = match scope.left_out(name, &block.command) {
            Some((Kind::Replay, reason)) => (Class::Replay, vec![format!("({reason})")]),
            Some((_, reason)) => (Class::Later, vec![format!("({reason})")]),
            None => judge(name, block, &chosen, stage, ids, scope),
        };
        *counts.entry(class).or_insert(0) += 1;
        if show.iter().any(|s| s == class.name()) {
            println!("{name}:{} {}: $ {}", block.line, class.name(), block.command);
            for line in lines {
                println!("    {line}");
            }
        }
    }
    counts
}

fn judge(
    name: &str,
    block: &Block,
    chosen: &[String],
    stage: &stage::Stage,
    ids: &mut Ids,
    scope: &Scope,
) -> (Class, Vec<String>) {
    if let Some(script) = scope.reason(Kind::Before, name, &block.command) {
        let root = Block { user: Some("root".to_string()), ..Block::default() };
        let made = stage.run(&root, script);
        for line in made.out.lines() {
            let (theirs, ours) =
                line.split_once(' ').unwrap_or_else(|| panic!("{}: {line}: {}", block.command, made.err));
            ids.know(theirs, ours);
        }
    }
    let command = match block.command.strip_suffix("#show") {
        Some(submit) => shown(submit, chosen),
        None => scope.instead(name, &ids.translate(&block.command)),
    };
    let mut ours = stage.run(block, &command);
    let mut theirs = Said { rc: block.rc.clone(), out: block.out.clone(), err: block.err.clone() };
    if let Some(jobs) = scope.reason(Kind::Without, name, &block.command) {
        theirs.out = compare::without(&theirs.out, jobs);
        ours.out = compare::without(&ours.out, &ids.ours(jobs));
    }
    if let Some(lines) = scope.reason(Kind::Lines, name, &block.command) {
        for said in [&mut theirs, &mut ours] {
            said.out = compare::without_lines(&said.out, lines);
        }
    }
    let refuses = |line: &&str| line.contains("not supported") || line.contains("is not recorded here");
    if let Some(first) = ours.err.lines().find(refuses).filter(|_| ours.rc != "0") {
        return (Class::Later, vec![format!("(refused by name: {first})")]);
    }
    let verdict = ids.compare(&block.command, &theirs, &ours);
    let mut lines = diff(&ids.in_ours(&theirs.out), &ours.out);
    lines.extend(diff(&ids.in_ours(&theirs.err), &ours.err).into_iter().map(|l| format!("err {l}")));
    if theirs.rc != ours.rc {
        lines.push(format!("rc - {} + {}", theirs.rc, ours.rc));
    }
    let class = match verdict {
        Verdict::Same => Class::Same,
        Verdict::Shape => Class::Shape,
        Verdict::Fuller => Class::Fuller,
        Verdict::Differs => match scope.reason(Kind::Purpose, name, &block.command) {
            Some(reason) => {
                lines.push(format!("({reason})"));
                Class::Purpose
            }
            None => Class::Differs,
        },
    };
    (class, lines)
}

/// The keys that blocks marked `#show` print.
fn chosen_keys(entries: &[Entry]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for entry in entries {
        if let Entry::Command(block) = entry
            && block.command.ends_with("#show")
        {
            keys.extend(block.out.lines().filter_map(|l| l.split_once('=')).map(|(k, _)| k.to_string()));
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// What the recorder did for a block marked `#show`: submit, print some fields, cancel.
fn shown(submit: &str, keys: &[String]) -> String {
    let keys = keys.join("|");
    format!(
        "j=$({} ) || exit; j=${{j##* }}; scontrol -o show job $j | tr ' ' '\\n' | grep -E '^({keys})='; scancel $j",
        submit.trim_end()
    )
}

fn summary(totals: &BTreeMap<String, BTreeMap<Class, usize>>) {
    let count = |counts: &BTreeMap<Class, usize>, class: Class| counts.get(&class).copied().unwrap_or(0);
    let cells = |name: &str, of: &dyn Fn(Class) -> usize| {
        let numbers: String = Class::ALL.iter().map(|c| format!("{:>9}", of(*c))).collect();
        println!("{name:<26}{numbers}");
    };
    let header: String = Class::ALL.iter().map(|c| format!("{:>9}", c.name())).collect();
    println!("\n{:<26}{header}", "file");
    for (name, counts) in totals {
        cells(name, &|class| count(counts, class));
    }
    let all = |class: Class| totals.values().map(|c| count(c, class)).sum::<usize>();
    cells("all", &all);
    let agree: usize = [Class::Same, Class::Shape, Class::Fuller].map(all).iter().sum();
    let applicable = agree + all(Class::Purpose) + all(Class::Differs);
    println!("{agree} of {applicable} applicable commands agree, {} differ on purpose", all(Class::Purpose));
}
