//! Keys and the authority in their files: what is read, what is refused, what is issued.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // a failure is a failed test

use berth_trust::{Authority, PrivateKey, TrustError, key_id, validity};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_key_comes_back_from_its_file_and_is_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    assert!(PrivateKey::read(&path).unwrap().is_none());
    let key = PrivateKey::make().unwrap();
    key.write(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let read = PrivateKey::read(&path).unwrap().unwrap();
    assert_eq!((read.id(), read.public()), (key.id(), key.public()));
    assert!(key.id().len() == 64 && key.id() == key_id(&key.public()));
    // Replaced whole, and nothing is left beside it.
    PrivateKey::make().unwrap().write(&path).unwrap();
    assert_ne!(PrivateKey::read(&path).unwrap().unwrap().id(), key.id());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // The key is not in what is printed of it.
    assert_eq!(format!("{key:?}"), format!("PrivateKey({})", key.id()));
}

#[test]
fn a_key_that_others_can_have_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    PrivateKey::make().unwrap().write(&path).unwrap();
    let why = |path: &Path| PrivateKey::read(path).unwrap_err().to_string();
    for open in [0o640, 0o604, 0o620, 0o644, 0o610] {
        mode(&path, open);
        let why = why(&path);
        assert!(
            why.contains("others may read") && why.contains("chmod 600") && why.contains("node.key"),
            "{why}"
        );
    }
    mode(&path, 0o600);
    let link = dir.path().join("link.key");
    symlink(&path, &link).unwrap();
    assert!(why(&link).contains("it is a link"));
    assert!(why(dir.path()).contains("no regular file"));
    let pipe = dir.path().join("pipe.key");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(why(&pipe).contains("no regular file"));
    for text in ["", "short", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        std::fs::write(&path, text).unwrap();
        assert!(why(&path).contains("holds no P-256 key"));
    }
    std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    assert!(why(&path).contains("too large"));
    // Only root can give files away.
    if nix::unistd::geteuid().is_root() {
        PrivateKey::make().unwrap().write(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        assert!(why(&path).contains("belongs to uid 65534"));
    }
}

#[test]
fn the_authority_stays_the_same_and_can_be_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let (now, at) = (SystemTime::now(), dir.path().join("trust"));
    let first = Authority::open_or_make(&at, "ours", now).unwrap();
    for (file, has) in [("authority.key", 0o600), ("authority.pem", 0o644)] {
        assert_eq!(std::fs::metadata(at.join(file)).unwrap().mode() & 0o7777, has, "{file}");
    }
    assert_eq!(std::fs::metadata(&at).unwrap().mode() & 0o077, 0);
    let again = Authority::open_or_make(&at, "ours", now + 99 * DAY).unwrap();
    assert_eq!((again.certificate(), again.fingerprint()), (first.certificate(), first.fingerprint()));
    let (from, until) = validity(first.certificate()).unwrap();
    assert!(from < now - DAY / 2 && until > now + 7300 * DAY);
    // What is good for a minute is renewed after 40 seconds, although it is good from a day before on.
    let short = first.issue(&PrivateKey::make().unwrap().public(), "n1", "compute", now, DAY / 1440).unwrap();
    let after = berth_trust::renewal(&short).unwrap().duration_since(now - Duration::from_secs(1)).unwrap();
    assert!((39..=42).contains(&after.as_secs()), "{after:?}");
    // The certificate alone is made anew, for the same key; what the former one signed stays good.
    let key = PrivateKey::make().unwrap();
    let leaf = first.issue(&key.public(), "n1", "compute", now, 30 * DAY).unwrap();
    std::fs::remove_file(at.join("authority.pem")).unwrap();
    let renewed = Authority::open_or_make(&at, "ours", now + DAY).unwrap();
    assert_ne!(renewed.certificate(), first.certificate());
    assert_eq!(renewed.fingerprint(), first.fingerprint());
    let leaf = [rustls::pki_types::CertificateDer::from(leaf)];
    for authority in [&first, &renewed] {
        let who = berth_trust::presented(authority.certificate(), Some(&leaf), now).unwrap();
        assert_eq!(who, berth_trust::Presented::Member { key: key.id() });
    }
    // The key alone is not.
    std::fs::rename(at.join("authority.key"), dir.path().join("kept")).unwrap();
    let why = Authority::open_or_make(&at, "ours", now).unwrap_err().to_string();
    assert!(why.contains("its key is not") && why.contains("backup"), "{why}");
    assert!(!at.join("authority.key").exists());
    // Nor is another key taken.
    PrivateKey::make().unwrap().write(&at.join("authority.key")).unwrap();
    let why = Authority::open_or_make(&at, "ours", now).unwrap_err().to_string();
    assert!(why.contains("not the certificate of authority.key"), "{why}");
    std::fs::rename(dir.path().join("kept"), at.join("authority.key")).unwrap();
    Authority::open_or_make(&at, "ours", now).unwrap();
}

#[test]
fn an_authority_in_files_that_others_can_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let open = || Authority::open_or_make(dir.path(), "ours", now);
    let fingerprint = open().unwrap().fingerprint();
    let [key, certificate] = ["authority.key", "authority.pem"].map(|name| dir.path().join(name));
    mode(&key, 0o640);
    assert!(open().unwrap_err().to_string().contains("others may read"));
    mode(&key, 0o600);
    mode(&certificate, 0o664);
    assert!(open().unwrap_err().to_string().contains("chmod 644"));
    mode(&certificate, 0o644);
    for file in [&key, &certificate] {
        let kept = dir.path().join("kept");
        std::fs::rename(file, &kept).unwrap();
        symlink(&kept, file).unwrap();
        assert!(open().unwrap_err().to_string().contains("it is a link"));
        std::fs::rename(&kept, file).unwrap();
    }
    if nix::unistd::geteuid().is_root() {
        for file in [&key, &certificate] {
            std::os::unix::fs::chown(file, Some(65_534), None).unwrap();
            assert!(open().unwrap_err().to_string().contains("belongs to uid 65534"));
            std::os::unix::fs::chown(file, Some(0), None).unwrap();
        }
    }
    // A certificate of somebody else's.
    let text = std::fs::read(&certificate).unwrap();
    let other = tempfile::tempdir().unwrap();
    Authority::open_or_make(other.path(), "ours", now).unwrap();
    std::fs::copy(other.path().join("authority.pem"), &certificate).unwrap();
    assert!(open().unwrap_err().to_string().contains("not the certificate of authority.key"));
    std::fs::write(&certificate, text).unwrap();
    assert_eq!(open().unwrap().fingerprint(), fingerprint);
}

#[test]
fn certificates_are_issued_for_machines_keys_and_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = Authority::open_or_make(dir.path(), "ours", now).unwrap();
    let good = PrivateKey::make().unwrap().public();
    let issue = |public: &[u8]| authority.issue(public, "n1", "compute", now, 30 * DAY);
    let (from, until) = validity(&issue(&good).unwrap()).unwrap();
    let before = now.duration_since(from).unwrap();
    assert!(before >= DAY && before < DAY + DAY / 2, "{from:?}");
    let after = until.duration_since(now).unwrap();
    assert!(after <= 30 * DAY && after > 29 * DAY, "{until:?}");
    let refused = |public: &[u8]| assert!(matches!(issue(public), Err(TrustError::PublicKey)), "{public:?}");
    refused(&[]);
    refused(b"garbage");
    for at in 0..good.len() {
        refused(&good[..at]);
    }
    refused(&[good.as_slice(), &[0]].concat());
    // The frame in another form, and points beside the curve: a changed half of a point lies on it for one in 2^256 only.
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        refused(&bytes);
    }
    let mut zero = good.clone();
    zero[27..].fill(0);
    refused(&zero);
}

#[test]
fn nothing_outlives_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = Authority::open_or_make(dir.path(), "ours", now).unwrap();
    let public = PrivateKey::make().unwrap().public();
    let end = validity(authority.certificate()).unwrap().1;
    let leaf = authority.issue(&public, "n1", "compute", end - DAY, 30 * DAY).unwrap();
    assert_eq!(validity(&leaf).unwrap().1, end);
    for beyond in [end + DAY, now - 3 * DAY] {
        let why = authority.issue(&public, "n1", "compute", beyond, 30 * DAY).unwrap_err().to_string();
        assert!(why.contains("no certificate can be issued") && why.contains("authority.pem"), "{why}");
    }
}
