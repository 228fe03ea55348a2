//! Keeping a container's filesystem when its tasks have ended (`--container-save`): its init has the files read by a process
//! of the container, and a program that has become the user writes the image.

use super::as_user::as_user;
use super::files::{errno_text, nonblocking};
use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_runtime::cgroup::Cgroup;
use berth_runtime::{ContainerRequest, InitHandle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Words of either process that are kept.
const WORDS: usize = 4096;
/// How long a writer whose input has ended may take to remove what it has written, and to go when it is killed.
const LEAVES: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
const DIES: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What is to be saved, and how far it is.
pub struct Saving {
    path: ByteStr,
    program: ByteStr,
    arguments: Vec<OsString>,
    /// The writer becomes a user that is not ours.
    system: bool,
    running: Option<Running>,
}

/// The writer. It is a process of the user's, who may stop it, and it may wait for a file server that does not answer:
/// nothing here waits for it without an end.
struct Running {
    child: Child,
    /// Readable when it has ended.
    pidfd: OwnedFd,
    /// What it says, until it has closed its end.
    words: Option<OwnedFd>,
    said: Vec<u8>,
    /// Why the container's files could not be read.
    unread: File,
}

/// Where the container's files go, and where is told why they cannot be read.
type Inputs = (OwnedFd, OwnedFd);

impl Saving {
    /// What the step asks for; of a step on several nodes the first one saves. What could only fail at the end is
    /// refused now.
    pub fn of(file: &LaunchFile, request: &ContainerRequest) -> Result<Option<Saving>, LaunchFailure> {
        let launch = &file.launch;
        let Some(path) = launch.container.as_ref().and_then(|c| c.save.clone()) else { return Ok(None) };
        if launch.node_index > 0 {
            return Ok(None);
        }
        if !request.export {
            return Err(LaunchFailure::new(
                "--container-save: the container runs already and is saved by the step that started it: give the option \
                 there, or to a step after its end",
            ));
        }
        let Some(program) = file.node.program.clone() else {
            return Err(LaunchFailure::new(
                "--container-save: the agent of this node is older than this option",
            ));
        };
        let checked = as_user(&launch.identity, launch.umask, || target_of(path.as_path()));
        checked
            .map_err(|e| LaunchFailure::new(format!("cannot act as user {}: {e}", launch.identity.user)))?
            .map_err(LaunchFailure::new)?;
        let mut arguments: Vec<OsString> = vec!["internal-save".into()];
        if file.node.system {
            let id = &launch.identity;
            let groups: Vec<String> = id.groups.iter().map(|g| g.0.to_string()).collect();
            arguments.extend(["--as".into(), format!("{}:{}:{}", id.uid, id.gid, groups.join(",")).into()]);
        }
        arguments.extend(["--umask".into(), format!("{:o}", launch.umask).into()]);
        // It is to be run as the one that it was made of.
        arguments.extend(["--config".into(), request.image.saved().to_string().into()]);
        arguments.extend(["--to".into(), OsString::from_vec(path.0.clone())]);
        Ok(Some(Saving { path, program, arguments, system: file.node.system, running: None }))
    }

    /// Whether the files are on their way.
    pub fn begun(&self) -> bool {
        self.running.is_some()
    }

    /// Readable when the writer says something or ends.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        let running = self.running.as_ref()?;
        Some(running.words.as_ref().map_or(running.pidfd.as_fd(), AsFd::as_fd))
    }

    /// Has the files read and written, within the limits of the step.
    pub fn begin(&mut self, init: &mut InitHandle, group: Option<&Cgroup>) -> Result<(), String> {
        let (archive, unread) = self.start_writer(group)?;
        init.export(archive, unread).map_err(|e| failed("the container's init", e))
    }

    fn start_writer(&mut self, group: Option<&Cgroup>) -> Result<Inputs, String> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("cannot make a pipe", errno_text(e)));
        let (archive_out, archive_in) = pipe()?;
        let (unread, unread_in) = pipe()?;
        let (words, words_in) = pipe()?;
        nonblocking(&unread).map_err(|e| failed("cannot make a pipe", e.text))?;
        let program = self.program.as_path();
        let child = Command::new(program)
            .args(&self.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(archive_out))
            .stdout(Stdio::null())
            .stderr(Stdio::from(words_in))
            .spawn()
            .map_err(|e| failed(program.display(), e))?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(|e| failed("cannot watch the writing program", errno_text(e)))?;
        let pid = child.id();
        self.running =
            Some(Running { child, pidfd, words: Some(words), said: Vec::new(), unread: File::from(unread) });
        if self.system {
            // The supervisor is what the kernel kills last; what works for the user is not.
            std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0")
                .map_err(|e| failed("cannot give up the writing program's protection from the kernel", e))?;
        }
        if let Some(group) = group {
            group.join(pid.cast_signed()).map_err(|e| failed("the step's limits", e))?;
        }
        Ok((archive_in, unread_in))
    }

    /// Hears the writer; when it has ended, what came of it.
    pub fn advance(&mut self) -> Option<Result<String, String>> {
        let running = self.running.as_mut()?;
        if let Some(words) = &running.words {
            let mut piece = [0; 1024];
            match rustix::io::read(words, &mut piece) {
                Ok(n) if n > 0 => {
                    let room = WORDS.saturating_sub(running.said.len());
                    running.said.extend_from_slice(&piece[..n.min(room)]);
                    return None;
                }
                Err(Errno::INTR | Errno::AGAIN) => return None,
                // Its files are closed one after another when it ends, and closing the image may take long.
                _ => running.words = None,
            }
        }
        let status = running.child.try_wait().transpose()?;
        let result = running.result(status, &self.path);
        self.running = None;
        Some(result)
    }
}

impl Running {
    fn result(&self, status: std::io::Result<ExitStatus>, path: &ByteStr) -> Result<String, String> {
        let mut unread = Vec::new();
        // Whoever still holds the other end has nothing to say: the archive ended before the writer did.
        let _ = (&self.unread).take(WORDS as u64).read_to_end(&mut unread);
        let unread = String::from_utf8_lossy(&unread);
        let path = path.display();
        match status {
            Ok(status) if status.success() && unread.is_empty() => Ok(path.into_owned()),
            _ if !unread.trim().is_empty() => Err(format!("--container-save: {}", unread.trim())),
            Ok(status) => {
                let said = String::from_utf8_lossy(&self.said);
                let why = match said.trim().lines().last() {
                    Some(line) => line.to_string(),
                    None => format!("the writing program ended ({status})"),
                };
                Err(format!("--container-save={path}: {why}"))
            }
            Err(e) => Err(format!("--container-save={path}: {e}")),
        }
    }

    fn ends_within(&self, time: Timespec) -> bool {
        poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&time)).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its input has ended: it takes away what it has written, and goes.
        if !self.ends_within(LEAVES) {
            let _ = self.child.kill();
            self.ends_within(DIES);
        }
        // One that is there even now is left to whoever adopts it.
        let _ = self.child.try_wait();
    }
}

fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> String {
    format!("--container-save: {what}: {why}")
}

/// Whether an image can be written to this path, as far as can be told before.
fn target_of(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let why = match path.components().as_path().metadata() {
        Ok(found) if found.is_dir() => "target is a directory",
        Ok(found) if !found.is_file() => "target is no regular file",
        Ok(_)
            if path.as_os_str().as_bytes().ends_with(b"/")
                || path.extension().is_some_and(|e| e == "oci") =>
        {
            "target is a file, and an OCI layout is a directory"
        }
        _ => "",
    };
    if !why.is_empty() {
        return Err(format!(
            "--container-save: {why}: {shown}; name a file, or an OCI layout directory that is not there yet (NAME.oci)"
        ));
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, parent, wanted, AtFlags::EACCESS).map_err(|e| {
        format!(
            "--container-save: {}: {}; make the directory first, or name one that you may write to",
            parent.display(),
            errno_text(e)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that is the shell with this script.
    fn writer(script: &str) -> Saving {
        let mut saving = Saving {
            path: "/x.sqsh".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            system: false,
            running: None,
        };
        drop(saving.start_writer(None).unwrap());
        saving
    }

    fn result(mut saving: Saving) -> Result<String, String> {
        loop {
            let fd = saving.fd().unwrap();
            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).unwrap();
            if let Some(result) = saving.advance() {
                return result;
            }
        }
    }

    #[test]
    fn what_came_of_a_writer() {
        assert_eq!(result(writer("exit 0")), Ok("/x.sqsh".into()));
        assert_eq!(
            result(writer("echo first >&2; echo no room >&2; exit 1")),
            Err("--container-save=/x.sqsh: no room".into())
        );
        let killed = result(writer("kill -9 $$")).unwrap_err();
        assert!(
            killed.starts_with("--container-save=/x.sqsh: the writing program ended (signal: 9"),
            "{killed}"
        );
    }

    #[test]
    fn one_that_says_no_more_is_not_waited_for() {
        let mut saving = writer("exec 2>&-; kill -STOP $$");
        let words = saving.fd().unwrap();
        poll(&mut [PollFd::from_borrowed_fd(words, PollFlags::IN)], None).unwrap();
        assert_eq!(saving.advance(), None);
        assert_eq!(saving.advance(), None);
    }

    #[test]
    fn one_that_is_stopped_is_ended_when_it_is_given_up() {
        let saving = writer("kill -STOP $$");
        let pid = saving.running.as_ref().unwrap().child.id();
        drop(saving);
        // It is killed, and reaped if it went as quickly as such a process goes.
        let lives =
            || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while lives() {
            assert!(std::time::Instant::now() < end, "it is not killed");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
