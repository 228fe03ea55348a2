//! Whether a path leads to a file that nobody can exchange but its owner and root.

use rustix::fs::{AtFlags, CWD, FileType};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// As path_resolution(7): so many links, then it is a circle.
const MOST_LINKS: usize = 40;

/// Follows the path as the kernel would, and returns where it leads: every directory on the way, every link and the file
/// belong to root or to `owner`, and nobody else can write to them. A directory with the sticky bit may be written by
/// all, because what is in it stays its owner's.
///
/// # Errors
/// What is wrong with which part, and what to do.
pub fn unchangeable(path: &Path, owner: u32) -> Result<PathBuf, String> {
    follow(path, owner, false)
}

/// As [`unchangeable`], for a directory in which something of ours is to be: it may be one with the sticky bit itself.
///
/// # Errors
/// As [`unchangeable`].
pub fn unchangeable_place(path: &Path, owner: u32) -> Result<PathBuf, String> {
    follow(path, owner, true)
}

fn follow(path: &Path, owner: u32, sticky_end: bool) -> Result<PathBuf, String> {
    if !path.is_absolute() {
        return Err(format!("'{}' is not an absolute path", path.display()));
    }
    let mut rest: VecDeque<OsString> = path.components().map(|c| c.as_os_str().to_owned()).collect();
    let mut here = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => {
                here.pop();
                continue;
            }
            Some(Component::RootDir) => here = PathBuf::from("/"),
            Some(Component::Normal(name)) => here.push(name),
            _ => continue,
        }
        let stat = rustix::fs::statat(CWD, &here, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| format!("{}: {}", here.display(), crate::setup::errno_text(e.raw_os_error())))?;
        if stat.st_uid != 0 && stat.st_uid != owner {
            return Err(format!(
                "{} belongs to uid {}, who could exchange it: give it to root (chown root {0})",
                here.display(),
                stat.st_uid
            ));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink {
            links += 1;
            if links > MOST_LINKS {
                return Err(format!("{}: its links lead in a circle", path.display()));
            }
            let target = rustix::fs::readlinkat(CWD, &here, Vec::new())
                .map_err(|e| format!("{}: {}", here.display(), crate::setup::errno_text(e.raw_os_error())))?;
            here.pop();
            let target = PathBuf::from(std::ffi::OsStr::from_bytes(target.as_bytes()));
            for part in target.components().rev() {
                rest.push_front(part.as_os_str().to_owned());
            }
            continue;
        }
        let sticky =
            kind == FileType::Directory && stat.st_mode & 0o1000 != 0 && (sticky_end || !rest.is_empty());
        if stat.st_mode & 0o022 != 0 && !sticky {
            return Err(format!(
                "{} can be written by others than its owner: chmod go-w {0}",
                here.display()
            ));
        }
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::{unchangeable, unchangeable_place};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn only_what_nobody_else_can_exchange_is_taken() {
        let own = rustix::process::geteuid().as_raw();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |name: &str, mode: u32| {
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/hook"), b"").unwrap();
        mode("d", 0o755);
        mode("d/hook", 0o755);
        symlink("d/../d/hook", at("link")).unwrap();
        let real = fs::canonicalize(at("d/hook")).unwrap();
        assert_eq!(unchangeable(&at("d/hook"), own).unwrap(), real);
        assert_eq!(unchangeable(&at("link"), own).unwrap(), real);
        for (name, wrong, right) in [("d/hook", 0o775, 0o755), ("d/hook", 0o757, 0o755), ("d", 0o777, 0o755)]
        {
            mode(name, wrong);
            for path in ["d/hook", "link"] {
                let refused = unchangeable(&at(path), own).unwrap_err();
                assert!(refused.contains("chmod go-w") && refused.contains(name), "{refused}");
            }
            mode(name, right);
        }
        // The sticky bit keeps others from exchanging what is in a directory, but not from adding to the last one.
        mode("d", 0o1777);
        assert!(unchangeable(&at("d/hook"), own).is_ok());
        assert!(unchangeable(&at("d"), own).is_err());
        assert!(unchangeable_place(&at("d"), own).is_ok());
        mode("d", 0o777);
        assert!(unchangeable_place(&at("d"), own).is_err());
        mode("d", 0o755);
        if own == 0 {
            std::os::unix::fs::lchown(at("link"), Some(65_501), None).unwrap();
            let refused = unchangeable(&at("link"), 0).unwrap_err();
            assert!(refused.contains("uid 65501") && refused.contains("chown root"), "{refused}");
            assert!(unchangeable(&at("link"), 65_501).is_ok());
        }
        symlink("round", at("round")).unwrap();
        assert!(unchangeable(&at("round"), own).unwrap_err().contains("circle"));
        assert!(unchangeable(std::path::Path::new("d/hook"), own).unwrap_err().contains("absolute"));
        assert!(unchangeable(&at("none"), own).unwrap_err().contains("No such file"));
    }
}
