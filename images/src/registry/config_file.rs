//! A login file, changed in one place: whatever else is in it stays as it was written.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;

use super::credentials::{AuthFile, is_of, read};
use crate::error::{Error, ErrorKind, Result};
use crate::unseen::Unseen;

/// A login file that nobody else of us changes as long as this value lives.
pub(super) struct ConfigFile {
    path: PathBuf,
    text: Option<String>,
    _alone: File,
}

impl ConfigFile {
    /// Opens the file at `path`; it need not be there yet, and neither need its directory.
    pub(super) fn open(path: &Path) -> Result<ConfigFile> {
        // A link to the file stays one.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let io = |e| Error::path(&path, e).next("logins are kept there; make it possible to write it");
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if geteuid().is_root() {
            // Root makes nothing where a user could lead it elsewhere; `sudo -E` leaves the user's HOME.
            let there = directory.ancestors().find(|d| d.exists());
            there.map_or(Ok(()), own)?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
        let alone = File::open(directory).map_err(io)?;
        // A file that is not there yet is known by its directory, as it will be by itself.
        let path = match (directory.canonicalize(), path.file_name()) {
            (Ok(directory), Some(name)) => directory.join(name),
            _ => path.clone(),
        };
        // Two logins at once must not lose one of them. Network filesystems may know no locks of directories.
        let _ = flock(&alone, FlockOperation::LockExclusive);
        own(&path)?;
        let text = match read(&path)? {
            None => None,
            Some(bytes) => {
                // What is not one is refused before it is changed.
                AuthFile::parse(&path, &bytes)?;
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
        };
        Ok(ConfigFile { path, text, _alone: alone })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of logins.
    pub(super) fn logins(&self) -> Result<AuthFile> {
        AuthFile::parse(&self.path, self.text.as_deref().unwrap_or("{}").as_bytes())
    }

    /// Puts `entry`, as JSON, in place of all that the file has of a login, under this key; without one, that goes.
    pub(super) fn set(&mut self, login: &str, entry: Option<(&str, &str)>) -> Result<()> {
        let text = changed(self.text.as_deref().unwrap_or("{}"), login, entry);
        let io =
            |e| Error::path(&self.path, e).next("the login was not changed; make room, or make it writable");
        let unseen = Unseen::create_as(&self.path, 0o600).map_err(io)?;
        unseen.file().write_all(text.as_bytes()).and_then(|()| unseen.file().sync_all()).map_err(io)?;
        unseen.publish().map_err(io)?;
        self.text = Some(text);
        Ok(())
    }
}

/// Refuses what belongs to somebody else. What is not there yet belongs to nobody.
fn own(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.uid() != geteuid().as_raw() => {
            let reason = format!("belongs to uid {} and not to you", found.uid());
            Err(Error::new(ErrorKind::Denied, path.display().to_string(), reason)
                .next("log in as that user, or name a directory of yours by DOCKER_CONFIG"))
        }
        _ => Ok(()),
    }
}

/// `text`, which is a JSON object, with another entry in its `auths`.
fn changed(text: &str, login: &str, entry: Option<(&str, &str)>) -> String {
    let mut all = members(text);
    let at = all.iter().position(|(key, _)| decoded(key) == "auths");
    let auths = at.map_or("", |at| all[at].1);
    let mut logins: Vec<(String, String)> = members(auths)
        .into_iter()
        .filter(|(key, _)| !is_of(&decoded(key), login))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    logins.extend(entry.map(|(key, value)| (serde_json::Value::from(key).to_string(), value.to_owned())));
    let auths = object(&logins, "\t\t", "\t");
    match at {
        Some(at) => all[at].1 = &auths,
        None => all.push(("\"auths\"", &auths)),
    }
    let all: Vec<_> = all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    object(&all, "\t", "") + "\n"
}

/// An object of members that are JSON already, in docker's own way of writing it.
fn object(members: &[(String, String)], indent: &str, end: &str) -> String {
    if members.is_empty() {
        return "{}".to_owned();
    }
    let lines: Vec<String> = members.iter().map(|(key, value)| format!("{indent}{key}: {value}")).collect();
    format!("{{\n{}\n{end}}}", lines.join(",\n"))
}

/// A key as it is meant.
fn decoded(key: &str) -> String {
    serde_json::from_str(key).unwrap_or_default()
}

/// Keys and values of an object as they are written, in their order. `text` was read as JSON before.
fn members(text: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let (mut depth, mut start, mut colon) = (0, 0, None);
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => {
                depth += 1;
                if depth == 1 {
                    start = at + 1;
                }
            }
            b':' if depth == 1 => colon = Some(at),
            b',' | b'}' if depth == 1 => {
                if let Some(colon) = colon.take() {
                    found.push((text[start..colon].trim(), text[colon + 1..at].trim()));
                }
                start = at + 1;
                if byte == b'}' {
                    depth = 0;
                }
            }
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
	"HttpHeaders": {"User-Agent": "x, \"}{: \u00e4"},
	"auths": {"r.io": {"auth": "b2xk", "email": "a@b"}, "https://r.io/v2/": {}, "s.io": {"auth":  "a2VwdA=="}},
	"big": 123456789012345678901234567890.10,
	"list": [ 1,2 , {"a":":"} ]
}"#;

    #[test]
    fn other_keys_stay_as_they_were_written() {
        let text = changed(FILE, "r.io", Some(("r.io", r#"{"auth": "bmV3"}"#)));
        for kept in [
            r#""HttpHeaders": {"User-Agent": "x, \"}{: \u00e4"}"#,
            r#""s.io": {"auth":  "a2VwdA=="}"#,
            r#""big": 123456789012345678901234567890.10"#,
            r#""list": [ 1,2 , {"a":":"} ]"#,
            r#""r.io": {"auth": "bmV3"}"#,
        ] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
        assert!(!text.contains("b2xk") && !text.contains("https://r.io"), "{text}");
        let names = |text: &str| members(text).iter().map(|(key, _)| decoded(key)).collect::<Vec<_>>();
        assert_eq!(names(&text), names(FILE));
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
        // Again the same, and gone again.
        assert_eq!(changed(&text, "r.io", Some(("r.io", r#"{"auth": "bmV3"}"#))), text);
        let text = changed(&text, "r.io", None);
        assert!(!text.contains("r.io") && text.contains("s.io"), "{text}");
    }

    #[test]
    fn a_file_is_made_with_docker_s_keys() {
        let text = changed("{}", "docker.io", Some(("https://index.docker.io/v1/", "{}")));
        assert_eq!(text, "{\n\t\"auths\": {\n\t\t\"https://index.docker.io/v1/\": {}\n\t}\n}\n");
        assert_eq!(changed(&text, "docker.io", None), "{\n\t\"auths\": {}\n}\n");
        assert_eq!(members("{ }"), []);
        assert_eq!(members(""), []);
    }

    #[test]
    fn it_is_replaced_whole_closed_to_others_and_a_link_to_it_stays() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real.json");
        let link = dir.path().join("link.json");
        std::fs::write(&real, "{}").unwrap();
        std::os::unix::fs::symlink("real.json", &link).unwrap();
        ConfigFile::open(&link).unwrap().set("r.io", Some(("r.io", "{}"))).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(&real).unwrap().contains("r.io"));
        // One that cannot be read is left as it is.
        std::fs::write(&real, "{").unwrap();
        assert!(ConfigFile::open(&link).is_err());
        assert_eq!(std::fs::read_to_string(&real).unwrap(), "{");
        let fresh = dir.path().join("a/b/config.json");
        ConfigFile::open(&fresh).unwrap().set("r.io", Some(("r.io", "{}"))).unwrap();
        let made = std::fs::metadata(fresh.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(made & 0o077, 0);
    }

    #[test]
    fn logins_at_the_same_time_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let name = format!("r{n}.io");
                    ConfigFile::open(path).unwrap().set(&name, Some((&name, "{}"))).unwrap();
                });
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert!((0..8).all(|n| text.contains(&format!("r{n}.io"))), "{text}");
    }
}
