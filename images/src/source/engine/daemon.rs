//! docker's daemon, asked over its socket (Docker Engine API, images): the user must be allowed to open it, which is as much as
//! being root of that machine.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::spool::Spool;
use super::{Inspected, Seen, words};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Where the daemon listens unless DOCKER_HOST names another socket.
const USUAL: &str = "/var/run/docker.sock";
/// Bytes of an answer that is no image, and of the lines before one.
const MOST: u64 = 16 << 20;
const HEAD: u64 = 64 << 10;
/// How long it may say nothing: it puts the whole image together before it answers.
const PATIENCE: Duration = Duration::from_secs(1800);

#[derive(Deserialize)]
struct Complaint {
    message: String,
}

/// The daemon at a socket.
pub(super) struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    /// The one that DOCKER_HOST names, or the usual one.
    pub(super) fn of_environment() -> Result<Daemon> {
        Daemon::at(std::env::var_os("DOCKER_HOST"))
    }

    fn at(host: Option<OsString>) -> Result<Daemon> {
        let Some(host) = host.filter(|host| !host.is_empty()) else {
            return Ok(Daemon { socket: USUAL.into() });
        };
        let bytes = host.into_vec();
        match bytes.strip_prefix(b"unix://") {
            Some(path) if path.starts_with(b"/") => {
                Ok(Daemon { socket: PathBuf::from(OsString::from_vec(path.to_vec())) })
            }
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!("DOCKER_HOST {:?}", String::from_utf8_lossy(&bytes)),
                "only a daemon on this machine is asked, by its socket",
            )
            .next("set DOCKER_HOST to unix:///PATH, or push the image to a registry")),
        }
    }

    /// The image of that name or id, if there is one.
    pub(super) fn look(&self, name: &str) -> Result<Option<Seen>> {
        let Some(body) = self.get(&format!("/images/{name}/json"))? else { return Ok(None) };
        let mut text = Vec::new();
        body.take(MOST).read_to_end(&mut text).map_err(|e| self.broken(e))?;
        let image: Inspected = serde_json::from_slice(&text).map_err(|e| self.odd(&e.to_string()))?;
        let id = image.id.parse().map_err(|e: Error| self.odd(&e.to_string()))?;
        Ok(Some(Seen { id, size: image.size }))
    }

    /// Has the image written.
    pub(super) fn save(&self, id: &Digest, spool: &mut Spool) -> Result<()> {
        let mut body = self
            .get(&format!("/images/{id}/get"))?
            .ok_or_else(|| self.odd(&format!("it had image {id}, and has it no more")))?;
        spool.take(&mut body)
    }

    /// The body of an answer; nothing, where there is no such image.
    fn get(&self, path: &str) -> Result<Option<impl Read + use<>>> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|e| self.unreachable(e))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| self.broken(e))?;
        // Of HTTP/1.0, an answer ends with the connection and is in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").map_err(|e| self.broken(e))?;
        let mut lines = BufReader::new(stream).take(HEAD);
        let status = self.line(&mut lines)?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
        let mut length = None;
        loop {
            let line = self.line(&mut lines)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse::<u64>().ok();
            }
            if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(self.odd("it answers in a form that was not asked for"));
            }
        }
        let body = lines.into_inner().take(length.unwrap_or(u64::MAX));
        match code {
            Some(200) => Ok(Some(body)),
            Some(404) => Ok(None),
            _ => {
                let mut text = Vec::new();
                body.take(HEAD).read_to_end(&mut text).map_err(|e| self.broken(e))?;
                let message = serde_json::from_slice::<Complaint>(&text).map(|said| said.message);
                Err(self.odd(&message.unwrap_or(status)))
            }
        }
    }

    fn line(&self, lines: &mut impl BufRead) -> Result<String> {
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).map_err(|e| self.broken(e))?;
        if line.pop() != Some(b'\n') {
            return Err(self.odd("its answer is not HTTP"));
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn what(&self) -> String {
        format!("docker's daemon at {}", self.socket.display())
    }

    fn odd(&self, reason: &str) -> Error {
        Error::new(ErrorKind::Unreachable, self.what(), words(reason.as_bytes()))
            .next("write the image into a file with `docker save`, and name that")
    }

    fn broken(&self, error: std::io::Error) -> Error {
        Error::new(ErrorKind::Unreachable, self.what(), error.to_string())
            .next("try again; look into the daemon's log")
    }

    fn unreachable(&self, error: std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            return Error::new(ErrorKind::Denied, self.what(), "you may not open its socket").next(
                "push the image to a registry, or use podman; whoever may open the socket is as good as root (group docker)",
            );
        }
        Error::new(ErrorKind::Unreachable, self.what(), format!("cannot be asked: {error}"))
            .next("start it (package docker.io), or set DOCKER_HOST to unix:///PATH of its socket")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_this_machine() {
        assert_eq!(Daemon::at(None).unwrap().socket, PathBuf::from(USUAL));
        assert_eq!(Daemon::at(Some("".into())).unwrap().socket, PathBuf::from(USUAL));
        assert_eq!(Daemon::at(Some("unix:///a/b".into())).unwrap().socket, PathBuf::from("/a/b"));
        for bad in ["tcp://1.2.3.4:5", "ssh://x", "unix://a", "/a"] {
            let error = Daemon::at(Some(bad.into())).err().unwrap().to_string();
            assert!(error.contains("unix:///PATH"), "{error}");
        }
    }

    #[test]
    fn answers_that_are_none_are_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let answers = [
            "",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n{}",
            "HTTP/1.0 500 Bad\r\n\r\n{\"message\":\"disk \\u001b full\"}",
            "HTTP/1.0 404 None\r\n\r\n",
        ];
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while asked.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let daemon = Daemon { socket };
        for word in ["not HTTP", "not asked for", "missing field", "full"] {
            let error = daemon.look("x").err().unwrap().to_string();
            assert!(error.contains(word) && !error.contains('\u{1b}'), "{error}");
        }
        assert!(daemon.look("x").unwrap().is_none());
        server.join().unwrap();
    }
}
