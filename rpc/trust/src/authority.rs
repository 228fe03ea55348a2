//! The cluster's authority: a key and its own certificate in a directory of the controller's, and what it signs.

use crate::certificate::{Draft, Kind, Parts, distinguished};
use crate::files::{self, PUBLIC};
use crate::key::{self, PrivateKey};
use crate::{DOMAIN, TrustError, sha256};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

const LABEL: &str = "CERTIFICATE";
/// How long before it is made a certificate is valid from: clocks differ.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Days for which an authority's certificate is valid: twenty years.
const LIFE: u32 = 7305;

/// The cluster's authority.
#[derive(Debug)]
pub struct Authority {
    key: PrivateKey,
    certificate: Vec<u8>,
}

impl Authority {
    /// Reads `authority.key` and `authority.pem` in a directory, or makes both, for a cluster of this name. A missing certificate
    /// is made anew for the key that is there: machines that joined stay joined as long as the name is the same.
    ///
    /// # Errors
    /// A file cannot be read, written or trusted, the two do not fit, or the key alone is missing: no other key is made then,
    /// because no machine would know it.
    pub fn open_or_make(dir: &Path, cluster: &str, now: SystemTime) -> Result<Authority, TrustError> {
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                let why = format!("the directory cannot be made: {e}");
                return Err(TrustError::file(
                    dir,
                    why,
                    "see whether the one above it is there and may be written",
                ));
            }
            _ => {}
        }
        let (key_path, path) = (dir.join("authority.key"), dir.join("authority.pem"));
        let key = PrivateKey::read(&key_path)?;
        let certificate = files::read(&path, PUBLIC)?;
        let key = match (key, certificate) {
            (Some(key), Some(pem)) => return Authority::fit(&path, key, &pem),
            (None, Some(_)) => {
                let next = "restore it from a backup; or move authority.pem away too: a new authority is \
                     made then, and every machine has to join again";
                return Err(TrustError::file(
                    &key_path,
                    "the authority's certificate is here and its key is not",
                    next,
                ));
            }
            (Some(key), None) => key,
            (None, None) => {
                let key = PrivateKey::make()?;
                key.write(&key_path)?;
                key
            }
        };
        let name = distinguished(&format!("Berth cluster {cluster}"));
        let (from, until) = span(now, DAY * LIFE)?;
        let public = key.public();
        let draft =
            Draft { issuer: &name, subject: &name, public: &public, from, until, kind: Kind::Authority };
        let certificate = draft.sign(&key)?;
        files::write(&path, files::pem(LABEL, &certificate).as_bytes(), PUBLIC)?;
        Ok(Authority { key, certificate })
    }

    /// As [`Authority::open_or_make`], where there is one; makes nothing.
    ///
    /// # Errors
    /// A file cannot be read or trusted, or the two do not fit.
    pub fn open(dir: &Path) -> Result<Option<Authority>, TrustError> {
        let path = dir.join("authority.pem");
        match (PrivateKey::read(&dir.join("authority.key"))?, files::read(&path, PUBLIC)?) {
            (Some(key), Some(pem)) => Authority::fit(&path, key, &pem).map(Some),
            _ => Ok(None),
        }
    }

    /// A key and a certificate from their files.
    fn fit(path: &Path, key: PrivateKey, pem: &[u8]) -> Result<Authority, TrustError> {
        let next = "put the right one there from a backup, or move it away: it is made anew with the \
             same key, and machines stay joined";
        let certificate = files::unpem(LABEL, pem)
            .ok_or_else(|| TrustError::file(path, "it holds no certificate (PEM)", next))?;
        let parts = Parts::read(&certificate).map_err(|e| TrustError::file(path, e, next))?;
        if parts.public != key.public() || !parts.authority || !parts.signed_itself() {
            return Err(TrustError::file(path, "it is not the certificate of authority.key", next));
        }
        Ok(Authority { key, certificate })
    }

    /// Its own certificate, DER: what every machine of the cluster keeps.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// SHA-256 of its public key (SubjectPublicKeyInfo): what tokens name it by. A renewed certificate has the same.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.key.public())
    }

    /// A certificate, DER, for a machine's public key (SubjectPublicKeyInfo, DER): for both sides of TLS, valid from a day ago, since
    /// clocks differ, for so long from now, and never longer than the authority's own. Its name is
    /// `NAME.ROLE.berth.internal`, with everything in the name that no host name may have replaced. Machines are told apart by
    /// their keys and not by these names.
    ///
    /// # Errors
    /// The key is no P-256 key, the name has no letter and no digit, the role is no single label, or the authority's own
    /// certificate is not valid now.
    pub fn issue(
        &self,
        public: &[u8],
        name: &str,
        role: &str,
        now: SystemTime,
        life: Duration,
    ) -> Result<Vec<u8>, TrustError> {
        let point = key::point(public).ok_or(TrustError::PublicKey)?;
        if !key::on_the_curve(point)? {
            return Err(TrustError::PublicKey);
        }
        let name = machine_name(name, role)?;
        let own = Parts::read(&self.certificate)?;
        if now < own.from || now >= own.until {
            return Err(TrustError::AuthorityEnded { from: own.from, until: own.until, now });
        }
        let (from, until) = span(now, life)?;
        let until = until.min(own.until);
        let (subject, authority) = (distinguished(&name), self.key.public());
        let kind = Kind::Machine { name: &name, authority: &authority };
        Draft { issuer: own.subject, subject: &subject, public, from, until, kind }.sign(&self.key)
    }
}

/// From a day ago until so long from now.
fn span(now: SystemTime, life: Duration) -> Result<(SystemTime, SystemTime), TrustError> {
    let from = now.checked_sub(DAY).unwrap_or(SystemTime::UNIX_EPOCH);
    let until = now.checked_add(life).ok_or(TrustError::Malformed("its dates are in no calendar"))?;
    Ok((from, until))
}

/// `NAME.ROLE.berth.internal`, as the domain name system allows it: labels of at most 63 letters, digits and hyphens, 253
/// characters in all. Of a longer name the end is left out.
pub(crate) fn machine_name(name: &str, role: &str) -> Result<String, TrustError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: char| fits(c) || c == '-';
    if role.is_empty()
        || role.len() > 32
        || !role.starts_with(fits)
        || !role.ends_with(fits)
        || !role.chars().all(inner)
    {
        let why = "a role is at most 32 lower-case letters, digits and hyphens between them";
        return Err(TrustError::Name { what: "the role", text: role.to_string(), why });
    }
    let end = format!("{role}.{DOMAIN}");
    let mut made = String::new();
    for label in name.split('.') {
        let label: String =
            label.chars().map(|c| Some(c.to_ascii_lowercase()).filter(|c| fits(*c)).unwrap_or('-')).collect();
        let label = label.trim_matches('-');
        let label = label[..label.len().min(63)].trim_end_matches('-');
        if made.len() + label.len() + 1 + end.len() > 253 {
            break;
        }
        if !label.is_empty() {
            made.push_str(label);
            made.push('.');
        }
    }
    if made.is_empty() {
        let why = "it has no letter and no digit of ASCII";
        return Err(TrustError::Name { what: "the name", text: name.to_string(), why });
    }
    Ok(made + &end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_host_names() {
        let of = |name: &str| machine_name(name, "compute").unwrap().replace(".compute.berth.internal", "");
        assert_eq!(of("n1"), "n1");
        assert_eq!(of("Node_01.Cluster.Example.ORG."), "node-01.cluster.example.org");
        assert_eq!(of("-a-..b*"), "a.b");
        assert_eq!(of("knöt"), "kn-t");
        assert_eq!(of(&"x".repeat(100)), "x".repeat(63));
        let long = machine_name(&vec!["x".repeat(60); 9].join("."), "compute").unwrap();
        assert!(long.len() <= 253 && long.ends_with("x.compute.berth.internal"), "{long}");
        // A name that pretends to another role stays before the own one.
        assert_eq!(of("a.controller.berth.internal"), "a.controller.berth.internal");
        for name in ["", "...", "ö", "*"] {
            machine_name(name, "compute").unwrap_err();
        }
        for role in ["", "x.controller", "Compute", "-a", "a-", "*", "a b"] {
            machine_name("n1", role).unwrap_err();
        }
    }
}
