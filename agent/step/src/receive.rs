//! Receives a file that is sent to a job's nodes (`sbcast`, `srun --bcast`): a task of the user's, whose input it is. With the
//! user's rights and in the user's namespaces, and in no other way, does anything come to be.
//!
//! The file has no name while it is written, where the filesystem can do that, so that nothing is left of one that was not
//! received to its end. Its name is given at the end, in the directory that was opened at the beginning, in one step: what stood
//! there is replaced whole or not at all, and never written through.

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, fchmod, fstat, futimens, linkat,
    openat, renameat, renameat_with, stat, statat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// What is to be received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Order {
    path: OsString,
    size: u64,
    mode: u32,
    /// Access and modification, in nanoseconds since 1970.
    times: Option<(i64, i64)>,
    /// What stands there is replaced.
    force: bool,
    /// The root directory is that of a container which ends with this task.
    passing: bool,
}

/// The arguments by which a task is told.
pub fn arguments(receive: &berth_model::receive::Receive, passing: bool) -> Vec<berth_model::ByteStr> {
    let mut words = vec![format!("--size={}", receive.size), format!("--mode={:o}", receive.mode)];
    words.extend(receive.times.map(|(accessed, modified)| format!("--times={accessed}:{modified}")));
    words.extend(receive.force.then(|| "--force".to_string()));
    words.extend(passing.then(|| "--passing".to_string()));
    let words = words.into_iter().map(berth_model::ByteStr::from);
    words.chain([receive.path.clone()]).collect()
}

fn order(words: &[OsString]) -> Option<Order> {
    let (path, words) = words.split_last()?;
    let mut order = Order { path: path.clone(), ..Order::default() };
    for word in words {
        match word.to_str()?.split_once('=') {
            Some(("--size", n)) => order.size = n.parse().ok()?,
            Some(("--mode", n)) => order.mode = u32::from_str_radix(n, 8).ok()?,
            Some(("--times", both)) => {
                let (accessed, modified) = both.split_once(':')?;
                order.times = Some((accessed.parse().ok()?, modified.parse().ok()?));
            }
            None if word == "--force" => order.force = true,
            None if word == "--passing" => order.passing = true,
            _ => return None,
        }
    }
    Some(order)
}

/// Receives from standard input; says on standard error what went wrong.
pub fn main(words: &[OsString]) -> ExitCode {
    let Some(order) = order(words) else {
        crate::log::say("this program is started by berth itself; see 'sbcast --help'");
        return ExitCode::from(2);
    };
    match receive(&order, &mut std::io::stdin().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let node = std::env::var("SLURMD_NODENAME").unwrap_or_default();
            berth_client::out::complain(&format!("sbcast: error: {node}: {}: {why}", order.path.display()));
            ExitCode::FAILURE
        }
    }
}

fn text(e: Errno) -> String {
    let text = std::io::Error::from(e).to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}

fn receive(order: &Order, input: &mut impl Read) -> Result<(), String> {
    let path = Path::new(&order.path);
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), path.is_absolute()) else {
        return Err("it is no name of a file from '/' on".to_string());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, parent, flags, Mode::empty())
        .map_err(|e| format!("{}: {}: make the directory on each node first", parent.display(), text(e)))?;
    allowed(order, &dir, name)?;
    let file = New::make(&dir, name).map_err(|e| format!("it cannot be made: {}", text(e)))?;
    fill(&file.fd, order.size, input)?;
    // A file for others to run has no more rights than these, whatever the source had.
    fchmod(&file.fd, Mode::from_raw_mode(order.mode & 0o777))
        .map_err(|e| format!("its mode cannot be set: {}", text(e)))?;
    if let Some((accessed, modified)) = order.times {
        let times = Timestamps { last_access: at(accessed), last_modification: at(modified) };
        futimens(&file.fd, &times).map_err(|e| format!("its times cannot be set: {}", text(e)))?;
    }
    file.name(&dir, name, order.force).map_err(|e| match e {
        Errno::EXIST => EXISTS.to_string(),
        e => format!("it cannot be given its name: {}", text(e)),
    })
}

const EXISTS: &str = "File exists: replace it with --force";

/// What is known to fail at the end is said before anything is sent.
fn allowed(order: &Order, dir: &OwnedFd, name: &OsStr) -> Result<(), String> {
    let look = |e| format!("its directory cannot be looked at: {}", text(e));
    if order.passing {
        let (here, root) = (fstat(dir).map_err(look)?, stat("/").map_err(look)?);
        if here.st_dev == root.st_dev {
            return Err("it is in the container's own filesystem, which ends with this copy: name a place in /tmp or in what \
                        is mounted, or a step that runs with --jobid=JOB.STEP"
                .to_string());
        }
    }
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(text(e)),
        Ok(there) => match FileType::from_raw_mode(there.st_mode) {
            FileType::Directory => {
                Err("it is a directory: name the file, or write '/' behind the directory's name".to_string())
            }
            FileType::RegularFile | FileType::Symlink if order.force => Ok(()),
            FileType::RegularFile | FileType::Symlink => Err(EXISTS.to_string()),
            _ => Err("it is neither a file nor a link, and is not replaced".to_string()),
        },
    }
}

fn at(nanoseconds: i64) -> Timespec {
    const SECOND: i64 = 1_000_000_000;
    Timespec { tv_sec: nanoseconds.div_euclid(SECOND), tv_nsec: nanoseconds.rem_euclid(SECOND) }
}

fn fill(fd: &OwnedFd, size: u64, input: &mut impl Read) -> Result<(), String> {
    let mut piece = vec![0; PIECE];
    let mut came: u64 = 0;
    loop {
        let n = match input.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(format!("what is sent cannot be read: {e}")),
        };
        came += n as u64;
        if came > size {
            return Err(format!("more came than the {size} bytes that it had when the copy began"));
        }
        let mut rest = &piece[..n];
        while !rest.is_empty() {
            match rustix::io::write(fd, rest) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                Err(e) => return Err(format!("after {} bytes: {}", came - rest.len() as u64, text(e))),
            }
        }
    }
    match came == size {
        true => Ok(()),
        false => Err(format!("only {came} of {size} bytes came: nothing is kept of them")),
    }
}

/// A file that has not its name yet.
struct New {
    fd: OwnedFd,
    /// What it is called meanwhile, where it cannot be without a name; with its directory.
    meanwhile: Option<(OwnedFd, OsString)>,
}

impl Drop for New {
    fn drop(&mut self) {
        if let Some((dir, name)) = &self.meanwhile {
            let _ = unlinkat(dir, name, AtFlags::empty());
        }
    }
}

impl New {
    fn make(dir: &OwnedFd, name: &OsStr) -> Result<New, Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        match openat(dir, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
            Ok(fd) => return Ok(New { fd, meanwhile: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
            Err(e) => return Err(e),
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let own = rustix::io::fcntl_dupfd_cloexec(dir, 3)?;
        let temporary = temporary(name, 0);
        let fd = openat(dir, &temporary, flags, mode)?;
        Ok(New { fd, meanwhile: Some((own, temporary)) })
    }

    /// Gives it its name.
    fn name(mut self, dir: &OwnedFd, name: &OsStr, force: bool) -> Result<(), Errno> {
        if let Some((_, temporary)) = &self.meanwhile {
            match force {
                true => renameat(dir, temporary, dir, name)?,
                false => renameat_with(dir, temporary, dir, name, RenameFlags::NOREPLACE)?,
            }
            self.meanwhile = None;
            return Ok(());
        }
        match self.link(dir, name) {
            Err(Errno::EXIST) if force => {}
            done => return done,
        }
        // A link replaces nothing, and a rename needs a name to begin with.
        let own = rustix::io::fcntl_dupfd_cloexec(dir, 3)?;
        for attempt in 0..100 {
            let temporary = temporary(name, attempt);
            match self.link(dir, &temporary) {
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(e),
                Ok(()) => {}
            }
            self.meanwhile = Some((own, temporary.clone()));
            renameat(dir, &temporary, dir, name)?;
            self.meanwhile = None;
            return Ok(());
        }
        Err(Errno::EXIST)
    }

    fn link(&self, dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        let this = format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd());
        linkat(CWD, this, dir, name, AtFlags::SYMLINK_FOLLOW)
    }
}

/// A name beside the file's that is no longer than names may be.
fn temporary(name: &OsStr, attempt: u32) -> OsString {
    let start: Vec<u8> = name.as_bytes().iter().copied().take(200).collect();
    let end = format!(".{}.{attempt}.sbcast", std::process::id());
    OsStr::from_bytes(&[b".", start.as_slice(), end.as_bytes()].concat()).to_os_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    fn order_for(path: PathBuf, size: u64) -> Order {
        Order { path: path.into(), size, mode: 0o640, ..Order::default() }
    }

    fn names(dir: &Path) -> Vec<OsString> {
        let mut names: Vec<OsString> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_whole_with_its_mode_and_times_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let order = Order {
            mode: 0o4755,
            times: Some((1_500_000_000_000_000_001, 1_400_000_000_000_000_002)),
            ..order_for(path.clone(), 5)
        };
        receive(&order, &mut &b"hello"[..]).unwrap();
        let there = fs::metadata(&path).unwrap();
        assert_eq!((there.mode() & 0o7777, there.mtime(), there.mtime_nsec()), (0o755, 1_400_000_000, 2));
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        for (bytes, why) in [(&b"hell"[..], "only 4 of 5"), (b"hello!", "more came")] {
            let order = order_for(dir.path().join("other"), 5);
            assert!(receive(&order, &mut &bytes[..]).unwrap_err().contains(why));
        }
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn what_stands_there_is_replaced_only_when_asked_and_never_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("precious"), b"old").unwrap();
        fs::hard_link(at("precious"), at("hard")).unwrap();
        symlink(at("precious"), at("soft")).unwrap();
        fs::create_dir(at("dir")).unwrap();
        for name in ["hard", "soft"] {
            let order = order_for(at(name), 3);
            assert!(receive(&order, &mut &b"new"[..]).unwrap_err().contains("--force"), "{name}");
            receive(&Order { force: true, ..order }, &mut &b"new"[..]).unwrap();
            assert_eq!(fs::read(at(name)).unwrap(), b"new");
            assert!(fs::symlink_metadata(at(name)).unwrap().is_file(), "{name}");
        }
        assert_eq!(fs::read(at("precious")).unwrap(), b"old");
        let force = |name: &str| receive(&Order { force: true, ..order_for(at(name), 3) }, &mut &b"new"[..]);
        assert!(force("dir").unwrap_err().contains("is a directory"));
        rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(force("fifo").unwrap_err().contains("neither a file nor a link"));
        assert!(force("missing/file").unwrap_err().contains("make the directory"));
        assert!(force("precious/file").unwrap_err().contains("Not a directory"));
        assert_eq!(names(dir.path()), ["dir", "fifo", "hard", "precious", "soft"]);
        assert_eq!(fs::metadata(at("hard")).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn one_with_a_name_meanwhile_leaves_none_behind() {
        let dir = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let here = openat(CWD, dir.path(), flags, Mode::empty()).unwrap();
        let named = || {
            let (flags, mode) = (OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, Mode::RUSR | Mode::WUSR);
            let fd = openat(&here, "meanwhile", flags, mode).unwrap();
            New { fd, meanwhile: Some((rustix::io::dup(&here).unwrap(), "meanwhile".into())) }
        };
        drop(named());
        assert!(names(dir.path()).is_empty());
        named().name(&here, OsStr::new("file"), false).unwrap();
        assert_eq!(named().name(&here, OsStr::new("file"), false), Err(Errno::EXIST));
        named().name(&here, OsStr::new("file"), true).unwrap();
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn the_arguments_are_read_back() {
        let receive = berth_model::receive::Receive {
            path: "/a b".into(),
            size: 7,
            mode: 0o755,
            times: Some((-1, 2)),
            force: true,
        };
        let words: Vec<OsString> =
            arguments(&receive, true).iter().map(|w| w.as_path().as_os_str().to_os_string()).collect();
        let expected = Order {
            path: "/a b".into(),
            size: 7,
            mode: 0o755,
            times: Some((-1, 2)),
            force: true,
            passing: true,
        };
        assert_eq!(order(&words), Some(expected));
        assert_eq!(order(&["--bogus".into(), "/x".into()]), None);
        assert_eq!(order(&[]), None);
    }
}
