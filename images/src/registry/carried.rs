//! A login that comes with a job from where it was submitted: how it is written down, and what was used, to be carried.

use berth_model::ByteStr;
use berth_model::login::Login;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::credentials::{Credentials, Identity};
use crate::error::{Error, ErrorKind, Result};
use crate::reference::RegistryRef;

/// A login as text; only ever in a pipe, or sealed.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Written {
    Basic { user: String, password: String },
    Token { token: String },
}

/// Logins with which registries were asked, by registry.
#[derive(Clone, Debug, Default)]
pub(super) struct Used(Arc<Mutex<BTreeMap<String, Identity>>>);

impl Used {
    pub(super) fn note(&self, registry: &str, identity: &Identity) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(registry.to_owned(), identity.clone());
    }
}

impl Credentials {
    /// With a login that came from elsewhere, which goes before all files for its registry, until it is refused.
    ///
    /// # Errors
    /// It is none.
    pub fn with_login(mut self, login: &Login) -> Result<Self> {
        let written = serde_json::from_slice(&login.secret.0).map_err(|_| {
            Error::new(
                ErrorKind::Denied,
                format!("registry {}", login.registry),
                "the login that came with the job is none",
            )
            .next("submit again")
        })?;
        let identity = match written {
            Written::Basic { user, password } => Identity::Basic { user, password },
            Written::Token { token } => Identity::Token { token },
        };
        self.carried = Some((login.registry.clone(), identity));
        Ok(self)
    }

    /// The login with which the registry was asked through these credentials or a copy of them; `None` when it wanted none.
    pub fn used(&self, registry: &str) -> Option<Login> {
        let all = self.used.0.lock().unwrap_or_else(PoisonError::into_inner);
        to_carry(registry, all.get(registry)?.clone())
    }

    /// The login with which a registry would be asked for this image, where nobody can ask it here; `None` where that would be as nobody.
    ///
    /// # Errors
    /// A login file cannot be read, or has none of the user whom the reference names.
    pub fn login_for(&self, image: &RegistryRef) -> Result<Option<Login>> {
        let identity = self.lookup(&image.registry, &image.repository, image.user.as_deref())?;
        Ok(to_carry(&image.registry, identity))
    }

    /// The login that came from elsewhere, if it is for this registry, and of `user` where a user is named.
    pub(super) fn carried(&self, registry: &str, user: Option<&str>) -> Option<Identity> {
        let (of, identity) = self.carried.as_ref()?;
        let fits = match (user, identity) {
            (None, _) => true,
            (Some(user), Identity::Basic { user: found, .. }) => user == found,
            (Some(_), _) => false,
        };
        (of == registry && fits).then(|| identity.clone())
    }
}

fn to_carry(registry: &str, identity: Identity) -> Option<Login> {
    let written = match identity {
        Identity::Anonymous => return None,
        Identity::Basic { user, password } => Written::Basic { user, password },
        Identity::Token { token } => Written::Token { token },
    };
    let secret = ByteStr(serde_json::to_vec(&written).ok()?);
    Some(Login { registry: registry.to_owned(), secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_was_used_is_one_to_carry() {
        let here = Credentials::anonymous();
        let identity = Identity::Basic { user: "alice".into(), password: "p:\"ä".into() };
        here.clone().used.note("r.io", &identity);
        here.used.note("open.io", &Identity::Anonymous);
        assert!(here.used("open.io").is_none() && here.used("x.io").is_none());
        let login = here.used("r.io").unwrap();
        let there = Credentials::anonymous().with_login(&login).unwrap();
        assert!(there.carried("r.io", None) == Some(identity.clone()));
        assert!(there.carried("r.io", Some("alice")) == Some(identity));
        assert!(there.carried("r.io", Some("bob")).is_none() && there.carried("r.io:5", None).is_none());
        assert!(!format!("{there:?}{here:?}{login:?}").contains("p:"));
        Credentials::anonymous().with_login(&Login { secret: "{}".into(), ..login }).unwrap_err();
    }

    #[test]
    fn a_login_can_be_carried_without_asking_the_registry() {
        let dir = tempfile::tempdir().unwrap();
        // alice:secret
        let file = r#"{"auths":{"r.io":{"auth":"YWxpY2U6c2VjcmV0"}}}"#;
        std::fs::write(dir.path().join("config.json"), file).unwrap();
        let here = Credentials::from_parts(Some(dir.path()), None, None, None);
        let of = |name: &str| {
            let Ok(crate::reference::Reference::Registry(name)) = name.parse() else { panic!("{name}") };
            here.login_for(&name)
        };
        let there = Credentials::anonymous().with_login(&of("r.io/team/x:1").unwrap().unwrap()).unwrap();
        let alice = Identity::Basic { user: "alice".into(), password: "secret".into() };
        assert!(there.carried("r.io", None) == Some(alice));
        assert_eq!(of("open.io/x").unwrap(), None);
        of("bob@r.io/x").unwrap_err();
    }
}
