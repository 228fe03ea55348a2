//! What the node says of itself in files, below a directory that is `/` but in tests.

use berth_model::elf::{self, Glibc, MadeFor};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::path::{Path, PathBuf};

/// A node's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

/// Directory below which the node's files are looked for instead of `/`: recorded ones, in tests. Whoever sets it starts the agent, or a
/// container of their own.
const RECORDED: &str = "BERTH_GPU_TREE";

impl Tree {
    /// This machine's.
    pub fn host() -> Tree {
        Tree { root: PathBuf::from("/") }
    }

    /// This machine's, but where recorded ones are to be seen.
    pub fn here() -> Tree {
        std::env::var_os(RECORDED).filter(|tree| !tree.is_empty()).map_or_else(Tree::host, Tree::at)
    }

    /// Recorded ones.
    pub fn at(root: impl Into<PathBuf>) -> Tree {
        Tree { root: root.into() }
    }

    /// Where a path of the node is; `path` may begin with a slash.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without spaces around it; `None` when it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_string())
    }

    /// As [`Tree::text`], at most so many bytes of it, of a file that root, or who runs this, has put where others may have put theirs, too:
    /// of a link, of what is no file and of another's nothing is read, and nobody is waited for.
    pub fn own_text(&self, path: &str, most: u64) -> Option<String> {
        use std::io::Read;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::open(self.path(path), flags, Mode::empty()).ok()?);
        let meta = file.metadata().ok()?;
        if !meta.is_file() || !is_ours(&meta) {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_string())
    }

    /// A file's bytes.
    pub fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.path(path)).ok()
    }

    /// The glibc that a library needs; `None` where its file does not say that.
    pub fn glibc(&self, path: &str) -> Option<Glibc> {
        elf::needs(&self.part(path))
    }

    /// Which programs can load a library.
    pub fn made_for(&self, path: &str) -> MadeFor {
        elf::made_for(&self.part(path))
    }

    /// Reads parts of a file; nothing where it cannot be opened.
    fn part(&self, path: &str) -> impl Fn(u64, usize) -> Option<Vec<u8>> + use<> {
        use std::os::unix::fs::FileExt;
        let file = fs::File::open(self.path(path)).ok();
        move |at, length| {
            let mut bytes = vec![0; length];
            file.as_ref()?.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
        }
    }

    /// A number, decimal or with `0x`.
    pub fn number(&self, path: &str) -> Option<u64> {
        number(&self.text(path)?)
    }

    /// Names in a directory, in order; none when it cannot be read.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// What tells a file or directory from another one that was there before under its name; `None` when there is none.
    pub fn mark(&self, path: &str) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.path(path)).ok().map(|meta| meta.ino())
    }

    /// Whether something is there.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Whether a name is there, be it a link that leads nowhere.
    pub fn is_named(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// Whether a directory is one that nobody but root, or who runs this, can have put there or can change: no link, and its own.
    pub fn is_own_dir(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok_and(|meta| is_own(&meta))
    }

    /// Whether nobody else can put something in the place of what is at a path: all directories above it are such ones, through links as
    /// they lead.
    pub fn is_below_own_dirs(&self, path: &str) -> bool {
        let mut above = Path::new(path.trim_start_matches('/')).ancestors().skip(1);
        above.all(|dir| fs::metadata(self.root.join(dir)).is_ok_and(|meta| is_own(&meta)))
    }

    /// Where a path leads through its links, as a path of the node; links that are absolute stay below the root.
    pub fn real(&self, path: &str) -> Option<String> {
        let mut here = path.to_string();
        for _ in 0..40 {
            let Ok(target) = fs::read_link(self.path(&here)) else {
                return self.has(&here).then_some(here);
            };
            let target = target.to_str()?;
            here = match target.starts_with('/') {
                true => target.to_string(),
                false => joined(Path::new(&here).parent()?.to_str()?, target),
            };
        }
        None
    }
}

/// Whether it is root's, or of who runs this.
fn is_ours(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    [0, rustix::process::geteuid().as_raw()].contains(&meta.uid())
}

/// Whether it is a directory in which nobody but root, or who runs this, changes what is theirs.
fn is_own(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    meta.is_dir() && is_ours(meta) && (meta.mode() & 0o022 == 0 || meta.mode() & 0o1000 != 0)
}

/// Lexically, without leaving `/`.
pub(crate) fn joined(dir: &str, target: &str) -> String {
    let mut parts: Vec<&str> = dir.split('/').filter(|p| !p.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Decimal, or hexadecimal with `0x`.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The kernel's lists of CPUs, `0-3,8`. What is no list is empty; more than a machine can have is, too.
pub fn cpu_list(text: &str) -> Vec<u32> {
    const MOST: u32 = 1 << 16;
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last < MOST => cpus.extend(first..=last),
            _ => return Vec::new(),
        }
    }
    cpus
}
