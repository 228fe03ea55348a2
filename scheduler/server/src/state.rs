//! The state directory: who may enter what, sockets that replace dead ones, and the pid file.

use crate::ControllerError;
use berth_model::{ByteStr, Time};
use serde::Serialize;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Longest path of a socket, in bytes (`sun_path` in unix(7), with the final zero).
const LONGEST_SOCKET: usize = 107;

fn trouble(path: &Path, why: impl std::fmt::Display) -> ControllerError {
    ControllerError::State { path: path.to_path_buf(), why: why.to_string() }
}

/// A state directory with its parts in place.
#[derive(Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Makes what is missing.
    pub(crate) fn prepare(root: &Path) -> Result<StateDir, ControllerError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(root)
            .map_err(|e| trouble(root, format!("cannot create the state directory: {e}")))?;
        let root = std::fs::canonicalize(root).map_err(|e| trouble(root, e))?;
        let dir = StateDir { root };
        dir.part("run", 0o755)?;
        dir.part("private", 0o700)?;
        Ok(dir)
    }

    fn part(&self, name: &str, mode: u32) -> Result<PathBuf, ControllerError> {
        let path = self.root.join(name);
        if let Err(e) = DirBuilder::new().mode(mode).create(&path)
            && e.kind() != ErrorKind::AlreadyExists
        {
            return Err(trouble(&path, e));
        }
        let meta = std::fs::symlink_metadata(&path).map_err(|e| trouble(&path, e))?;
        if !meta.is_dir() {
            return Err(trouble(&path, "is not a directory; move it away"));
        }
        let own = nix::unistd::geteuid().as_raw();
        if meta.uid() != own {
            let why = format!(
                "belongs to user id {}, and this controller runs as {own}; use the user that made the cluster, \
                 or another state directory",
                meta.uid()
            );
            return Err(trouble(&path, why));
        }
        // Whatever the umask left of it.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).map_err(|e| trouble(&path, e))?;
        Ok(path)
    }

    /// The directory, without links.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("db")
    }

    pub(crate) fn login_key(&self) -> PathBuf {
        self.root.join("private/login.key")
    }

    fn public_socket(&self) -> PathBuf {
        self.root.join("run/controller.sock")
    }

    fn private_socket(&self) -> PathBuf {
        self.root.join("private/node.sock")
    }

    fn streams_socket(&self) -> PathBuf {
        self.root.join("run/streams.sock")
    }

    /// What is the controller's alone.
    pub(crate) fn private(&self) -> PathBuf {
        self.root.join("private")
    }

    /// For streams to other machines, where this one has no agent: everyone may connect.
    pub(crate) fn bind_streams(&self) -> Result<UnixListener, ControllerError> {
        bind(&self.streams_socket(), 0o666)
    }

    /// Everyone may connect; who it is, the kernel says.
    pub(crate) fn bind_public(&self) -> Result<UnixListener, ControllerError> {
        bind(&self.public_socket(), 0o666)
    }

    /// Only root and our own user may connect.
    pub(crate) fn bind_private(&self) -> Result<UnixListener, ControllerError> {
        bind(&self.private_socket(), 0o600)
    }

    pub(crate) fn remove_sockets(&self) {
        for path in [self.public_socket(), self.private_socket(), self.streams_socket()] {
            if let Err(e) = std::fs::remove_file(&path) {
                tracing::warn!("{}: {e}", path.display());
            }
        }
    }
}

/// Binds beside the final name and moves it there, so that a client meets the old socket or the new one
/// with its permissions, and nothing between.
fn bind(path: &Path, mode: u32) -> Result<UnixListener, ControllerError> {
    let fresh = path.with_extension("new");
    if fresh.as_os_str().len() > LONGEST_SOCKET {
        let why = format!(
            "the path is longer than the {LONGEST_SOCKET} bytes that a socket may have; choose a shorter state \
             directory"
        );
        return Err(trouble(&fresh, why));
    }
    if let Err(e) = std::fs::remove_file(&fresh)
        && e.kind() != ErrorKind::NotFound
    {
        return Err(trouble(&fresh, e));
    }
    let listener = UnixListener::bind(&fresh).map_err(|e| trouble(&fresh, e))?;
    std::fs::set_permissions(&fresh, PermissionsExt::from_mode(mode)).map_err(|e| trouble(&fresh, e))?;
    std::fs::rename(&fresh, path).map_err(|e| trouble(path, e))?;
    Ok(listener)
}

/// `run/controller.json`: for `berth up`, `berth down` and people. Removed with this value.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
}

#[derive(Serialize)]
struct Content<'a> {
    pid: u32,
    version: &'a str,
    since: Time,
    state_dir: ByteStr,
}

impl PidFile {
    pub(crate) fn write(dir: &StateDir, since: Time) -> Result<PidFile, ControllerError> {
        let path = dir.root.join("run/controller.json");
        let content = Content {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            since,
            state_dir: ByteStr::from(dir.root.as_path()),
        };
        let fresh = path.with_extension("new");
        let written = || -> std::io::Result<()> {
            let mut text = serde_json::to_vec(&content)?;
            text.push(b'\n');
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&fresh)?;
            file.set_permissions(PermissionsExt::from_mode(0o644))?;
            file.write_all(&text)?;
            std::fs::rename(&fresh, &path)
        };
        written().map_err(|e| trouble(&path, e))?;
        Ok(PidFile { path })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!("{}: {e}", self.path.display());
        }
    }
}
