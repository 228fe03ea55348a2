//! What this machine is of a cluster whose controller is elsewhere: its name, its key and certificate, the way there.
//!
//! All of it is in `private/`. `joined.json` says which key counts and is replaced last, so that a machine that is cut off in the
//! middle of anything has its old key or its new one, whole; of an exchange of keys it knows both until it is seen which one counts.

pub mod following;
pub mod rotating;

use berth_client::error::{Failure, Kind};
use berth_client::site::StateDir;
use berth_model::NodeName;
use berth_model::config::{Config, Understood};
use berth_model::member::{MemberRole, MemberState};
use berth_rpc::{Hex, PeerIdentity, Question, Remote, Reply, RpcError, Uplink};
use berth_trust::{Authority, Identity, JoinToken, PrivateKey};
use rotating::Finished;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The controller's role in certificates.
const CONTROLLER: &str = "controller";
/// How far clocks may be apart.
const APART: Duration = Duration::from_secs(300);
/// How far without a word.
const UNSAID: Duration = Duration::from_secs(5);
/// Longest time until a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(3600);
/// How often the controller is asked which key counts, where that is not known.
const CUT_OFF: Duration = Duration::from_secs(10);
/// How often it is looked whether the key was rotated.
const ROTATED: Duration = Duration::from_secs(2);

/// `joined.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The controller, as `host:port`.
    pub address: String,
    /// This machine's name in the cluster.
    pub name: NodeName,
    /// What it is for.
    pub role: MemberRole,
    /// Name of the cluster.
    pub cluster: String,
    /// Its key's digest: names the files of key and certificate.
    pub key: String,
    /// Digest of the key of the cluster's authority.
    pub authority: Hex,
}

fn fault(e: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Internal, e.to_string())
}

fn file_fault(path: &Path) -> impl FnOnce(std::io::Error) -> Failure + '_ {
    move |e| Failure::new(Kind::Internal, format!("{}: {e}", path.display()))
}

fn private(dir: &StateDir) -> PathBuf {
    dir.0.join("private")
}

/// As much of a key's digest as tells it from others; all of what is none.
pub fn beginning(key: &str) -> &str {
    key.get(..16).unwrap_or(key)
}

impl Joined {
    /// What this machine is, if it is anything.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub fn read(dir: &StateDir) -> Result<Option<Joined>, Failure> {
        let path = private(dir).join("joined.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                let text = format!(
                    "{}: {e}; 'berth leave' removes it, and 'berth join' joins again",
                    path.display()
                );
                Failure::new(Kind::Configuration, text)
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            // What a machine is, is its root's affair: others cannot start or stop it.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
            Err(e) => Err(Failure::new(Kind::Configuration, format!("{}: {e}", path.display()))),
        }
    }

    fn write(&self, dir: &StateDir) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).map_err(fault)?;
        whole(&private(dir).join("joined.json"), &text, 0o600)?;
        // What users' commands say of this machine.
        let open = serde_json::json!({"address": self.address, "name": self.name, "role": self.role});
        whole(&dir.run().join("joined.json"), open.to_string().as_bytes(), 0o644)
    }

    fn key_file(dir: &StateDir, key: &str) -> PathBuf {
        private(dir).join(format!("node-{}.key", beginning(key)))
    }

    fn certificate_file(dir: &StateDir, key: &str) -> PathBuf {
        private(dir).join(format!("node-{}.crt", beginning(key)))
    }

    fn identity(&self, dir: &StateDir) -> Result<Identity, Failure> {
        let path = Joined::key_file(dir, &self.key);
        let lost = |path: &Path, why: &str| {
            let text = format!(
                "{}: {why}; 'berth leave' and 'berth join' with a new token join again",
                path.display()
            );
            Failure::new(Kind::Configuration, text)
        };
        let key = PrivateKey::read(&path).map_err(fault)?.ok_or_else(|| lost(&path, "there is no key"))?;
        let path = Joined::certificate_file(dir, &self.key);
        let certificate = std::fs::read(&path).map_err(|e| lost(&path, &e.to_string()))?;
        Ok(Identity { key, certificate })
    }

    fn tls(&self, dir: &StateDir) -> Result<Arc<rustls::ClientConfig>, Failure> {
        let path = private(dir).join("authority.crt");
        let authority = std::fs::read(&path).map_err(file_fault(&path))?;
        berth_trust::client_config(&self.identity(dir)?, &authority, CONTROLLER).map_err(fault)
    }

    /// The way to the controller.
    ///
    /// # Errors
    /// Key, certificate or authority cannot be read.
    pub fn remote(&self, dir: &StateDir) -> Result<Arc<Remote>, Failure> {
        Ok(Arc::new(Remote::new(self.address.clone(), self.tls(dir)?)))
    }
}

/// Writes a file of `private/`: it is there as it was, or as it is to be.
fn whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let fresh = path.with_extension("new");
    let work = || -> std::io::Result<()> {
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    work().map_err(file_fault(path))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(file_fault(path)(e)),
        _ => Ok(()),
    }
}

/// How a machine joins.
pub struct Joining<'a> {
    /// The controller, as `host:port`.
    pub address: String,
    /// What an administrator of the cluster gave.
    pub token: JoinToken,
    /// As what.
    pub name: NodeName,
    /// Its state directory.
    pub dir: &'a StateDir,
}

impl Joining<'_> {
    /// Joins: makes a key, proves to have it, and keeps what comes back. What fails leaves a key that the next attempt
    /// takes, so that an answer that was lost costs nothing.
    ///
    /// # Errors
    /// The controller cannot be reached, is another one than the token's, refuses, or has another time of day.
    pub async fn join(&self, say: impl Fn(&str)) -> Result<(Joined, MemberState), Failure> {
        let folder = private(self.dir);
        if !folder.is_dir() {
            DirBuilder::new().mode(0o700).create(&folder).map_err(file_fault(&folder))?;
        }
        let pending = folder.join("joining.key");
        let key = match PrivateKey::read(&pending).map_err(fault)? {
            Some(key) => key,
            None => {
                let key = PrivateKey::make().map_err(fault)?;
                key.write(&pending).map_err(fault)?;
                key
            }
        };
        let (tls, seen) = berth_trust::joining_config(&key, self.token.fingerprint).map_err(fault)?;
        let uplink = Uplink::Remote(Arc::new(Remote::new(self.address.clone(), tls)));
        if let Reply::Clock(theirs) = uplink.ask(Question::Clock).await? {
            check_clock(here(), theirs.0, &say)?;
        }
        let question = Question::Enrol {
            token: self.token.id.clone(),
            secret: Hex(self.token.secret.to_vec()),
            name: self.name.clone(),
            public: Hex(key.public()),
        };
        let reply = uplink.ask(question).await?;
        let Reply::Enrolled { certificate, cluster, role, state } = reply else {
            return Err(fault(
                "the controller's answer does not fit; use the same version of berth on both sides",
            ));
        };
        let authority = seen.get().ok_or_else(|| fault("the controller showed no authority"))?;
        // What the agent kept of another cluster, whose terms may be later and whose jobs are others, says nothing of this one.
        let followed = berth_agent::Paths::new(&self.dir.0);
        remove(&followed.term_slots())?;
        remove(&followed.term())?;
        remove(&followed.highest())?;
        whole(&folder.join("authority.crt"), &authority, 0o644)?;
        let joined = Joined {
            address: self.address.clone(),
            name: self.name.clone(),
            role,
            cluster,
            key: key.id(),
            authority: Hex(self.token.fingerprint.to_vec()),
        };
        key.write(&Joined::key_file(self.dir, &joined.key)).map_err(fault)?;
        whole(&Joined::certificate_file(self.dir, &joined.key), &certificate.0, 0o644)?;
        joined.write(self.dir)?;
        // The key is under its own name now.
        std::fs::remove_file(&pending).map_err(file_fault(&pending))?;
        Ok((joined, state))
    }
}

/// This machine's time of day, in microseconds.
fn here() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// A wrong clock makes certificates invalid and records wrong: it is named.
fn check_clock(ours: i64, theirs: i64, say: impl Fn(&str)) -> Result<(), Failure> {
    let apart = Duration::from_micros(ours.abs_diff(theirs));
    let which = if ours > theirs { "ahead of" } else { "behind" };
    let text = format!("this machine's clock is {} s {which} the controller's", apart.as_secs());
    if apart > APART {
        return Err(Failure::user(format!(
            "{text}: set it (timedatectl set-ntp true) and join again; the token is as good as before"
        )));
    }
    if apart > UNSAID {
        say(&format!("{text}: both should have the time from the same source"));
    }
    Ok(())
}

/// What came of a machine's word to the controller that it leaves.
pub enum Told {
    /// The cluster is done with it.
    Left,
    /// Jobs have something on it: why it stays.
    Stays(String),
    /// The controller took no note of it, or its answer was lost: why.
    Unheard(String),
}

/// Tells the controller that this machine leaves.
pub async fn tell(dir: &StateDir, joined: &Joined) -> Told {
    let uplink = match joined.remote(dir) {
        Ok(remote) => Uplink::Remote(remote),
        Err(e) => return Told::Unheard(e.text),
    };
    // One that does not know a question closes the connection: first one that all know.
    if let Err(e) = uplink.ask(Question::Clock).await {
        return Told::Unheard(e.to_string());
    }
    match uplink.ask(Question::Leave).await {
        Ok(Reply::Left) => Told::Left,
        Ok(Reply::Stays(why)) => Told::Stays(why),
        Ok(_) => Told::Unheard("its answer does not fit".into()),
        Err(RpcError::Unreachable { .. }) => Told::Unheard(format!(
            "the controller at {} answers, and not to this: it is of an earlier version, or was interrupted",
            joined.address
        )),
        Err(e) => Told::Unheard(e.to_string()),
    }
}

/// Forgets the cluster: key and certificate are gone, and with them the right to come back.
///
/// # Errors
/// A file cannot be removed.
pub fn leave(dir: &StateDir) -> Result<(), Failure> {
    let folder = private(dir);
    let entries = std::fs::read_dir(&folder).map_err(file_fault(&folder))?;
    let mut paths: Vec<PathBuf> = vec![dir.run().join("joined.json")];
    for entry in entries {
        let path = entry.map_err(file_fault(&folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = name.starts_with("node-") && (name.ends_with(".key") || name.ends_with(".crt"));
        let others = ["joined.json", "joining.key", "rotating", "authority.crt", "settings.json"];
        if ours || others.contains(&name.as_str()) {
            paths.push(path);
        }
    }
    paths.iter().try_for_each(|path| remove(path))
}

/// The cluster's configuration as the agent of this machine last had it.
pub fn last_settings(dir: &StateDir) -> Option<Config> {
    kept(&private(dir).join("settings.json")).map(|understood| understood.config)
}

/// What the controller said last. Kept as it was said: a later version may understand more of it.
fn kept(path: &Path) -> Option<Understood> {
    let told = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Config::understand(told).ok()
}

/// The cluster's configuration: from the controller, or as it was when that cannot be reached. Waits until there is one.
///
/// # Errors
/// The controller refuses.
pub async fn settings(dir: &StateDir, uplink: &Uplink) -> Result<Understood, Failure> {
    let path = private(dir).join("settings.json");
    let mut said = false;
    loop {
        match uplink.ask(Question::Settings).await {
            Ok(Reply::Settings(told)) => {
                whole(&path, told.to_string().as_bytes(), 0o600)?;
                return Config::understand(told).map_err(|e| {
                    fault(format!(
                        "the controller's configuration cannot be read by this version: {e}; upgrade it"
                    ))
                });
            }
            Ok(_) => {
                return Err(fault(
                    "the controller's answer does not fit; use the same version of berth on both sides",
                ));
            }
            Err(e) => {
                if let Some(known) = kept(&path) {
                    tracing::info!("{e}; starting with the configuration as it was");
                    return Ok(known);
                }
                if !said {
                    said = true;
                    tracing::info!("{e}; trying again until there is a configuration");
                }
                tokio::time::sleep(ROTATED).await;
            }
        }
    }
}

/// Days for which the agent of the controller's own machine shows one key to other nodes.
const OWN_DAYS: u32 = 30;

/// Who this machine is to other nodes, if that is new: by the certificate that it joined with; on the controller's machine by one
/// of the authority that is there, from the first token on.
pub fn peer_identity(state: &Path, node: &NodeName, before: Option<&PeerIdentity>) -> Option<PeerIdentity> {
    let dir = StateDir(state.to_path_buf());
    let found = match Joined::read(&dir).ok()? {
        Some(joined) => {
            let own = joined.identity(&dir).ok()?;
            if before.is_some_and(|before| before.shows(&own)) {
                return None;
            }
            let authority = std::fs::read(private(&dir).join("authority.crt")).ok()?;
            PeerIdentity::new(&own, authority)
        }
        None if before.is_some_and(|before| !before.is_older(OWN_DAYS / 2)) => return None,
        None => match Authority::open(&private(&dir).join("authority")) {
            Ok(Some(authority)) => PeerIdentity::beside(&authority, &node.0, OWN_DAYS),
            Ok(None) => return None,
            Err(e) => Err(e),
        },
    };
    found.map_err(|e| tracing::warn!("who this node is to others: {e}")).ok()
}

/// When a certificate is renewed, and how often that is tried.
#[derive(Clone, Copy)]
struct Due {
    at: SystemTime,
    until: SystemTime,
}

impl Due {
    /// A certificate that cannot be read is renewed at once.
    fn of(dir: &StateDir, joined: &Joined) -> Due {
        let read = std::fs::read(Joined::certificate_file(dir, &joined.key)).ok();
        let due = read.and_then(|certificate| {
            let at = berth_trust::renewal(&certificate).ok()?;
            Some(Due { at, until: berth_trust::validity(&certificate).ok()?.1 })
        });
        due.unwrap_or(Due { at: SystemTime::UNIX_EPOCH, until: SystemTime::UNIX_EPOCH })
    }

    /// From one attempt to the next: more often as the end comes near.
    fn pause(&self, now: SystemTime) -> Duration {
        let left = self.until.duration_since(now).map_or(AGAIN, |left| left / 8);
        left.clamp(ROTATED, AGAIN)
    }
}

/// Sees exchanges of the key that were cut off to their end.
#[derive(Default)]
struct CutOff {
    failed: Option<tokio::time::Instant>,
    /// What is said once.
    said: String,
}

impl CutOff {
    async fn see_to(&mut self, dir: &StateDir) {
        if self.failed.is_some_and(|at| at.elapsed() < CUT_OFF) {
            return;
        }
        self.failed = match rotating::finish(dir).await {
            Ok(finished) => {
                match finished {
                    Finished::Nothing => {}
                    Finished::Done => {
                        tracing::info!("an exchange of this node's key was cut off, and is done now");
                    }
                    Finished::GivenUp(why) => tracing::error!("{why}"),
                }
                self.said.clear();
                None
            }
            Err(e) => {
                if self.said != e.text {
                    tracing::warn!(
                        "an exchange of this node's key was cut off, and its end is not known yet: {}",
                        e.text
                    );
                    self.said = e.text;
                }
                Some(tokio::time::Instant::now())
            }
        };
    }
}

/// Keeps the certificate good, sees to the end of an exchange of keys, and takes a key that was rotated into use, until the task is dropped.
pub async fn keep(dir: StateDir, mut joined: Joined, remote: Arc<Remote>) {
    let mut due = Due::of(&dir, &joined);
    let mut tried: Option<tokio::time::Instant> = None;
    let mut cut_off = CutOff::default();
    loop {
        tokio::time::sleep(ROTATED).await;
        cut_off.see_to(&dir).await;
        match Joined::read(&dir) {
            Ok(Some(now)) if now.key != joined.key => match now.tls(&dir) {
                Ok(tls) => {
                    tracing::info!("this node has a new key");
                    remote.renew(tls);
                    joined = now;
                    due = Due::of(&dir, &joined);
                }
                Err(e) => tracing::error!("the new key cannot be used: {}", e.text),
            },
            _ => {}
        }
        let (now, pause) = (SystemTime::now(), due.pause(SystemTime::now()));
        if now < due.at || tried.is_some_and(|at| at.elapsed() < pause) {
            continue;
        }
        tried = Some(tokio::time::Instant::now());
        match renew(&dir, &joined, &remote).await {
            Ok(()) => due = Due::of(&dir, &joined),
            Err(e) => tracing::warn!(
                "the certificate cannot be renewed: {}; trying again in {} s",
                e.text,
                due.pause(SystemTime::now()).as_secs()
            ),
        }
    }
}

async fn renew(dir: &StateDir, joined: &Joined, remote: &Arc<Remote>) -> Result<(), Failure> {
    let identity = joined.identity(dir)?;
    let question = Question::Renew { public: Hex(identity.key.public()) };
    let certificate = match Uplink::Remote(Arc::clone(remote)).ask(question).await? {
        Reply::Enrolled { certificate, .. } => certificate,
        Reply::Nobody(why) => {
            let next = "'berth leave' on this machine, and 'berth join' with a new token, let it in again";
            return Err(Failure::user(format!("{why}; {next}")));
        }
        _ => {
            return Err(fault(
                "the controller's answer does not fit; use the same version of berth on both sides",
            ));
        }
    };
    whole(&Joined::certificate_file(dir, &joined.key), &certificate.0, 0o644)?;
    remote.renew(joined.tls(dir)?);
    // It is shown with that, so that the controller knows that it is kept; if that fails, the next connection shows it.
    let _ = Uplink::Remote(Arc::clone(remote)).ask(Question::Clock).await;
    tracing::info!("the certificate was renewed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::Time;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::mpsc;

    /// What comes of a machine's clock that is so many microseconds from the controller's: what is said, and what is refused.
    fn judged(off: i64) -> (Vec<String>, Option<String>) {
        let theirs = 1_700_000_000_000_000;
        let said = std::cell::RefCell::new(Vec::new());
        let refused =
            check_clock(theirs + off, theirs, |text| said.borrow_mut().push(text.to_string())).err();
        (said.into_inner(), refused.map(|failure| failure.text))
    }

    /// A controller of a cluster of its own, whose clock is so many seconds ahead, that knows no token; and what it is asked.
    fn controller(place: &Path, ahead: i64) -> (JoinToken, String, mpsc::Receiver<String>) {
        let now = SystemTime::now();
        let authority = Authority::open_or_make(&place.join("authority"), "test", now).unwrap();
        let key = PrivateKey::make().unwrap();
        let life = Duration::from_secs(3600);
        let certificate = authority.issue(&key.public(), CONTROLLER, CONTROLLER, now, life).unwrap();
        let tls = berth_trust::server_config(&authority, &Identity { key, certificate }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (asked, questions) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let session = rustls::ServerConnection::new(Arc::clone(&tls)).unwrap();
                let mut wire = BufReader::new(rustls::StreamOwned::new(session, stream.unwrap()));
                let mut line = String::new();
                if wire.read_line(&mut line).is_err() {
                    continue;
                }
                let reply = match line.contains("clock") {
                    true => Reply::Clock(Time(here() + ahead * 1_000_000)),
                    false => Reply::Refused("no such token".into()),
                };
                let answer = format!("{}\n", serde_json::to_string(&reply).unwrap());
                // Nobody listens any more when the test is over.
                let _ = asked.send(line);
                let wire = wire.get_mut();
                let _ = wire.write_all(answer.as_bytes()).and_then(|()| wire.flush());
            }
        });
        let token =
            JoinToken { id: "abcdefgh".into(), secret: [7; 32], fingerprint: authority.fingerprint() };
        (token, address, questions)
    }

    #[test]
    fn a_machine_with_a_wrong_clock_does_not_even_show_its_token() {
        for (ahead, asks, words) in [
            (3600, 1, "behind the controller's: set it (timedatectl set-ntp true) and join again"),
            (-3600, 1, "ahead of the controller's: set it (timedatectl set-ntp true) and join again"),
            (60, 2, "no such token"),
            (0, 2, "no such token"),
        ] {
            let place = tempfile::tempdir().unwrap();
            let (token, address, questions) = controller(place.path(), ahead);
            let dir = StateDir(place.path().to_path_buf());
            let joining = Joining { address, token, name: NodeName("n1".into()), dir: &dir };
            let said = std::cell::RefCell::new(Vec::new());
            let joined = berth_client::block_on(async {
                joining.join(|text| said.borrow_mut().push(text.to_string())).await
            });
            let refused = joined.unwrap_err().text;
            assert!(refused.contains(words), "{ahead}: {refused}");
            let questions: Vec<String> = questions.try_iter().collect();
            assert_eq!(questions.len(), asks, "{ahead}: {questions:?}");
            assert!(questions[0].contains("clock") && questions[1..].iter().all(|q| q.contains("enrol")));
            let told = said.into_inner();
            assert_eq!(told.len(), usize::from(ahead == 60), "{ahead}: {told:?}");
            assert!(told.iter().all(|text| text.contains("both should have the time")), "{told:?}");
        }
    }

    #[test]
    fn a_wrong_clock_is_named_and_one_that_is_very_wrong_keeps_the_machine_out() {
        const SECOND: i64 = 1_000_000;
        for (seconds, word) in [(1, "ahead of"), (-1, "behind")] {
            for good in [0, SECOND, 5 * SECOND] {
                assert_eq!(judged(seconds * good), (vec![], None), "{good} us {word} it");
            }
            for (off, shown) in [(5 * SECOND + 1, 5), (300 * SECOND, 300)] {
                let (said, refused) = judged(seconds * off);
                let text =
                    format!("this machine's clock is {shown} s {word} the controller's: both should have");
                assert!(said.len() == 1 && said[0].starts_with(&text), "{said:?}");
                assert_eq!(refused, None);
            }
            for (off, shown) in [(300 * SECOND + 1, 300), (40_000 * SECOND, 40_000)] {
                let (said, refused) = judged(seconds * off);
                let text = format!("this machine's clock is {shown} s {word} the controller's: set it");
                assert!(refused.as_ref().is_some_and(|why| why.starts_with(&text)), "{refused:?}");
                assert!(said.is_empty(), "{said:?}");
            }
        }
    }
}
