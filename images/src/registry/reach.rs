//! How registries are reached: what a site says of them beside their names, as one value for everyone who asks one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::certificates;
use crate::error::Result;
use crate::reference::Reference;

/// What is known of registries beside their names. It says nothing secret: processes hand it on in their arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registries {
    /// Registries that are spoken to without TLS, as `host` or `host:port`.
    pub insecure: Vec<String>,
    /// PEM files with authorities whose certificates are taken, beside the system's.
    pub certificate_authorities: Vec<PathBuf>,
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
    /// The file of an authority cannot be read, or has no certificate.
    pub fn check(&self) -> Result<()> {
        certificates::authorities(&self.certificate_authorities).map(|_| ())
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
}
