//! Subordinate ids: which ones the administrator gave to a user (subuid(5), subgid(5)), and how an ordinary user has them
//! mapped (newuidmap(1), newgidmap(1)).

use crate::hooks::unchangeable;
use crate::plan::IdMap;
use crate::setup::errno_text;
use crate::sys::share::Waiting;
use crate::sys::{Errno, userns};
use berth_model::spec::Identity;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many ids a container has: the user's, as root, and these but one of the user's range.
pub const IDS: u32 = 65_536;

/// Neighbouring ids of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The ids of a container with a range, but for the user's own: [`IDS`] less one of each kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubIds {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

/// Users' ids, or groups'.
#[derive(Clone, Copy)]
struct Kind {
    file: &'static str,
    /// Of usermod(8).
    option: &'static str,
    /// Of getsubids(1).
    list: &'static [&'static str],
}

const UIDS: Kind = Kind { file: "/etc/subuid", option: "--add-subuids", list: &[] };
const GIDS: Kind = Kind { file: "/etc/subgid", option: "--add-subgids", list: &["-g"] };

/// Where ids that nobody has are looked for: login.defs(5), SUB_UID_MIN.
const LOWEST_FREE: u32 = 100_000;

impl SubIds {
    /// Those of a user.
    ///
    /// # Errors
    /// The user has none, or not enough, or they cannot be looked up: which, why, and what to do.
    pub fn of(who: &Identity) -> Result<SubIds, String> {
        let foreign = foreign_source();
        let ranges = |kind: Kind, own: u32| {
            let text = match &foreign {
                Some(source) => listed(kind, who, source)?,
                None => file(kind)?,
            };
            enough(kind, &text, who, own, foreign.as_deref())
        };
        Ok(SubIds { uids: ranges(UIDS, who.uid.0)?, gids: ranges(GIDS, who.gid.0)? })
    }

    /// The maps of a container whose root is the user.
    pub(crate) fn of_container(&self, (uid, gid): (u32, u32)) -> (Vec<IdMap>, Vec<IdMap>) {
        let map = |own: u32, ranges: &[IdRange]| {
            let mut all = vec![IdMap { inside: 0, outside: own, count: 1 }];
            let mut inside = 1;
            for range in ranges {
                all.push(IdMap { inside, outside: range.first, count: range.count });
                inside += range.count;
            }
            all
        };
        (map(uid, &self.uids), map(gid, &self.gids))
    }

    /// The maps of a job's user namespace, in which such containers lie: ids are there as they are on the node.
    pub(crate) fn of_job(&self, (uid, gid): (u32, u32)) -> (Vec<IdMap>, Vec<IdMap>) {
        let map = |own: u32, ranges: &[IdRange]| {
            let ranges = ranges.iter().map(|r| IdMap { inside: r.first, outside: r.first, count: r.count });
            std::iter::once(IdMap { inside: own, outside: own, count: 1 }).chain(ranges).collect()
        };
        (map(uid, &self.uids), map(gid, &self.gids))
    }
}

/// What nsswitch.conf(5) names for subordinate ids, if it is anything but the files.
fn foreign_source() -> Option<String> {
    let text = std::fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    named_source(&text).filter(|source| source != "files")
}

fn named_source(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("subid:"))?;
    let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// The file's text. Whoever can write it gives ids away, so nobody but root may.
fn file(kind: Kind) -> Result<String, String> {
    if !Path::new(kind.file).exists() {
        return Ok(String::new());
    }
    let path = unchangeable(Path::new(kind.file), 0)?;
    std::fs::read(&path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|e| format!("{} cannot be read: {}", kind.file, errno_text(e.raw_os_error().unwrap_or(0))))
}

/// What another source than the files has, in the files' form.
fn listed(kind: Kind, who: &Identity, source: &str) -> Result<String, String> {
    let from = format!("/etc/nsswitch.conf says 'subid: {source}'");
    let program = program("getsubids")
        .ok_or_else(|| format!("{from}, and getsubids is not on this machine to ask it: {PACKAGE}"))?;
    let output = Command::new(&program)
        .args(kind.list)
        .arg(&who.user)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Lines of the form "0: ann 100000 65536"; without a range it says so and fails.
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, owner, first, count] = words[..] {
            format!("{owner}:{first}:{count}\n")
        } else {
            String::new()
        }
    };
    Ok(text.lines().map(line).collect())
}

/// The lines of a file: owner and range. What is no such line is none, as for newuidmap.
fn lines(text: &str) -> impl Iterator<Item = (&str, IdRange)> {
    let number =
        |text: &str| -> Option<u32> { text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())? };
    text.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let (owner, first, count) = (fields.next()?, number(fields.next()?)?, number(fields.next()?)?);
        // The last number is nobody's id.
        let fits = first.checked_add(count).is_some();
        (fields.next().is_none() && count > 0 && fits).then_some((owner, IdRange { first, count }))
    })
}

/// Whether a line's owner is this user: by name, or by number. A name of digits alone is a number's.
fn is_of(owner: &str, who: &Identity) -> bool {
    let numeric = owner.bytes().all(|b| b.is_ascii_digit());
    if numeric { owner == who.uid.0.to_string() } else { owner == who.user }
}

/// As many of the user's ids as a container needs, in the order of the file.
fn enough(
    kind: Kind,
    text: &str,
    who: &Identity,
    own: u32,
    foreign: Option<&str>,
) -> Result<Vec<IdRange>, String> {
    let (name, file) = (&who.user, kind.file);
    let mut found: Vec<IdRange> = Vec::new();
    let (mut left, mut there) = (IDS - 1, 0_u32);
    for (_, range) in lines(text).filter(|(owner, _)| is_of(owner, who)) {
        let holds = |id: u32| id >= range.first && id - range.first < range.count;
        if holds(0) || holds(own) {
            let whose = if holds(0) { "root's id" } else { "the own id" };
            return Err(format!(
                "a range of {name} in {file} ({}:{}) holds {whose}, which cannot be given to a container twice: have root \
                 correct the line",
                range.first, range.count
            ));
        }
        let overlaps = |other: &IdRange| {
            range.first < other.first + other.count && other.first < range.first + range.count
        };
        if found.iter().any(overlaps) {
            return Err(format!(
                "ranges of {name} in {file} overlap at {}: have root correct the lines",
                range.first
            ));
        }
        there = there.saturating_add(range.count);
        let count = range.count.min(left);
        if count > 0 {
            found.push(IdRange { first: range.first, count });
            left -= count;
        }
    }
    if left == 0 {
        return Ok(found);
    }
    let has = if there == 0 { "has no range of ids".to_string() } else { format!("has {there} ids") };
    let needs = if there == 0 { String::new() } else { format!(", and a container needs {}", IDS - 1) };
    Err(match foreign {
        Some(source) => format!(
            "{name} {has} at the source 'subid: {source}' of /etc/nsswitch.conf{needs}: ask whoever gives ids there for more"
        ),
        None => {
            let free = lines(text).map(|(_, r)| r.first.saturating_add(r.count)).max().unwrap_or(0);
            let free = free.max(LOWEST_FREE);
            format!(
                "{name} {has} in {file}{needs}: have root give some that nobody else has: usermod {} {free}-{} {name}",
                kind.option,
                free.saturating_add(IDS - 1)
            )
        }
    })
}

const PACKAGE: &str = "install the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora, RHEL)";

/// Where distributions have the programs that map ids.
const PLACES: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"];

fn program(name: &str) -> Option<PathBuf> {
    PLACES.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// Has ids mapped in the new user namespace of a process of the caller's, by the programs that may.
///
/// # Errors
/// A program is missing, or without its privilege, or refuses: which, why, and what to do.
pub(crate) fn map(pid: i32, uids: &[IdMap], gids: &[IdMap]) -> Result<(), String> {
    for (name, ranges) in [("newuidmap", uids), ("newgidmap", gids)] {
        let program = program(name).ok_or_else(|| format!("{name} is not on this machine: {PACKAGE}"))?;
        let words = ranges.iter().flat_map(|r| [r.inside, r.outside, r.count]).map(|n| n.to_string());
        let output = Command::new(&program)
            .arg(pid.to_string())
            .args(words)
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("{} cannot be run: {e}", program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(refusal(&program, said.lines().last().unwrap_or("it failed without a word")));
        }
    }
    Ok(())
}

fn refusal(program: &Path, said: &str) -> String {
    let shown = program.display();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line.strip_prefix("NoNewPrivs:").is_some_and(|v| v.trim() == "1")) {
        return format!(
            "{shown} gains no right here, because this process runs under no_new_privs (in a container, or in a service \
             with NoNewPrivileges=yes): start it outside of that"
        );
    }
    let set_id =
        std::fs::metadata(program).is_ok_and(|m| m.uid() == 0 && m.permissions().mode() & 0o4000 != 0);
    let capable = rustix::fs::getxattr(program, c"security.capability", &mut [0_u8; 64][..]).is_ok();
    if !set_id && !capable {
        return format!(
            "{shown} has neither its setuid bit nor its file capabilities, so that it maps nothing: have root install its \
             package again, or chmod u+s {shown}"
        );
    }
    format!("{shown} refused: {said}; what it allows stands in /etc/subuid and /etc/subgid")
}

/// Makes a user namespace with these maps, as an ordinary user. The caller must have one thread.
///
/// # Errors
/// As [`map`], or the kernel's.
pub(crate) fn namespace(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd, String> {
    let made = |e: Errno| format!("cannot make a user namespace: {}", errno_text(e.raw_os_error()));
    let child = Waiting::new(libc::CLONE_NEWUSER).map_err(made)?;
    map(child.pid, uids, gids)?;
    userns::of(child.pid).map_err(made)
}

/// Whether the user can have containers with ids of their own, tried.
///
/// # Errors
/// Why not, and what to do.
pub fn available(who: &Identity) -> Result<(), String> {
    let subids = SubIds::of(who)?;
    if crate::facts::is_privileged() {
        return Ok(());
    }
    let (uids, gids) = subids.of_container((who.uid.0, who.gid.0));
    namespace(&uids, &gids).map(drop)
}

/// Enters a user namespace with the maps of the user's containers, as its root: what they left belongs to whoever is in it.
/// The caller must have one thread.
///
/// # Errors
/// As [`SubIds::of`], or the programs' or the kernel's.
pub fn enter(who: &Identity) -> Result<(), String> {
    let (uids, gids) = SubIds::of(who)?.of_container((who.uid.0, who.gid.0));
    let namespace = namespace(&uids, &gids)?;
    rustix::thread::move_into_link_name_space(
        namespace.as_fd(),
        Some(rustix::thread::LinkNameSpaceType::User),
    )
    .map_err(|e| format!("cannot enter a user namespace: {}", errno_text(e.raw_os_error())))
}

/// How many users have ranges in the files.
pub fn users() -> usize {
    let text = file(UIDS).unwrap_or_default();
    let mut owners: Vec<&str> = lines(&text).map(|(owner, _)| owner).collect();
    owners.sort_unstable();
    owners.dedup();
    owners.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::{Gid, Uid};

    fn who(user: &str, uid: u32) -> Identity {
        Identity {
            uid: Uid(uid),
            gid: Gid(uid),
            groups: Vec::new(),
            user: user.into(),
            group: user.into(),
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }

    fn of(text: &str, who: &Identity) -> Result<Vec<(u32, u32)>, String> {
        enough(UIDS, text, who, who.uid.0, None).map(|all| all.iter().map(|r| (r.first, r.count)).collect())
    }

    #[test]
    fn a_container_gets_as_many_as_it_needs_in_the_order_of_the_file() {
        let ann = who("ann", 1000);
        assert_eq!(of("bob:1:2\nann:100000:65536\n", &ann), Ok(vec![(100_000, 65_535)]));
        assert_eq!(
            of("ann:300000:65000\nann:100000:65536\n", &ann),
            Ok(vec![(300_000, 65_000), (100_000, 535)])
        );
        assert_eq!(of("1000:100000:65536", &ann), Ok(vec![(100_000, 65_535)]));
        let subids = SubIds {
            uids: vec![IdRange { first: 300_000, count: 65_000 }, IdRange { first: 100_000, count: 535 }],
            gids: vec![IdRange { first: 100_000, count: 65_535 }],
        };
        let (uids, gids) = subids.of_container((1000, 50));
        let text = crate::setup::map_text;
        assert_eq!(text(&uids), "0 1000 1\n1 300000 65000\n65001 100000 535\n");
        assert_eq!(text(&gids), "0 50 1\n1 100000 65535\n");
        assert_eq!(text(&subids.of_job((1000, 50)).1), "50 50 1\n100000 100000 65535\n");
    }

    #[test]
    fn nobody_gets_what_the_file_gives_to_another() {
        let line = |owner: &str| format!("{owner}:100000:65536\n");
        for (owner, user, uid) in [
            ("anna", "ann", 1000),
            ("an", "ann", 1000),
            ("Ann", "ann", 1000),
            ("ann ", "ann", 1000),
            (" ann", "ann", 1000),
            ("", "ann", 1000),
            ("", "", 1000),
            ("*", "ann", 1000),
            ("ALL", "ann", 1000),
            ("#ann", "ann", 1000),
            ("01000", "ann", 1000),
            ("+1000", "ann", 1000),
            ("10000", "ann", 1000),
            ("100", "ann", 1000),
            // A user whose name is another's number.
            ("1001", "1001", 1000),
        ] {
            let refused = of(&line(owner), &who(user, uid)).unwrap_err();
            assert!(refused.contains("has no range of ids in /etc/subuid"), "{owner:?} {user:?}: {refused}");
        }
    }

    #[test]
    fn lines_that_are_none_give_nothing() {
        let ann = who("ann", 1000);
        for text in [
            "ann",
            "ann:",
            "ann:100000",
            "ann:100000:",
            "ann:100000:0",
            "ann:-5:65536",
            "ann:+100000:65536",
            "ann:100000: 65536",
            "ann:100000:65536:x",
            "ann:0x100:65536",
            "ann:4294967295:65536",
            "ann:4294900000:4294900000",
            "ann:100000:99999999999",
            "x\rann:100000:65536",
        ] {
            assert!(of(text, &ann).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let ann = who("ann", 1000);
        let refused = of("bob:100000:65536\n", &ann).unwrap_err();
        assert!(refused.ends_with("usermod --add-subuids 165536-231071 ann"), "{refused}");
        let refused = of("ann:100000:1000\n", &ann).unwrap_err();
        assert!(refused.contains("has 1000 ids") && refused.contains("needs 65535"), "{refused}");
        for (line, why) in [("ann:0:65536", "root's id"), ("ann:1000:65536", "the own id")] {
            let refused = of(line, &ann).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        let refused = of("ann:100000:60000\nann:120000:65536", &ann).unwrap_err();
        assert!(refused.contains("overlap"), "{refused}");
    }

    #[test]
    fn the_source_of_ids() {
        assert_eq!(named_source("passwd: files\n"), None);
        assert_eq!(named_source("subid: sss # domain\n"), Some("sss".into()));
        assert_eq!(named_source("subid:\tfiles\n"), Some("files".into()));
        assert_eq!(named_source("#subid: sss\n"), None);
    }
}
