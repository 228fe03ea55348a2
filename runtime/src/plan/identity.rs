//! Who the processes are: id maps, the image's USER, and the lines of `/etc/passwd` and `/etc/group`.

use super::{EtcFile, Mode, PlanError};
use crate::facts::HostFacts;
use crate::request::{ContainerRequest, Rootfs};
use crate::subids::SubIds;
use berth_model::ByteStr;
use berth_model::spec::Identity;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// One line of a user namespace's map: ids from `inside` on are those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id in the namespace.
    pub inside: u32,
    /// First id above it: on the node, or in the job's namespace.
    pub outside: u32,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
}

fn one() -> u32 {
    1
}

impl IdMap {
    pub(crate) fn of_one(inside: u32, outside: u32) -> IdMap {
        IdMap { inside, outside, count: 1 }
    }
}

/// The user's ids, on the node and in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// uid on the node.
    pub uid: u32,
    /// gid on the node.
    pub gid: u32,
    /// Supplementary groups on the node.
    pub groups: Vec<u32>,
    /// uid in the container.
    pub inside_uid: u32,
    /// gid in the container.
    pub inside_gid: u32,
    /// Supplementary groups in the container (system mode; in user mode the kernel keeps the caller's).
    pub inside_groups: Vec<u32>,
    /// Groups on the node that come with devices (system mode).
    #[serde(default)]
    pub device_groups: Vec<u32>,
    /// Capabilities over the container's own user namespace are kept (`--container-remap-root`).
    pub keep_caps: bool,
}

/// A parsed `USER` of an image: `user`, `uid`, `user:group` or `uid:gid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec {
    /// Name or number.
    pub user: Principal,
    /// Name or number of the group.
    pub group: Option<Principal>,
}

/// A user or group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Digits alone.
    Id(u32),
    /// A name.
    Name(String),
}

impl FromStr for Principal {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.is_empty() {
            return Err("has an empty part");
        }
        if s.bytes().all(|b| b.is_ascii_digit()) {
            // (uid_t) -1 means "leave as it is" to the kernel, so it is nobody's id.
            return match s.parse::<u32>() {
                Ok(id) if id != u32::MAX => Ok(Principal::Id(id)),
                _ => Err("has a number above 4294967294"),
            };
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$' | b'@' | b'\\');
        if s.starts_with('-') || !s.bytes().all(fits) {
            return Err("is no name");
        }
        Ok(Principal::Name(s.into()))
    }
}

impl FromStr for UserSpec {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.split_once(':') {
            None => Ok(UserSpec { user: s.parse()?, group: None }),
            Some((user, group)) => Ok(UserSpec { user: user.parse()?, group: Some(group.parse()?) }),
        }
    }
}

pub(super) struct Ids {
    pub process: ProcessIdentity,
    pub uid_map: Vec<IdMap>,
    pub gid_map: Vec<IdMap>,
}

pub(super) fn plan(
    request: &ContainerRequest,
    mode: Mode,
    host: bool,
    subids: Option<&SubIds>,
    notes: &mut Vec<String>,
) -> Result<Ids, PlanError> {
    let who = &request.identity;
    let (uid, gid) = (who.uid.0, who.gid.0);
    if !host && let Some(text) = request.image.user.as_deref().filter(|t| !t.is_empty()) {
        let spec: UserSpec = text
            .parse()
            .map_err(|reason: &str| PlanError::ImageUser { text: text.into(), reason: reason.into() })?;
        let inside = if request.remap_root { 0 } else { uid };
        if spec.user != Principal::Id(inside) {
            notes.push(format!(
                "the image asks for USER {text}; the container runs as {}, the job's own user",
                if request.remap_root { "root, mapped to" } else { &who.user }
            ));
        }
    }
    if let Some(name) = &request.hostname {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
            return Err(PlanError::Hostname(name.clone()));
        }
    }
    let groups = other_groups(who);
    let (inside_uid, inside_gid) = if request.remap_root { (0, 0) } else { (uid, gid) };
    let (uid_map, gid_map) = match subids {
        Some(subids) => subids.of_container((uid, gid)),
        None => maps(who, mode, request.remap_root),
    };
    if mode == Mode::System && !request.subids && groups.len() >= MAX_MAP_LINES {
        notes.push(format!(
            "{} supplementary groups; the kernel maps {MAX_MAP_LINES}, the others are left out",
            groups.len()
        ));
    }
    // Beside a range groups have no number inside, and what they grant all the same.
    let inside_groups = match request.subids {
        true => Vec::new(),
        false => gid_map.iter().skip(1).map(|m| m.inside).collect(),
    };
    Ok(Ids {
        process: ProcessIdentity {
            uid,
            gid,
            groups,
            inside_uid,
            inside_gid,
            inside_groups,
            device_groups: match mode {
                Mode::System if !host => request.device_groups.clone(),
                _ => Vec::new(),
            },
            keep_caps: !host && request.remap_root,
        },
        uid_map,
        gid_map,
    })
}

fn other_groups(who: &Identity) -> Vec<u32> {
    let mut groups: Vec<u32> = who.groups.iter().map(|g| g.0).filter(|g| *g != who.gid.0).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The maps of the user namespace that a job's containers share; `subids`: where it is to hold containers with these.
pub(crate) fn job_maps(who: &Identity, mode: Mode, subids: Option<&SubIds>) -> (Vec<IdMap>, Vec<IdMap>) {
    match subids {
        Some(subids) => subids.of_job((who.uid.0, who.gid.0)),
        None => maps(who, mode, false),
    }
}

fn maps(who: &Identity, mode: Mode, remap_root: bool) -> (Vec<IdMap>, Vec<IdMap>) {
    let (inside_uid, inside_gid) = if remap_root { (0, 0) } else { (who.uid.0, who.gid.0) };
    let uid_map = vec![IdMap::of_one(inside_uid, who.uid.0)];
    let mut gid_map = vec![IdMap::of_one(inside_gid, who.gid.0)];
    if mode == Mode::System {
        // A group whose number the primary group already has inside cannot be mapped as well.
        let rest = other_groups(who).into_iter().filter(|g| *g != inside_gid);
        gid_map.extend(rest.map(|g| IdMap::of_one(g, g)));
        gid_map.truncate(MAX_MAP_LINES);
    }
    (uid_map, gid_map)
}

/// The kernel's limit on lines in `uid_map` and `gid_map` (user_namespaces(7)).
const MAX_MAP_LINES: usize = 340;

/// HOME in the container.
pub(super) fn home(request: &ContainerRequest, host: bool) -> ByteStr {
    if !host && request.remap_root && !request.mount_home {
        return "/root".into();
    }
    request.identity.home.clone()
}

pub(super) fn etc_files(
    request: &ContainerRequest,
    mode: Mode,
    home: &ByteStr,
    facts: &HostFacts,
) -> Result<Vec<EtcFile>, PlanError> {
    let who = &request.identity;
    let name = if request.remap_root { "root" } else { &who.user };
    let unfit = |s: &str| s.is_empty() || s.contains([':', '\n', '\r', '\0', '/']);
    if unfit(name) {
        return Err(PlanError::UserName(name.into()));
    }
    let home_text = field(home, "/");
    let shell = field(&who.shell, FALLBACK_SHELL);
    let (uid, gid) = if request.remap_root { (0, 0) } else { (who.uid.0, who.gid.0) };
    let line = |shell: &str| format!("{name}:x:{uid}:{gid}:{name}:{home_text}:{shell}");
    let mut groups = vec![(gid, if request.remap_root { "root".into() } else { who.group.clone() })];
    if mode == Mode::System && !request.subids {
        for g in who.groups.iter().filter(|g| **g != who.gid) {
            let known = request.group_names.get(&g.0).or_else(|| facts.group_names.get(&g.0));
            groups.push((g.0, known.cloned().unwrap_or_else(|| format!("group{}", g.0))));
        }
    }
    for (gid, group) in &mut groups {
        if unfit(group) {
            *group = format!("group{gid}");
        }
    }
    let mut files = vec![
        EtcFile::Passwd {
            line: line(&shell),
            name: name.into(),
            fallback_line: line(FALLBACK_SHELL),
            shell: ByteStr::from(shell.as_str()),
        },
        EtcFile::Group { groups },
    ];
    // A root directory that is written in place keeps its own time zone: there it is a link that would have to go.
    let in_place = matches!(request.root, Rootfs::Dir(_)) && request.writable == Some(true);
    let zone = facts.localtime.as_ref().filter(|_| !in_place).cloned();
    for (name, content) in
        [("resolv.conf", &facts.resolv_conf), ("hosts", &facts.hosts), ("localtime", &zone)]
    {
        if let Some(content) = content {
            files.push(EtcFile::Copy { name: name.into(), content: content.clone() });
        }
    }
    let hostname = request.hostname.as_deref().unwrap_or(&facts.hostname);
    if !hostname.is_empty() {
        files.push(EtcFile::Copy { name: "hostname".into(), content: format!("{hostname}\n").into() });
    }
    Ok(files)
}

const FALLBACK_SHELL: &str = "/bin/sh";

/// A path as a field of `/etc/passwd`, which cannot hold every byte.
fn field(path: &ByteStr, otherwise: &str) -> String {
    match std::str::from_utf8(&path.0) {
        Ok(text) if text.starts_with('/') && !text.contains([':', '\n', '\r', '\0']) => text.into(),
        _ => otherwise.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn user_strings() {
        let id = |n| Principal::Id(n);
        let name = |s: &str| Principal::Name(s.into());
        assert_eq!("1000".parse(), Ok(UserSpec { user: id(1000), group: None }));
        assert_eq!("app:0".parse(), Ok(UserSpec { user: name("app"), group: Some(id(0)) }));
        for bad in [
            "",
            ":",
            "a:",
            ":b",
            "a:b:c",
            "4294967295",
            "4294967296",
            "-1",
            "a b",
            "a\n",
            "é",
            "18446744073709551616",
        ] {
            assert!(bad.parse::<UserSpec>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_number_is_itself_or_refused(n in any::<u64>()) {
            match n.to_string().parse::<Principal>() {
                Ok(Principal::Id(id)) => prop_assert_eq!(u64::from(id), n),
                Ok(Principal::Name(_)) => prop_assert!(false, "a number became a name"),
                Err(_) => prop_assert!(n >= u64::from(u32::MAX)),
            }
        }

        #[test]
        fn no_user_string_panics(s in ".{0,40}") {
            let _ = s.parse::<UserSpec>();
        }
    }
}
