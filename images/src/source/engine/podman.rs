//! podman's storage, asked by podman itself as the user: for an ordinary user it enters its user namespace.

use std::io::{Read, Seek, SeekFrom};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::spool::{Spool, unnamed};
use super::{Inspected, Seen, words};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of what podman says of an image.
const MOST: u64 = 16 << 20;

static ALONE: Mutex<()> = Mutex::new(());

/// The image of that name or id, if there is one.
pub(super) fn look(name: &str) -> Result<Option<Seen>> {
    let mut out = Vec::new();
    let told = run(&["image", "inspect", "--format", "json", name], &mut |from| {
        from.take(MOST).read_to_end(&mut out).map_err(|e| Error::io("podman", e))?;
        Ok(())
    });
    if let Err(error) = told {
        // It has no other code for an image that is not there, and words that change.
        return if absent(name)? { Ok(None) } else { Err(error) };
    }
    let odd = |reason: String| {
        Error::new(ErrorKind::Unsupported, format!("podman image inspect {name}"), reason)
            .next("write the image into a file with `podman save`, and name that")
    };
    let images: Vec<Inspected> =
        serde_json::from_slice(&out).map_err(|e| odd(format!("is not understood: {e}")))?;
    let [image] = images.as_slice() else { return Err(odd(format!("gave {} images", images.len()))) };
    let id = format!("sha256:{}", image.id.trim_start_matches("sha256:"));
    let id = id.parse().map_err(|e: Error| odd(format!("gave an id that is none: {e}")))?;
    Ok(Some(Seen { id, size: image.size }))
}

/// Whether podman says that there is no such image, which it does by the code 1.
fn absent(name: &str) -> Result<bool> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let status = command(&["image", "exists", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    end_orphans();
    Ok(status.map_err(not_there)?.code() == Some(1))
}

/// Has the image written.
pub(super) fn save(id: &Digest, spool: &mut Spool) -> Result<()> {
    run(&["save", "--quiet", "--format", "docker-archive", &id.to_string()], &mut |from| spool.take(from))
}

fn command(arguments: &[&str]) -> Command {
    let mut podman = Command::new("podman");
    podman.args(arguments).stdin(Stdio::null());
    podman
}

/// Has what podman leaves running for an ordinary user, a process that holds the user's namespaces for the next command, end
/// with the command: on a node it would belong to no job. One that was there before is not touched. For a process of
/// its own, which has no other children.
pub(crate) fn leave_nothing_running() -> Result<()> {
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).map_err(|e| Error::io("child subreaper", e))
}

/// Ends what has become our child because its parent, a podman that was waited for, is gone.
fn end_orphans() {
    if !matches!(rustix::process::child_subreaper(), Ok(Some(_))) {
        return;
    }
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
    for thread in threads.flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let child = Pid::from_raw(child);
            // A child's number is its own until it is waited for.
            if kill(child, Signal::SIGKILL).is_ok() {
                let _ = waitpid(child, None);
            }
        }
    }
}

/// Runs podman, with what it writes given to `read`.
fn run(arguments: &[&str], read: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> {
    let what = || format!("podman {}", arguments.join(" "));
    // A file takes all that it complains of; a pipe would stop it.
    let mut complaints = unnamed()?;
    let copy = complaints.try_clone().map_err(|e| Error::io("temporary file", e))?;
    let mut child = command(arguments).stdout(Stdio::piped()).stderr(copy).spawn().map_err(not_there)?;
    let result = match child.stdout.take() {
        Some(mut stdout) => read(&mut stdout),
        None => Ok(()),
    };
    if result.is_err() {
        // It may be in the middle of writing.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| Error::io(what(), e))?;
    end_orphans();
    result?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    complaints
        .seek(SeekFrom::Start(0))
        .and_then(|_| complaints.take(MOST).read_to_end(&mut said))
        .map_err(|e| Error::io("temporary file", e))?;
    Err(Error::new(ErrorKind::Io, what(), format!("failed ({status}): {}", words(&said)))
        .next("see whether the command works by itself on this machine, as the same user"))
}

fn not_there(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        return Error::new(
            ErrorKind::NotFound,
            "podman",
            "is not installed on this machine, and its storage is read by it alone",
        )
        .next("install the package podman, or name an image of a registry or a file");
    }
    Error::io("podman", error)
}
