//! Keeping a container's filesystem when its tasks have ended (`--container-save`): its init has the files read by a process
//! of the container, and a program that has become the user writes the image.

use super::as_user::as_user;
use super::files::errno_text;
use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_runtime::{ContainerRequest, InitHandle};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Words of either process that are kept.
const WORDS: usize = 4096;

/// What is to be saved, and how far it is.
pub struct Saving {
    path: ByteStr,
    program: ByteStr,
    arguments: Vec<OsString>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// What the writer says; its end is the writer's.
    words: OwnedFd,
    said: Vec<u8>,
    /// Why the container's files could not be read.
    unread: OwnedFd,
}

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
        Ok(Some(Saving { path, program, arguments, running: None }))
    }

    /// Whether the files are on their way.
    pub fn begun(&self) -> bool {
        self.running.is_some()
    }

    /// Readable when the writer says something or ends.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.words.as_fd())
    }

    /// Has the files read and written.
    pub fn begin(&mut self, init: &mut InitHandle) -> Result<(), String> {
        let failed = |what: &str, why: String| format!("--container-save: {what}: {why}");
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("cannot make a pipe", errno_text(e)));
        let (archive_out, archive_in) = pipe()?;
        let (unread, unread_in) = pipe()?;
        let (words, words_in) = pipe()?;
        let program = self.program.as_path();
        let child = Command::new(program)
            .args(&self.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(archive_out))
            .stdout(Stdio::null())
            .stderr(Stdio::from(words_in))
            .spawn()
            .map_err(|e| failed(&program.display().to_string(), e.to_string()))?;
        self.running = Some(Running { child, words, said: Vec::new(), unread });
        init.export(archive_in, unread_in).map_err(|e| failed("the container's init", e.to_string()))
    }

    /// Hears the writer; when it has ended, what came of it.
    pub fn advance(&mut self) -> Option<Result<String, String>> {
        let running = self.running.as_mut()?;
        let mut piece = [0; 1024];
        match rustix::io::read(&running.words, &mut piece) {
            Ok(0) => {}
            Ok(n) => {
                let room = WORDS.saturating_sub(running.said.len());
                running.said.extend_from_slice(&piece[..n.min(room)]);
                return None;
            }
            Err(Errno::INTR | Errno::AGAIN) => return None,
            Err(_) => {}
        }
        Some(self.end())
    }

    /// The writer has closed its end, or nobody gives it anything more: waits for it.
    fn end(&mut self) -> Result<String, String> {
        let path = self.path.display().into_owned();
        let Some(mut running) = self.running.take() else { return Err(String::new()) };
        let status = running.child.wait();
        let mut unread = String::new();
        let limit = u64::try_from(WORDS).unwrap_or(0);
        let _ = std::fs::File::from(running.unread).take(limit).read_to_string(&mut unread);
        match status {
            Ok(status) if status.success() && unread.is_empty() => Ok(path),
            _ if !unread.trim().is_empty() => Err(format!("--container-save: {}", unread.trim())),
            Ok(_) => {
                let said = String::from_utf8_lossy(&running.said);
                let why = said.trim().lines().last().unwrap_or("the writing program ended").to_string();
                Err(format!("--container-save={path}: {why}"))
            }
            Err(e) => Err(format!("--container-save={path}: {e}")),
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if self.running.is_some() {
            // Its input has ended: it takes away what it has written, and goes.
            let _ = self.end();
        }
    }
}

/// Whether an image can be written to this path, as far as can be told before.
fn target_of(path: &Path) -> Result<(), String> {
    let shown = path.display();
    if path.is_dir() {
        return Err(format!(
            "--container-save: target is a directory: {shown}; name a file, or an OCI layout directory that is not there \
             yet (NAME.oci)"
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
