//! `--container-mounts`: `SOURCE[:TARGET[:FLAG+FLAG...]],...` with Pyxis's meaning.

use crate::mount::{MountWhat, is_flag, mount_flags};
use crate::spec::MountSpec;

/// A mount entry that cannot be read; in Pyxis's words where it has them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadMount(pub String);

/// The entries of a list. A source alone is its own target. A path cannot contain a comma or a colon.
pub fn parse_mounts(text: &[u8]) -> Result<Vec<MountSpec>, BadMount> {
    let mut mounts: Vec<MountSpec> = Vec::new();
    for entry in text.split(|b| *b == b',') {
        let mount = entry_of(entry)?;
        if !mounts.contains(&mount) {
            mounts.push(mount);
        }
    }
    Ok(mounts)
}

fn entry_of(entry: &[u8]) -> Result<MountSpec, BadMount> {
    let shown = String::from_utf8_lossy(entry).into_owned();
    let mut parts = entry.splitn(3, |b| *b == b':');
    let source = parts.next().unwrap_or_default();
    let special = MountWhat::of(source) != MountWhat::Bind;
    if source.is_empty() {
        return Err(BadMount(format!("--container-mounts: invalid format: '{shown}'")));
    }
    if !entry.contains(&b':') && is_flag(entry) {
        return Err(BadMount(format!(
            "--container-mounts: '{shown}': mount source must be a path; flags are joined by '+' (SOURCE:TARGET:ro+noexec)"
        )));
    }
    if !special && !matches!(source[0], b'/' | b'.') {
        return Err(BadMount(format!(
            "--container-mounts: '{shown}': mount source must be a relative path, an absolute path, \"tmpfs\" or \
             \"umount\"; a relative one begins with ./"
        )));
    }
    let target = match parts.next() {
        Some(target) => target,
        None if special => {
            return Err(BadMount(format!(
                "--container-mounts: '{shown}': write {}:TARGET",
                String::from_utf8_lossy(source)
            )));
        }
        None => source,
    };
    if !matches!(target.first(), Some(b'/' | b'.')) || (special && target.first() != Some(&b'/')) {
        return Err(BadMount(format!(
            "--container-mounts: '{shown}': mount target must be a relative path or an absolute path"
        )));
    }
    let mut flags: Vec<String> = Vec::new();
    if let Some(list) = parts.next() {
        for flag in list.split(|b| *b == b'+') {
            let flag = String::from_utf8_lossy(flag).into_owned();
            if !flags.contains(&flag) {
                flags.push(flag);
            }
        }
    }
    let mount = MountSpec { source: source.into(), target: target.into(), flags };
    match mount_flags(&mount) {
        Ok(_) => Ok(mount),
        Err(why) => Err(BadMount(format!("--container-mounts: '{shown}': {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        let mounts = parse_mounts(text.as_bytes()).unwrap();
        let show =
            |m: &MountSpec| format!("{}>{}>{}", m.source.display(), m.target.display(), m.flags.join("+"));
        mounts.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn entries_have_pyxis_meaning() {
        for (text, expected) in [
            ("/data", "/data>/data>"),
            ("/a:/b", "/a>/b>"),
            ("/a:/b:ro+nosuid", "/a>/b>ro+nosuid"),
            ("./here:/there,/a", "./here>/there> /a>/a>"),
            ("tmpfs:/scratch:size=1g+mode=700", "tmpfs>/scratch>size=1g+mode=700"),
            ("umount:/data", "umount>/data>"),
            ("/a:/b,/a:/b", "/a>/b>"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        for (text, part) in [
            ("", "invalid format"),
            ("/a,", "invalid format"),
            ("data:/b", "mount source must be"),
            ("/a:b", "mount target must be"),
            ("/a::ro", "mount target must be"),
            ("tmpfs", "tmpfs:TARGET"),
            ("/a:/b:bogus", "the mount flag 'bogus' is unknown"),
            ("/a:/b:size=3", "is none of a path of the node"),
            ("/a:/b:ro,noexec", "joined by '+'"),
            ("/a:/b:", "the mount flag '' is unknown"),
            ("/a:/b:ro+rw", "both ro and rw"),
        ] {
            let error = parse_mounts(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(prop_oneof![Just(b':'), Just(b','), Just(b'/'), Just(b'+'), any::<u8>()], 0..40)) {
            let _ = parse_mounts(&text);
        }
    }
}
