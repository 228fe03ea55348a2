//! TLS between machines of a cluster: how each side shows who it is, and how it judges the other.

use crate::authority::machine_name;
use crate::certificate::{Draft, Kind, Parts, distinguished};
use crate::key::{self, Identity, PrivateKey, key_id};
use crate::{Authority, CONTROLLER, DOMAIN, TrustError, sha256};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// The one algorithm of signatures: whoever offers another one is not of ours.
static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ECDSA_P256_SHA256],
    mapping: &[(SignatureScheme::ECDSA_NISTP256_SHA256, &[webpki::ring::ECDSA_P256_SHA256])],
};
/// 1 January 9999: a certificate that a machine signs itself says nothing about time, because its clock may be wrong.
const ALWAYS: Duration = Duration::from_secs(253_370_764_800);

/// Who is at the other end of a TLS connection, by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presented {
    /// A machine with a valid certificate of the cluster's authority. Whether the key was revoked is not known here.
    Member {
        /// [`PrivateKey::id`] of its key.
        key: String,
    },
    /// Somebody who has the key and no certificate of any authority: good for joining with a token, and for nothing else.
    Stranger {
        /// [`PrivateKey::id`] of its key.
        key: String,
    },
    /// Showed no certificate.
    Nobody,
}

/// Who showed these certificates in a handshake with a server of [`server_config`], as
/// `rustls::ServerConnection::peer_certificates` has them. The handshake has proved that they have the key.
///
/// # Errors
/// The certificate is another authority's, not valid now, not for clients, or malformed. The error says which.
pub fn presented(
    authority_der: &[u8],
    certificates: Option<&[CertificateDer<'_>]>,
    now: SystemTime,
) -> Result<Presented, TrustError> {
    let Some(certificate) = certificates.and_then(<[_]>::first) else { return Ok(Presented::Nobody) };
    let leaf = Leaf::read(certificate)?;
    let key = key_id(leaf.parts.public);
    if leaf.parts.signed_itself() {
        return match leaf.parts.authority {
            true => Err(TrustError::Malformed("it is an authority's own and not a machine's")),
            false => Ok(Presented::Stranger { key }),
        };
    }
    leaf.signed_by(&CertificateDer::from(authority_der), KeyUsage::client_auth())?;
    leaf.valid_at(now)?;
    Ok(Presented::Member { key })
}

/// Which key the machine with this role has that showed these certificates, on either side of a connection.
///
/// # Errors
/// As for [`presented`]; or it has another role, signed itself, or showed nothing.
pub fn presented_as(
    authority_der: &[u8],
    certificates: Option<&[CertificateDer<'_>]>,
    now: SystemTime,
    role: &str,
) -> Result<String, TrustError> {
    let Presented::Member { key } = presented(authority_der, certificates, now)? else {
        return Err(TrustError::OtherAuthority);
    };
    if let Some(certificate) = certificates.and_then(<[_]>::first) {
        Leaf::read(certificate)?.has_role(role)?;
    }
    Ok(key)
}

/// Whether a certificate is that of the machine with this name and role. What it is worth [`presented`] says.
pub fn is_of(certificate: &CertificateDer<'_>, name: &str, role: &str) -> bool {
    let (Ok(leaf), Ok(wanted)) = (Leaf::read(certificate), machine_name(name, role)) else { return false };
    let mut names = leaf.certificate.valid_dns_names();
    names.next() == Some(wanted.as_str()) && names.next().is_none()
}

/// The certificate that belongs to the key of the other side.
pub(crate) struct Leaf<'a> {
    certificate: EndEntityCert<'a>,
    pub(crate) parts: Parts<'a>,
}

impl<'a> Leaf<'a> {
    pub(crate) fn read(der: &'a CertificateDer<'a>) -> Result<Leaf<'a>, TrustError> {
        let parts = Parts::read(der)?;
        let certificate = EndEntityCert::try_from(der)
            .map_err(|_| TrustError::Malformed("it cannot be read, or demands what is not known here"))?;
        key::point(parts.public).ok_or(TrustError::Malformed("its key is no P-256 key in the usual form"))?;
        Ok(Leaf { certificate, parts })
    }

    /// Signed by this authority itself, with nobody in between, and for this use. Time is left out.
    pub(crate) fn signed_by(
        &self,
        authority: &CertificateDer<'_>,
        usage: KeyUsage,
    ) -> Result<(), TrustError> {
        use webpki::Error as E;
        let anchors = [anchor_from_trusted_cert(authority).map_err(|_| {
            TrustError::Malformed("the authority's certificate that is kept here cannot be read")
        })?];
        // At a time at which it is valid: so that who signed it is judged before the clocks are.
        let inside = unix(self.parts.from);
        let judged = self.certificate.verify_for_usage(
            &[webpki::ring::ECDSA_P256_SHA256],
            &anchors,
            &[],
            inside,
            usage,
            None,
            None,
        );
        judged.map(drop).map_err(|e| match e {
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
                TrustError::Malformed("it is not for this side of a connection")
            }
            E::CaUsedAsEndEntity => TrustError::Malformed("it is an authority's own and not a machine's"),
            E::InvalidCertValidity => TrustError::Malformed("it ends before it begins"),
            E::BadDer | E::BadDerTime => TrustError::Malformed("it cannot be read"),
            _ => TrustError::OtherAuthority,
        })
    }

    pub(crate) fn valid_at(&self, now: SystemTime) -> Result<(), TrustError> {
        let Parts { from, until, .. } = self.parts;
        if now < from {
            return Err(TrustError::NotYetValid { from, now });
        }
        if now > until {
            return Err(TrustError::Expired { until, now });
        }
        Ok(())
    }

    /// Has one name, and that is of somebody with this role.
    pub(crate) fn has_role(&self, role: &str) -> Result<(), TrustError> {
        let names: Vec<&str> = self.certificate.valid_dns_names().collect();
        let [name] = names.as_slice() else { return Err(wrong_role(role, &names)) };
        let before = name.strip_suffix(DOMAIN).and_then(|n| n.strip_suffix('.'));
        match before.and_then(|n| n.rsplit_once('.')) {
            Some((machine, has)) if has == role && !machine.is_empty() => Ok(()),
            _ => Err(wrong_role(role, &names)),
        }
    }
}

fn wrong_role(role: &str, names: &[&str]) -> TrustError {
    TrustError::Role { wanted: role.to_string(), has: names.join(", ") }
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The server's side: own certificate and the authority's are shown, a client's certificate is asked for and not demanded.
/// Who shook hands [`presented`] says, for each connection.
///
/// # Errors
/// Key and certificate do not fit each other.
pub fn server_config(authority: &Authority, own: &Identity) -> Result<Arc<ServerConfig>, TrustError> {
    member_server_config(authority.certificate(), own)
}

/// The same of any machine of the cluster. `authority_der`: the certificate of its authority.
///
/// # Errors
/// Key and certificate do not fit each other.
pub fn member_server_config(authority_der: &[u8], own: &Identity) -> Result<Arc<ServerConfig>, TrustError> {
    let chain = [own.certificate.clone(), authority_der.to_vec()].map(CertificateDer::from).to_vec();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::Tls)?
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_single_cert(chain, own.key.for_tls())
        .map_err(TrustError::Tls)?;
    // Nothing is resumed: who connects shows the certificate.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// The side of a member who dials one with this role: `controller`, or the role that the other was admitted with. Which address was
/// dialled does not matter.
///
/// # Errors
/// Key and certificate do not fit each other.
pub fn client_config(
    own: &Identity,
    authority_der: &[u8],
    server_role: &str,
) -> Result<Arc<ClientConfig>, TrustError> {
    let authority = CertificateDer::from(authority_der.to_vec());
    let verifier = Arc::new(Servers::OfAuthority { authority, role: server_role.to_string() });
    client(verifier, own.certificate.clone(), &own.key)
}

/// The side of a machine that has a token and no certificate: it shows a certificate that it signs itself, and believes the server
/// if the authority with this fingerprint has signed the certificate of a controller for it. Points in time are not judged: the
/// clock here may be wrong, which can be said once the server's is known.
///
/// # Errors
/// No random bytes can be had.
pub fn joining_config(
    key: &PrivateKey,
    fingerprint: [u8; 32],
) -> Result<(Arc<ClientConfig>, Arc<SeenAuthority>), TrustError> {
    let (name, public) = (distinguished("Berth machine that joins"), key.public());
    let (from, until) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + ALWAYS);
    let draft = Draft { issuer: &name, subject: &name, public: &public, from, until, kind: Kind::Stranger };
    let seen = Arc::new(SeenAuthority { certificate: Mutex::new(None) });
    let verifier = Arc::new(Servers::OfFingerprint { fingerprint, seen: seen.clone() });
    Ok((client(verifier, draft.sign(key)?, key)?, seen))
}

fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    certificate: Vec<u8>,
    key: &PrivateKey,
) -> Result<Arc<ClientConfig>, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![CertificateDer::from(certificate)], key.for_tls())
        .map_err(TrustError::Tls)?;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// The name to dial as. It is the same for every server and is not what is judged; rustls wants one.
pub fn server_name() -> ServerName<'static> {
    const NAME: &str = "controller.berth.internal";
    match DnsName::try_from(NAME) {
        Ok(name) => ServerName::DnsName(name),
        // The name above is one.
        Err(_) => ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
    }
}

/// The authority that a joining machine found behind the fingerprint of its token.
#[derive(Debug)]
pub struct SeenAuthority {
    certificate: Mutex<Option<Vec<u8>>>,
}

impl SeenAuthority {
    /// Its certificate, DER, once a handshake is done. Whoever sent it, it is the one whose key the fingerprint names, as it
    /// describes itself.
    pub fn get(&self) -> Option<Vec<u8>> {
        self.certificate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Takes every client that has the key of a well-formed certificate, or shows none.
#[derive(Debug)]
struct Anybody;

/// Takes the servers that are wanted.
#[derive(Debug)]
enum Servers {
    /// Of our authority, with this role.
    OfAuthority { authority: CertificateDer<'static>, role: String },
    /// A controller of the authority with this fingerprint.
    OfFingerprint { fingerprint: [u8; 32], seen: Arc<SeenAuthority> },
}

impl Servers {
    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), TrustError> {
        match self {
            Servers::OfAuthority { authority, role } => {
                let leaf = Leaf::read(certificate)?;
                leaf.signed_by(authority, KeyUsage::server_auth())?;
                leaf.has_role(role)?;
                leaf.valid_at(SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()))
            }
            Servers::OfFingerprint { fingerprint, seen } => {
                let authority = others.iter().find(|other| speaks_for_itself(other, fingerprint));
                let authority = authority.ok_or(TrustError::OtherCluster)?;
                let leaf = Leaf::read(certificate)?;
                leaf.signed_by(authority, KeyUsage::server_auth())?;
                leaf.has_role(CONTROLLER)?;
                *seen.certificate.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority.to_vec());
                Ok(())
            }
        }
    }
}

/// Whether it is the authority with this fingerprint, in its own words: nobody else can have signed them.
fn speaks_for_itself(certificate: &CertificateDer<'_>, fingerprint: &[u8; 32]) -> bool {
    Parts::read(certificate)
        .is_ok_and(|p| p.authority && sha256(p.public) == *fingerprint && p.signed_itself())
}

/// Whether who shook hands has the key of the certificate: it signed all that was said before.
fn has_the_key(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(message, certificate, signed, &ALGORITHMS)
}

/// Never asked for: all configurations are of TLS 1.3 alone.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken here".to_string()))
}

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Leaf::read(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        has_the_key(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        has_the_key(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}
