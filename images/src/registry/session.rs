//! As whom a registry is asked, and how that is shown to it: the challenge that it answers with, and the token that it wants.

use std::sync::PoisonError;

use serde::Deserialize;
use ureq::http::{HeaderMap, header};

use super::challenge::{self, Challenge};
use super::credentials::Identity;
use super::trials::Trials;
use super::urls::{is_same, query};
use super::{Access, Client, message};
use crate::error::{Error, ErrorKind, Result, printable};

const TOKEN_BYTES: u64 = 1 << 20;

/// What this process learned about how to authenticate.
#[derive(Default)]
pub(super) struct Session {
    pub(super) authorization: Option<String>,
    pub(super) identity: Option<Identity>,
    /// The identity came with a job.
    is_carried: bool,
    /// What came with a job was refused: the person's own logins count.
    carried_refused: bool,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    pub(super) fn session(&self) -> std::sync::MutexGuard<'_, Session> {
        // A panic of another thread leaves at worst an old token, which is renewed.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn identity_name(&self) -> String {
        self.session().identity.as_ref().map_or_else(|| Identity::Anonymous.name(), Identity::name)
    }

    fn identity(&self) -> Result<Identity> {
        if let Some(identity) = self.session().identity.clone() {
            return Ok(identity);
        }
        let (registry, user) = (&self.name.registry, self.name.user.as_deref());
        let carried = match self.session().carried_refused {
            true => None,
            false => self.credentials.carried(registry, user),
        };
        let is_carried = carried.is_some();
        let identity = match carried {
            Some(identity) => identity,
            None => self.credentials.lookup(registry, &self.name.repository, user)?,
        };
        self.credentials.used.note(registry, &identity);
        let mut session = self.session();
        (session.identity, session.is_carried) = (Some(identity.clone()), is_carried);
        Ok(identity)
    }

    /// After a refusal: whether the login that came with the job was used, which from now on is not.
    pub(super) fn give_up_carried(&self) -> bool {
        let mut session = self.session();
        if !session.is_carried {
            return false;
        }
        *session = Session { carried_refused: true, ..Session::default() };
        true
    }

    /// Where what is wanted is not there: whether the login that came with the job was used, and the person has another one
    /// for this repository, which from now on is. The one of the job may be that of another repository.
    pub(super) fn change_carried(&self) -> bool {
        let carried = match &*self.session() {
            Session { is_carried: true, identity: Some(identity), .. } => identity.clone(),
            _ => return false,
        };
        let user = self.name.user.as_deref();
        // Without one it stays at what the registry said.
        let own = self.credentials.lookup(&self.name.registry, &self.name.repository, user);
        own.is_ok_and(|own| own != Identity::Anonymous && own != carried) && self.give_up_carried()
    }

    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<()> {
        let identity = self.identity()?;
        let lines = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let authorization = match challenge::parse(lines) {
            Some(Challenge::Bearer { realm, service, scope }) => {
                Some(self.token(&identity, &realm, service, scope)?)
            }
            Some(Challenge::Basic) => identity.basic(),
            None => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    self.what(),
                    format!("{} wants a login of a kind that is not supported", self.label()),
                )
                .next("Basic and Bearer are supported; ask the registry's administrator"));
            }
        };
        self.session().authorization = authorization;
        Ok(())
    }

    /// Gets a token for what is wanted (distribution specification, token authentication).
    fn token(
        &self,
        identity: &Identity,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String> {
        let what = format!("{}: token server {realm}", self.what());
        if !(realm.starts_with("https://") || (self.insecure && realm.starts_with("http://"))) {
            return Err(Error::new(
                ErrorKind::Denied,
                what,
                "a login is not sent over an unencrypted connection",
            )
            .next("use a registry with TLS, or allow HTTP with --insecure"));
        }
        let own = &self.name.repository;
        let scopes: Vec<String> = match &self.access {
            Access::Login => scope.into_iter().collect(),
            Access::Pull => vec![scope.unwrap_or_else(|| format!("repository:{own}:pull"))],
            // All at once: the registry names only what the request at hand needs.
            Access::Push { from } => std::iter::once(format!("repository:{own}:pull,push"))
                .chain(from.iter().map(|from| format!("repository:{from}:pull")))
                .collect(),
        };
        let mut pairs: Vec<_> = match identity {
            // As OAuth 2 has it: one parameter, with spaces.
            Identity::Token { .. } if !scopes.is_empty() => vec![("scope", scopes.join(" "))],
            Identity::Token { .. } => Vec::new(),
            _ => scopes.into_iter().map(|scope| ("scope", scope)).collect(),
        };
        pairs.extend(service.map(|service| ("service", service)));
        if let Identity::Token { token } = identity {
            pairs.extend([
                ("grant_type", "refresh_token".to_owned()),
                ("client_id", "berth".to_owned()),
                ("refresh_token", token.clone()),
            ]);
        }
        let pairs = query(&pairs);
        let ask = || -> std::result::Result<_, ureq::Error> {
            if matches!(identity, Identity::Token { .. }) {
                let form = "application/x-www-form-urlencoded";
                return self
                    .agent_for(realm)?
                    .post(realm)
                    .header(header::CONTENT_TYPE, form)
                    .send(pairs.as_str());
            }
            let mark = if realm.contains('?') { '&' } else { '?' };
            let request = self.agent_for(realm)?.get(format!("{realm}{mark}{pairs}"));
            match identity.basic() {
                Some(basic) => request.header(header::AUTHORIZATION, basic).call(),
                None => request.call(),
            }
        };
        let server = format!("token server {}", printable(realm, 300));
        let silent = |error: &ureq::Error| message::unreachable(self, &server, error);
        let mut trials = Trials::new(self.is_mirror());
        let response = loop {
            let (pause, why) = match self.asking(&server, ask) {
                Ok(response) if response.status().is_success() => break response,
                Ok(response) => {
                    let why = format!("answered {}", response.status());
                    let pause = trials
                        .after(&response)
                        .ok_or_else(|| self.refused(&what, realm, &identity.name(), response))?;
                    (pause, why)
                }
                // The registry itself has just answered; any other one may never have been there.
                Err(error) => {
                    let has_answered = is_same(realm, &self.base);
                    let pause = trials.after_none(&error, has_answered).ok_or_else(|| silent(&error))?;
                    (pause, format!("gave no answer ({error})"))
                }
            };
            self.leave_alone(pause, &server, &why);
        };
        let body = response
            .into_body()
            .into_with_config()
            .limit(TOKEN_BYTES)
            .read_to_vec()
            .map_err(|e| silent(&e))?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        match answer
            .and_then(|a| a.token.or(a.access_token))
            .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic()))
        {
            Some(token) => Ok(format!("Bearer {token}")),
            None => Err(Error::new(ErrorKind::Unreachable, what, "its answer has no token")
                .next("ask the registry's administrator")),
        }
    }
}
