//! What the commands need of images: the resolver for submissions, the store to use, and progress on a terminal.

use crate::daemon::{Part, pid_file};
use crate::joined::{Joined, last_settings};
use berth_agent::admission;
use berth_client::error::{Failure, Kind};
use berth_client::explain::Explained;
use berth_client::site::{Site, StateDir};
use berth_client::{ImageResolver, block_on};
use berth_images::{
    BlobSource, Credentials, Digest, Error, ErrorKind, Helpers, Manifests, PROXY_VARIABLES, Progress,
    ProgressEvent, Reference, Registries, ResolveOptions, Resolved, ResolvedManifest, RunAs, Store,
    look_for_signature, open_source, resolve,
};
use berth_model::admission::Asked;
use berth_model::config::ImagesConfig;
use berth_model::login::{Login, SealedLogin};
use berth_model::member::MemberRole;
use berth_model::options::Explain;
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::request::RefusalCode;
use berth_model::spec::ResolvedImage;
use berth_model::{ByteStr, NodeName, Uid};
use berth_runtime::facts::is_privileged;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Resolves images with the caller's own logins, and asks registries as the cluster's configuration says.
pub struct Resolver;

impl ImageResolver for Resolver {
    fn admits(&self, typed: &str, rules: &ImagesConfig, account: Option<&str>) -> Result<(), String> {
        admission::admit_named(rules, typed, Asked::Job(account))
    }

    fn resolve(
        &self,
        typed: &str,
        config: Option<&ImagesConfig>,
    ) -> Result<(Option<ResolvedImage>, Option<Login>), String> {
        let reference: Reference = typed.parse().map_err(|e: Error| e.to_string())?;
        if reference == Reference::Host {
            return Ok((Some(ResolvedImage::Host), None));
        }
        let credentials = credentials();
        // Whom gateways may ask about.
        let by_gateways = match &reference {
            Reference::Registry(name) if config.is_some_and(|config| !config.gateways.is_empty()) => {
                Some(name)
            }
            _ => None,
        };
        let left_to_them =
            |name| credentials.login_for(name).map(|login| (None, login)).map_err(|e| e.to_string());
        if let (Some(name), Some(config)) = (by_gateways, config)
            && is_behind_gateways(config)
        {
            return left_to_them(name);
        }
        let registries = config.map(berth_agent::registries).unwrap_or_default();
        let manifests = Manifests::from_env();
        let options = ResolveOptions { registries, manifests, ..ResolveOptions::default() };
        let resolved = match (resolve(&reference, &credentials, &options), by_gateways) {
            (Err(e), Some(name)) if e.kind() == ErrorKind::Unreachable => return left_to_them(name),
            (resolved, _) => resolved.map_err(|e| e.to_string())?,
        };
        if let Some(config) = config {
            match refuse_unsigned(&resolved, config, &options.registries, &credentials) {
                // The digest was known here. Nodes decide, which ask other nodes.
                Err(e) if e.kind() == ErrorKind::Unreachable && by_gateways.is_some() => {}
                judged => judged.map_err(|e| e.to_string())?,
            }
        }
        let login = match &reference {
            Reference::Registry(name) => credentials.used(&name.registry),
            _ => None,
        };
        Ok((Some(berth_agent::resolved_image(resolved)), login))
    }

    fn seal(&self, key: &ByteStr, login: &Login) -> Result<SealedLogin, String> {
        let uid = nix::unistd::geteuid().as_raw();
        let sealed = berth_seal::seal(&key.0, uid, &login.registry, &login.secret.0);
        let sealed = sealed.map_err(|e| format!("the login of registry {}: {e}", login.registry))?;
        Ok(SealedLogin { registry: login.registry.clone(), sealed: sealed.into() })
    }

    fn explain(&self, step: &Explained, format: Explain) -> Result<String, Failure> {
        crate::explain::submission(step, format)
    }
}

/// Whether this is a job's process on a node for which gateways ask registries: the node asks them for what names mean, and nobody waits
/// here for a registry that may be out of reach.
fn is_behind_gateways(config: &ImagesConfig) -> bool {
    let inside = ["SLURM_JOB_ID", "SLURMD_NODENAME"].map(|name| std::env::var(name).unwrap_or_default());
    let [job, node] = inside;
    !job.is_empty() && !node.is_empty() && berth_agent::has_gateways(config, &NodeName(node))
}

/// What is refused on every node for want of a signature is refused when it is submitted. Where a key cannot be read here,
/// nodes decide.
fn refuse_unsigned(
    resolved: &Resolved,
    config: &ImagesConfig,
    registries: &Registries,
    credentials: &Credentials,
) -> berth_images::Result<()> {
    let required = |place: &str| {
        berth_agent::signatures::signers(config, place).ok().flatten().filter(|signers| signers.required)
    };
    match resolved {
        Resolved::Host => Ok(()),
        Resolved::RootDir(path) => {
            let path = path.display().to_string();
            required(&path)
                .map_or(Ok(()), |signers| signers.unsigned(&path, berth_agent::signatures::DIRECTORY, &()))
        }
        Resolved::Manifest(image) => {
            let Some(signers) = required(&image.place()) else { return Ok(()) };
            let source = open_source(image, registries, credentials)?;
            signers.judge(image, &look_for_signature(image, source.as_ref(), &signers)?, &())
        }
    }
}

/// The configuration of the cluster, where there is one.
fn cluster(state: Option<&Path>) -> Option<ImagesConfig> {
    let config = Site::find(state)
        .and_then(|site| berth_client::block_on(async { Ok(site.connect().await?.config().await?) }));
    config.ok().map(|config| config.images)
}

/// The rules about images: of the cluster, else as a controller of the state directory would read them.
pub fn rules(state: Option<&Path>) -> Result<ImagesConfig, Failure> {
    match cluster(state) {
        Some(rules) => Ok(rules),
        None => Ok(crate::commands::config::of(&local_dir(state)?, None)?.images),
    }
}

/// Refuses an image that nodes are to have, and that the cluster's rules refuse by its name, before anybody is asked for it. Where they
/// cannot be had here, nodes judge.
pub fn admitted_to_nodes(image: &str, state: Option<&Path>) -> Result<(), Failure> {
    cluster(state).map_or(Ok(()), |rules| admitted(&rules, image))
}

/// As [`admitted_to_nodes`], for the store of [`local_dir`], by the rules of the cluster whose jobs use that: as its controller has them, or
/// had them last where that is elsewhere; where none runs as the `berth.toml` says that is there, by which one would run. A store of
/// which no job takes anything has no rules: one with neither, and that of a login node.
pub fn admitted_to_store(image: &str, state: Option<&Path>) -> Result<(), Failure> {
    let dir = local_dir(state)?;
    match rules_of_store(&dir)? {
        Some(rules) => admitted(&rules, image),
        None => Ok(()),
    }
}

fn rules_of_store(dir: &StateDir) -> Result<Option<ImagesConfig>, Failure> {
    let unknown = |e: Failure| e.while_trying("which images the cluster's rules refuse cannot be known");
    if let Some(joined) = Joined::read(dir)? {
        if joined.role == MemberRole::Login {
            return Ok(None);
        }
        let known = last_settings(dir).map(|config| Some(config.images));
        return known.ok_or_else(|| {
            let text = "this machine has joined a cluster and has not heard its settings yet: start its agent ('berth up')";
            unknown(Failure::new(Kind::Configuration, text))
        });
    }
    let site = Site::of(dir.clone());
    match block_on(async { Ok(site.connect().await?.config().await?) }) {
        Ok(config) => Ok(Some(config.images)),
        Err(e) if e.kind != Kind::Unreachable || pid_file(dir, Part::Controller).is_some() => Err(unknown(e)),
        // None runs.
        Err(_) => {
            let config = berth_controller::load_config(&dir.0, None);
            Ok(Some(config.map_err(|e| Failure::new(Kind::Configuration, e.to_string()))?.images))
        }
    }
}

/// No job is asked about, so no rule that is about some jobs.
fn admitted(rules: &ImagesConfig, image: &str) -> Result<(), Failure> {
    let judged = admission::admit_named(rules, image, Asked::Pull);
    judged.map_err(|why| Failure::new(Kind::Refused(RefusalCode::Denied), why))
}

/// How registries are reached: as the cluster's configuration says, where there is a cluster.
pub fn registries(state: Option<&Path>) -> Registries {
    cluster(state).map(|config| berth_agent::registries(&config)).unwrap_or_default()
}

/// As [`registries`], for one image; files need none.
pub fn registries_of(reference: &Reference, state: Option<&Path>) -> Registries {
    match reference {
        Reference::Registry(_) => registries(state),
        _ => Registries::default(),
    }
}

/// As [`registries_of`], for an image that is pinned.
fn registries_for(pinned: &ResolvedManifest, state: Option<&Path>) -> Registries {
    pinned.source.parse().map(|source| registries_of(&source, state)).unwrap_or_default()
}

/// The caller's own logins. Standard error says which registry is waited for, and why.
pub fn credentials() -> Credentials {
    Credentials::from_env()
        .telling(|what| berth_client::out::complain(&format!("berth: note: waiting for {what}")))
}

/// Opens where a pinned image is, with the caller's own logins.
pub fn open(pinned: &ResolvedManifest, state: Option<&Path>) -> berth_images::Result<Box<dyn BlobSource>> {
    open_source(pinned, &registries_for(pinned, state), &credentials())
}

/// A failure about an image.
pub fn failed(e: &Error) -> Failure {
    Failure::user(e.to_string())
}

/// Images that must stay in the store of [`local_dir`]: those of containers that are kept, and, where that is a cluster's, those that
/// its jobs need which are not over.
pub fn needed(state: Option<&Path>) -> Result<BTreeSet<Digest>, Failure> {
    let dir = local_dir(state)?;
    let kept = berth_agent::kept_images(&dir.0).map_err(Failure::user)?;
    let site = Site::of(dir);
    let jobs = if site.streams.exists() { needed_by_jobs(&site, &[])? } else { Vec::new() };
    Ok(kept.into_iter().chain(jobs).collect())
}

/// The images that jobs of these users, or of all, need which are not over.
pub fn needed_by_jobs(site: &Site, users: &[Uid]) -> Result<Vec<Digest>, Failure> {
    let jobs = unfinished(site, users)?;
    let pinned = jobs.iter().filter_map(|job| job.spec.container.as_ref()?.image.digest());
    let found = jobs.iter().flat_map(|job| &job.steps).filter_map(|step| step.digest.as_deref());
    Ok(pinned.chain(found).filter_map(|digest| digest.parse().ok()).collect())
}

fn unfinished(site: &Site, users: &[Uid]) -> Result<Vec<JobInfo>, Failure> {
    let query = JobQuery { users: users.to_vec(), ..Default::default() };
    block_on(async { Ok(site.connect().await?.jobs(&query).await?) })
}

/// Which images something needs, and what: jobs that wait or run, by their ids.
#[derive(Default)]
pub struct Needs(BTreeMap<Digest, Vec<String>>);

impl Needs {
    /// Of all jobs of a cluster. What steps had that are over counts for nothing.
    pub fn of_jobs(site: &Site) -> Result<Needs, Failure> {
        let mut needs = Needs::default();
        for job in unfinished(site, &[])? {
            let own = job.spec.container.as_ref().and_then(|container| container.image.digest());
            let steps = job.steps.iter().filter(|step| !step.state.is_terminal());
            let all = own.into_iter().chain(steps.filter_map(|step| step.digest.as_deref()));
            let all: BTreeSet<Digest> = all.filter_map(|digest| digest.parse().ok()).collect();
            for digest in all {
                needs.0.entry(digest).or_default().push(berth_client::fmt::job::id(&job));
            }
        }
        Ok(needs)
    }

    /// Of the containers of [`local_dir`] that are kept by name.
    pub fn of_kept(state: Option<&Path>) -> Result<Needs, Failure> {
        let kept = berth_agent::kept_images(&local_dir(state)?.0).map_err(Failure::user)?;
        Ok(Needs(kept.into_iter().map(|digest| (digest, vec![KEPT.to_string()])).collect()))
    }

    /// These, and what the jobs of the cluster there need, where it runs.
    pub fn of_store(state: Option<&Path>) -> Result<Needs, Failure> {
        let site = Site::of(local_dir(state)?);
        let mut needs = if site.streams.exists() { Needs::of_jobs(&site)? } else { Needs::default() };
        for (digest, by) in Needs::of_kept(state)?.0 {
            needs.0.entry(digest).or_default().extend(by);
        }
        Ok(needs)
    }

    /// Why an image is not removed, where something needs it.
    pub fn refusal(&self, digest: &Digest) -> Option<String> {
        let mut by = self.0.get(digest)?.iter();
        let kept = by.clone().any(|by| by == KEPT);
        let jobs: Vec<&str> = by.by_ref().filter(|by| *by != KEPT).map(String::as_str).collect();
        let more = jobs.len().saturating_sub(NAMED);
        let mut text = match jobs.len() {
            0 => String::new(),
            1 => format!("job {}", jobs[0]),
            _ => format!("jobs {}", jobs[..jobs.len() - more].join(", ")),
        };
        if more > 0 {
            text += &format!(" and {more} more");
        }
        if kept {
            text += if text.is_empty() { KEPT } else { " and a container that is kept by name" };
        }
        let need = if jobs.len() == 1 && !kept || jobs.is_empty() { "needs" } else { "need" };
        Some(format!(
            "image {digest}: {text} {need} it: 'berth image rm --force' removes it all the same, and what needs it fetches it again"
        ))
    }

    /// The images.
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.0.keys().cloned().collect()
    }
}

/// What needs an image, where that is no job.
const KEPT: &str = "a container that is kept by name";
/// Jobs that are named in a refusal.
const NAMED: usize = 10;

/// The directory of the caller's own images and containers: the one named by option; the one that BERTH_STATE names
/// unless it is somebody else's, as that of the cluster in whose job we are; the caller's own.
pub fn local_dir(state: Option<&Path>) -> Result<StateDir, Failure> {
    let dir = StateDir::named_or_own(state)?;
    if state.is_none() && is_anothers(&dir) { StateDir::own() } else { Ok(dir) }
}

/// Whether a state directory is somebody else's; to root none is.
pub fn is_anothers(dir: &StateDir) -> bool {
    use std::os::unix::fs::MetadataExt;
    let me = nix::unistd::geteuid();
    !me.is_root() && std::fs::metadata(&dir.0).is_ok_and(|m| m.uid() != me.as_raw())
}

/// Where the store of a state directory is: of the cluster that runs there; else as a `berth.toml` in it says.
pub fn place(dir: &StateDir) -> Result<PathBuf, Failure> {
    if let Some(place) = crate::daemon::images(dir) {
        return Ok(place);
    }
    let wrong = |why: String| Failure::new(Kind::Configuration, why);
    let config = berth_controller::load_config(&dir.0, None).map_err(|e| wrong(e.to_string()))?;
    if !config.images.memory.is_empty() {
        let text = "images.memory: images are in memory while the cluster runs, and it does not: 'berth up' starts it";
        return Err(wrong(format!("{text} ({})", dir.0.display())));
    }
    berth_agent::store_place(&config.images, &dir.0).map_err(wrong)
}

/// The store of the caller: of [`local_dir`].
pub fn store(state: Option<&Path>) -> Result<Store, Failure> {
    let dir = local_dir(state)?;
    if is_anothers(&dir) {
        return Err(Failure::new(
            Kind::Configuration,
            format!(
                "state directory {}: is another user's: leave --state out for a store of your own; what you have on its node \
                 'berth image ls' shows, without --own",
                dir.0.display()
            ),
        ));
    }
    crate::daemon::make_state(&dir)?;
    let root = place(&dir)?;
    // Root of a container is a user like others: only root of the node has other users to protect the store from.
    let owner = is_privileged().then_some(berth_agent::STORE_ID);
    let wrong = |e: Error| Failure::new(Kind::Configuration, e.to_string());
    let mut store = Store::open_for(&root, owner).map_err(wrong)?;
    if owner.is_none() {
        return Ok(store);
    }
    // As the agent of this place does, or will.
    if !store.is_settled().map_err(wrong)? {
        let config = crate::commands::config::of(&dir, None)?;
        store
            .settle_form(berth_agent::layer_form(&config.images), &berth_runtime::try_image)
            .map_err(wrong)?;
    }
    Ok(store.mounting(berth_runtime::mount_image))
}

/// The two processes that fetch and unpack the image for root, where the store has an identity of its own.
pub fn helpers(pinned: &ResolvedManifest, state: Option<&Path>) -> Result<Option<Helpers>, Failure> {
    if !is_privileged() {
        return Ok(None);
    }
    let names = [
        "HOME",
        "USER",
        "PATH",
        "DOCKER_CONFIG",
        "REGISTRY_AUTH_FILE",
        "ENROOT_CONFIG_PATH",
        "XDG_CONFIG_HOME",
        "XDG_RUNTIME_DIR",
        "DOCKER_HOST",
        "CONTAINERS_STORAGE_CONF",
        "TMPDIR",
    ];
    let names = names.into_iter().chain(PROXY_VARIABLES);
    let environment = names.filter_map(|n| Some((n.into(), std::env::var_os(n)?))).collect();
    let (uid, gid) = berth_agent::STORE_ID;
    Ok(Some(Helpers {
        environment,
        store: Some(RunAs { uid, gid, groups: Vec::new() }),
        // No signers: the rules of a cluster are about its jobs.
        ..Helpers::new(crate::own_path()?, registries_for(pinned, state))
    }))
}

/// As [`helpers`], where the one that fetches becomes a user, and has of root's nothing but the proxies.
///
/// # Errors
/// This machine knows no such user.
pub fn helpers_as(
    pinned: &ResolvedManifest,
    uid: u32,
    state: Option<&Path>,
) -> Result<Option<Helpers>, Failure> {
    let Some(helpers) = helpers(pinned, state)? else { return Ok(None) };
    let known = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    let unknown = || Failure::user(format!("uid {uid}, whose image it is: this machine knows no such user"));
    let user = known.ok_or_else(unknown)?;
    let name = std::ffi::CString::new(user.name.as_str()).map_err(|_| unknown())?;
    let groups = nix::unistd::getgrouplist(&name, user.gid)
        .map_err(|e| Failure::new(Kind::Configuration, format!("groups of {}: {e}", user.name)))?;
    let mut environment: Vec<(OsString, OsString)> = vec![
        ("HOME".into(), user.dir.into_os_string()),
        ("USER".into(), user.name.into()),
        ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()),
        ("XDG_RUNTIME_DIR".into(), format!("/run/user/{uid}").into()),
    ];
    let proxies = PROXY_VARIABLES.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    environment.extend(proxies);
    let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    let user = Some(RunAs { uid, gid: user.gid.as_raw(), groups });
    Ok(Some(Helpers { user, environment, ..helpers }))
}

/// Fewer bytes to fetch than these are not worth a line where there is no terminal.
const WORTH_A_LINE: u64 = 8 << 20;

/// Shows an import or what else takes a while: a bar on a terminal; elsewhere a line for one that takes a while, and notes.
pub struct Bar {
    bar: ProgressBar,
    name: String,
    doing: &'static str,
    quiet: bool,
}

impl Bar {
    /// For the named image, which is fetched.
    pub fn new(name: &str, quiet: bool) -> Bar {
        Bar::named(name, "fetching", quiet)
    }

    /// For the named image, with which something else is done.
    pub fn named(name: &str, doing: &'static str, quiet: bool) -> Bar {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(0)
        };
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(name.to_string());
        Bar { bar, name: name.to_string(), doing, quiet }
    }

    /// A line where no bar is seen.
    fn line(&self, text: &str) {
        if self.bar.is_hidden() && !self.quiet {
            berth_client::out::complain(&format!("berth: {}: {text}", self.name));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn event(&self, event: ProgressEvent) {
        match event {
            ProgressEvent::Start { layers, cached, bytes } => {
                self.bar.set_length(bytes);
                if bytes >= WORTH_A_LINE {
                    self.line(&format!(
                        "{} {} of {layers} layers, {}",
                        self.doing,
                        layers - cached.min(layers),
                        size(bytes)
                    ));
                }
            }
            ProgressEvent::Fetched { bytes } => {
                self.bar.inc(bytes);
                // It comes again.
                if !self.bar.is_hidden() && self.bar.message() != self.name {
                    self.bar.set_message(self.name.clone());
                }
            }
            ProgressEvent::Waiting { what } | ProgressEvent::Delayed { what } => {
                self.line(&format!("waiting for {what}"));
                self.bar.set_message(format!("waiting for {what}"));
            }
            ProgressEvent::Syncing => self.bar.set_message("writing to disk"),
            ProgressEvent::LayerDone { .. } | ProgressEvent::ByArchive { .. } => {}
            ProgressEvent::Unsigned { text } => {
                self.bar
                    .suspend(|| berth_client::out::complain(&format!("berth: note: unsigned image: {text}")));
            }
            ProgressEvent::Note { text } if !self.quiet => {
                self.bar.suspend(|| berth_client::out::complain(&format!("berth: note: {text}")));
            }
            ProgressEvent::Note { .. } => {}
        }
    }
}

/// `1 layer`, `2 layers`.
pub fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// `3.2 MiB`.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `5 minutes`, `3 days`.
pub fn age(seconds: u64) -> String {
    indicatif::HumanDuration(Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_the_rules_of_the_cluster_whose_jobs_take_from_it() {
        let state = tempfile::tempdir().unwrap();
        let dir = StateDir(state.path().to_path_buf());
        let none = rules_of_store(&dir).unwrap().unwrap();
        assert_eq!((none.allow, none.deny), (Vec::new(), Vec::new()));
        // One that does not run.
        std::fs::write(state.path().join("berth.toml"), "[images]\ndeny = [\"r.io/evil\"]\n").unwrap();
        assert_eq!(rules_of_store(&dir).unwrap().unwrap().deny, ["r.io/evil"]);
        std::fs::create_dir(state.path().join("private")).unwrap();
        let joined = |role: &str| {
            let text = serde_json::json!({
                "address": "head:7817", "name": "n1", "role": role, "cluster": "c", "key": "k", "authority": "00",
            });
            std::fs::write(state.path().join("private/joined.json"), text.to_string()).unwrap();
        };
        joined("login");
        assert_eq!(rules_of_store(&dir), Ok(None), "no job takes from it");
        joined("compute");
        let unheard = rules_of_store(&dir).unwrap_err();
        assert!(unheard.text.contains("has not heard its settings yet"), "{unheard}");
    }
}
