//! How registries are reached: what a site says of them beside their names, as one value for everyone who asks one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::certificates;
use crate::error::{Error, ErrorKind, Result};
use crate::reference::Reference;

/// What is known of registries beside their names. It says nothing secret: processes hand it on in their arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registries {
    /// Registries that are spoken to without TLS, as `host` or `host:port`.
    pub insecure: Vec<String>,
    /// PEM files with authorities whose certificates are taken, beside the system's.
    pub certificate_authorities: Vec<PathBuf>,
    /// Other places that have what a registry has.
    pub mirrors: Vec<Mirror>,
}

/// Places that are asked before a registry itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The registry, as in references.
    pub registry: String,
    /// `http://` or `https://`, host and perhaps port and a path before the repository's; asked in this order.
    pub urls: Vec<String>,
    /// Whether who may read there may use the image; else the registry itself is asked whether they may.
    pub grants: bool,
}

/// A mirror's address, in its parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// `https://host:port`.
    pub(super) base: String,
    /// `host:port`.
    pub(super) host: String,
    /// Path before the repository's; none, or `project/cache`.
    pub(super) prefix: String,
}

impl Address {
    pub(super) fn of(url: &str) -> Result<Self> {
        let bad = || {
            Error::new(ErrorKind::Reference, format!("mirror {url:?}"), "is not the address of a registry")
                .next("write http:// or https://, a host, and perhaps a port and a path, in images.mirror")
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !matches!(scheme, "http" | "https")
            || host.is_empty()
            || url.contains(|c: char| c.is_whitespace() || c.is_control() || "@?#".contains(c))
        {
            return Err(bad());
        }
        Ok(Self {
            base: format!("{scheme}://{host}"),
            host: host.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        })
    }
}

impl Registries {
    /// Speaks to the registry of `reference`, if it is of one, without TLS.
    #[must_use]
    pub fn without_tls_of(self, reference: &Reference) -> Self {
        match reference {
            Reference::Registry(name) => self.without_tls(&name.registry),
            _ => self,
        }
    }

    /// Speaks to this registry without TLS.
    #[must_use]
    pub fn without_tls(mut self, registry: &str) -> Self {
        if !self.is_insecure(registry) {
            self.insecure.push(registry.to_owned());
        }
        self
    }

    /// Judges what it names on this machine.
    ///
    /// # Errors
    /// The file of an authority cannot be read, or has no certificate; the address of a mirror is none.
    pub fn check(&self) -> Result<()> {
        certificates::authorities(&self.certificate_authorities)?;
        self.mirrors.iter().flat_map(|m| &m.urls).try_for_each(|url| Address::of(url).map(|_| ()))
    }

    /// The mirrors of a registry, and whether they grant.
    pub(super) fn mirrors_of(&self, registry: &str) -> impl Iterator<Item = (&str, bool)> {
        let own = self.mirrors.iter().filter(move |m| m.registry == registry);
        own.flat_map(|m| m.urls.iter().map(|url| (url.as_str(), m.grants)))
    }

    /// Whether the registry is spoken to without TLS.
    pub(crate) fn is_insecure(&self, registry: &str) -> bool {
        self.insecure.iter().any(|host| host == registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_registry_is_spoken_to_without_tls() {
        let one = Registries::default().without_tls("r.io:5000");
        assert!(one.is_insecure("r.io:5000"));
        for other in ["r.io", "r.io:50", "xr.io:5000", "docker.io"] {
            assert!(!one.is_insecure(other), "{other}");
        }
        assert_eq!(one.clone().without_tls_of(&"./r.io:5000".parse().unwrap()), one);
    }

    #[test]
    fn addresses_of_mirrors() {
        let of = |url: &str| Address::of(url).map(|a| [a.base, a.host, a.prefix]);
        assert_eq!(of("https://m.io").unwrap(), ["https://m.io", "m.io", ""]);
        assert_eq!(of("http://m.io:5/a/b/").unwrap(), ["http://m.io:5", "m.io:5", "a/b"]);
        for bad in [
            "m.io",
            "ftp://m.io",
            "https://",
            "https:///x",
            "https://u:p@m.io",
            "https://m.io/?x",
            "https://m .io",
        ] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("images.mirror"), "{error}");
        }
    }
}
