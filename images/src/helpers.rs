//! Importing with privilege separated: the person's logins stay with the person, the store with its own identity.
//!
//! In a cluster's system mode the agent is root and does neither. It starts two processes: a *fetcher* that becomes
//! the user, reads the user's logins and speaks to the registry, and an *unpacker* that becomes the store's
//! unprivileged identity, verifies every byte and writes. They are joined by pipes; the unpacker reports to the
//! agent in lines of JSON on its standard error. The `berth` program calls [`fetcher_main`] and [`unpacker_main`]
//! as hidden sub-commands.

mod confine;
mod hand;
mod programs;
mod score;
mod terminal;

pub use confine::{Confine, Confined};
pub(crate) use programs::{SetId, become_identity, parse_identity};
pub use programs::{fetcher_main, unpacker_main};

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use berth_model::login::Login;
use berth_model::pin::{FilePin, file_of};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::Uid;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Reference;
use crate::registry::Registries;
use crate::remote::serve_fetcher;
use crate::signature::Signers;
use crate::source::{BlobSource, Resolved, ResolvedManifest, Through};
use crate::store::{PreparedImage, SeenFile, Store};

/// Milliseconds between two looks whether an import is still wanted.
const LOOKS: u16 = 500;
/// Milliseconds that a killed process is waited for.
const ENDS: u16 = 2000;
/// With what a Rust program ends that is given no more memory.
const STARVED: &str = "memory allocation of ";
/// Longest line of a report, and longest answer of a resolver.
const MAX_LINE: u64 = 1 << 20;

/// An identity to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Variables that say by which proxies registries are asked: of the machine's own environment, and nobody else's.
pub const PROXY_VARIABLES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// How the agent starts the two processes.
#[derive(Clone, Debug)]
pub struct Helpers {
    /// The `berth` program.
    pub program: PathBuf,
    /// First arguments that reach [`fetcher_main`], such as `internal-fetch`.
    pub fetch: Vec<OsString>,
    /// First arguments that reach [`unpacker_main`], such as `internal-unpack`.
    pub unpack: Vec<OsString>,
    /// How registries are reached.
    pub registries: Registries,
    /// Whose signature images need.
    pub signers: Option<Signers>,
    /// The user for whom the image is fetched; `None` to stay who we are.
    pub user: Option<RunAs>,
    /// Environment of the fetcher: the user's `HOME`, `DOCKER_CONFIG`, `XDG_RUNTIME_DIR`, `PATH`, and the proxy
    /// variables of the node.
    pub environment: Vec<(OsString, OsString)>,
    /// The store's identity; `None` to stay who we are.
    pub store: Option<RunAs>,
    /// A login that came with the user's job; the fetcher alone sees it, by a pipe.
    pub login: Option<Login>,
    /// Bytes that the user's images may take in the store; `None` without a bound.
    pub quota: Option<u64>,
    /// Read-only images of layers may come from other nodes as they are, and it is noted which are made here.
    pub forms: bool,
    /// What may lie on the way to a file that is opened for the image: no links, where it was judged by its path.
    pub through: Through,
    /// Set by whoever does not want the image any more: the processes are ended within a second, whatever they wait for.
    pub stop: Option<Arc<AtomicBool>>,
    /// Where fetchers run, which start what their users' settings name; `None` where this process does.
    pub confine: Option<Arc<dyn Confine>>,
    /// Where unpackers run, each of which has memory of its own for what it unpacks; `None` where this process does.
    pub unpack_in: Option<Arc<dyn Confine>>,
}

/// One line of the unpacker's report.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Progress(ProgressEvent),
    /// All of the image was read from its source, for the user to show that they have it, and through this file.
    Whole(SeenFile),
    Done,
    Failed(Error),
}

/// What the resolver answers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Manifest(ResolvedManifest),
    /// The same, and what proves it to others.
    Proven(ResolvedManifest, Vec<String>),
    RootDir(PathBuf),
    Host,
    Pin(FilePin),
    File(Option<SeenFile>),
    Failed(Error),
}

/// What the two processes do.
#[derive(Clone, Copy)]
enum Work<'a> {
    /// Make the image present, and grant it.
    Import,
    /// The same, for a user who opened the file through which all of it was read before.
    Seen,
    /// Repair these layers of it.
    Repair(&'a [Digest]),
    /// Look for its signature.
    Look,
}

impl Helpers {
    /// Processes of this program that stay who we are and have nothing of anyone's environment: for an image that needs no signature, no
    /// login and no bound.
    pub fn new(program: PathBuf, registries: Registries) -> Helpers {
        Helpers {
            program,
            fetch: vec!["internal-fetch".into()],
            unpack: vec!["internal-unpack".into()],
            registries,
            signers: None,
            user: None,
            environment: Vec::new(),
            store: None,
            login: None,
            quota: None,
            forms: false,
            through: Through::default(),
            stop: None,
            confine: None,
            unpack_in: None,
        }
    }

    /// As [`Store::ensure`], by the two processes. An image that is present is given at once to users who have
    /// shown before that they may read its manifest; others show it now, by fetching the manifest with their own
    /// logins. So a private image serves only those who could pull it.
    ///
    /// # Errors
    /// As for [`Store::ensure`]; or a process cannot be started or dies.
    pub fn ensure(
        &self,
        store: &Store,
        image: &ResolvedManifest,
        progress: &dyn Progress,
    ) -> Result<PreparedImage> {
        let uid = self.user.as_ref().map_or_else(|| Uid::effective().as_raw(), |user| user.uid);
        let user = store.user_of(uid)?;
        if store.is_granted(image, uid)?
            && let Some(prepared) = store.prepared(&image.digest)?
        {
            store.used_by(image, uid)?;
            if store.is_admitted(image, self.signers.as_ref(), progress)? {
                return store.named(prepared, image, user);
            }
            if let Some(signers) = self.signers.as_ref().filter(|signers| !signers.required) {
                // Nothing is refused, so neither because nobody can be asked.
                if let Err(error) = self.import(store, image, Work::Import, uid, progress) {
                    signers.unsigned(&image.source, &error.to_string(), progress)?;
                }
                return store.named(prepared, image, user);
            }
        }
        let file = self.file_of(store, image, uid)?;
        let opened = SystemTime::now();
        let seen = file.as_ref().map_or(Ok(false), |file| store.is_seen(&image.digest, file))?;
        let work = if seen { Work::Seen } else { Work::Import };
        let read = self.import(store, image, work, uid, progress)?;
        // Whoever may rename where it is may have had its path lead elsewhere while it was read. A fetcher that says otherwise is its
        // user's, who has the content in any case.
        if let Some(file) = file.filter(|file| read.as_ref() == Some(file) && file.is_settled(opened))
            && self.file_of(store, image, uid)?.as_ref() == Some(&file)
        {
            store.note_seen(&image.digest, file)?;
        }
        store.prepared(&image.digest)?.ok_or_else(|| store.unknown(&image.digest.to_string()))
    }

    /// The file that is all of an image's source, as the user can open it now. None of root's, who reads the store anyhow.
    fn file_of(&self, store: &Store, image: &ResolvedManifest, uid: u32) -> Result<Option<SeenFile>> {
        // A layout is many files, of which others may be closed.
        let alone = file_of(&image.source).is_some() && !image.source.starts_with("oci:");
        if !alone || self.user.is_none() || store.user_of(uid)?.is_none() {
            return Ok(None);
        }
        let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("helper process", e))?;
        let mut opener = Command::new(&self.program);
        opener.args(&self.fetch).args(["--hand", &image.source]);
        self.straight(&mut opener);
        run_as(&mut opener, self.user.as_ref());
        opener.env_clear();
        // Whoever closes a file may have to wait for what serves it, which may be the user: so nobody here has it.
        let mut judge = Command::new(&self.program);
        judge.args(&self.fetch).args(["--judge", "yes"]);
        run_as(&mut judge, self.store.as_ref());
        judge.env_clear();
        let opening = Running::start(opener.stdin(Stdio::null()).stdout(OwnedFd::from(theirs)))?;
        let judging = Running::start(judge.stdin(OwnedFd::from(ours)).stdout(Stdio::piped()))?;
        // With our ends of the socket.
        drop((opener, judge));
        let judged = answered(judging, self.stop.as_deref());
        drop(opening);
        // Who does not show it so shows it by the content.
        Ok(judged.ok().and_then(|answer| if let Answer::File(file) = answer { file } else { None }))
    }

    /// Whether [`Helpers::ensure`] would ask nobody for the image.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn is_there(&self, store: &Store, image: &ResolvedManifest) -> Result<bool> {
        let uid = self.user.as_ref().map_or_else(|| Uid::effective().as_raw(), |user| user.uid);
        let shown = store.is_granted(image, uid)?
            || store.has_seen(&image.digest)?
                && match self.file_of(store, image, uid)? {
                    Some(file) => store.is_seen(&image.digest, &file)?,
                    None => false,
                };
        Ok(shown && store.prepared(&image.digest)?.is_some())
    }

    /// As [`Helpers::ensure`] of an image that is not there, from other nodes of the cluster, which `peers` asks: no process becomes
    /// the user, and no registry is asked. That the user may have the image they show by what comes: all of its content,
    /// from nodes where they have shown it.
    ///
    /// # Errors
    /// As for [`Store::ensure`]; or the process cannot be started or dies.
    pub fn ensure_from(
        &self,
        store: &Store,
        image: &ResolvedManifest,
        peers: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<PreparedImage> {
        self.import_from(store, image, peers, Work::Import, progress)?;
        store.prepared(&image.digest)?.ok_or_else(|| store.unknown(&image.digest.to_string()))
    }

    /// As [`Store::look_signed`], of other nodes of the cluster, which `peers` asks. Nothing, where nobody's signature is needed.
    ///
    /// # Errors
    /// As there; or the process cannot be started or dies.
    pub fn look_signed_from(
        &self,
        store: &Store,
        image: &ResolvedManifest,
        peers: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<()> {
        if self.signers.is_none() {
            return Ok(());
        }
        self.import_from(store, image, peers, Work::Look, progress)
    }

    /// Has the process that writes do something about an image with what other nodes give.
    fn import_from(
        &self,
        store: &Store,
        image: &ResolvedManifest,
        peers: &dyn BlobSource,
        work: Work<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let uid = self.user.as_ref().map_or_else(|| Uid::effective().as_raw(), |user| user.uid);
        let described = serde_json::to_string(image).map_err(|e| start_failed(&e.to_string()))?;
        let pair = || {
            let (ours, theirs) = UnixStream::pair()?;
            Ok((ours.try_clone()?, ours, theirs.try_clone()?, theirs))
        };
        let (read, write, input, output) =
            pair().map_err(|e: std::io::Error| Error::io("helper process", e))?;
        // Dropped after the unpacker has ended.
        let place = placed(self.unpack_in.as_ref())?;
        let mut unpacker = self.unpacker(store, &described, uid, work)?;
        unpacker.args(["--peers", "yes"]);
        run_in(&mut unpacker, place.as_deref());
        let unpacker = unpacker.stdin(OwnedFd::from(input)).stdout(OwnedFd::from(output));
        let mut unpacker = Running::start(unpacker.stderr(Stdio::piped()))?;
        let Some(report) = unpacker.0.stderr.take() else { return Err(start_failed("its pipe is missing")) };
        std::thread::scope(|scope| {
            let serving =
                std::thread::Builder::new().spawn_scoped(scope, || serve_fetcher(peers, &read, &write));
            let done = match serving {
                Ok(_) => follow(Said { pipe: report, stop: self.stop.as_deref() }, progress),
                Err(e) => Err(Error::io("the thread that speaks to other nodes", e)),
            };
            drop(unpacker);
            // Whoever serves it sees its end.
            let _ = write.shutdown(std::net::Shutdown::Both);
            done.map(drop).map_err(|e| ran_out(e, place.as_deref()))
        })
    }

    /// As [`Store::repair`], by the two processes.
    ///
    /// # Errors
    /// As for [`Store::repair`]; or a process cannot be started or dies.
    pub fn repair(
        &self,
        store: &Store,
        image: &ResolvedManifest,
        layers: &[Digest],
        progress: &dyn Progress,
    ) -> Result<()> {
        let uid = self.user.as_ref().map_or_else(|| Uid::effective().as_raw(), |user| user.uid);
        self.import(store, image, Work::Repair(layers), uid, progress)?;
        Ok(())
    }

    /// As [`Store::look_signed`], by the two processes. Nothing, where nobody's signature is needed.
    ///
    /// # Errors
    /// As there; or a process cannot be started or dies.
    pub fn look_signed(
        &self,
        store: &Store,
        image: &ResolvedManifest,
        progress: &dyn Progress,
    ) -> Result<()> {
        if self.signers.is_none() || store.is_admitted(image, self.signers.as_ref(), &())? {
            return Ok(());
        }
        let uid = self.user.as_ref().map_or_else(|| Uid::effective().as_raw(), |user| user.uid);
        self.import(store, image, Work::Look, uid, progress)?;
        Ok(())
    }

    /// Has the two processes make the image present for `uid`, or do something else about it. Gives the file, where all of it was read
    /// through one.
    fn import(
        &self,
        store: &Store,
        image: &ResolvedManifest,
        work: Work<'_>,
        uid: u32,
        progress: &dyn Progress,
    ) -> Result<Option<SeenFile>> {
        let json = |e: serde_json::Error| start_failed(&e.to_string());
        let described = serde_json::to_string(image).map_err(json)?;
        // Dropped after fetcher and unpacker have ended.
        let (place, unpacks) = (self.place()?, placed(self.unpack_in.as_ref())?);
        let mut fetcher = Command::new(&self.program);
        fetcher.args(&self.fetch).args(["--image", &described, "--registries", &self.described()?]);
        self.straight(&mut fetcher);
        run_as(&mut fetcher, self.user.as_ref());
        run_in(&mut fetcher, place.as_deref());
        self.announce_login(&mut fetcher);
        fetcher.env_clear().envs(self.environment.iter().cloned());
        let mut fetcher = Running::start(fetcher.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let (to_fetcher, from_fetcher) = (fetcher.0.stdin.take(), fetcher.0.stdout.take());
        let (Some(mut to_fetcher), Some(from_fetcher)) = (to_fetcher, from_fetcher) else {
            return Err(start_failed("its pipes are missing"));
        };
        self.send_login(&mut to_fetcher)?;
        let mut unpacker = self.unpacker(store, &described, uid, work)?;
        run_in(&mut unpacker, unpacks.as_deref());
        let mut unpacker =
            Running::start(unpacker.stdin(from_fetcher).stdout(to_fetcher).stderr(Stdio::piped()))?;
        let Some(report) = unpacker.0.stderr.take() else { return Err(start_failed("its pipe is missing")) };
        let said = Said { pipe: report, stop: self.stop.as_deref() };
        follow(said, progress).map_err(|e| ran_out(e, unpacks.as_deref()))
    }

    /// The process that makes the image present, without its streams.
    fn unpacker(&self, store: &Store, described: &str, uid: u32, work: Work<'_>) -> Result<Command> {
        let json = |e: serde_json::Error| start_failed(&e.to_string());
        let mut unpacker = Command::new(&self.program);
        unpacker.args(&self.unpack).arg("--store").arg(store.root()).args([
            "--image",
            described,
            "--grant",
            &uid.to_string(),
        ]);
        if let Some(signers) = &self.signers {
            unpacker.arg("--signers").arg(serde_json::to_string(signers).map_err(json)?);
        }
        if let Some(quota) = self.quota {
            unpacker.args(["--quota", &quota.to_string()]);
        }
        if self.forms {
            unpacker.args(["--forms", "yes"]);
        }
        match work {
            Work::Import => {}
            Work::Seen => drop(unpacker.args(["--seen", "yes"])),
            Work::Look => drop(unpacker.args(["--look", "yes"])),
            Work::Repair(layers) => {
                unpacker.arg("--repair").arg(serde_json::to_string(layers).map_err(json)?);
            }
        }
        run_as(&mut unpacker, self.store.as_ref());
        unpacker.env_clear();
        Ok(unpacker)
    }

    /// As [`resolve`], by the fetcher as the user: for references that could not be resolved where they were typed.
    /// Relative paths are refused; `directory` is where the user stands.
    ///
    /// # Errors
    /// As for [`resolve`]; or the process cannot be started or dies.
    pub fn resolve(&self, reference: &Reference, directory: &Path) -> Result<Resolved> {
        self.resolving(reference, directory, false).and_then(meaning)
    }

    /// As [`resolve_with_proof`](crate::resolve_with_proof), by the fetcher as the user.
    ///
    /// # Errors
    /// As there; or the process cannot be started or dies.
    pub fn resolve_with_proof(
        &self,
        reference: &Reference,
        directory: &Path,
    ) -> Result<(Resolved, Vec<String>)> {
        match self.resolving(reference, directory, true)? {
            Answer::Proven(manifest, proof) => Ok((Resolved::Manifest(manifest), proof)),
            answer => meaning(answer).map(|resolved| (resolved, Vec::new())),
        }
    }

    fn resolving(&self, reference: &Reference, directory: &Path, prove: bool) -> Result<Answer> {
        let place = self.place()?;
        let mut resolver = Command::new(&self.program);
        resolver
            .args(&self.fetch)
            .args(["--resolve", &reference.to_string(), "--registries", &self.described()?])
            .arg("--directory")
            .arg(directory);
        if prove {
            resolver.args(["--prove", "yes"]);
        }
        run_as(&mut resolver, self.user.as_ref());
        run_in(&mut resolver, place.as_deref());
        self.announce_login(&mut resolver);
        resolver.env_clear().envs(self.environment.iter().cloned());
        let mut resolver = Running::start(resolver.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        if let Some(mut input) = resolver.0.stdin.take() {
            self.send_login(&mut input)?;
        }
        answered(resolver, self.stop.as_deref())
    }

    /// As [`real_path`], by the fetcher as the user.
    ///
    /// # Errors
    /// As there; or the process cannot be started or dies.
    pub fn real_path(&self, path: &Path) -> Result<PathBuf> {
        let mut resolver = Command::new(&self.program);
        resolver.args(&self.fetch).arg("--real-path").arg(path);
        run_as(&mut resolver, self.user.as_ref());
        resolver.env_clear();
        let resolver = Running::start(resolver.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        match asked(resolver, self.stop.as_deref())? {
            Resolved::RootDir(path) => Ok(path),
            _ => Err(died("resolving")),
        }
    }

    /// As [`file_pin`], by the fetcher as the user, whose right to read the file it shows.
    ///
    /// # Errors
    /// As there; or the process cannot be started or dies.
    pub fn file_pin(&self, source: &str) -> Result<FilePin> {
        let mut resolver = Command::new(&self.program);
        resolver.args(&self.fetch).args(["--pin", source]);
        self.straight(&mut resolver);
        run_as(&mut resolver, self.user.as_ref());
        resolver.env_clear();
        let resolver = Running::start(resolver.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        match answered(resolver, self.stop.as_deref())? {
            Answer::Pin(pin) => Ok(pin),
            _ => Err(died("resolving")),
        }
    }

    /// Where the next fetcher runs.
    fn place(&self) -> Result<Option<Box<dyn Confined>>> {
        placed(self.confine.as_ref())
    }

    fn straight(&self, fetcher: &mut Command) {
        if self.through == Through::NoLinks {
            fetcher.args(["--no-links", "yes"]);
        }
    }

    /// Says that a login comes first on the standard input.
    fn announce_login(&self, fetcher: &mut Command) {
        if let Some(login) = &self.login {
            fetcher.args(["--login", &login.registry, "--login-bytes", &login.secret.0.len().to_string()]);
        }
    }

    /// No other process has the pipe yet.
    fn send_login(&self, pipe: &mut impl Write) -> Result<()> {
        let Some(login) = &self.login else { return Ok(()) };
        pipe.write_all(&login.secret.0)
            .and_then(|()| pipe.flush())
            .map_err(|e| Error::io("fetching process", e))
    }

    fn described(&self) -> Result<String> {
        serde_json::to_string(&self.registries).map_err(|e| start_failed(&e.to_string()))
    }
}

/// What a process says, for as long as it is wanted: it may be a user's, who may stop it.
struct Said<'a, R> {
    pipe: R,
    stop: Option<&'a AtomicBool>,
}

impl<R: Read + AsFd> Read for Said<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(stop) = self.stop {
            loop {
                if stop.load(Ordering::Relaxed) {
                    return Err(std::io::Error::other("it is not wanted any more"));
                }
                let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
                if !matches!(poll(&mut fds, LOOKS), Ok(0) | Err(Errno::EINTR)) {
                    break;
                }
            }
        }
        self.pipe.read(buffer)
    }
}

/// Relays the report until it says how things ended, and through which file all was read, if through one.
fn follow(report: impl Read, progress: &dyn Progress) -> Result<Option<SeenFile>> {
    let mut lines = BufReader::new(report);
    let (mut stray, mut whole, mut starved) = (String::new(), None, false);
    loop {
        let mut line = Vec::new();
        let read = (&mut lines)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .map_err(|e| Error::io("unpacking process", e))?;
        if read == 0 && starved {
            return Err(too_much_memory());
        }
        if read == 0 {
            let error = died("unpacking");
            return Err(if stray.is_empty() {
                error
            } else {
                error.next(format!("its last words: {stray}"))
            });
        }
        match serde_json::from_slice(&line) {
            Ok(Report::Progress(event)) => progress.event(event),
            Ok(Report::Whole(file)) => whole = Some(file),
            Ok(Report::Done) => return Ok(whole),
            Ok(Report::Failed(error)) => return Err(error),
            Err(_) => {
                stray = printable(String::from_utf8_lossy(&line).trim(), 300);
                starved |= stray.starts_with(STARVED);
            }
        }
    }
}

/// What a reference means, as the resolver answers.
fn asked(resolver: Running, stop: Option<&AtomicBool>) -> Result<Resolved> {
    answered(resolver, stop).and_then(meaning)
}

fn meaning(answer: Answer) -> Result<Resolved> {
    match answer {
        Answer::Manifest(manifest) | Answer::Proven(manifest, _) => Ok(Resolved::Manifest(manifest)),
        Answer::RootDir(path) => Ok(Resolved::RootDir(path)),
        Answer::Host => Ok(Resolved::Host),
        Answer::Pin(_) | Answer::File(_) | Answer::Failed(_) => Err(died("resolving")),
    }
}

/// What the resolver answers.
fn answered(mut resolver: Running, stop: Option<&AtomicBool>) -> Result<Answer> {
    let mut text = Vec::new();
    if let Some(pipe) = resolver.0.stdout.take() {
        Said { pipe, stop }
            .take(MAX_LINE)
            .read_to_end(&mut text)
            .map_err(|e| Error::io("resolving process", e))?;
    }
    match serde_json::from_slice(&text) {
        Ok(Answer::Failed(error)) => Err(error.sanitised()),
        Ok(answer) => Ok(answer),
        Err(_) => Err(died("resolving")),
    }
}

fn run_as(command: &mut Command, identity: Option<&RunAs>) {
    if let Some(RunAs { uid, gid, groups }) = identity {
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        command.arg("--as").arg(format!("{uid}:{gid}:{}", groups.join(",")));
    }
}

fn placed(confine: Option<&Arc<dyn Confine>>) -> Result<Option<Box<dyn Confined>>> {
    confine.map(|confine| confine.place()).transpose()
}

/// Why an unpacker ended without a word, where it took more memory than it may have.
fn ran_out(error: Error, place: Option<&dyn Confined>) -> Error {
    if error.kind() != ErrorKind::Unreachable || !place.is_some_and(Confined::ran_out) {
        return error;
    }
    too_much_memory()
}

fn too_much_memory() -> Error {
    Error::new(ErrorKind::Refused, "unpacking process", "it took more memory than what unpacks an image may have")
        .next("try again when fewer of your images are fetched here; if it stays so, build the image with smaller layers")
}

fn run_in(command: &mut Command, place: Option<&dyn Confined>) {
    for list in place.map(Confined::lists).unwrap_or_default() {
        command.arg("--join").arg(list);
    }
    if let Some(bytes) = place.and_then(Confined::own_memory) {
        command.args(["--own-memory", &bytes.to_string()]);
    }
}

fn start_failed(reason: &str) -> Error {
    Error::new(ErrorKind::Io, "helper process", format!("cannot be started: {reason}"))
}

fn died(which: &str) -> Error {
    Error::new(ErrorKind::Unreachable, format!("{which} process"), "ended without a result")
        .next("look into the agent's log, and try again")
}

/// A child that does not outlive our interest in it.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_os_string();
        command
            .spawn()
            .map(Self)
            .map_err(|e| start_failed(&format!("{}: {e}", Path::new(&program).display())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has nothing left to say; the store is safe at every instant.
        let _ = self.0.kill();
        if !self.ends() {
            // It waits where no signal reaches it, as for a file server that does not answer: whoever wanted the image does not.
            let left = Pid::from_child(&self.0);
            let wait = move || waitpid(Some(left), WaitOptions::empty());
            if std::thread::Builder::new().name("left".into()).spawn(wait).is_ok() {
                return;
            }
        }
        let _ = self.0.wait();
    }
}

impl Running {
    /// Whether it has ended, or does within a moment.
    fn ends(&self) -> bool {
        let Ok(process) = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()) else { return true };
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        !matches!(poll(&mut fds, ENDS), Ok(0) | Err(Errno::EINTR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_wanted_any_more_is_not_waited_for() {
        let silent = || Running::start(Command::new("sleep").arg("1000").stdout(Stdio::piped())).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let importing = scope.spawn(|| {
                let mut process = silent();
                let pipe = process.0.stdout.take().unwrap();
                follow(Said { pipe, stop: Some(&stop) }, &()).map(|_| ())
            });
            let resolving = scope.spawn(|| asked(silent(), Some(&stop)).map(drop));
            std::thread::sleep(std::time::Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
            for waiting in [importing, resolving] {
                let error = waiting.join().unwrap().unwrap_err().to_string();
                assert!(error.contains("not wanted"), "{error}");
            }
        });
    }

    #[test]
    fn a_report_that_stops_is_an_error_with_the_last_words() {
        let error = follow(&b"thread panicked\n"[..], &()).unwrap_err().to_string();
        assert!(error.contains("unpacking process") && error.contains("thread panicked"), "{error}");
    }

    #[test]
    fn what_is_given_no_more_memory_took_too_much() {
        let said = b"memory allocation of 1048576 bytes failed\nand more words\n";
        let error = follow(&said[..], &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("more memory than"), "{error}");
    }
}
