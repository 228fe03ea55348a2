//! The flags of a `--container-mounts` entry: one grammar, by which the client refuses and the planner acts.

use crate::spec::MountSpec;

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountWhat {
    /// Shows something of the node.
    Bind,
    /// Makes an empty filesystem in memory.
    Tmpfs,
    /// Takes away what is mounted.
    Umount,
}

impl MountWhat {
    /// By the entry's source.
    pub fn of(source: &[u8]) -> MountWhat {
        match source {
            b"tmpfs" => MountWhat::Tmpfs,
            b"umount" => MountWhat::Umount,
            _ => MountWhat::Bind,
        }
    }

    fn takes(self, flag: &str) -> bool {
        let list = match self {
            MountWhat::Bind => BIND,
            MountWhat::Tmpfs => TMPFS,
            MountWhat::Umount => UMOUNT,
        };
        list.iter().any(|known| match known.strip_suffix('=') {
            Some(name) => flag.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')),
            None => *known == flag,
        })
    }
}

/// What a target is made as where it does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MakeTarget {
    /// As what the source is.
    #[default]
    Auto,
    /// A directory; a source that is a file is an error.
    Directory,
    /// A file; a source that is a directory is an error.
    File,
}

/// The flags of an entry, read. What is absent was not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// `ro` or `rw`.
    pub read_only: Option<bool>,
    /// `dev` or `nodev`.
    pub dev: Option<bool>,
    /// `exec` or `noexec`.
    pub exec: Option<bool>,
    /// `rbind` or `bind`.
    pub recursive: Option<bool>,
    /// `slave` or `private`: whether what the node mounts there later appears too.
    pub slave: Option<bool>,
    /// `x-create=`.
    pub make: Option<MakeTarget>,
    /// `size=`, in bytes.
    pub size: Option<u64>,
    /// `mode=`.
    pub mode: Option<u32>,
    /// `nofail`: the container does without where the mount cannot be made.
    pub optional: bool,
    /// `silent`: and nothing is said of it.
    pub silent: bool,
}

const BIND: &[&str] = &[
    "ro",
    "rw",
    "dev",
    "nodev",
    "nosuid",
    "exec",
    "noexec",
    "bind",
    "rbind",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "x-create=auto",
    "x-create=dir",
    "x-create=file",
    "nofail",
    "silent",
];
const TMPFS: &[&str] =
    &["size=", "mode=", "ro", "rw", "nodev", "nosuid", "exec", "noexec", "x-create=dir", "nofail", "silent"];
const UMOUNT: &[&str] = &["x-detach", "nofail", "silent"];

/// Flags of mount(8) and of Enroot's tables that have no meaning here, and what to do instead.
const REFUSED: &[(&[&str], &str)] = &[
    (&["suid"], "files that change their user gain nothing in a container; leave it out"),
    (
        &["shared", "rshared", "unbindable", "runbindable"],
        "what a container mounts never reaches the node; write rslave to see what the node mounts later",
    ),
    (&["remount"], "write the flags into the entry that mounts it"),
    (&["x-move", "move"], "what the node has mounted stays where it is; use rbind"),
    (
        &[
            "atime",
            "noatime",
            "diratime",
            "nodiratime",
            "relatime",
            "norelatime",
            "strictatime",
            "nostrictatime",
            "lazytime",
            "nolazytime",
            "iversion",
            "noiversion",
            "sync",
            "async",
            "dirsync",
            "mand",
            "nomand",
        ],
        "it is decided where the node mounts the filesystem; leave it out",
    ),
    (
        &["defaults", "rec", "loud", "auto", "noauto", "user", "nouser", "users"],
        "it changes nothing; leave it out",
    ),
    (&["nr_inodes", "nr_blocks"], "bound it by size="),
    (&["uid", "gid"], "the filesystem is yours; leave it out"),
    (&["z", "Z"], "there are no labels to change; leave it out"),
];

/// Reads an entry's flags.
///
/// # Errors
/// The reason, without the entry: a flag that is unknown, that its kind of mount does not have, a value that cannot be
/// read, or two flags that exclude each other.
pub fn mount_flags(spec: &MountSpec) -> Result<MountFlags, String> {
    let what = MountWhat::of(&spec.source.0);
    let mut read = MountFlags::default();
    for flag in &spec.flags {
        if !what.takes(flag) {
            return Err(refusal(what, flag));
        }
        one(&mut read, flag)?;
    }
    if read.silent && !read.optional {
        return Err(
            "'silent' goes with 'nofail': a mount that is needed and fails is always reported".to_string()
        );
    }
    Ok(read)
}

fn one(read: &mut MountFlags, flag: &str) -> Result<(), String> {
    match flag {
        "ro" | "rw" => choose(&mut read.read_only, flag == "ro", "ro", "rw"),
        "dev" | "nodev" => choose(&mut read.dev, flag == "dev", "dev", "nodev"),
        "exec" | "noexec" => choose(&mut read.exec, flag == "exec", "exec", "noexec"),
        "bind" | "rbind" => choose(&mut read.recursive, flag == "rbind", "bind", "rbind"),
        "slave" | "rslave" => choose(&mut read.slave, true, "slave", "private"),
        "private" | "rprivate" => choose(&mut read.slave, false, "slave", "private"),
        "x-create=auto" => choose(&mut read.make, MakeTarget::Auto, "one x-create", "another"),
        "x-create=dir" => choose(&mut read.make, MakeTarget::Directory, "one x-create", "another"),
        "x-create=file" => choose(&mut read.make, MakeTarget::File, "one x-create", "another"),
        "nofail" => set(&mut read.optional),
        "silent" => set(&mut read.silent),
        // Every container has it anyway, and detaching is what taking away means here.
        "nosuid" | "x-detach" => Ok(()),
        _ => value(read, flag),
    }
}

fn set(slot: &mut bool) -> Result<(), String> {
    *slot = true;
    Ok(())
}

fn choose<T: PartialEq>(slot: &mut Option<T>, value: T, one: &str, other: &str) -> Result<(), String> {
    if slot.as_ref().is_some_and(|there| *there != value) {
        return Err(format!("both {one} and {other} were specified"));
    }
    *slot = Some(value);
    Ok(())
}

fn value(read: &mut MountFlags, flag: &str) -> Result<(), String> {
    let (name, text) = flag.split_once('=').unwrap_or((flag, ""));
    match name {
        "size" => {
            let number = size(text).ok_or_else(|| match text.ends_with('%') {
                true => format!(
                    "'{flag}': parts of the node's memory are not yours to have; write bytes, such as size=2g"
                ),
                false => format!("'{flag}': expected a number above 0, with k, m or g where wanted"),
            })?;
            choose(&mut read.size, number, "one size", "another")
        }
        _ => {
            let octal = !text.is_empty() && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o7777);
            let mode = mode.ok_or_else(|| format!("'{flag}': expected an octal number up to 7777"))?;
            choose(&mut read.mode, mode, "one mode", "another")
        }
    }
}

fn refusal(what: MountWhat, flag: &str) -> String {
    let name = flag.split_once('=').map_or(flag, |(name, _)| name);
    if let Some((_, why)) = REFUSED.iter().find(|(names, _)| names.contains(&name)) {
        return format!("the mount flag '{flag}' has no meaning here: {why}");
    }
    let (kind, list) = match what {
        MountWhat::Bind => ("a path of the node", BIND),
        MountWhat::Tmpfs => ("tmpfs", TMPFS),
        MountWhat::Umount => ("umount", UMOUNT),
    };
    let known = [MountWhat::Bind, MountWhat::Tmpfs, MountWhat::Umount].iter().any(|other| other.takes(flag));
    let fault = if known { "is none of" } else { "is unknown; flags of" };
    format!("the mount flag '{flag}' {fault} {kind}, joined by +: {}", list.join(" "))
}

/// A size as tmpfs(5) reads it: a number, or with `k`, `m` or `g`. Nothing would mean without a limit.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit).filter(|n| *n > 0)
}

/// Whether a word is a flag that some mount takes, or that is refused by name: for a hint at a comma that should have
/// been a plus.
pub(crate) fn is_flag(word: &[u8]) -> bool {
    let Ok(word) = std::str::from_utf8(word) else { return false };
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    [MountWhat::Bind, MountWhat::Tmpfs, MountWhat::Umount].iter().any(|what| what.takes(word))
        || REFUSED.iter().any(|(names, _)| names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(source: &str, flags: &str) -> Result<MountFlags, String> {
        let flags = flags.split('+').filter(|f| !f.is_empty()).map(str::to_string).collect();
        mount_flags(&MountSpec { source: source.into(), target: "/x".into(), flags })
    }

    #[test]
    fn flags_are_read() {
        let flags = read("/a", "ro+nodev+noexec+bind+rslave+x-create=file+nofail+silent").unwrap();
        let expected = MountFlags {
            read_only: Some(true),
            dev: Some(false),
            exec: Some(false),
            recursive: Some(false),
            slave: Some(true),
            make: Some(MakeTarget::File),
            optional: true,
            silent: true,
            ..MountFlags::default()
        };
        assert_eq!(flags, expected);
        let flags = read("tmpfs", "size=2g+mode=1777").unwrap();
        assert_eq!((flags.size, flags.mode), (Some(2 << 30), Some(0o1777)));
        assert_eq!(read("umount", "x-detach").unwrap(), MountFlags::default());
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (source, flags, text) in [
            ("/a", "rshared", "never reaches the node"),
            ("/a", "suid", "leave it out"),
            ("/a", "remount", "the entry that mounts it"),
            ("/a", "x-move", "use rbind"),
            ("/a", "noatime", "where the node mounts the filesystem"),
            ("/a", "size=4k", "'size=4k' is none of a path of the node"),
            ("/a", "sticky", "'sticky' is unknown"),
            ("/a", "ro+rw", "both ro and rw"),
            ("/a", "x-create=dir+x-create=file", "both one x-create and another"),
            ("/a", "silent", "goes with 'nofail'"),
            ("/a", "x-create", "'x-create' is unknown"),
            ("tmpfs", "bind", "'bind' is none of tmpfs"),
            ("tmpfs", "dev", "'dev' is none of tmpfs"),
            ("tmpfs", "size=50%", "write bytes"),
            ("tmpfs", "size=0", "a number above 0"),
            ("tmpfs", "size=18446744073709551616", "a number above 0"),
            ("tmpfs", "mode=888", "octal"),
            ("tmpfs", "mode=+7", "octal"),
            ("tmpfs", "nr_inodes=3", "bound it by size"),
            ("tmpfs", "uid=3", "the filesystem is yours"),
            ("umount", "ro", "'ro' is none of umount"),
        ] {
            let error = read(source, flags).unwrap_err();
            assert!(error.contains(text), "{source} {flags}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_flag_panics(flag in ".{0,20}", source in prop_oneof![Just("tmpfs"), Just("umount"), Just("/a")]) {
            let _ = mount_flags(&MountSpec { source: source.into(), target: "/x".into(), flags: vec![flag] });
        }
    }
}
