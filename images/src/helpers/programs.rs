//! What the two processes do: the fetcher and the unpacker, each a hidden sub-command of the `berth` program.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use berth_model::login::Login;
use berth_model::pin::file_of;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::confine::join;
use super::score::go_first;
use super::terminal::leave_terminal;
use super::{Answer, MAX_LINE, Report, RunAs, hand, start_failed};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::known::Manifests;
use crate::listed::resolve_with_proof;
use crate::progress::ProgressEvent;
use crate::reference::{Engine, Reference};
use crate::registry::{Credentials, Registries};
use crate::remote::{RemoteSource, serve_fetcher, serve_telling};
use crate::signature::Signers;
use crate::source::{
    BlobKind, BlobSource, ResolveOptions, Resolved, ResolvedManifest, Through, file_pin,
    leave_nothing_running, open_source_through, open_through, real_path, resolve,
};
use crate::store::{SeenFile, Store};

/// Options of the two programs, all of them `--name value`.
#[derive(Default)]
struct Options {
    resolve: Option<String>,
    prove: bool,
    real_path: Option<PathBuf>,
    pin: Option<String>,
    hand: Option<String>,
    judge: bool,
    directory: Option<PathBuf>,
    registries: Option<String>,
    identity: Option<RunAs>,
    join: Vec<PathBuf>,
    own_memory: Option<u64>,
    store: Option<PathBuf>,
    image: Option<String>,
    grant: Option<u32>,
    repair: Option<String>,
    login: Option<String>,
    login_bytes: u64,
    signers: Option<String>,
    quota: Option<u64>,
    peers: bool,
    forms: bool,
    look: bool,
    patience: Option<u64>,
    seen: bool,
    through: Through,
}

impl Options {
    fn registries(&self) -> Result<Registries> {
        match &self.registries {
            Some(text) => serde_json::from_str(text).map_err(|e| start_failed(&e.to_string())),
            None => Ok(Registries::default()),
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options> {
    let bad = |what: &str| {
        Error::new(
            ErrorKind::Reference,
            format!("argument {what:?}"),
            "is not understood by this internal command",
        )
    };
    let mut options = Options::default();
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let name = name.into_string().map_err(|name| bad(&String::from_utf8_lossy(name.as_bytes())))?;
        let value = arguments.next().ok_or_else(|| bad(&name))?;
        let text = || value.clone().into_string().map_err(|_| bad(&name));
        match name.as_str() {
            "--resolve" => options.resolve = Some(text()?),
            "--prove" => options.prove = text()? == "yes",
            "--real-path" => options.real_path = Some(PathBuf::from(&value)),
            "--hand" => options.hand = Some(text()?),
            "--judge" => options.judge = text()? == "yes",
            "--pin" => options.pin = Some(text()?),
            "--registries" => options.registries = Some(text()?),
            "--directory" => options.directory = Some(PathBuf::from(&value)),
            "--as" => options.identity = Some(parse_identity(&text()?).ok_or_else(|| bad(&name))?),
            "--join" => options.join.push(PathBuf::from(&value)),
            "--own-memory" => options.own_memory = Some(text()?.parse().map_err(|_| bad(&name))?),
            "--store" => options.store = Some(PathBuf::from(&value)),
            "--image" => options.image = Some(text()?),
            "--login" => options.login = Some(text()?),
            "--login-bytes" => options.login_bytes = text()?.parse().map_err(|_| bad(&name))?,
            "--repair" => options.repair = Some(text()?),
            "--signers" => options.signers = Some(text()?),
            "--peers" => options.peers = text()? == "yes",
            "--forms" => options.forms = text()? == "yes",
            "--no-links" => {
                options.through = if text()? == "yes" { Through::NoLinks } else { Through::Links };
            }
            "--seen" => options.seen = text()? == "yes",
            "--look" => options.look = text()? == "yes",
            "--patience" => options.patience = Some(text()?.parse().map_err(|_| bad(&name))?),
            "--quota" => options.quota = Some(text()?.parse().map_err(|_| bad(&name))?),
            "--grant" => options.grant = Some(text()?.parse().map_err(|_| bad(&name))?),
            _ => return Err(bad(&name)),
        }
    }
    Ok(options)
}

pub(crate) fn parse_identity(text: &str) -> Option<RunAs> {
    let mut parts = text.splitn(3, ':');
    let uid = parts.next()?.parse().ok()?;
    let gid = parts.next()?.parse().ok()?;
    let groups = parts.next().unwrap_or_default();
    let groups =
        groups.split(',').filter(|g| !g.is_empty()).map(|g| g.parse().ok()).collect::<Option<Vec<u32>>>()?;
    Some(RunAs { uid, gid, groups })
}

/// Becomes the identity for good. Called before anything else is read or opened.
pub(crate) fn become_identity(identity: Option<&RunAs>, setid: SetId) -> Result<()> {
    let Some(RunAs { uid, gid, groups }) = identity else { return Ok(()) };
    let failed = |e: nix::Error| Error::io(format!("becoming uid {uid}"), std::io::Error::from(e));
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
    setgroups(&groups).map_err(failed)?;
    setresgid(gid, gid, gid).map_err(failed)?;
    setresuid(uid, uid, uid).map_err(failed)?;
    if setid == SetId::Off {
        rustix::thread::set_no_new_privs(true).map_err(|e| Error::io("no_new_privs", e))?;
    }
    Ok(())
}

/// Whether programs that are run change identity by their set-user-id bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetId {
    Off,
    /// For podman: newuidmap(1) maps the user's subordinate ids for it.
    On,
}

/// The fetcher: `--image JSON` serves blobs over `input` and `output`, which are the standard streams; `--resolve REFERENCE
/// --directory DIR` writes what the reference means, with `--prove yes` as [`resolve_with_proof`] does; `--real-path PATH` what the path
/// is without links; `--pin SOURCE` how the
/// file of a canonical source is; `--hand SOURCE` sends that file, opened, over the socket that standard output is, and `--judge
/// yes`, with the other end as standard input, says which one it is. With `--no-links yes` files are opened through no link. All take
/// `--registries JSON`, `--as UID:GID:GROUPS` and, for each list of processes of a control group that it goes into, `--join FILE`, and `--own-memory BYTES`; with
/// `--login REGISTRY --login-bytes N` a login of that registry comes first on `input`. Gives the exit code. Call it before any thread exists.
pub fn fetcher_main(
    arguments: impl IntoIterator<Item = OsString>,
    mut input: impl Read,
    mut output: impl Write + Send,
) -> u8 {
    let become_user = |options: &Options| -> Result<()> {
        let image =
            options.image.as_deref().and_then(|text| serde_json::from_str::<ResolvedManifest>(text).ok());
        let source = image.map(|image| image.source).or(options.resolve.clone()).unwrap_or_default();
        let podman = matches!(Engine::of(&source), Some((Engine::Podman, _)));
        join(&options.join, options.own_memory)?;
        go_first()?;
        if options.identity.is_some() {
            leave_terminal()?;
        }
        become_identity(options.identity.as_ref(), if podman { SetId::On } else { SetId::Off })?;
        if podman && options.identity.is_some() {
            leave_nothing_running()?;
        }
        Ok(())
    };
    let options = match parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            // Whoever started it may have ended.
            let _ = writeln!(std::io::stderr(), "berth: {error}");
            return 1;
        }
    };
    if let Err(error) = become_user(&options) {
        // A login that nobody reads any more stands before all that is asked.
        let login = if options.login.is_some() { options.login_bytes } else { 0 };
        let _ = std::io::copy(&mut input.by_ref().take(login), &mut std::io::sink());
        return refuse(&options, error, input, output);
    }
    if let Some(path) = &options.real_path {
        let answer = real_path(path).map_or_else(Answer::Failed, Answer::RootDir);
        return say(&answer, &mut output);
    }
    if let Some(source) = &options.pin {
        return say(&file_pin(source, options.through).map_or_else(Answer::Failed, Answer::Pin), &mut output);
    }
    if let Some(source) = &options.hand {
        let path = file_of(source).map(Path::new);
        let file = path.and_then(|path| open_through(path, options.through).ok());
        // Why it cannot be opened is said by whoever fetches it.
        return u8::from(!file.is_some_and(|file| hand::give(std::io::stdout().as_fd(), &file)));
    }
    if options.judge {
        let file = hand::take(std::io::stdin().as_fd()).and_then(SeenFile::of);
        return say(&Answer::File(file), &mut output);
    }
    let credentials = match with_login(Credentials::from_env(), &options, &mut input) {
        Ok(credentials) => credentials,
        Err(error) => return refuse(&options, error, input, output),
    };
    if let Some(text) = &options.resolve {
        return say(&answer(text, &options, &credentials), &mut output);
    }
    let text = options.image.as_deref().unwrap_or_default();
    let image = serde_json::from_str::<ResolvedManifest>(text).map_err(|e| start_failed(&e.to_string()));
    let (told, notes) = channel();
    // Who hears it may have gone.
    let credentials = credentials.telling(move |text| drop(told.send(text.to_owned())));
    let open = || {
        let image = image.clone()?;
        open_source_through(&image, &options.registries()?, &credentials, options.through)
    };
    u8::from(serve_telling(&Opening { open, opened: OnceLock::new() }, notes, input, output).is_err())
}

/// Answers; gives the exit code.
fn say(answer: &Answer, output: &mut dyn Write) -> u8 {
    let written = serde_json::to_writer(&mut *output, answer).is_ok() && output.flush().is_ok();
    u8::from(matches!(answer, Answer::Failed(_)) || !written)
}

/// Answers why there is nothing, whatever is asked: nobody may hear standard error.
fn refuse(options: &Options, error: Error, input: impl Read, mut output: impl Write + Send) -> u8 {
    if options.image.is_none() {
        return say(&Answer::Failed(error), &mut output);
    }
    let open = || -> Result<Box<dyn BlobSource>> { Err(error.clone()) };
    let _ = serve_fetcher(&Opening { open, opened: OnceLock::new() }, input, output);
    1
}

/// Adds the login that comes first on `input`, if one was announced. A core file of ours would have it in it: none is made.
fn with_login(credentials: Credentials, options: &Options, input: &mut impl Read) -> Result<Credentials> {
    let Some(registry) = &options.login else { return Ok(credentials) };
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)
        .map_err(|e| Error::io("core files", e))?;
    let mut secret = vec![0; usize::try_from(options.login_bytes.min(MAX_LINE)).unwrap_or(0)];
    input.read_exact(&mut secret).map_err(|e| Error::io("login that came with the job", e))?;
    credentials.with_login(&Login { registry: registry.clone(), secret: secret.into() })
}

fn answer(text: &str, options: &Options, credentials: &Credentials) -> Answer {
    let resolved = text.parse::<Reference>().and_then(|reference| {
        let prove = options.prove;
        let options = ResolveOptions {
            registries: options.registries()?,
            manifests: Manifests::from_env(),
            directory: options.directory.clone(),
            ..ResolveOptions::default()
        };
        match prove {
            true => resolve_with_proof(&reference, credentials, &options),
            false => resolve(&reference, credentials, &options).map(|resolved| (resolved, Vec::new())),
        }
    });
    match resolved {
        Ok((Resolved::Manifest(manifest), proof)) if !proof.is_empty() => Answer::Proven(manifest, proof),
        Ok((Resolved::Manifest(manifest), _)) => Answer::Manifest(manifest),
        Ok((Resolved::RootDir(path), _)) => Answer::RootDir(path),
        Ok((Resolved::Host, _)) => Answer::Host,
        Err(error) => Answer::Failed(error),
    }
}

/// A source that is opened by the first request: that may take long, as with a large file, and whoever asks hears meanwhile that somebody
/// is there. Why it cannot be opened is the answer.
struct Opening<F> {
    open: F,
    opened: OnceLock<Result<Box<dyn BlobSource>>>,
}

impl<F: Fn() -> Result<Box<dyn BlobSource>> + Send + Sync> BlobSource for Opening<F> {
    fn describe(&self) -> String {
        self.opened
            .get()
            .and_then(|opened| opened.as_ref().ok())
            .map(|source| source.describe())
            .unwrap_or_default()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        match self.opened.get_or_init(&self.open) {
            Ok(source) => source.open(kind, digest, offset),
            Err(error) => Err(error.clone()),
        }
    }

    fn read_through(&self) -> Option<String> {
        self.opened.get()?.as_ref().ok()?.read_through()
    }
}

/// The unpacker: `--store ROOT --image JSON --grant UID [--quota BYTES] [--peers yes] [--forms yes] [--signers JSON] [--repair JSON] [--look yes] [--seen yes] [--patience MILLISECONDS] [--as UID:GID:GROUPS] [--join FILE] [--own-memory BYTES]` makes the image present, or
/// repairs the layers that are named, from the fetcher at `input` and `output`, and writes its report to `report`, which is standard error. Gives the exit
/// code. Call it before any thread exists.
pub fn unpacker_main(
    arguments: impl IntoIterator<Item = OsString>,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    report: impl Write + Send + 'static,
) -> u8 {
    let report = Arc::new(Mutex::new(report));
    let say = move |line: &Report| {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        // An agent that went away does not stop the import: its successor finds the image.
        let _ = report.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text);
    };
    let run = || -> Result<()> {
        let options = parse(arguments)?;
        join(&options.join, options.own_memory)?;
        go_first()?;
        become_identity(options.identity.as_ref(), SetId::Off)?;
        let (Some(root), Some(image)) = (&options.store, &options.image) else {
            return Err(start_failed("--store and --image are needed"));
        };
        let image: ResolvedManifest =
            serde_json::from_str(image).map_err(|e| start_failed(&e.to_string()))?;
        let signers = options.signers.as_deref().map(serde_json::from_str::<Signers>).transpose();
        let signers = signers.map_err(|e| start_failed(&e.to_string()))?;
        let mut store = Store::open(root)?;
        if let Some(uid) = options.grant {
            store = store.working_for(uid)?;
        }
        if let Some(patience) = options.patience {
            store = store.waiting_for_others(Duration::from_millis(patience));
        }
        if let (Some(uid), Some(limit), None) = (options.grant, options.quota, &options.repair) {
            store = store.with_quota(uid, limit);
        }
        if options.forms {
            store = store.travelling();
        }
        let source = RemoteSource::new(image.source.clone(), input, output);
        let source = if options.peers { source.of_peers() } else { source };
        let tell = say.clone();
        let source = source.telling(move |what| tell(&Report::Progress(ProgressEvent::Delayed { what })));
        // The user shows that the source gives them this image, also where another user's import is under way. Root reads the
        // store anyhow, and need only find it at a mirror.
        let kind = if options.grant == Some(0) { BlobKind::Manifest } else { BlobKind::Proof };
        if options.seen {
            store = store.with_file();
        } else {
            store.prove(&image.digest, &source, kind)?;
        }
        let progress = |event| say(&Report::Progress(event));
        if options.look {
            return signers
                .as_ref()
                .map_or(Ok(()), |signers| store.look_signed(&image, &source, signers, &progress));
        }
        let _turn = store.quota_turn(&progress)?;
        let refused = |e: Error| {
            if e.kind() == ErrorKind::Quota
                && let Err(left) = store.drop_refused(&image.digest)
            {
                progress(ProgressEvent::Note { text: format!("what was fetched of it is left: {left}") });
            }
            e
        };
        let prepared = match &options.repair {
            Some(layers) => {
                let layers: Vec<Digest> =
                    serde_json::from_str(layers).map_err(|e| start_failed(&e.to_string()))?;
                store.repair(&image, &layers, &source, &progress)?;
                None
            }
            None => Some(store.ensure_signed(&image, &source, signers.as_ref(), &progress).map_err(refused)?),
        };
        if prepared.is_some()
            && store.has_read_all()
            && let Some(file) = source.read_through().and_then(|words| serde_json::from_str(&words).ok())
        {
            say(&Report::Whole(file));
        }
        if let Some(uid) = options.grant {
            let granted = store.grant(&image, uid);
            drop(prepared);
            granted.map_err(refused)?;
        }
        Ok(())
    };
    match run() {
        Ok(()) => {
            say(&Report::Done);
            0
        }
        Err(error) => {
            say(&Report::Failed(error));
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities() {
        assert_eq!(parse_identity("1:2:3,4"), Some(RunAs { uid: 1, gid: 2, groups: vec![3, 4] }));
        assert_eq!(parse_identity("1:2:"), Some(RunAs { uid: 1, gid: 2, groups: vec![] }));
        for bad in ["", "1", "x:1", "1:2:x", "-1:2", "4294967296:1"] {
            assert_eq!(parse_identity(bad), None, "{bad}");
        }
    }
}
