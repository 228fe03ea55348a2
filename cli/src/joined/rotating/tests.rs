//! Exchanges of a key that are cut off, with a controller that knows one key and answers or does not.

use super::*;
use berth_client::block_on;
use berth_model::member::{MemberRole, MemberState};
use berth_trust::{Authority, Identity, Presented};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

const LIFE: Duration = Duration::from_secs(3600);

/// What comes of the questions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// Those that are due.
    Well,
    /// What is asked is done, and no answer comes.
    Lost,
    /// The machine was removed.
    Removed,
    /// The new key is not known, and the old one is refused for another reason.
    OldIsRefused,
    /// As it should, onto a disk that has no room for it.
    NoRoom,
}

/// The controller of a cluster with one machine, which is this one.
struct Site {
    dir: StateDir,
    state: Arc<Mutex<(String, Answers)>>,
    _place: tempfile::TempDir,
}

/// The key that it shows, and whether the authority has signed it.
fn shown(
    authority: &Authority,
    certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>,
) -> (String, bool) {
    match berth_trust::presented(authority.certificate(), certificates, SystemTime::now()).unwrap() {
        Presented::Member { key } => (key, true),
        Presented::Stranger { key } => (key, false),
        Presented::Nobody => panic!("it shows nothing"),
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

impl Site {
    fn new() -> Site {
        let place = tempfile::tempdir().unwrap();
        let dir = StateDir(place.path().join("state"));
        std::fs::create_dir_all(private(&dir)).unwrap();
        std::fs::create_dir_all(dir.run()).unwrap();
        let now = SystemTime::now();
        let authority = Authority::open_or_make(&place.path().join("authority"), "test", now).unwrap();
        let own = PrivateKey::make().unwrap();
        let certificate = authority.issue(&own.public(), "controller", "controller", now, LIFE).unwrap();
        let tls = berth_trust::server_config(&authority, &Identity { key: own, certificate }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let key = PrivateKey::make().unwrap();
        let joined = Joined {
            address: listener.local_addr().unwrap().to_string(),
            name: "n1".into(),
            role: MemberRole::Compute,
            cluster: "test".into(),
            key: key.id(),
            authority: Hex(authority.fingerprint().to_vec()),
        };
        key.write(&Joined::key_file(&dir, &key.id())).unwrap();
        let certificate = authority.issue(&key.public(), "n1", "compute", now, LIFE).unwrap();
        std::fs::write(Joined::certificate_file(&dir, &key.id()), certificate).unwrap();
        std::fs::write(private(&dir).join("authority.crt"), authority.certificate()).unwrap();
        joined.write(&dir).unwrap();
        let state = Arc::new(Mutex::new((key.id(), Answers::Well)));
        let (known, there) = (Arc::clone(&state), StateDir(dir.0.clone()));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let session = rustls::ServerConnection::new(Arc::clone(&tls)).unwrap();
                let mut wire = BufReader::new(rustls::StreamOwned::new(session, stream.unwrap()));
                let mut line = String::new();
                if wire.read_line(&mut line).is_err() || line.is_empty() {
                    continue;
                }
                let (shown, signed) = shown(&authority, wire.get_ref().conn.peer_certificates());
                let line: Value = serde_json::from_str(&line).unwrap();
                let public = bytes(line["question"]["renew"]["public"].as_str().unwrap());
                let new = berth_trust::key_id(&public);
                let mut known = known.lock().unwrap();
                let removed = match known.1 {
                    Answers::OldIsRefused => !signed,
                    answers => answers == Answers::Removed,
                };
                let reply = if removed {
                    Reply::Nobody("this key is not (any more) one of the cluster's".into())
                } else if known.1 != Answers::OldIsRefused && shown == known.0 && (signed || new == shown) {
                    known.0.clone_from(&new);
                    if known.1 == Answers::NoRoom {
                        // Nothing can be written under this name.
                        let taken = Joined::certificate_file(&there, &new).with_extension("new");
                        std::fs::create_dir_all(taken).unwrap();
                    }
                    let certificate =
                        authority.issue(&public, "n1", "compute", SystemTime::now(), LIFE).unwrap();
                    Reply::Enrolled {
                        certificate: Hex(certificate),
                        cluster: "test".into(),
                        role: MemberRole::Compute,
                        state: MemberState::Approved,
                    }
                } else {
                    Reply::Refused("this key is nobody's".into())
                };
                if known.1 == Answers::Lost {
                    continue;
                }
                let answer = format!("{}\n", serde_json::to_string(&reply).unwrap());
                let wire = wire.get_mut();
                // Who asked may be gone.
                let _ = wire.write_all(answer.as_bytes()).and_then(|()| wire.flush());
            }
        });
        Site { dir, state, _place: place }
    }

    fn known(&self) -> MutexGuard<'_, (String, Answers)> {
        self.state.lock().unwrap()
    }

    fn joined(&self) -> Joined {
        Joined::read(&self.dir).unwrap().unwrap()
    }

    fn rotate(&self) -> Result<Joined, Failure> {
        let joined = self.joined();
        block_on(async { rotate(&self.dir, &joined).await })
    }

    fn finish(&self) -> Result<Finished, Failure> {
        block_on(async { finish(&self.dir).await })
    }

    /// What is there of keys, certificates and notes of them.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(private(&self.dir)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.starts_with("node-") || name == PENDING);
        names.sort();
        names
    }

    /// The machine has the key that the controller knows, and nothing of another one.
    fn is_whole(&self) {
        let key = self.joined().key;
        assert_eq!(key, self.known().0);
        let expected = ["crt", "key"].map(|end| format!("node-{}.{end}", &key[..16]));
        assert_eq!(self.files(), expected);
        self.joined().remote(&self.dir).unwrap();
    }
}

#[test]
fn a_key_is_exchanged_and_nothing_of_the_one_before_is_left() {
    let site = Site::new();
    let before = site.joined();
    let after = site.rotate().unwrap();
    assert_ne!(after.key, before.key);
    assert_eq!(site.joined(), after);
    site.is_whole();
    assert_eq!(site.finish(), Ok(Finished::Nothing));
}

#[test]
fn an_exchange_whose_answer_was_lost_is_seen_to_its_end_later() {
    let site = Site::new();
    let before = site.joined();
    site.known().1 = Answers::Lost;
    let why = site.rotate().unwrap_err().text;
    assert!(why.contains("agent sees it to its end"), "{why}");
    // The controller knows the new key alone, and this machine still goes by the old one.
    assert_eq!(site.joined(), before);
    assert_ne!(site.known().0, before.key);
    site.finish().unwrap_err();
    assert_eq!(site.joined(), before);
    site.known().1 = Answers::Well;
    assert_eq!(site.finish(), Ok(Finished::Done));
    site.is_whole();
    assert_eq!(site.finish(), Ok(Finished::Nothing));
}

#[test]
fn an_exchange_that_was_cut_off_before_it_was_asked_for_is_made() {
    let site = Site::new();
    let before = site.joined();
    let key = PrivateKey::make().unwrap();
    key.write(&Joined::key_file(&site.dir, &key.id())).unwrap();
    whole(&private(&site.dir).join(PENDING), key.id().as_bytes(), 0o600).unwrap();
    assert_eq!(site.finish(), Ok(Finished::Done));
    assert_eq!((site.joined().key, before.key == key.id()), (key.id(), false));
    site.is_whole();
}

#[test]
fn a_disk_without_room_for_the_certificate_leaves_a_machine_that_comes_back() {
    let site = Site::new();
    let before = site.joined();
    site.known().1 = Answers::NoRoom;
    site.rotate().unwrap_err();
    assert_eq!(site.joined(), before);
    let new = site.known().0.clone();
    assert_ne!(new, before.key);
    site.finish().unwrap_err();
    // There is room again. Who asks for an exchange has one, behind the one that was begun.
    site.known().1 = Answers::Well;
    std::fs::remove_dir(Joined::certificate_file(&site.dir, &new).with_extension("new")).unwrap();
    let after = site.rotate().unwrap();
    assert!(after.key != new && after.key != before.key);
    site.is_whole();
}

#[test]
fn what_is_refused_is_not_begun_and_a_note_of_what_is_done_goes() {
    let site = Site::new();
    let before = site.joined();
    let files = site.files();
    site.known().0 = "another".into();
    let why = site.rotate().unwrap_err().text;
    assert!(why.contains("this key is nobody's") && !why.contains("agent"), "{why}");
    assert_eq!((site.joined(), site.files()), (before.clone(), files));
    // All was done but to remove the note, and what was before.
    site.known().0.clone_from(&before.key);
    std::fs::write(private(&site.dir).join(PENDING), &before.key).unwrap();
    PrivateKey::make().unwrap().write(&Joined::key_file(&site.dir, "0123456789abcdef")).unwrap();
    assert_eq!(site.finish(), Ok(Finished::Nothing));
    site.is_whole();
}

#[test]
fn a_machine_that_was_removed_is_told_so_and_does_not_ask_for_ever() {
    let site = Site::new();
    let (before, files) = (site.joined(), site.files());
    site.known().1 = Answers::Lost;
    site.rotate().unwrap_err();
    assert!(site.files().len() > files.len());
    // The old key may be good again: it is asked on.
    site.known().1 = Answers::OldIsRefused;
    site.finish().unwrap_err();
    assert!(site.files().len() > files.len());
    site.known().1 = Answers::Removed;
    let Ok(Finished::GivenUp(why)) = site.finish() else { panic!("it goes on") };
    for words in ["n1", "'test'", "not (any more)", "berth leave", "berth join", "berth node remove n1"] {
        assert!(why.contains(words), "{why}");
    }
    assert_eq!((site.joined(), site.files()), (before.clone(), files.clone()));
    assert_eq!(site.finish(), Ok(Finished::Nothing));
    // The certificate of the key that is left is not renewed either, for a reason that is told.
    let remote = before.remote(&site.dir).unwrap();
    let renewed = block_on(async { super::super::renew(&site.dir, &before, &remote).await });
    let why = renewed.unwrap_err().text;
    assert!(why.contains("not (any more)") && why.contains("berth join"), "{why}");
    // So is who asks for one, and nothing of it is left.
    let why = site.rotate().unwrap_err().text;
    assert!(why.contains("berth leave") && !why.contains("agent sees"), "{why}");
    assert_eq!((site.joined(), site.files()), (before, files));
    // Or goes on with one that was begun.
    let key = PrivateKey::make().unwrap();
    key.write(&Joined::key_file(&site.dir, &key.id())).unwrap();
    whole(&private(&site.dir).join(PENDING), key.id().as_bytes(), 0o600).unwrap();
    let why = site.rotate().unwrap_err().text;
    assert!(why.contains("berth leave"), "{why}");
    assert_eq!(site.finish(), Ok(Finished::Nothing));
}
