//! Handshakes between machines, and the attacks on them: real connections over a pair of sockets.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // a failure is a failed test

use berth_trust::{
    Authority, Identity, Presented, PrivateKey, TrustError, client_config, joining_config, presented,
    server_config, server_name,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

/// A cluster: its authority and its controller.
struct Cluster {
    dir: tempfile::TempDir,
    authority: Authority,
    controller: Identity,
}

fn cluster(name: &str) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_make(dir.path(), name, SystemTime::now()).unwrap();
    let controller = member(&authority, "head", "controller");
    Cluster { dir, authority, controller }
}

fn member(authority: &Authority, name: &str, role: &str) -> Identity {
    member_at(authority, name, role, SystemTime::now())
}

fn member_at(authority: &Authority, name: &str, role: &str, now: SystemTime) -> Identity {
    let key = PrivateKey::make().unwrap();
    let certificate = authority
        .issue(&key.public(), name, role, now, std::time::Duration::from_secs(30 * 24 * 3600))
        .unwrap();
    Identity { key, certificate }
}

/// The same certificate with another machine's key: what who copied a certificate has.
fn stolen(from: &Identity) -> Arc<CertifiedKey> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    PrivateKey::make().unwrap().write(&path).unwrap();
    certified(&[&from.certificate], &path)
}

/// Certificates with whatever key lies in a file: rustls is not asked whether they fit.
fn certified(chain: &[&[u8]], key: &Path) -> Arc<CertifiedKey> {
    use rustls::pki_types::pem::PemObject;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from_pem_file(key).unwrap());
    let key = rustls::crypto::ring::sign::any_ecdsa_type(&key).unwrap();
    Arc::new(CertifiedKey::new(chain.iter().map(|c| CertificateDer::from(c.to_vec())).collect(), key))
}

/// Shows what it is told to.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Shows {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A client that judges servers as `like` does and shows something else.
fn client_showing(like: &ClientConfig, what: Arc<CertifiedKey>) -> Arc<ClientConfig> {
    let mut config = like.clone();
    config.client_auth_cert_resolver = Arc::new(Shows(what));
    Arc::new(config)
}

fn server_showing(like: &ServerConfig, what: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    let mut config = like.clone();
    config.cert_resolver = Arc::new(Shows(what));
    Arc::new(config)
}

/// What a server knows after a handshake: the client's certificates.
type Shown = Option<Vec<CertificateDer<'static>>>;

/// Shakes hands and sends a byte each way. What each side ends with.
fn shake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> (std::io::Result<Shown>, std::io::Result<()>) {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    for end in [&here, &there] {
        end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    let mut listening = ServerConnection::new(server.clone()).unwrap();
    let mut dialling = ClientConnection::new(client.clone(), server_name()).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = rustls::Stream::new(&mut listening, &mut there);
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
        Ok(listening.peer_certificates().map(<[_]>::to_vec))
    });
    let mut stream = rustls::Stream::new(&mut dialling, &mut here);
    let mut byte = [7];
    let client = stream.write_all(&[7]).and_then(|()| stream.read_exact(&mut byte));
    drop(here);
    (server.join().unwrap(), client)
}

/// Shakes hands with success, and says who the client is.
fn who(cluster: &Cluster, client: &Arc<ClientConfig>) -> Result<Presented, TrustError> {
    who_at(cluster, client, SystemTime::now())
}

fn who_at(cluster: &Cluster, client: &Arc<ClientConfig>, now: SystemTime) -> Result<Presented, TrustError> {
    let server = server_config(&cluster.authority, &cluster.controller).unwrap();
    let (shown, done) = shake(&server, client);
    done.unwrap();
    presented(cluster.authority.certificate(), shown.unwrap().as_deref(), now)
}

/// Why a client refused the server.
fn refused(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> String {
    let (shown, done) = shake(server, client);
    shown.unwrap_err();
    let error = done.unwrap_err();
    TrustError::within(&error).unwrap_or_else(|| panic!("no reason of ours: {error}")).to_string()
}

#[test]
fn a_member_and_the_controller_shake_hands() {
    let ours = cluster("ours");
    let node = member(&ours.authority, "n1", "compute");
    let client = client_config(&node, ours.authority.certificate(), "controller").unwrap();
    assert_eq!(who(&ours, &client).unwrap(), Presented::Member { key: node.key.id() });
    // A second time too: nothing is resumed, so that the certificate is shown again.
    assert_eq!(who(&ours, &client).unwrap(), Presented::Member { key: node.key.id() });
    // A node that listens to others, by its role.
    let peer = member(&ours.authority, "n2", "compute");
    let server = server_config(&ours.authority, &node).unwrap();
    let client = client_config(&peer, ours.authority.certificate(), "compute").unwrap();
    let (shown, done) = shake(&server, &client);
    done.unwrap();
    let shown = presented(ours.authority.certificate(), shown.unwrap().as_deref(), SystemTime::now());
    assert_eq!(shown.unwrap(), Presented::Member { key: peer.key.id() });
}

#[test]
fn a_machine_that_joins_is_a_stranger_and_learns_the_authority() {
    let ours = cluster("ours");
    let key = PrivateKey::make().unwrap();
    let (client, seen) = joining_config(&key, ours.authority.fingerprint()).unwrap();
    assert_eq!(seen.get(), None);
    assert_eq!(who(&ours, &client).unwrap(), Presented::Stranger { key: key.id() });
    assert_eq!(seen.get().as_deref(), Some(ours.authority.certificate()));
    // With what it learned, and a certificate, it is a member.
    let certificate = ours
        .authority
        .issue(
            &key.public(),
            "n1",
            "compute",
            SystemTime::now(),
            std::time::Duration::from_secs(30 * 24 * 3600),
        )
        .unwrap();
    let client =
        client_config(&Identity { key: key.clone(), certificate }, &seen.get().unwrap(), "controller");
    assert_eq!(who(&ours, &client.unwrap()).unwrap(), Presented::Member { key: key.id() });
}

#[test]
fn a_clock_that_is_wrong_by_years_hinders_no_joining() {
    let mut ours = cluster("ours");
    ours.controller = member_at(&ours.authority, "head", "controller", SystemTime::now() + 3000 * DAY);
    let key = PrivateKey::make().unwrap();
    let (client, seen) = joining_config(&key, ours.authority.fingerprint()).unwrap();
    for now in [SystemTime::UNIX_EPOCH, SystemTime::now(), SystemTime::now() + 36_500 * DAY] {
        assert_eq!(who_at(&ours, &client, now).unwrap(), Presented::Stranger { key: key.id() });
    }
    assert!(seen.get().is_some());
}

#[test]
fn who_shows_no_certificate_is_nobody() {
    let ours = cluster("ours");
    let node = member(&ours.authority, "n1", "compute");
    let like = client_config(&node, ours.authority.certificate(), "controller").unwrap();
    let mut config = (*like).clone();
    config.client_auth_cert_resolver = Arc::new(ShowsNothing);
    assert_eq!(who(&ours, &Arc::new(config)).unwrap(), Presented::Nobody);
}

#[derive(Debug)]
struct ShowsNothing;

impl rustls::client::ResolvesClientCert for ShowsNothing {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn another_authority_makes_no_member_whatever_it_is_called() {
    let (ours, theirs) = (cluster("ours"), cluster("ours"));
    for other in [&theirs, &cluster("theirs")] {
        let node = member(&other.authority, "n1", "compute");
        // It believes our server, so that the server has to judge.
        let client = client_config(&node, ours.authority.certificate(), "controller").unwrap();
        let error = who(&ours, &client).unwrap_err();
        assert!(matches!(error, TrustError::OtherAuthority), "{error}");
        // And a member of ours does not believe theirs.
        let node = member(&ours.authority, "n1", "compute");
        let client = client_config(&node, ours.authority.certificate(), "controller").unwrap();
        let server = server_config(&other.authority, &other.controller).unwrap();
        assert!(refused(&server, &client).contains("not signed by this cluster's authority"));
    }
}

#[test]
fn who_signs_its_own_name_is_no_member_and_no_server() {
    let ours = cluster("ours");
    // What a machine signs itself while joining, used to dial as a member and to listen as a controller.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let key = PrivateKey::make().unwrap();
    key.write(&path).unwrap();
    let own = {
        let (client, _) = joining_config(&key, ours.authority.fingerprint()).unwrap();
        let server = server_config(&ours.authority, &ours.controller).unwrap();
        shake(&server, &client).0.unwrap().unwrap()[0].to_vec()
    };
    let server = server_config(&ours.authority, &ours.controller).unwrap();
    let server = server_showing(&server, certified(&[&own, ours.authority.certificate()], &path));
    let node = member(&ours.authority, "n1", "compute");
    let client = client_config(&node, ours.authority.certificate(), "controller").unwrap();
    assert!(refused(&server, &client).contains("not for this side of a connection"));
    let (client, seen) = joining_config(&PrivateKey::make().unwrap(), ours.authority.fingerprint()).unwrap();
    assert!(refused(&server, &client).contains("not for this side of a connection"));
    assert_eq!(seen.get(), None);
}

#[test]
fn expired_and_not_yet_valid_certificates_are_named_with_both_clocks() {
    let ours = cluster("ours");
    let node = member(&ours.authority, "n1", "compute");
    let client = client_config(&node, ours.authority.certificate(), "controller").unwrap();
    let now = SystemTime::now();
    let error = who_at(&ours, &client, now + 31 * DAY).unwrap_err();
    assert!(matches!(error, TrustError::Expired { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("its clock or ours is wrong") && text.matches(" UTC").count() == 2, "{text}");
    let error = who_at(&ours, &client, now - 2 * DAY).unwrap_err();
    assert!(matches!(error, TrustError::NotYetValid { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("its clock or ours is wrong") && text.matches(" UTC").count() == 2, "{text}");
    // Clocks that differ by less than a day are none the worse for it.
    who_at(&ours, &client, now - DAY / 2).unwrap();
    // A foreign certificate is foreign, whatever the clocks say.
    let foreign = member(&cluster("theirs").authority, "n1", "compute");
    let client = client_config(&foreign, ours.authority.certificate(), "controller").unwrap();
    for now in [now - 9 * DAY, now + 99 * DAY] {
        assert!(matches!(who_at(&ours, &client, now).unwrap_err(), TrustError::OtherAuthority));
    }
}

#[test]
fn a_server_whose_certificate_expired_or_is_not_yet_valid_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = Authority::open_or_make(dir.path(), "ours", now - 100 * DAY).unwrap();
    let node = member(&authority, "n1", "compute");
    let client = client_config(&node, authority.certificate(), "controller").unwrap();
    for (made, says) in [(now - 90 * DAY, "has expired"), (now + 2 * DAY, "not valid yet")] {
        let server = server_config(&authority, &member_at(&authority, "head", "controller", made)).unwrap();
        assert!(refused(&server, &client).contains(says));
    }
}

#[test]
fn a_compute_nodes_certificate_does_not_pass_for_the_controllers() {
    let ours = cluster("ours");
    let node = member(&ours.authority, "n1", "compute");
    // The real key and certificate of a node, also of one that is called like the controller.
    for name in ["n2", "controller", "head.controller", "head.controller.berth.internal"] {
        let server = server_config(&ours.authority, &member(&ours.authority, name, "compute")).unwrap();
        let client = client_config(&node, ours.authority.certificate(), "controller").unwrap();
        let why = refused(&server, &client);
        assert!(
            why.contains("no controller of this cluster") && why.contains(".compute.berth.internal"),
            "{why}"
        );
        // Nor to a machine that joins.
        let (client, seen) =
            joining_config(&PrivateKey::make().unwrap(), ours.authority.fingerprint()).unwrap();
        assert!(refused(&server, &client).contains("no controller of this cluster"));
        assert_eq!(seen.get(), None);
    }
    // Nor does the authority's own certificate and key pass for any machine's.
    let own = certified(
        &[ours.authority.certificate(), ours.authority.certificate()],
        &ours.dir.path().join("authority.key"),
    );
    let like = server_config(&ours.authority, &ours.controller).unwrap();
    let client = client_config(&node, ours.authority.certificate(), "controller").unwrap();
    assert!(refused(&server_showing(&like, own.clone()), &client).contains("an authority's own"));
    let error = who(&ours, &client_showing(&client, own)).unwrap_err();
    assert!(matches!(error, TrustError::Malformed(_)), "{error}");
}

#[test]
fn who_stands_in_between_while_a_machine_joins_is_found_out() {
    let (ours, theirs) = (cluster("ours"), cluster("ours"));
    let joining = || joining_config(&PrivateKey::make().unwrap(), ours.authority.fingerprint()).unwrap();
    // Another cluster altogether: its chain lacks the authority of the token.
    let server = server_config(&theirs.authority, &theirs.controller).unwrap();
    let (client, seen) = joining();
    assert!(refused(&server, &client).contains("somebody stands in between"));
    assert_eq!(seen.get(), None);
    // The authority of the token is shown, and has not signed what is shown with it.
    let chain: [&[u8]; 3] =
        [&theirs.controller.certificate, ours.authority.certificate(), theirs.authority.certificate()];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    theirs.controller.key.write(&path).unwrap();
    let (client, seen) = joining();
    let why = refused(&server_showing(&server, certified(&chain, &path)), &client);
    assert!(why.contains("not signed by this cluster's authority"), "{why}");
    assert_eq!(seen.get(), None);
    // The controller's own chain, copied, without its key.
    let chain: [&[u8]; 2] = [&ours.controller.certificate, ours.authority.certificate()];
    let (client, _) = joining();
    let (shown, done) = shake(&server_showing(&server, certified(&chain, &path)), &client);
    shown.unwrap_err();
    done.unwrap_err();
    // The controller's own chain without the authority in it.
    ours.controller.key.write(&path).unwrap();
    let (client, _) = joining();
    let server = server_showing(&server, certified(&[&ours.controller.certificate], &path));
    assert!(refused(&server, &client).contains("does not show the authority"));
    // An authority that is altered in one bit is not the one of the token.
    let good = ours.authority.certificate();
    for at in (0..good.len()).step_by(7) {
        let mut altered = good.to_vec();
        altered[at] ^= 1;
        let (client, seen) = joining();
        let server = server_showing(&server, certified(&[&ours.controller.certificate, &altered], &path));
        refused(&server, &client);
        assert_eq!(seen.get(), None, "{at}");
    }
}

#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let ours = cluster("ours");
    let node = member(&ours.authority, "n1", "compute");
    let like = client_config(&node, ours.authority.certificate(), "controller").unwrap();
    let server = server_config(&ours.authority, &ours.controller).unwrap();
    // The handshake fails on the server's side, so that nobody ever asks who that is.
    let (shown, done) = shake(&server, &client_showing(&like, stolen(&node)));
    shown.unwrap_err();
    done.unwrap_err();
    // With the key it does not.
    shake(&server, &like).0.unwrap();
    // The same the other way round.
    let (shown, done) = shake(&server_showing(&server, stolen(&ours.controller)), &like);
    shown.unwrap_err();
    done.unwrap_err();
}

#[test]
fn a_key_and_another_ones_certificate_make_no_configuration() {
    let ours = cluster("ours");
    let node = member(&ours.authority, "n1", "compute");
    let mixed = Identity { key: PrivateKey::make().unwrap(), certificate: node.certificate.clone() };
    client_config(&mixed, ours.authority.certificate(), "controller").unwrap_err();
    server_config(&ours.authority, &mixed).unwrap_err();
}

#[test]
fn altered_certificates_are_never_members() {
    let ours = cluster("ours");
    let node = member(&ours.authority, "n1", "compute");
    let good = &node.certificate;
    let of = |bytes: &[u8]| {
        presented(ours.authority.certificate(), Some(&[CertificateDer::from(bytes)]), SystemTime::now())
    };
    assert!(matches!(of(good), Ok(Presented::Member { .. })));
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            of(&bytes).unwrap_err();
        }
        of(&good[..at]).unwrap_err();
    }
    of(&[good.as_slice(), &[0]].concat()).unwrap_err();
}

#[test]
fn openssl_agrees_about_the_certificates() {
    let ours = cluster("Grüße, \"cluster\"\n1");
    let dir = ours.dir.path();
    let node = member(&ours.authority, "n1", "compute");
    std::fs::write(dir.join("node.der"), &node.certificate).unwrap();
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    openssl(&["x509", "-inform", "DER", "-in", "node.der", "-out", "node.pem"]);
    for purpose in ["sslserver", "sslclient"] {
        openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "authority.pem", "node.pem"]);
    }
    let text = openssl(&["x509", "-in", "node.pem", "-noout", "-text"]);
    assert!(text.contains("DNS:n1.compute.berth.internal") && text.contains("CA:FALSE"), "{text}");
    let text = openssl(&["x509", "-in", "authority.pem", "-noout", "-text"]);
    assert!(text.contains("CA:TRUE, pathlen:0") && text.contains("Certificate Sign"), "{text}");
    openssl(&["pkey", "-in", "authority.key", "-check", "-noout"]);
}
