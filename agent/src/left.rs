//! Processes that do not end although they were killed: which they are, where in the kernel they wait, and on which mount.
//!
//! Nothing is read of such a process's memory but the path that its system call names, and that by a thread for which nobody waits for
//! long: what hangs must not take along who looks at it.

use rustix::process::Pid;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Most processes that are named.
const MOST: usize = 4;
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(5);
/// Longest path that is read.
const LONGEST: usize = 4096;

/// Names processes in one line, in no more than a few seconds. `None` where none of them is left.
pub fn describe(pids: Vec<i32>) -> Option<String> {
    let alive: Vec<i32> = pids.into_iter().filter(|pid| is_there(*pid)).collect();
    if alive.is_empty() {
        return None;
    }
    let (tell, told) = mpsc::channel();
    let looked_at = alive.clone();
    // Left alone when it hangs itself.
    let started = std::thread::Builder::new().name("left".into()).spawn(move || {
        for pid in looked_at.into_iter().take(MOST) {
            let _ = tell.send(one(pid));
        }
    });
    let mut named = Vec::new();
    if started.is_ok() {
        while let Ok(Some(text)) = told.recv_timeout(LOOK) {
            named.push(text);
        }
    }
    if named.is_empty() {
        // Gone meanwhile, or nothing can be said of them.
        let still: Vec<String> =
            alive.iter().filter(|pid| is_there(**pid)).map(|pid| format!("pid {pid}")).collect();
        return (!still.is_empty()).then(|| still[..still.len().min(MOST)].join(", "));
    }
    if alive.len() > named.len() {
        named.push(format!("{} more", alive.len() - named.len()));
    }
    Some(named.join(", "))
}

/// Names those of these processes that wait where no signal reaches them; where none does, all of them.
pub fn waiting(pids: Vec<i32>) -> Option<String> {
    let (hang, others): (Vec<i32>, Vec<i32>) = pids.into_iter().partition(|pid| hangs(*pid));
    describe(if hang.is_empty() { others } else { hang })
}

/// Whether a process waits where no signal reaches it.
pub fn hangs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state(&stat).is_some_and(|(_, state)| state == 'D')
}

/// What a thread waits for in the kernel, as far as one wait can be told from the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The system call and its arguments.
    pub text: String,
    /// How many reads and writes it has done; absent where nobody says it.
    pub done: Option<u64>,
    /// How often it has waited.
    pub waits: u64,
}

/// What a thread is at; `None` of one that runs, or is not there.
pub fn call(tid: i32) -> Option<Call> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{tid}/task/{tid}/{name}")).ok();
    let text = read("syscall")?.trim().to_string();
    about(&text)?;
    let done = |io: String| Some(counted(&io, "syscr")?.saturating_add(counted(&io, "syscw")?));
    let waits = counted(&read("status")?, "voluntary_ctxt_switches")?;
    Some(Call { done: read("io").and_then(done), waits, text })
}

/// The number behind a name of `/proc/PID/status` or `/proc/PID/io`.
fn counted(text: &str, name: &str) -> Option<u64> {
    let of = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok();
    text.lines().find_map(of)
}

/// Processes of a group that are there, its leader or not.
pub fn group(leader: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let is_one = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        group_of(&stat) == Some(leader) && state(&stat).is_some_and(|(_, state)| state != 'Z')
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(is_one).collect()
}

/// The threads of a process.
pub fn threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Names a thread that is in a call about a file, unless that is a lock, or a file below one of these places.
pub fn at_file(tid: i32, but: &[PathBuf]) -> Option<String> {
    let syscall = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
    if is_lock(&syscall) {
        return None;
    }
    let path = path(tid, &syscall)?;
    if but.iter().any(|place| path.starts_with(place)) { None } else { one(tid) }
}

/// Whoever waits for a lock waits for its holder, and for no file.
fn is_lock(syscall: &str) -> bool {
    let number = syscall.split_whitespace().next().and_then(|word| word.parse().ok());
    number.is_some_and(|number: i64| [nix::libc::SYS_flock, nix::libc::SYS_fcntl].contains(&number))
}

/// A zombie whose parent does not collect it holds nothing.
fn is_there(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| state(&stat).is_some_and(|(_, state)| state != 'Z'))
}

/// `pid 4711 (cp), state D, waits in request_wait_answer on /data (fuse.sshfs)`.
fn one(pid: i32) -> Option<String> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let stat = read("stat");
    let (command, state) = state(&stat)?;
    let mut text = format!("pid {pid} ({}), state {state}", printable(command));
    let (wchan, stack) = (read("wchan"), read("stack"));
    if let Some(place) = place(&wchan, &stack) {
        text.push_str(&format!(", waits in {}", printable(place)));
    }
    if let Some(path) = path(pid, &read("syscall"))
        && let Some((at, kind)) = mount(&read("mountinfo"), &path)
    {
        text.push_str(&format!(" on {} ({})", printable(&at.to_string_lossy()), printable(&kind)));
    }
    Some(text)
}

/// Command and state of `/proc/PID/stat`: a command may hold anything, and the last bracket ends it.
fn state(stat: &str) -> Option<(&str, char)> {
    let (before, after) = stat.rsplit_once(')')?;
    Some((before.split_once('(')?.1, after.trim_start().chars().next()?))
}

/// The process group of `/proc/PID/stat`: the third word behind the command.
fn group_of(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

/// Where it waits: the wait channel, or where there is none the uppermost function of its stack.
fn place<'a>(wchan: &'a str, stack: &'a str) -> Option<&'a str> {
    let wchan = wchan.trim();
    if !wchan.is_empty() && wchan != "0" {
        return Some(wchan);
    }
    let (_, frame) = stack.lines().next()?.split_once(' ')?;
    frame.split('+').next().filter(|name| !name.is_empty() && !name.starts_with("0x"))
}

/// What its system call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// A descriptor.
    Fd(i32),
    /// A path at this address, relative to a descriptor or to the working directory.
    Path(Option<i32>, u64),
}

/// Reads `/proc/PID/syscall`: the call's number and its arguments.
fn about(syscall: &str) -> Option<About> {
    let mut words = syscall.split_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut arguments = words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let (first, second) = (arguments.next()??, arguments.next().flatten().unwrap_or(0));
    // A descriptor is an int: the upper half says nothing.
    let fd = |value: u64| u32::try_from(value & 0xffff_ffff).ok().map(u32::cast_signed);
    if by_descriptor(number) {
        return Some(About::Fd(fd(first)?));
    }
    if by_directory(number) {
        return Some(About::Path(fd(first).filter(|fd| *fd >= 0), second));
    }
    by_path(number).then_some(About::Path(None, first))
}

fn by_descriptor(number: i64) -> bool {
    use nix::libc as c;
    [
        c::SYS_read,
        c::SYS_write,
        c::SYS_pread64,
        c::SYS_pwrite64,
        c::SYS_readv,
        c::SYS_writev,
        c::SYS_preadv,
        c::SYS_pwritev,
        c::SYS_preadv2,
        c::SYS_pwritev2,
        c::SYS_close,
        c::SYS_fstat,
        c::SYS_fsync,
        c::SYS_fdatasync,
        c::SYS_ftruncate,
        c::SYS_fallocate,
        c::SYS_getdents64,
        c::SYS_flock,
        c::SYS_fcntl,
        c::SYS_ioctl,
        c::SYS_lseek,
        c::SYS_sendfile,
        c::SYS_copy_file_range,
        c::SYS_fchdir,
        c::SYS_fchmod,
        c::SYS_fchown,
        c::SYS_fstatfs,
        c::SYS_syncfs,
        c::SYS_splice,
    ]
    .contains(&number)
}

fn by_directory(number: i64) -> bool {
    use nix::libc as c;
    [
        c::SYS_openat,
        c::SYS_openat2,
        c::SYS_newfstatat,
        c::SYS_statx,
        c::SYS_faccessat,
        c::SYS_faccessat2,
        c::SYS_unlinkat,
        c::SYS_mkdirat,
        c::SYS_mknodat,
        c::SYS_renameat,
        c::SYS_renameat2,
        c::SYS_readlinkat,
        c::SYS_linkat,
        c::SYS_fchmodat,
        c::SYS_fchownat,
        c::SYS_utimensat,
        c::SYS_execveat,
        c::SYS_name_to_handle_at,
    ]
    .contains(&number)
}

fn by_path(number: i64) -> bool {
    use nix::libc as c;
    #[cfg(target_arch = "x86_64")]
    let old = [
        c::SYS_open,
        c::SYS_creat,
        c::SYS_stat,
        c::SYS_lstat,
        c::SYS_access,
        c::SYS_unlink,
        c::SYS_mkdir,
        c::SYS_rmdir,
        c::SYS_rename,
        c::SYS_link,
        c::SYS_readlink,
        c::SYS_chmod,
        c::SYS_chown,
        c::SYS_lchown,
        c::SYS_utimes,
        c::SYS_mknod,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let old: [i64; 0] = [];
    old.contains(&number)
        || [
            c::SYS_execve,
            c::SYS_chdir,
            c::SYS_statfs,
            c::SYS_truncate,
            c::SYS_getxattr,
            c::SYS_lgetxattr,
            c::SYS_setxattr,
            c::SYS_listxattr,
        ]
        .contains(&number)
}

/// The path that it is at, as the process itself sees it.
fn path(pid: i32, syscall: &str) -> Option<PathBuf> {
    let link = |name: String| fs::read_link(format!("/proc/{pid}/{name}")).ok();
    match about(syscall)? {
        About::Fd(fd) => link(format!("fd/{fd}")).filter(|path| path.is_absolute()),
        About::Path(directory, address) => {
            let named = text_at(pid, address)?;
            if named.is_absolute() {
                return Some(plain(&named));
            }
            let base = match directory {
                Some(fd) => link(format!("fd/{fd}"))?,
                None => link("cwd".into())?,
            };
            Some(plain(&base.join(named)))
        }
    }
}

/// Text in a process's memory, up to its zero byte. The last page of it may end anywhere.
fn text_at(pid: i32, address: u64) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::FileExt;
    Pid::from_raw(pid)?;
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut text = Vec::new();
    let mut chunk = [0u8; 256];
    while text.len() < LONGEST {
        let at = address.checked_add(text.len() as u64)?;
        // Never over the end of a page.
        let most = usize::try_from(256 - at % 256).ok()?;
        let n = memory.read_at(&mut chunk[..most], at).ok().filter(|n| *n > 0)?;
        if let Some(end) = chunk[..n].iter().position(|b| *b == 0) {
            text.extend_from_slice(&chunk[..end]);
            return (!text.is_empty()).then(|| PathBuf::from(std::ffi::OsString::from_vec(text)));
        }
        text.extend_from_slice(&chunk[..n]);
    }
    None
}

/// Without `.` and `..`, by the words alone: nothing is asked of the filesystem.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// The mount on which a path lies, and its type: of those at the deepest place the last.
fn mount(mountinfo: &str, path: &Path) -> Option<(PathBuf, String)> {
    let mut found: Option<(PathBuf, String)> = None;
    for line in mountinfo.lines() {
        let mut words = line.split(' ');
        let Some(at) = words.nth(4).map(unescaped) else { continue };
        let Some(kind) = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()) else {
            continue;
        };
        if path.starts_with(&at) && found.as_ref().is_none_or(|(deepest, _)| at.starts_with(deepest)) {
            found = Some((at, kind.to_string()));
        }
    }
    found
}

/// `\040` and its like, as proc(5) has them.
fn unescaped(word: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = word.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        plain.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 4 } else { 1 };
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

/// For a terminal: names are anybody's.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;

    #[test]
    fn a_command_may_hold_anything() {
        assert_eq!(state("4968 (a) R (b) D 4870 4869"), Some(("a) R (b", 'D')));
        assert_eq!(state("4968 python3"), None);
        assert_eq!(group_of("4968 (a) R (b) D 4870 4869 4869 0"), Some(4869));
        assert_eq!(group_of("4968 (a) R 4870"), None);
        assert_eq!(printable("a\x1b[31mb\n"), "a[31mb");
    }

    #[test]
    fn where_it_waits_is_the_wait_channel_or_the_top_of_the_stack() {
        let stack = "[<0>] request_wait_answer+0x151/0x210\n[<0>] __fuse_simple_request+0x120/0x330\n";
        assert_eq!(place("nfs_wait_bit_killable", stack), Some("nfs_wait_bit_killable"));
        assert_eq!(place("0", stack), Some("request_wait_answer"));
        assert_eq!(place("0\n", ""), None);
    }

    #[test]
    fn what_a_call_is_about_stands_in_its_arguments() {
        let call = |number: i64, rest: &str| about(&format!("{number} {rest} 0x7ffd 0x7f23"));
        assert_eq!(call(libc::SYS_read, "0x3 0x7f00 0x1000"), Some(About::Fd(3)));
        assert_eq!(
            call(libc::SYS_newfstatat, "0xffffff9c 0x7f237df5e910 0x0"),
            Some(About::Path(None, 0x7f23_7df5_e910))
        );
        assert_eq!(call(libc::SYS_openat, "0x5 0x10 0x0"), Some(About::Path(Some(5), 0x10)));
        assert_eq!(call(libc::SYS_execve, "0x20 0x0"), Some(About::Path(None, 0x20)));
        assert_eq!(call(libc::SYS_getpid, "0x0 0x0"), None);
        assert_eq!(about("running"), None);
        assert_eq!(about("-1 0x7ffd 0x7f23"), None);
        assert_eq!(about(""), None);
    }

    #[test]
    fn a_path_lies_on_the_deepest_mount_and_of_several_there_on_the_last() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:40 / /data rw shared:1 - nfs4 server:/x rw\n\
                     31 30 0:41 / /data/my\\040files rw - fuse.sshfs host: rw\n32 22 0:42 / /data/my\\040files rw - fuse.other o rw\n\
                     33 22 0:43 / /database rw - xfs /dev/sdb rw\nnonsense\n";
        let on =
            |path: &str| mount(table, Path::new(path)).map(|(at, kind)| format!("{} {kind}", at.display()));
        assert_eq!(on("/data/x").unwrap(), "/data nfs4");
        assert_eq!(on("/data/my files/x").unwrap(), "/data/my files fuse.other");
        assert_eq!(on("/database/x").unwrap(), "/database xfs");
        assert_eq!(on("/etc").unwrap(), "/ ext4");
        assert_eq!(mount("", Path::new("/")), None);
        assert_eq!(plain(Path::new("/a/./b/../../c")), Path::new("/c"));
    }

    #[test]
    fn counts_are_read_by_their_names() {
        let text =
            "rchar: 12\nsyscr: 7\nsyscw: x\nnonvoluntary_ctxt_switches:\t5\nvoluntary_ctxt_switches:\t3\n";
        assert_eq!(
            (counted(text, "syscr"), counted(text, "syscw"), counted(text, "sys")),
            (Some(7), None, None)
        );
        assert_eq!(counted(text, "voluntary_ctxt_switches"), Some(3));
    }

    #[test]
    fn who_waits_for_a_file_is_told_from_who_waits_for_a_lock_or_for_nothing() {
        use nix::fcntl::{Flock, FlockArg};
        use std::io::Read;
        let directory = tempfile::tempdir().unwrap();
        let (pipe, locked) = (directory.path().join("pipe"), directory.path().join("lock"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(&locked, "").unwrap();
        let lock = || Flock::lock(fs::File::open(&locked).unwrap(), FlockArg::LockExclusive).unwrap();
        let held = lock();
        let (say, said) = mpsc::channel();
        let tid = || rustix::thread::gettid().as_raw_nonzero().get();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                say.send(tid()).unwrap();
                // Nobody writes to it: its opening waits as that of a file whose server does not answer.
                let mut end = fs::File::open(&pipe).unwrap();
                end.read_to_end(&mut Vec::new()).unwrap();
            });
            let reader = said.recv().unwrap();
            scope.spawn(|| {
                say.send(tid()).unwrap();
                drop(lock());
            });
            let locks = said.recv().unwrap();
            // The same call, twice in a row.
            let waits = |tid| {
                (0..500).any(|_| {
                    let before = call(tid);
                    std::thread::sleep(Duration::from_millis(20));
                    before.is_some() && call(tid) == before
                })
            };
            let both = waits(reader) && waits(locks);
            let named = at_file(reader, &[]);
            let (within, lock) = (at_file(reader, &[directory.path().into()]), at_file(locks, &[]));
            // Before anything may fail, which would wait for both.
            drop(fs::File::options().write(true).open(&pipe));
            drop(held);
            let named = named.unwrap_or_default();
            assert!(both && named.starts_with(&format!("pid {reader} (")), "{named}");
            assert_eq!((within, lock), (None, None));
            assert!(threads(std::process::id().cast_signed()).contains(&tid()));
        });
        assert_eq!((call(0), at_file(0, &[]), threads(0)), (None, None, Vec::new()));
    }

    #[test]
    fn a_process_that_lives_is_named_and_one_that_is_gone_is_not() {
        let own = i32::try_from(std::process::id()).unwrap();
        let text = describe(vec![own]).unwrap();
        assert!(text.starts_with(&format!("pid {own} (")) && text.contains("state "), "{text}");
        // It does not hang: then all are named.
        assert!(waiting(vec![own]).unwrap().starts_with(&format!("pid {own} (")));
        assert_eq!(waiting(vec![0]), None);
        assert_eq!(describe(vec![0]), None);
        assert_eq!(describe(Vec::new()), None);
    }
}
