//! Who asks the servers: directly, or by the proxy that the environment names for their scheme.

use ureq::{Agent, Proxy};

use super::proxy;
use super::unproxied::Unproxied;
use crate::error::{Error, Result};

/// The agents of one client.
pub(super) struct Agents {
    direct: Agent,
    pub(super) unproxied: Unproxied,
    /// Those for servers with TLS and without; why there is none where what the environment names cannot be asked.
    https: Result<Option<Proxied>>,
    pub(super) http: Result<Option<Proxied>>,
}

/// By a proxy.
pub(super) struct Proxied {
    agent: Agent,
    /// Its host and port.
    address: String,
    /// The variable that names it.
    variable: &'static str,
}

impl Agents {
    /// As the environment has it; `agent` makes one.
    pub(super) fn of_env(agent: &dyn Fn(Option<Proxy>) -> Agent) -> Self {
        let by = |found: Result<Option<(Proxy, &'static str)>>| {
            found.map(|found| {
                found.map(|(proxy, variable)| Proxied {
                    address: format!("{}:{}", proxy.host(), proxy.port()),
                    agent: agent(Some(proxy)),
                    variable,
                })
            })
        };
        Self {
            direct: agent(None),
            unproxied: Unproxied::from_env(),
            https: by(proxy::of_env(true)),
            http: by(proxy::of_env(false)),
        }
    }

    /// The proxy by which the server of this URL is asked, if any.
    ///
    /// # Errors
    /// It is to be asked by one that cannot be used.
    fn proxied(&self, url: &str) -> std::result::Result<Option<&Proxied>, &Error> {
        if self.unproxied.has(url) {
            return Ok(None);
        }
        let of = if url.starts_with("http://") { &self.http } else { &self.https };
        of.as_ref().map(Option::as_ref)
    }

    /// Who asks the server of this URL.
    ///
    /// # Errors
    /// As for [`Agents::proxied`].
    pub(super) fn of(&self, url: &str) -> std::result::Result<&Agent, ureq::Error> {
        match self.proxied(url) {
            Ok(proxied) => Ok(proxied.map_or(&self.direct, |proxied| &proxied.agent)),
            Err(why) => Err(ureq::Error::Other(Box::new(why.clone()))),
        }
    }

    /// Host and port of the proxy by which the server of this URL is asked, and the variable that names it.
    pub(super) fn proxy(&self, url: &str) -> Option<(&str, &'static str)> {
        self.proxied(url).ok().flatten().map(|proxied| (proxied.address.as_str(), proxied.variable))
    }
}
