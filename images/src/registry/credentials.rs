//! The person's logins, from the files and helpers that `berth image login`, docker and podman write.
//!
//! Formats: Docker's `config.json` (`auths`, `credHelpers`, `credsStore`, the docker-credential-helpers protocol)
//! and containers-auth.json(5).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;

use super::carried::Used;
use super::helper;
use super::told::Told;
use crate::error::{Error, ErrorKind, Result};
use crate::reference::{DEFAULT_REGISTRY, bare_address};
use crate::source::read_regular;

/// Largest login file. Whoever's it is may have a device in its place, and who reads it may do so for others too.
const LARGEST: u64 = 1 << 20;

/// Where logins are looked for: the files of one person, in order.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    files: Vec<PathBuf>,
    /// The file that a new login goes into.
    own: Option<PathBuf>,
    /// Enroot's, which is asked last.
    pub(super) enroot: Option<PathBuf>,
    home: Option<PathBuf>,
    /// A registry's login that is in none of them.
    pub(super) carried: Option<(String, Identity)>,
    pub(super) used: Used,
    pub(super) told: Told,
    /// Registries are believed by the system's and the site's authorities alone, and not by those of the person's own directory.
    pub(super) by_sites_authorities: bool,
}

/// As whom a registry is asked.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Identity {
    Anonymous,
    Basic {
        user: String,
        password: String,
    },
    /// A refresh token of the registry's token server.
    Token {
        token: String,
    },
}

impl Identity {
    /// For messages; never the secret.
    pub(super) fn name(&self) -> String {
        match self {
            Identity::Anonymous => "anonymous".to_owned(),
            Identity::Basic { user, .. } => format!("user {user:?}"),
            Identity::Token { .. } => "a stored identity token".to_owned(),
        }
    }

    /// The value of a Basic authorisation header.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Identity::Basic { user, password } => Some(format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
            )),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// One login file.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthFile {
    auths: BTreeMap<String, AuthEntry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl Credentials {
    /// No logins at all.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The logins that the environment names: `$DOCKER_CONFIG`, `$REGISTRY_AUTH_FILE`,
    /// `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`, `~/.docker/config.json`, and Enroot's
    /// `.credentials` in `$ENROOT_CONFIG_PATH`, else `$XDG_CONFIG_HOME/enroot`, else `~/.config/enroot`.
    pub fn from_env() -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self::from_parts(
            var("DOCKER_CONFIG").as_deref(),
            var("REGISTRY_AUTH_FILE").as_deref(),
            var("XDG_RUNTIME_DIR").as_deref(),
            var("HOME").as_deref(),
        )
        .with_enroot(
            var("ENROOT_CONFIG_PATH").or_else(|| Some(var("XDG_CONFIG_HOME")?.join("enroot"))).as_deref(),
        )
    }

    /// As [`Credentials::from_env`], with the values of the first four variables given, and Enroot's file in the home directory.
    pub fn from_parts(
        docker_config: Option<&Path>,
        auth_file: Option<&Path>,
        runtime_dir: Option<&Path>,
        home: Option<&Path>,
    ) -> Self {
        let docker = docker_config.map(|d| d.join("config.json"));
        let user_docker = if docker.is_some() { None } else { home.map(|h| h.join(".docker/config.json")) };
        let own = docker.clone().or_else(|| auth_file.map(Path::to_path_buf)).or_else(|| user_docker.clone());
        let files = [
            docker,
            auth_file.map(Path::to_path_buf),
            runtime_dir.map(|d| d.join("containers/auth.json")),
            home.map(|h| h.join(".config/containers/auth.json")),
            user_docker,
        ];
        Self {
            files: files.into_iter().flatten().collect(),
            own,
            enroot: home.map(|h| h.join(".config/enroot/.credentials")),
            home: home.map(Path::to_path_buf),
            ..Self::default()
        }
    }

    /// The file that a new login goes into: the one that the environment names, or `~/.docker/config.json`, which
    /// docker, podman and skopeo read as well.
    pub(super) fn own(&self) -> Option<&Path> {
        self.own.as_deref()
    }

    /// The same, for what registries say of the person to others, who need not believe the person's own authorities.
    pub(super) fn by_sites_authorities(&self) -> Self {
        Self { by_sites_authorities: true, ..self.clone() }
    }

    /// All files, in the order in which they are asked.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The person's home directory, for `~/`.
    pub(crate) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// The login for a repository; only one of `user` where a user is named.
    pub(super) fn lookup(&self, registry: &str, repository: &str, user: Option<&str>) -> Result<Identity> {
        for path in &self.files {
            let Some(text) = read(path)? else { continue };
            if let Some(identity) = AuthFile::parse(path, &text)?.lookup(path, registry, repository, user)?
                && user.is_none_or(
                    |user| matches!(&identity, Identity::Basic { user: found, .. } if found == user),
                )
            {
                return Ok(identity);
            }
        }
        if let Some(identity) = self.of_enroot(registry, user)? {
            return Ok(identity);
        }
        match user {
            None => Ok(Identity::Anonymous),
            Some(user) => Err(Error::new(
                ErrorKind::Denied,
                format!("registry {registry}"),
                format!("there is no login of user {user:?}"),
            )
            .next(format!("run `berth image login {user}@{registry}`, or leave out {user}@"))),
        }
    }
}

/// A login file's content; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match read_regular(path, LARGEST) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(Error::path(path, e).next(
            "registry logins are read from there; put a file there that can be read, or take away what is there",
        )),
    }
}

/// The name of a further login, beside the one that a registry is asked with where nobody is named.
pub(super) fn of_user(user: &str, registry: &str) -> String {
    format!("{user}@{registry}")
}

impl AuthFile {
    /// Reads what `path` has.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<AuthFile> {
        serde_json::from_slice(text).map_err(|e| {
            Error::new(ErrorKind::Io, path.display().to_string(), format!("is not a login file: {e}"))
                .next("repair it, or move it away and log in again with `berth image login`")
        })
    }

    /// The helper that keeps logins of a registry in place of the file.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        let keys = keys(registry, "");
        let own = keys.iter().find_map(|key| self.helpers.iter().find(|(name, _)| normal(name) == *key));
        own.map(|(_, helper)| helper)
            .or(Some(&self.store))
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// Whether the file itself has something under this name of a login.
    pub(super) fn mentions(&self, login: &str) -> bool {
        self.auths.keys().any(|name| is_of(name, login))
    }

    fn lookup(
        &self,
        path: &Path,
        registry: &str,
        repository: &str,
        user: Option<&str>,
    ) -> Result<Option<Identity>> {
        if let Some(user) = user {
            let login = of_user(user, registry);
            let kept = match self.helper(registry) {
                Some(helper) if self.mentions(&login) => helper::get(helper, &login)?,
                _ => None,
            };
            let own = self.auths.iter().find(|(name, _)| is_of(name, &login));
            let found = match (kept, own) {
                (Some(identity), _) => Some(identity),
                (None, Some((_, entry))) => entry.identity(path, &login)?,
                (None, None) => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        let keys = keys(registry, repository);
        for key in &keys {
            if let Some((_, helper)) = self.helpers.iter().find(|(name, _)| normal(name) == *key) {
                return helper::get(helper, registry);
            }
        }
        for key in &keys {
            for (_, entry) in self.auths.iter().filter(|(name, _)| normal(name) == *key) {
                if let Some(identity) = entry.identity(path, key)? {
                    return Ok(Some(identity));
                }
            }
        }
        if self.store.is_empty() { Ok(None) } else { helper::get(&self.store, registry) }
    }
}

impl AuthEntry {
    fn identity(&self, path: &Path, key: &str) -> Result<Option<Identity>> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Identity::Token { token: self.identitytoken.clone() }));
        }
        if self.auth.is_empty() {
            // An empty entry only says that a credential store has the login.
            let known = !self.username.is_empty();
            return Ok(known
                .then(|| Identity::Basic { user: self.username.clone(), password: self.password.clone() }));
        }
        let bad = || {
            Error::new(
                ErrorKind::Io,
                path.display().to_string(),
                format!("the login of {key} is not base64 of USER:PASSWORD"),
            )
            .next(format!("log in again: `berth image login {key}`"))
        };
        let decoded =
            base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).map_err(|_| bad())?;
        let decoded = String::from_utf8(decoded).map_err(|_| bad())?;
        let (user, password) = decoded.trim_end_matches('\0').split_once(':').ok_or_else(bad)?;
        Ok(Some(Identity::Basic { user: user.to_owned(), password: password.to_owned() }))
    }
}

/// Keys that name a repository's login, the most exact one first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path =
        if repository.is_empty() { registry.to_owned() } else { format!("{registry}/{repository}") };
    while path.len() > registry.len() {
        keys.push(path.clone());
        path.truncate(path.rfind('/').unwrap_or(registry.len()));
    }
    keys.push(registry.to_owned());
    if registry == DEFAULT_REGISTRY {
        keys.extend(["index.docker.io".to_owned(), "registry-1.docker.io".to_owned()]);
    }
    keys
}

/// Whether a key of a login file means this login.
pub(super) fn is_of(key: &str, login: &str) -> bool {
    let key = normal(key);
    keys(login, "").contains(&key)
}

/// A key of a login file without scheme and API version.
fn normal(key: &str) -> String {
    bare_address(key).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> (tempfile::TempDir, Credentials) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let credentials = Credentials::from_parts(Some(dir.path()), None, None, None);
        (dir, credentials)
    }

    fn basic(user: &str, password: &str) -> Identity {
        Identity::Basic { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn most_exact_key_wins_and_schemes_are_dropped() {
        // alice:secret, bob:b:c
        let (_dir, c) = with(
            r#"{"auths":{"https://r.io/v2/":{"auth":"YWxpY2U6c2VjcmV0"},"r.io/team":{"auth":"Ym9iOmI6Yw=="},
                "https://index.docker.io/v1/":{"username":"hub","password":"p"},"empty.io":{}}}"#,
        );
        assert_eq!(c.lookup("r.io", "x", None).unwrap(), basic("alice", "secret"));
        assert_eq!(c.lookup("r.io", "team/y", None).unwrap(), basic("bob", "b:c"));
        assert_eq!(c.lookup("r.io", "teams/y", None).unwrap(), basic("alice", "secret"));
        assert_eq!(c.lookup("docker.io", "library/debian", None).unwrap(), basic("hub", "p"));
        assert_eq!(c.lookup("empty.io", "x", None).unwrap(), Identity::Anonymous);
        assert_eq!(c.lookup("other.io", "x", None).unwrap(), Identity::Anonymous);
        assert_eq!(c.lookup("r.io", "x", Some("alice")).unwrap(), basic("alice", "secret"));
        // carol:d, beside the first.
        let (_dir, several) =
            with(r#"{"auths":{"r.io":{"auth":"YWxpY2U6c2VjcmV0"},"carol@r.io":{"auth":"Y2Fyb2w6ZA=="}}}"#);
        assert_eq!(several.lookup("r.io", "x", Some("carol")).unwrap(), basic("carol", "d"));
        assert_eq!(several.lookup("r.io", "x", None).unwrap(), basic("alice", "secret"));
        let error = c.lookup("r.io", "x", Some("carol")).unwrap_err().to_string();
        assert!(error.contains("carol") && error.contains("login"), "{error}");
    }

    #[test]
    fn broken_files_are_named() {
        let (dir, c) = with("{");
        let error = c.lookup("r.io", "x", None).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        let (_dir, c) = with(r#"{"auths":{"r.io":{"auth":"!!!"}}}"#);
        assert!(c.lookup("r.io", "x", None).unwrap_err().to_string().contains("base64"));
        let (_dir, c) = with(r#"{"credHelpers":{"r.io":"no-such-helper"}}"#);
        assert!(
            c.lookup("r.io", "x", None).unwrap_err().to_string().contains("docker-credential-no-such-helper")
        );
        let (_dir, c) = with(r#"{"credsStore":"../x"}"#);
        assert!(c.lookup("r.io", "x", None).unwrap_err().to_string().contains("not the name of a program"));
    }

    #[test]
    fn what_is_no_file_is_not_read_as_one() {
        let (dir, c) = with("{}");
        let path = dir.path().join("config.json");
        let refusal = || {
            let error = c.lookup("r.io", "x", None).unwrap_err().to_string();
            std::fs::remove_file(&path).unwrap();
            assert!(error.contains("config.json") && error.contains("put a file there"), "{error}");
            error
        };
        std::fs::write(&path, vec![b' '; usize::try_from(LARGEST).unwrap() + 1]).unwrap();
        assert!(refusal().contains("is larger than 1048576 bytes"));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refusal().contains("is not a regular file"));
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(refusal().contains("is not a regular file"));
        // A link to a file is one, and none is none.
        std::fs::write(dir.path().join("real"), r#"{"auths":{"r.io":{"auth":"YWxpY2U6c2VjcmV0"}}}"#).unwrap();
        std::os::unix::fs::symlink("real", &path).unwrap();
        assert_eq!(c.lookup("r.io", "x", None).unwrap(), basic("alice", "secret"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(c.lookup("r.io", "x", None).unwrap(), Identity::Anonymous);
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", basic("u", "hidden")).contains("hidden"));
    }
}
