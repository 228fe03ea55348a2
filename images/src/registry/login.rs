//! Logging in to a registry, and out: checked by asking it, and kept where docker, podman and skopeo look.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;

use super::config_file::ConfigFile;
use super::credentials::{AuthFile, Identity, of_user, read};
use super::{Access, Client, Credentials, Range, Registries, helper};
use crate::error::{Error, ErrorKind, Result};
use crate::reference::{DEFAULT_REGISTRY, RegistryRef, registry_alone};

/// Which login of which registry: `[USER@]HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginTarget {
    /// Set for a further login, which only images that are named with `USER@` use.
    pub user: Option<String>,
    /// The registry, as in references.
    pub registry: String,
}

impl LoginTarget {
    /// Its name in a login file, as [`super::credentials::is_of`] knows it.
    fn name(&self) -> String {
        match &self.user {
            Some(user) => of_user(user, &self.registry),
            None => self.registry.clone(),
        }
    }

    /// What takes the login out of a file that is not ours to write, for people.
    pub fn removal(&self, file: &Path) -> String {
        match file.file_name().is_some_and(|name| name == ".credentials") {
            // It may stand there under another name of the registry, as Docker Hub's does.
            true => format!("take the line for {} out of it, which is Enroot's file", self.registry),
            false => format!("'podman logout {}' removes it", self.registry),
        }
    }
}

impl Default for LoginTarget {
    /// The registry that bare names mean.
    fn default() -> Self {
        Self { user: None, registry: DEFAULT_REGISTRY.to_owned() }
    }
}

impl FromStr for LoginTarget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (user, registry) = match text.rsplit_once('@') {
            Some((user, registry)) => {
                check_user(user, "/@#:", &format!("registry {text:?}"))?;
                (Some(user.to_owned()), registry)
            }
            None => (None, text),
        };
        Ok(Self { user, registry: registry_alone(registry)? })
    }
}

/// What became of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The file that has it, or names the helper that has it.
    pub file: PathBuf,
    /// The helper that keeps it in place of the file.
    pub helper: Option<String>,
    /// False where the registry asks nobody for a login, so that nothing is known of this one.
    pub checked: bool,
    /// A file with another login for the registry that is asked before this one.
    pub hidden_by: Option<PathBuf>,
}

impl Credentials {
    /// Asks the registry whether it takes the login, and keeps it then.
    ///
    /// # Errors
    /// The registry refuses it or cannot be reached, or it cannot be kept; nothing is changed then.
    pub fn login(
        &self,
        target: &LoginTarget,
        user: &str,
        password: &str,
        registries: &Registries,
    ) -> Result<Login> {
        let what = format!("login to {}", target.registry);
        check_user(user, ":", &what)?;
        if target.user.as_ref().is_some_and(|named| named != user) {
            let reason = format!("it is user {user:?} who logs in, and {}@ names another", target.name());
            return Err(Error::new(ErrorKind::Reference, what, reason).next("leave out one of the two"));
        }
        if password.is_empty() {
            return Err(Error::new(ErrorKind::Reference, what, "the password is empty")
                .next("give the password, or a token, of that user"));
        }
        let checked = self.check(&target.registry, user, password, registries)?;
        let mut file = ConfigFile::open(self.place(&what)?)?;
        let (logins, name) = (file.logins()?, target.name());
        let helper = logins.helper(&target.registry).map(str::to_owned);
        let entry = match &helper {
            // Docker writes it so, too: what is listed says which registries the helper knows.
            Some(helper) => {
                helper::store(helper, &name, user, password)?;
                "{}".to_owned()
            }
            None => {
                let secret = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                serde_json::json!({ "auth": secret }).to_string()
            }
        };
        file.set(&name, Some((helper::address(&name), &entry)))?;
        let own = file.path().to_path_buf();
        let hidden_by =
            self.others(&own, target).into_iter().find(|(_, before)| *before).map(|(path, _)| path);
        Ok(Login { file: own, helper, checked, hidden_by })
    }

    /// Forgets a login. Gives the files of other tools that still have one, and of these the first that counts.
    ///
    /// # Errors
    /// There is no such login, or the file or its helper cannot be changed.
    pub fn logout(&self, target: &LoginTarget) -> Result<Vec<PathBuf>> {
        let what = format!("login to {}", target.name());
        let mut file = ConfigFile::open(self.place(&what)?)?;
        let (logins, name) = (file.logins()?, target.name());
        let listed = logins.mentions(&name);
        let erased = match logins.helper(&target.registry) {
            Some(helper) => helper::erase(helper, &name)?,
            None => false,
        };
        if listed {
            file.set(&name, None)?;
        }
        let others = self.others(file.path(), target).into_iter().map(|(path, _)| path).collect();
        if listed || erased {
            return Ok(others);
        }
        let reason = format!("there is none in {}", file.path().display());
        let next = match others.first() {
            Some(other) => {
                format!("{} has one: {}", other.display(), target.removal(other))
            }
            None => "nothing had to be removed".to_owned(),
        };
        Err(Error::new(ErrorKind::NotFound, what, reason).next(next))
    }

    fn place(&self, what: &str) -> Result<&Path> {
        self.own().ok_or_else(|| {
            Error::new(ErrorKind::Reference, what, "HOME is not set, so there is no place for logins")
                .next("set HOME, or DOCKER_CONFIG to a directory")
        })
    }

    /// Files beside `own` that mention the login, and whether they are asked before it. One that cannot be read mentions
    /// nothing: whoever needs a login is told of it.
    fn others(&self, own: &Path, target: &LoginTarget) -> Vec<(PathBuf, bool)> {
        let (mut found, mut before) = (Vec::new(), true);
        for path in self.files() {
            if path.canonicalize().is_ok_and(|path| path == own) {
                before = false;
            } else if let Ok(Some(text)) = read(path)
                && AuthFile::parse(path, &text).is_ok_and(|file| file.mentions(&target.name()))
            {
                found.push((path.clone(), before));
            }
        }
        let enroot = self.enroot_has(&target.registry, target.user.as_deref());
        found.extend(enroot.map(|path| (path, false)));
        found
    }

    /// Asks the registry; false where it wants to know from nobody who they are.
    fn check(&self, registry: &str, user: &str, password: &str, registries: &Registries) -> Result<bool> {
        let name = RegistryRef {
            user: None,
            registry: registry.to_owned(),
            repository: String::new(),
            tag: None,
            digest: None,
        };
        let client = Client::new(&name, self, registries, Access::Login)?;
        client.session().identity =
            Some(Identity::Basic { user: user.to_owned(), password: password.to_owned() });
        client.request(&format!("{}/v2/", client.base), None, Range::default())?;
        let asked = client.session().authorization.is_some();
        Ok(asked)
    }
}

/// A name in front of a registry must be one that references have; HTTP alone forbids colons only.
fn check_user(user: &str, forbidden: &str, what: &str) -> Result<()> {
    if user.is_empty()
        || user.contains(|c: char| c.is_whitespace() || c.is_control() || forbidden.contains(c))
    {
        return Err(Error::new(ErrorKind::Reference, what, format!("{user:?} is not the name of a user"))
            .next(format!("a name here is not empty, and has no spaces and none of {forbidden}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let of = |text: &str| text.parse::<LoginTarget>().map(|t| t.name());
        assert_eq!(of("ghcr.io").unwrap(), "ghcr.io");
        assert_eq!(of("https://R.io:5000/").unwrap(), "r.io:5000");
        assert_eq!(of("alice@r.io").unwrap(), "alice@r.io");
        assert_eq!(of("index.docker.io").unwrap(), "docker.io");
        assert_eq!(of("https://index.docker.io/v1/").unwrap(), "docker.io");
        assert_eq!(of("r.io:5000/v2").unwrap(), "r.io:5000");
        for (bad, word) in [("r.io/team", "path"), ("", "host name"), ("@r.io", "user"), ("a b@r.io", "user")]
        {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
