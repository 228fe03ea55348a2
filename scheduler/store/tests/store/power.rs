//! The power goes at any moment: a real process commits, and strace tells each of its writes and each fsync. From these all is made
//! that a disk may have: what an fsync came back for is there; of the rest any sector or none. What was acknowledged must be there.

use super::torn::{Files, SECTOR, bed, one, whole};
use super::{again, counters, payload, pending, spec};
use berth_sched_core::commit;
use berth_store::{DATABASE, SqliteStore};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Transactions before the log is long enough to be copied, one of them large; and behind it.
const BEFORE: u32 = 12;
const BEHIND: u32 = 6;

#[test]
#[ignore = "the process whose writes what_was_acknowledged_is_there_whenever_the_power_goes follows"]
fn child_commits_and_copies_its_log() {
    let Some(dir) = std::env::var_os("STORE_DIR") else { return };
    let dir = Path::new(&dir);
    let mut store = SqliteStore::open(dir).unwrap();
    let database = dir.join(DATABASE);
    let size = || std::fs::metadata(&database).unwrap().len();
    let first = size();
    let done = |job: u32| {
        let mut out = std::io::stdout();
        writeln!(out, "done {job}").unwrap();
        out.flush().unwrap();
    };
    for job in 1..=BEFORE + BEHIND {
        if job == BEFORE {
            let large = payload(job, 5 << 20);
            commit(&mut store, &[spec(job), pending(job), large, counters(job + 1)]).unwrap();
        } else {
            one(&mut store, job);
        }
        done(job);
        let begun = Instant::now();
        // The thread beside copies the log when it is woken and the log is long.
        while job == BEFORE && size() == first {
            assert!(begun.elapsed() < Duration::from_secs(60), "the log is not copied");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What the process did, in its order.
enum Did {
    Write { file: String, at: usize, data: Vec<u8> },
    Cut { file: String, length: usize },
    Sync { file: String },
    Acknowledge(u32),
}

/// Reads what `strace -f -y -xx` wrote: all names and all data are in hexadecimal.
fn parse(log: &str) -> Vec<Did> {
    let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
    let mut offsets: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = Vec::new();
    for line in log.lines() {
        let Some((process, call)) = line.split_once(char::is_whitespace) else { continue };
        let call = call.trim_start();
        let joined;
        let call = if let Some(first) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(process, first);
            continue;
        } else if call.starts_with("<... ") {
            let (Some(first), Some((_, rest))) = (begun.remove(process), call.split_once("resumed>")) else {
                panic!("{call:.80}")
            };
            joined = format!("{first}{rest}");
            joined.as_str()
        } else {
            call
        };
        let Some((name, rest)) = call.split_once('(') else { continue };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { continue };
        assert!(!result.starts_with('-'), "{name}: {result}");
        let arguments = arguments.trim_end().trim_end_matches(')');
        let Some((descriptor, rest)) = arguments.split_once('<') else { continue };
        let Some((file, rest)) = rest.split_once('>') else { continue };
        let file = String::from_utf8(bytes(file)).unwrap();
        let rest = rest.trim_start_matches(", ");
        let number =
            |text: &str| text.trim().parse::<usize>().unwrap_or_else(|e| panic!("{name} {text:.80}: {e}"));
        let data = |text: &str| bytes(text.trim().trim_matches('"'));
        match name {
            "pwrite64" => {
                let mut parts = rest.rsplitn(3, ", ");
                let (at, length, text) =
                    (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
                let data = data(text);
                assert!(data.len() == number(length) && data.len() == number(result), "{name} is cut short");
                all.push(Did::Write { file, at: number(at), data });
            }
            "lseek" => {
                offsets.insert(descriptor.to_string(), number(result));
            }
            "write" if descriptor == "1" => {
                let text = data(rest.rsplit_once(", ").unwrap().0);
                let said = String::from_utf8_lossy(&text).into_owned();
                all.extend(
                    said.lines().filter_map(|l| l.strip_prefix("done ")?.parse().ok()).map(Did::Acknowledge),
                );
            }
            "write" => {
                let data = data(rest.rsplit_once(", ").unwrap().0);
                assert_eq!(data.len(), number(result), "{name} is cut short");
                let at = offsets.entry(descriptor.to_string()).or_default();
                all.push(Did::Write { file, at: *at, data: data.clone() });
                *at += data.len();
            }
            "ftruncate" => all.push(Did::Cut { file, length: number(rest) }),
            "fsync" | "fdatasync" => all.push(Did::Sync { file }),
            _ => {}
        }
    }
    assert!(begun.is_empty(), "calls without an end: {begun:?}");
    all
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    hexadecimal.split("\\x").skip(1).map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
}

/// A file on a disk that has memory.
#[derive(Default)]
struct OnDisk {
    durable: Vec<u8>,
    /// Not yet known to be there.
    open: Vec<(usize, Vec<u8>)>,
}

impl OnDisk {
    fn put(content: &mut Vec<u8>, at: usize, data: &[u8]) {
        content.resize(content.len().max(at + data.len()), 0);
        content[at..at + data.len()].copy_from_slice(data);
    }

    fn sync(&mut self) {
        for (at, data) in std::mem::take(&mut self.open) {
            OnDisk::put(&mut self.durable, at, &data);
        }
    }

    /// What may be there: of what is open each sector that `take` says.
    fn maybe(&self, take: &mut dyn FnMut() -> bool) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (at, data) in &self.open {
            let mut from = 0;
            while from < data.len() {
                let to = data.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
                if take() {
                    OnDisk::put(&mut content, at + from, &data[from..to]);
                }
                from = to;
            }
        }
        content
    }
}

/// Numbers that look like chance, the same in each run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn what_was_acknowledged_is_there_whenever_the_power_goes() {
    let dir = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(dir.path()).unwrap());
    let log = dir.path().join("strace");
    let child = again("power::child_commits_and_copies_its_log", dir.path());
    let mut files: BTreeMap<&str, OnDisk> = BTreeMap::new();
    for end in ["", "-wal"] {
        let name = dir.path().join(format!("{DATABASE}{end}"));
        let durable = std::fs::read(&name).unwrap_or_default();
        files.insert(end, OnDisk { durable, open: Vec::new() });
    }
    let output = Command::new("strace")
        .args(["-f", "-qq", "-y", "-xx", "-s", "99999999", "-e"])
        .arg("trace=write,pwrite64,lseek,ftruncate,fsync,fdatasync")
        .arg("-o")
        .arg(&log)
        .arg(child.get_program())
        .args(child.get_args())
        .env("STORE_DIR", dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("strace is needed: apt-get install strace");
    assert!(output.status.success(), "{output:?}");
    let all = parse(&std::fs::read_to_string(&log).unwrap());

    let path = dir.path().canonicalize().unwrap().join(DATABASE);
    let path = path.to_str().unwrap();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let bed = bed();
    let (mut acknowledged, mut losses, mut copied) = (0, [0, 0, 0], 0);
    for (n, did) in all.iter().enumerate() {
        // Whenever something becomes certain, it can be too late for it; otherwise less is open than then.
        if let Did::Sync { file } | Did::Cut { file, .. } = did
            && file.starts_with(path)
            && files.values().any(|f| !f.open.is_empty())
        {
            for round in 0..5 {
                // None, all, and then ever fewer.
                let mut take = || match round {
                    0 => false,
                    1 => true,
                    _ => !chance.next().is_multiple_of(1 << round),
                };
                let [database, log] = ["", "-wal"].map(|end| files[end].maybe(&mut take));
                let mut store = Files { database, log }.open_in(bed.path());
                let what = format!("round {round} at call {n}, with {acknowledged} acknowledged");
                let there = whole(&mut store, &what);
                let lost =
                    there.checked_sub(acknowledged).unwrap_or_else(|| panic!("{what}: {there} are there"));
                assert!(lost <= 1, "{what}: {there} are there");
                losses[lost as usize] += 1;
            }
        }
        match did {
            Did::Acknowledge(job) => {
                acknowledged = *job;
                let [database, log] = ["", "-wal"].map(|end| files[end].durable.clone());
                let mut store = Files { database, log }.open_in(bed.path());
                assert_eq!(whole(&mut store, "told, and the power goes"), *job);
            }
            Did::Write { file, at, data } => {
                if let Some(f) = file.strip_prefix(path).and_then(|end| files.get_mut(end)) {
                    copied += usize::from(file == path);
                    f.open.push((*at, data.clone()));
                }
            }
            Did::Cut { file, length } => {
                if let Some(f) = file.strip_prefix(path).and_then(|end| files.get_mut(end)) {
                    f.sync();
                    f.durable.resize(*length, 0);
                }
            }
            Did::Sync { file } => {
                if let Some(f) = file.strip_prefix(path).and_then(|end| files.get_mut(end)) {
                    f.sync();
                }
            }
        }
    }
    assert_eq!(acknowledged, BEFORE + BEHIND);
    // All of it was seen: what was lost and what was not, and pages that were copied into the database.
    assert!(losses[0] > 20 && losses[1] > 10 && copied > 1000, "{losses:?}, {copied} pages copied");
}
