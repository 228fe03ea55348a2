//! From a mount of config.json to what is done for it: the table of mount options.

use super::maps::{IdRange, ranges};
use crate::oci::error::{Result, invalid, unsupported};
use berth_model::ByteStr;
use oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A file or directory of the runtime's mount namespace.
    Bind {
        /// Absolute; a relative one of the configuration is relative to the bundle.
        path: ByteStr,
        /// With what is mounted below it.
        recursive: bool,
    },
    /// A filesystem without a device, or with the source that the configuration names.
    Filesystem {
        /// Its kernel name.
        kind: String,
        /// As the configuration has it.
        source: String,
        /// Its own options; no value means a flag.
        options: Vec<(String, Option<String>)>,
    },
    /// The container's own control groups.
    Cgroup,
}

/// A change of id mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idmap {
    /// Users; empty: those of the container's user namespace.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
    /// What is mounted below it too.
    pub recursive: bool,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path in the container.
    pub target: ByteStr,
    /// What.
    pub source: Source,
    /// `MOUNT_ATTR_*` flags of this mount.
    pub set: u64,
    /// Those set on the whole tree.
    pub set_below: u64,
    /// Those cleared on the whole tree.
    pub clear_below: u64,
    /// `MS_SHARED` and its like, and whether for the whole tree.
    pub propagation: Option<(u64, bool)>,
    /// Id mapping of the mount.
    pub idmap: Option<Idmap>,
    /// Copies what the image has there into a new tmpfs.
    pub copy_up: bool,
}

// linux/mount.h
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const ATIME: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// Options of a mount point: the word, the flags it sets, the flags it clears. With an `r` in front each
/// is for the whole tree.
const ATTRIBUTES: [(&str, u64, u64); 18] = [
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("relatime", 0, ATIME),
    ("norelatime", 0, 0),
    ("noatime", NOATIME, ATIME),
    ("atime", 0, NOATIME),
    ("strictatime", STRICTATIME, ATIME),
    ("nostrictatime", 0, STRICTATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
];

const PROPAGATION: [(&str, libc::c_ulong); 4] = [
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("private", libc::MS_PRIVATE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Flags of a filesystem as a whole.
const SUPERBLOCK: [&str; 5] = ["sync", "dirsync", "mand", "lazytime", "iversion"];

/// What is so already: the opposites of the flags above.
const NOTHING: [&str; 6] = ["defaults", "async", "nomand", "nolazytime", "noiversion", "loud"];

/// What a propagation of config.json stands for: the `MS_*` flag, and whether for the whole tree.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    let find = |w: &str| PROPAGATION.iter().find(|(name, _)| *name == w).map(|(_, flag)| *flag);
    find(word)
        .map(|flag| (flag, false))
        .or_else(|| word.strip_prefix('r').and_then(find).map(|flag| (flag, true)))
}

/// All option words, for `features`.
pub fn known_options() -> Vec<String> {
    let mut all: Vec<String> = ["bind", "rbind", "idmap", "ridmap", "tmpcopyup"].map(String::from).to_vec();
    all.extend(ATTRIBUTES.iter().flat_map(|(w, ..)| [(*w).to_string(), format!("r{w}")]));
    all.extend(PROPAGATION.iter().flat_map(|(w, _)| [(*w).to_string(), format!("r{w}")]));
    all.extend(SUPERBLOCK.iter().chain(&NOTHING).map(|w| (*w).to_string()));
    all.sort();
    all
}

/// Plans one mount of the configuration.
pub fn plan(m: &Mount, bundle: &Path) -> Result<MountPlan> {
    let target = target(m.destination())?;
    let mut p = MountPlan {
        target,
        source: Source::Cgroup,
        set: 0,
        set_below: 0,
        clear_below: 0,
        propagation: None,
        idmap: None,
        copy_up: false,
    };
    let mut bind = None;
    let mut data: Vec<(String, Option<String>)> = Vec::new();
    let mut idmap = None;
    for word in m.options().iter().flatten() {
        match word.as_str() {
            "bind" => bind = Some(bind.unwrap_or(false)),
            "rbind" => bind = Some(true),
            "idmap" => idmap = Some(false),
            "ridmap" => idmap = Some(true),
            "tmpcopyup" => p.copy_up = true,
            "remount" => {
                return Err(unsupported("the mount option remount", "give the options on the mount itself"));
            }
            "copy-symlink" | "dest-nofollow" | "src-nofollow" => {
                return Err(unsupported(
                    format!("the mount option {word}"),
                    "name the place that the link leads to",
                ));
            }
            word if attribute(&mut p, word) => {}
            word if NOTHING.contains(&word) => {}
            word => {
                if let Some(found) = propagation(word) {
                    p.propagation = Some(found);
                } else if let Some((key, value)) = word.split_once('=') {
                    data.push((key.into(), Some(value.into())));
                } else {
                    data.push((word.into(), None));
                }
            }
        }
    }
    let kind = m.typ().as_deref().unwrap_or_default();
    if kind == "bind" && bind.is_none() {
        bind = Some(false);
    }
    p.source = source(m, bundle, kind, bind, data, &p)?;
    if m.uid_mappings().is_some() != m.gid_mappings().is_some() {
        let what = format!("the mount on {} has only one of uidMappings and gidMappings", p.target.display());
        return Err(invalid(what, "give both"));
    }
    if idmap.is_some() || m.uid_mappings().is_some() {
        let list = |list: &Option<Vec<_>>| ranges(list.as_deref().unwrap_or_default());
        p.idmap = Some(Idmap {
            uids: list(m.uid_mappings())?,
            gids: list(m.gid_mappings())?,
            recursive: idmap.unwrap_or(false),
        });
    }
    if p.copy_up && !matches!(&p.source, Source::Filesystem { kind, .. } if kind == "tmpfs") {
        return Err(invalid("the mount option tmpcopyup is for tmpfs alone", "leave it out"));
    }
    Ok(p)
}

fn attribute(p: &mut MountPlan, word: &str) -> bool {
    let find = |w: &str| ATTRIBUTES.iter().find(|(name, ..)| *name == w);
    if let Some((_, set, clear)) = find(word) {
        p.set = p.set & !clear | set;
        return true;
    }
    if let Some((_, set, clear)) = word.strip_prefix('r').and_then(find) {
        p.set_below = p.set_below & !clear | set;
        p.clear_below = p.clear_below & !set | clear;
        return true;
    }
    false
}

/// An absolute path without `..`; a relative one counts from the root, as the specification once allowed.
pub fn target(path: &Path) -> Result<ByteStr> {
    let mut out = Vec::new();
    for part in path.as_os_str().as_bytes().split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let what = format!("the path {} has a .. in it", path.display());
                return Err(invalid(what, "write it without"));
            }
            part if part.contains(&0) => {
                return Err(invalid("a path has a zero byte in it", "write it without"));
            }
            part => {
                out.push(b'/');
                out.extend_from_slice(part);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Ok(ByteStr(out))
}

fn source(
    m: &Mount,
    bundle: &Path,
    kind: &str,
    bind: Option<bool>,
    data: Vec<(String, Option<String>)>,
    p: &MountPlan,
) -> Result<Source> {
    let target = p.target.display().into_owned();
    if let Some(recursive) = bind {
        // As mount(2) has it, a filesystem's own settings (`key=value`) mean nothing to a bind; a flag does.
        if let Some((option, _)) = data.iter().find(|(_, value)| value.is_none()) {
            let what = format!("the option {option} of the bind mount on {target}");
            return Err(unsupported(what, "a bind mount has options of a mount point alone"));
        }
        let Some(path) = m.source() else {
            return Err(invalid(format!("the bind mount on {target} has no source"), "name one"));
        };
        return Ok(Source::Bind { path: bundle.join(path).as_path().into(), recursive });
    }
    match kind {
        "" => Err(invalid(format!("the mount on {target} has no type"), "name one, or the option bind")),
        "cgroup" => Ok(Source::Cgroup),
        kind => {
            let source = m.source().as_ref().map_or(kind.into(), |s| s.to_string_lossy().into_owned());
            Ok(Source::Filesystem { kind: kind.into(), source, options: data })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(json: &str) -> Result<MountPlan> {
        plan(&serde_json::from_str(json).unwrap(), Path::new("/bundle"))
    }

    #[test]
    fn options_of_the_mount_and_of_the_tree() {
        let m = mount(
            r#"{"destination":"/a/./b","source":"x","options":["rbind","ro","rw","nosuid","rro","rnoexec","rexec","rslave","rnoatime"]}"#,
        )
        .unwrap();
        assert_eq!(m.target, ByteStr::from("/a/b"));
        assert_eq!(m.source, Source::Bind { path: "/bundle/x".into(), recursive: true });
        assert_eq!((m.set, m.set_below, m.clear_below), (NOSUID, RDONLY | NOATIME, NOEXEC | ATIME));
        assert_eq!(m.propagation, Some((libc::MS_SLAVE, true)));
    }

    #[test]
    fn options_of_the_filesystem() {
        let m = mount(
            r#"{"destination":"/t","type":"tmpfs","options":["size=1m","mode=755","sync","defaults"]}"#,
        );
        let Source::Filesystem { kind, options, .. } = m.unwrap().source else { panic!() };
        assert_eq!(kind, "tmpfs");
        assert_eq!(
            options,
            [("size".into(), Some("1m".into())), ("mode".into(), Some("755".into())), ("sync".into(), None)]
        );
    }

    #[test]
    fn refused_by_name() {
        for (json, word) in [
            (r#"{"destination":"/t","source":"/x","options":["bind","noexce"]}"#, "noexce"),
            (r#"{"destination":"/t","source":"/x","options":["remount"]}"#, "remount"),
            (r#"{"destination":"/t/../../etc","source":"/x","options":["bind"]}"#, ".."),
            (r#"{"destination":"/t","options":["bind"]}"#, "source"),
            (r#"{"destination":"/t","source":"/x"}"#, "type"),
            (r#"{"destination":"/t","source":"/x","type":"proc","options":["tmpcopyup"]}"#, "tmpcopyup"),
        ] {
            let error = mount(json).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
