//! Certificates that a site adds to the system's: authorities of the configuration, and what docker and podman keep for one
//! registry (containers-certs.d(5)), with a client's own certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::{Credentials, Registries, system};
use crate::error::{Error, ErrorKind, Result};
use crate::source::read_regular;

/// Largest file of certificates: those of all authorities of a system are a quarter of it.
const LARGEST: u64 = 1 << 20;
/// Where docker and podman look, beside the person's own directory.
const SYSTEM: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// What is believed of a registry, and shown to it.
#[derive(Default)]
struct Trust {
    authorities: Vec<CertificateDer<'static>>,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKey<'static>)>,
}

/// How TLS is spoken with `host`, which has its port where references have one; with one that is asked without, wherever it
/// leads to. Tells whether authorities of the person's own directory are believed, too.
pub(super) fn tls(
    registries: &Registries,
    host: &str,
    insecure: bool,
    credentials: &Credentials,
) -> Result<(TlsConfig, bool)> {
    let mut trust = Trust { authorities: authorities(&registries.certificate_authorities)?, client: None };
    let sites = trust.authorities.len();
    if let Some(home) = credentials.home() {
        trust.add(&home.join(".config/containers/certs.d").join(host))?;
    }
    if credentials.by_sites_authorities {
        // The person's certificate is shown all the same.
        trust.authorities.truncate(sites);
    }
    let takes_own = trust.authorities.len() > sites;
    for directory in SYSTEM {
        trust.add(&Path::new(directory).join(host))?;
    }
    // Without TLS nothing is read before something is asked with it after all, by the HTTP library.
    let system =
        if insecure && trust.authorities.is_empty() { Arc::default() } else { system::authorities() };
    let roots = if trust.authorities.is_empty() {
        // A system without any has that said by the library.
        if system.is_empty() { RootCerts::PlatformVerifier } else { RootCerts::Specific(system) }
    } else {
        let own = trust.authorities.iter().map(|c| Certificate::from_der(c).to_owned());
        RootCerts::Specific(Arc::new(system.iter().cloned().chain(own).collect()))
    };
    let client = trust.client.map(|(chain, key)| {
        let chain: Vec<_> = chain.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
        ClientCert::new_with_certs(&chain, key)
    });
    Ok((TlsConfig::builder().root_certs(roots).client_cert(client).build(), takes_own))
}

/// The certificates of the configuration's authorities.
pub(super) fn authorities(files: &[PathBuf]) -> Result<Vec<CertificateDer<'static>>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(certificates(file, "images.certificate_authorities names it")?);
    }
    Ok(all)
}

impl Trust {
    /// Adds what a registry's directory has: `*.crt` are authorities, `*.cert` and `*.key` of one name a client's certificate.
    fn add(&mut self, directory: &Path) -> Result<()> {
        let io = |e| Error::path(directory, e).next("certificates are read from there; make it readable");
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                return Ok(());
            }
            Err(e) => return Err(io(e)),
        };
        let mut files =
            entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().map_err(io)?;
        files.sort();
        let why = "every *.crt there is an authority, and every *.cert a client's certificate";
        for file in files {
            match file.extension().and_then(|e| e.to_str()) {
                Some("crt") => self.authorities.extend(certificates(&file, why)?),
                Some("cert") if self.client.is_some() => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        file.display().to_string(),
                        "it is a second client's certificate for one registry",
                    )
                    .next("keep the one that the registry knows"));
                }
                Some("cert") => self.client = Some(identity(&file, certificates(&file, why)?)?),
                Some("key") if !file.with_extension("cert").exists() => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        file.with_extension("cert").display().to_string(),
                        format!("there is no certificate for the key {}", file.display()),
                    )
                    .next("put it there, or take the key away"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The certificates of a PEM file, each of which can be one of an authority.
fn certificates(file: &Path, why: &str) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |reason: String| {
        Error::new(ErrorKind::Refused, file.display().to_string(), reason)
            .next(format!("{why}: put a PEM file with certificates there (BEGIN CERTIFICATE)"))
    };
    let bytes = read(file, why)?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<std::result::Result<Vec<_>, _>>();
    let found = found.map_err(|e| bad(format!("is not a PEM file: {e}")))?;
    if found.is_empty() {
        return Err(bad("has no certificate".to_owned()));
    }
    for certificate in &found {
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|e| bad(format!("has a certificate that is damaged: {e}")))?;
    }
    Ok(found)
}

/// A client's certificate with the key that stands beside it.
fn identity(
    file: &Path,
    chain: Vec<CertificateDer<'static>>,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKey<'static>)> {
    let path = file.with_extension("key");
    let why = format!("it is the key of {}", file.display());
    let bytes = read(&path, &why)?;
    let bad = |reason: String| {
        Error::new(ErrorKind::Refused, path.display().to_string(), reason)
            .next(format!("{why}: put that key there, as PEM and without a password"))
    };
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| bad(format!("has no private key: {e}")))?;
    // The HTTP library takes it for granted that the two belong together.
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_root_certificates(RootCertStore::empty()).with_client_auth_cert(chain.clone(), key)
        })
        .map_err(|e| bad(format!("is not the key of {}: {e}", file.display())))?;
    Ok((chain, PrivateKey::from_pem(&bytes).map_err(|e| bad(e.to_string()))?))
}

fn read(file: &Path, why: &str) -> Result<Vec<u8>> {
    read_regular(file, LARGEST).map_err(|e| {
        let next = "put a file there that everyone can read who fetches images, or take away what is there";
        Error::path(file, e).next(format!("{why}: {next}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says why a registry with these files is not asked.
    fn refusal(files: &[(&str, &str)]) -> String {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join(".config/containers/certs.d/r.io:5000");
        std::fs::create_dir_all(&directory).unwrap();
        for (name, text) in files {
            std::fs::write(directory.join(name), text).unwrap();
        }
        let credentials = Credentials::from_parts(None, None, None, Some(home.path()));
        let of = |host: &str| tls(&Registries::default(), host, false, &credentials);
        assert!(of("r.io").is_ok(), "another registry's counts");
        match of("r.io:5000") {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_no_file_is_not_read_as_one() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join(".config/containers/certs.d/r.io");
        std::fs::create_dir_all(&directory).unwrap();
        let credentials = Credentials::from_parts(None, None, None, Some(home.path()));
        for name in ["ca.crt", "me.cert"] {
            let path = directory.join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            // Without TLS, too: where the registry leads may be asked with it.
            for insecure in [false, true] {
                let Err(error) = tls(&Registries::default(), "r.io", insecure, &credentials) else {
                    panic!("{name} is a FIFO");
                };
                let error = error.to_string();
                assert!(error.contains(name) && error.contains("is not a regular file"), "{error}");
            }
            std::fs::remove_file(&path).unwrap();
        }
        std::os::unix::fs::symlink("/dev/zero", directory.join("ca.crt")).unwrap();
        assert!(tls(&Registries::default(), "r.io", false, &credentials).is_err());
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        assert_eq!(refusal(&[("README", "x")]), "");
        let empty = refusal(&[("ca.crt", "nothing")]);
        assert!(empty.contains("ca.crt") && empty.contains("has no certificate"), "{empty}");
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let damaged = refusal(&[("ca.crt", damaged)]);
        assert!(damaged.contains("damaged"), "{damaged}");
        let lonely = refusal(&[("client.key", "x")]);
        assert!(lonely.contains("client.cert") && lonely.contains("no certificate for the key"), "{lonely}");
        let missing =
            Registries { certificate_authorities: vec!["/no/such/ca.pem".into()], ..Registries::default() };
        let missing = missing.check().unwrap_err().to_string();
        assert!(
            missing.contains("/no/such/ca.pem") && missing.contains("certificate_authorities"),
            "{missing}"
        );
    }
}
