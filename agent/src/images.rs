//! Images for steps: found in the store, or fetched with the user's own logins and unpacked by the store's
//! own identity. Everything here blocks; one thread for each step that waits.

mod pulling;
mod whom;

pub use pulling::{Pulling, Quiet};
pub(crate) use whom::{For, Placing};

use crate::admission;
use crate::cgroups::Cgroups;
use crate::confine::Unpackers;
use crate::enter::Entered;
use crate::imports::{Imports, Place, Wish};
use crate::kept::{Claim, KeptContainers};
use crate::names::{self, has_gateways};
use crate::paths::Paths;
use crate::peers::{PeerSource, Peers, Turn, Whose};
use crate::place;
use crate::room::{self, Room};
use crate::signatures::{self, Unsigned};
use berth_agent_core::Fetched;
use berth_images::{
    Confine, Credentials, Digest, ErrorKind, Helpers, LayerForm, Mirror, Progress, ProgressEvent, Reference,
    Registries, Resolved, ResolvedManifest, RoomRules, Store, UseGuard, Wanted, file_pin,
    open_source_through,
};
use berth_model::ByteStr;
use berth_model::admission::Asked;
use berth_model::config::{ImagesConfig, LayerForm as ConfigForm, MirrorConfig};
use berth_model::ids::Uid;
use berth_model::launch::StepLaunch;
use berth_model::login::Login;
use berth_model::pin::{file_of, travels};
use berth_model::spec::{Identity, ImageRef, ResolvedImage};
use berth_runtime::MountedImages;
use berth_step::spool::PreparedImage;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use whom::{credentials, helpers};

/// Owner of the shared store in system mode: neither root nor a person, and above every range that
/// distributions or container engines give out.
pub const STORE_ID: (u32, u32) = (0x7000_0001, 0x7000_0001);

/// How the cluster's configuration says that registries are reached.
pub fn registries(config: &ImagesConfig) -> Registries {
    Registries {
        insecure: config.insecure_registries.clone(),
        certificate_authorities: config
            .certificate_authorities
            .iter()
            .map(|file| file.as_path().to_path_buf())
            .collect(),
        mirrors: config.mirrors.iter().map(mirror).collect(),
    }
}

fn mirror(config: &MirrorConfig) -> Mirror {
    let MirrorConfig { registry, urls, grants } = config.clone();
    Mirror { registry, urls, grants }
}

/// In which form the cluster's configuration says that layers are kept; `None` where the kernel decides.
pub fn layer_form(config: &ImagesConfig) -> Option<LayerForm> {
    match config.layer_form {
        ConfigForm::Auto => None,
        ConfigForm::Directory => Some(LayerForm::Directory),
        ConfigForm::Erofs => Some(LayerForm::Erofs),
    }
}

/// The node's image store and how to fill it.
pub struct Images {
    root: PathBuf,
    /// The `berth` program, where fetching and unpacking are processes of their own (system mode).
    program: Option<PathBuf>,
    /// That program, for what may have to end in the middle.
    own_program: PathBuf,
    registries: Registries,
    /// The site's rules.
    config: ImagesConfig,
    kept: Arc<KeptContainers>,
    /// The state directory, in which containers are kept by name without a cluster.
    state: PathBuf,
    room: Room,
    /// Layers that are images, mounted once for all containers (system mode, from Linux 6.15).
    mounted: Option<MountedImages>,
    /// Other nodes.
    peers: Arc<Peers>,
    /// What is brought now.
    imports: Imports,
    /// Where fetchers run in system mode.
    cgroups: Arc<Cgroups>,
    /// Some of them ask registries for this one.
    gateways: bool,
    /// This node asks them for others.
    is_gateway: bool,
}

/// An image that is ready for its step.
pub struct Ready {
    /// What the reference means; absent for a step without a container.
    pub resolved: Option<ResolvedImage>,
    /// Layers and configuration; absent for `host:` and root directories.
    pub image: Option<PreparedImage>,
    /// Keeps the image from being removed while the step needs it.
    pub guard: Option<UseGuard>,
    /// The container that the step names, claimed for it.
    pub kept: Option<Claim>,
    /// The step that is entered, and what that makes of this one.
    pub entered: Option<Box<Entered>>,
    /// What the user is told when the step starts.
    pub notes: Vec<String>,
}

impl Ready {
    /// Of a step that needs nothing.
    pub fn nothing() -> Ready {
        Ready { resolved: None, image: None, guard: None, kept: None, entered: None, notes: Vec::new() }
    }
}

/// Brings an image: from other nodes, where these are named, and otherwise from where it is.
type Bring<'a, T> = dyn Fn(Option<&PeerSource>, Option<&Turn>) -> berth_images::Result<T> + 'a;

/// A step's image on its way.
struct Pull<'a, F> {
    of: For<'a>,
    login: Option<&'a Login>,
    pulling: &'a Pulling<F>,
    /// What is set when nobody waits for it any more, which ends it.
    stop: &'a Arc<AtomicBool>,
    /// The job may never come: nothing else gives way.
    ahead: bool,
}

/// Of a pull whose image came by its name.
struct Naming<'a, F> {
    images: &'a Images,
    pull: &'a Pull<'a, F>,
}

impl<F: Fn(Option<u8>) + Sync> Placing for Naming<'_, F> {
    fn place(&self) -> berth_images::Result<Place<'_>> {
        self.images.import_place(self.pull, None, &|| self.pull.pulling.event(waits()))
    }
}

/// What is told while a place is waited for.
fn waits() -> ProgressEvent {
    ProgressEvent::Waiting { what: "others of the images that are brought".to_owned() }
}

impl Images {
    /// Opens the store, or makes it. `program`: the `berth` program, and whether the node is in system mode.
    pub fn open(
        paths: &Paths,
        (program, system): (PathBuf, bool),
        config: &ImagesConfig,
        kept: Arc<KeptContainers>,
        room: Room,
        (peers, cgroups): (Arc<Peers>, Arc<Cgroups>),
    ) -> Result<Images, String> {
        let (own_program, program) = (program.clone(), system.then_some(program));
        let mounted = system.then(MountedImages::new).and_then(Result::ok);
        let registries = registries(config);
        let (root, state) = (place::store_place(config, paths.state())?, paths.state().to_path_buf());
        let gateways = has_gateways(config, peers.node());
        let is_gateway = !gateways && !config.gateways.is_empty();
        let images = Images {
            root,
            program,
            own_program,
            registries,
            config: config.clone(),
            kept,
            state,
            room,
            mounted,
            peers,
            imports: Imports::default(),
            cgroups,
            gateways,
            is_gateway,
        };
        let mut store = images.store().map_err(|e| e.to_string())?;
        let wanted = layer_form(config);
        if let Err(e) = store.note_room_rules(&room::rules(config)) {
            // On a full disk the agent is needed more than ever.
            tracing::warn!("'berth image df' will not show how room is kept: {e}");
        }
        if images.program.is_some() {
            let form = store.settle_form(wanted, &berth_runtime::try_image).map_err(|e| e.to_string())?;
            tracing::info!("layers of images are kept in form: {form}");
        } else if config.has_quotas() {
            return Err(
                "images.user_quota and images.quota: an ordinary user's cluster shares its store with nobody: leave them out, \
                 and write images.max_size for a bound of your own"
                    .into(),
            );
        } else if wanted == Some(LayerForm::Erofs) {
            return Err(
                "images.layer_form: an ordinary user's node mounts no EROFS images: write \"auto\" or \
                        \"directory\", or start the cluster as root"
                    .into(),
            );
        }
        Ok(images)
    }

    /// Layers that are mounted, for a supervisor.
    pub fn mounted(&self) -> Option<BorrowedFd<'_>> {
        self.mounted.as_ref().map(AsFd::as_fd)
    }

    /// Where they are.
    pub fn place(&self) -> &Path {
        &self.root
    }

    /// Those who keep room for images.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Images of containers that are kept by name.
    ///
    /// # Errors
    /// As of [`room::named_images`].
    pub fn kept_images(&self) -> Result<Vec<Digest>, String> {
        let mut all = self.kept.images(None);
        all.extend(room::named_images(&self.state)?);
        Ok(all)
    }

    /// Those of the containers that a user keeps.
    pub fn kept_images_of(&self, user: Uid) -> Vec<Digest> {
        self.kept.images(Some(user))
    }

    /// Whether the store serves several users, who cannot enter it.
    pub fn is_shared(&self) -> bool {
        self.program.is_some()
    }

    /// The site's rules.
    pub fn rules(&self) -> &ImagesConfig {
        &self.config
    }

    /// How registries are reached.
    pub(crate) fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Whether gateways ask registries for this node.
    pub(crate) fn asks_gateways(&self) -> bool {
        self.gateways && self.peers.are_there()
    }

    /// Whether read-only images of layers travel between this node and others.
    pub(crate) fn forms_travel(&self) -> bool {
        self.config.forms_agreed > 0 && self.program.is_some() && self.peers.are_there()
    }

    /// The store, for giving images to other nodes.
    pub(crate) fn store_to_give(&self) -> berth_images::Result<Store> {
        Ok(self.store()?.mounting(berth_runtime::mount_image))
    }

    /// Other nodes.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Brings an image as the controller says: from where it is, or from other nodes. `bring` is told from which of these, and may be
    /// called again with another one.
    fn bring<T>(
        &self,
        (of, stop): (For<'_>, &Arc<AtomicBool>),
        manifest: &ResolvedManifest,
        bring: &Bring<'_, T>,
    ) -> berth_images::Result<T> {
        let digest = manifest.digest.to_string();
        let whose = of.step.map_or(Whose::User(of.user.uid), |key| Whose::Run(key.job, key.attempt));
        let Some(turn) = self.peers.ask(whose, &digest, stop) else {
            return bring(None, None);
        };
        // What it failed by at its source, of which other nodes may be able to have it.
        let mut unreached = None;
        let brought = loop {
            let Some(source) = PeerSource::new(&turn, &turn.way(), &manifest.source) else {
                if let Some(e) = unreached.take() {
                    break Err(e);
                }
                match bring(None, Some(&turn)) {
                    // A gateway says so when it is over, and another one is asked.
                    Err(e) if e.kind() == ErrorKind::Unreachable && !self.is_gateway && turn.has_no_way() => {
                        tracing::info!("image {}: {e}; other nodes may have a way there", manifest.digest);
                        unreached = Some(e);
                        continue;
                    }
                    brought => break brought,
                }
            };
            match (bring(Some(&source), Some(&turn)), source.exhausted()) {
                (Err(e), Some(why)) if !turn.is_stopped() && turn.is_sent() => {
                    tracing::info!("image {}: {e}; it is fetched from its source ({why})", manifest.digest);
                    break bring(None, Some(&turn));
                }
                // Others were waited for as long as somebody does who has a place meanwhile. Without one it goes on, until the controller says
                // from where the image is to come: with its word that this is the source comes the login that was sent along.
                (Err(e), Some(why)) if !turn.is_stopped() => {
                    tracing::info!(
                        "image {}: {e}; the controller is asked once more ({why})",
                        manifest.digest
                    );
                    turn.ask_again();
                }
                (brought, _) => break brought,
            }
        };
        let note = turn.note();
        let brought = brought.map_err(|e| if note.is_empty() { e } else { e.beside(&note) });
        if brought.is_ok() && self.forms_travel() {
            self.peers.tell_held(self);
        }
        turn.end(brought.as_ref().map(drop).map_err(ToString::to_string));
        brought
    }

    pub(crate) fn store(&self) -> berth_images::Result<Store> {
        Store::open_for(&self.root, self.program.is_some().then_some(STORE_ID))
    }

    /// Makes the step's image present, with the login that came with it where there is one; `pulling` is told of it.
    pub fn prepare<F: Fn(Option<u8>) + Sync>(
        &self,
        launch: &StepLaunch,
        login: Option<&Login>,
        pulling: &Pulling<F>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Ready, String> {
        let pull = Pull { of: For::step(launch), login, pulling, stop, ahead: false };
        let Some(container) = &launch.container else {
            return self.host_is_admitted(launch).map(|()| Ready::nothing());
        };
        let Some(named) = &container.named else {
            return self.make_present(&pull, &container.image);
        };
        loop {
            if let Some(claim) = self.kept.find(launch, container, named)? {
                let ready = self.make_present(&pull, &claim.image)?;
                return Ok(Ready { kept: Some(claim), ..ready });
            }
            if container.image.resolved == Some(ResolvedImage::Kept) {
                return Err(format!(
                    "a container with name \"{}\" does not exist, and --container-image is not set: name the image of \
                     which to make it",
                    named.name
                ));
            }
            let ready = self.make_present(&pull, &container.image)?;
            if ready.resolved == Some(ResolvedImage::Host) {
                return Err("--container-name: the node's own filesystem (host:) is no container".into());
            }
            let image = ImageRef { resolved: ready.resolved.clone(), ..container.image.clone() };
            if let Some(claim) = self.kept.make(launch, named, image)? {
                return Ok(Ready { kept: Some(claim), ..ready });
            }
        }
    }

    /// Whether the step may run in the node's own filesystem.
    pub(crate) fn host_is_admitted(&self, launch: &StepLaunch) -> Result<(), String> {
        self.config.admits("", &ResolvedImage::Host, Asked::Job(launch.job.account.as_deref()))
    }

    /// Fetches the image of a job that may start here soon, until `stop` is set; never where other images would have to go.
    pub fn prefetch(
        &self,
        launch: &StepLaunch,
        login: Option<&Login>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Option<Fetched>, String> {
        let Some(container) = &launch.container else { return Ok(None) };
        let digest = container.image.digest().and_then(|digest| digest.parse().ok());
        if let (None, Some(digest)) = (&self.program, digest) {
            // Nobody has to show that the image is theirs to use.
            let there = self.store().and_then(|store| store.prepared(&digest));
            if there.map_err(|e| e.to_string())?.is_some() {
                return Ok(None);
            }
        }
        let pulling = Pulling::new(|_| {});
        let of = For::elsewhere(launch);
        let pull = Pull { of, login, pulling: &pulling, stop, ahead: true };
        self.make_present(&pull, &container.image)?;
        Ok(pulling.fetched())
    }

    /// Fetches an image for other nodes, which wait for it, until `stop` is set.
    pub fn fetch_for_others(
        &self,
        launch: &StepLaunch,
        login: Option<&Login>,
        pulling: &Quiet,
        stop: &Arc<AtomicBool>,
    ) -> Result<(), String> {
        let Some(container) = &launch.container else { return Ok(()) };
        let of = For::elsewhere(launch);
        let pull = Pull { of, login, pulling, stop, ahead: false };
        self.make_present(&pull, &container.image).map(drop)
    }

    /// Makes an image present for a user who asks for it beside all jobs, with the login that they sent along or those that they have on this
    /// node, until `stop` is set. What it took, and what the user is told.
    pub(crate) fn pull_for(
        &self,
        user: &Identity,
        image: &ImageRef,
        pulling: &Quiet,
        stop: &Arc<AtomicBool>,
    ) -> Result<(Fetched, Vec<String>), String> {
        let directory = user.home.as_path();
        let asked = Asked::Pull;
        let of = For { step: None, here: None, user, env: &[], directory, asked, placing: None };
        let pull = Pull { of, login: None, pulling, stop, ahead: false };
        let ready = self.make_present(&pull, image)?;
        let fetched = pulling.fetched().ok_or("it is used where it is: there is nothing to fetch")?;
        Ok((fetched, ready.notes))
    }

    /// Whether so many bytes of blobs, twice that when unpacked, are more than there is room for.
    fn is_short_of(&self, store: &Store, bytes: u64) -> bool {
        // Images that are old and there still are no lack of room.
        let rules = RoomRules { keep_days: None, ..room::rules(&self.config) };
        store.lacks_room(&rules, Wanted::to_fetch(bytes)).unwrap_or(true)
    }

    /// What asks registries for a user: the processes that do, where these are others, and the logins, with the one that came along.
    pub(crate) fn asking(
        &self,
        of: For<'_>,
        login: Option<&Login>,
        stop: &Arc<AtomicBool>,
        ahead: bool,
    ) -> Result<(Option<Helpers>, Credentials), String> {
        // What may have to end is done by processes also where one user is all there is.
        let program = self.program.as_ref().or(ahead.then_some(&self.own_program));
        let helpers = program.map(|program| Helpers {
            login: login.cloned(),
            stop: Some(Arc::clone(stop)),
            through: admission::through(&self.config),
            quota: self.program.as_ref().and_then(|_| self.config.quota_of(&of.user.user, of.user.uid.0)),
            confine: self.program.as_ref().map(|_| self.fetchers(of)),
            forms: self.forms_travel(),
            unpack_in: self.program.as_ref().map(|_| self.unpackers(of)),
            ..helpers(program, &self.registries, of, self.program.is_some())
        });
        let credentials = match login {
            // The fetcher has it.
            Some(login) if helpers.is_none() => credentials(of).with_login(login),
            _ => Ok(credentials(of)),
        };
        Ok((helpers, credentials.map_err(|e| e.to_string())?))
    }

    fn make_present<F: Fn(Option<u8>) + Sync>(
        &self,
        pull: &Pull<'_, F>,
        wanted: &ImageRef,
    ) -> Result<Ready, String> {
        let Pull { of, login, pulling, stop, ahead } = *pull;
        let (mut helpers, credentials) = self.asking(of, login, stop, ahead)?;
        let resolved = match &wanted.resolved {
            Some(resolved) => resolved.clone(),
            None => {
                admission::admit_named(&self.config, &wanted.typed, of.asked)?;
                pulling.state().wanted = true;
                let naming = Naming { images: self, pull };
                let asks = For { placing: Some(&naming), ..of };
                let found = self.find(&wanted.typed, asks, (helpers.as_ref(), &credentials), stop)?;
                match of.step.filter(|_| !ahead) {
                    Some(key) => {
                        let told = self.peers.pin(key, &wanted.typed, found.clone(), stop)?;
                        names::of_the_job(&wanted.typed, found, told)
                    }
                    None => found,
                }
            }
        };
        let through = admission::through(&self.config);
        let open =
            |image: &ResolvedManifest| open_source_through(image, &self.registries, &credentials, through);
        let came_by_name = wanted.resolved.is_none();
        admission::admit(&self.config, &wanted.typed, &resolved, of.asked, helpers.as_ref())?;
        let name = wanted.typed.parse::<Reference>().ok().map(|r| r.to_string());
        let notes = Unsigned::default();
        let Some(manifest) = pinned(&resolved, name).map_err(|e| e.to_string())? else {
            pulling.state().wanted = false;
            if let ResolvedImage::RootDir { path } = &resolved {
                let (path, told) = (path.display().to_string(), notes.also(pulling));
                if let Some(signers) = signatures::signers(&self.config, &path)? {
                    signers.unsigned(&path, signatures::DIRECTORY, &told).map_err(|e| e.to_string())?;
                }
            }
            return Ok(Ready { resolved: Some(resolved), notes: notes.take(), ..Ready::nothing() });
        };
        {
            let mut state = pulling.state();
            (state.wanted, state.digest) = (true, Some(manifest.digest.to_string()));
            state.found = came_by_name.then(|| Box::new(resolved.clone()));
        }
        let signers = signatures::signers(&self.config, &manifest.place())?;
        let store = self.store().map_err(|e| e.to_string())?.wanted_until(Arc::clone(stop));
        if let Some(helpers) = &mut helpers {
            helpers.signers.clone_from(&signers);
        }
        let told = notes.also(pulling);
        let kept = self.room.pulling(&manifest.digest);
        let begun = AtomicU64::new(0);
        let telling = |event: ProgressEvent, turn: Option<&Turn>| {
            if let Some(turn) = turn {
                turn.came(match &event {
                    ProgressEvent::Fetched { bytes } => *bytes,
                    ProgressEvent::Delayed { .. } => 0,
                    // Something happens.
                    _ => 1,
                });
            }
            if let ProgressEvent::ByArchive { text } = &event {
                tracing::info!("image {}: {text}", manifest.source);
            }
            if let ProgressEvent::Waiting { what } | ProgressEvent::Delayed { what } = &event {
                tracing::info!("image {}: waiting for {what}", manifest.source);
            }
            if matches!(event, ProgressEvent::Fetched { bytes } if bytes > 0) {
                kept.came(Instant::now());
            }
            if let ProgressEvent::Start { bytes, .. } = &event
                && *bytes > 0
            {
                begun.store(*bytes, Ordering::Relaxed);
                if !ahead {
                    self.room.look(*bytes);
                } else if self.is_short_of(&store, *bytes) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            told.event(event);
        };
        // What other nodes have of its signatures is judged here, by this node's keys. The registry is asked where none of it counts.
        let look = |peers: &PeerSource| -> berth_images::Result<()> {
            let Some(signers) = &signers else { return Ok(()) };
            let is_known = || store.is_admitted(&manifest, Some(signers), &());
            if is_known()? {
                return Ok(());
            }
            let said = match &helpers {
                Some(helpers) => helpers.look_signed_from(&store, &manifest, peers, &told),
                None => store.look_signed(&manifest, peers, signers, &told),
            };
            // Where nothing is refused for it, nobody waits for a registry that is out of reach.
            if is_known()? || (self.asks_gateways() && !signers.required) {
                return Ok(());
            }
            let asked = match &helpers {
                Some(helpers) => helpers.look_signed(&store, &manifest, &told),
                None => open(&manifest)
                    .and_then(|source| store.look_signed(&manifest, source.as_ref(), signers, &told)),
            };
            match (asked, said) {
                (Err(e), Err(said)) => Err(e.beside(&said.to_string())),
                (asked, _) => asked,
            }
        };
        // Nor for one that is here, each time anew, when no other node knows what it is signed by.
        let tells_unsigned = || -> berth_images::Result<bool> {
            let unasked = |signers: &&berth_images::Signers| !signers.required && self.asks_gateways();
            let Some(signers) = signers.as_ref().filter(unasked) else { return Ok(false) };
            if store.is_admitted(&manifest, Some(signers), &())? {
                return Ok(false);
            }
            signers.unsigned(&manifest.source, "no other node has a signature", &told)?;
            Ok(true)
        };
        let bring_now = |peers: Option<&PeerSource>, turn: Option<&Turn>, judged: bool| {
            let telling = |event| telling(event, turn);
            if turn.is_some_and(Turn::has_waited) {
                telling(ProgressEvent::Waiting { what: format!("image {}", manifest.digest.short()) });
            }
            // Of what a user asked for without a job it comes with the controller's word.
            let told_login = turn.and_then(Turn::login);
            let signers = signers.as_ref().filter(|_| judged);
            let changed = helpers.as_ref().filter(|_| told_login.is_some() || !judged);
            let changed = changed.map(|helpers| Helpers {
                login: told_login.clone().or_else(|| helpers.login.clone()),
                signers: signers.cloned(),
                ..helpers.clone()
            });
            match (changed.as_ref().or(helpers.as_ref()), peers) {
                (Some(helpers), None) => helpers.ensure(&store, &manifest, &telling),
                (Some(helpers), Some(peers)) => helpers.ensure_from(&store, &manifest, peers, &telling),
                (None, Some(peers)) => store.ensure_signed(&manifest, peers, signers, &telling),
                (None, None) => {
                    let credentials = match &told_login {
                        Some(login) => credentials.clone().with_login(login)?,
                        None => credentials.clone(),
                    };
                    let source = open_source_through(&manifest, &self.registries, &credentials, through)?;
                    store.ensure_signed(&manifest, source.as_ref(), signers, &telling)
                }
            }
        };
        let is_there = || match &helpers {
            Some(helpers) => helpers.is_there(&store, &manifest),
            None => store.prepared(&manifest.digest).map(|prepared| prepared.is_some()),
        };
        // Only when it is known where it comes from: who waits for another node's fetch keeps no place from it.
        let bring = |peers: Option<&PeerSource>, turn: Option<&Turn>| {
            let _place = self.import_place(pull, Some(&manifest.digest), &|| telling(waits(), turn))?;
            if let Some(peers) = peers {
                look(peers)?;
            }
            // Whoever waited for another step of the same user finds it.
            let (peers, judged) = if is_there()? { (None, !tells_unsigned()?) } else { (peers, true) };
            bring_now(peers, turn, judged)
        };
        // Of a file the user shows here that they may read it, and that it is the one that was named. Else it is what fetching it says.
        let may_travel = || {
            let as_it_was = || match &helpers {
                Some(helpers) => helpers.file_pin(&manifest.source),
                None => file_pin(&manifest.source, through),
            };
            travels(&manifest.source, manifest.pin.as_ref())
                && (file_of(&manifest.source).is_none()
                    || as_it_was().is_ok_and(|now| Some(now) == manifest.pin))
        };
        let ensure = || {
            let there = is_there()?;
            // All of it may be here but what it is signed by, which other nodes may have.
            let unjudged = there && !store.is_admitted(&manifest, signers.as_ref(), &())?;
            if there && !unjudged && has_shown(&store, helpers.as_ref(), &manifest)? {
                return bring_now(None, None, true);
            }
            // Who opens a file of which all was read here before shows it by processes, of which few run at the same time.
            if (there && !unjudged) || !may_travel() {
                return bring(None, None);
            }
            self.bring((of, stop), &manifest, &bring)
        };
        let prepared = loop {
            match ensure() {
                // Layers that were complete are there still.
                Err(e) if e.kind() == ErrorKind::NoSpace && !ahead && self.room.press(&e) => {}
                other => break other,
            }
        };
        let prepared = prepared.map_err(|e| e.to_string())?;
        drop(kept);
        if begun.into_inner() > 0 {
            self.room.look(0);
        }
        if let (Some(mounted), false) = (&self.mounted, ahead) {
            for layer in &prepared.layers {
                if let Err(e) = mounted.add(layer) {
                    tracing::debug!("{}: every container mounts it anew: {e}", layer.display());
                }
            }
        }
        let bytes = |all: Vec<String>| all.into_iter().map(ByteStr::from).collect();
        let config = prepared.config;
        let some = |text: String| (!text.is_empty()).then_some(text);
        let image = PreparedImage {
            layers: prepared.layers.iter().map(|l| ByteStr::from(l.as_path())).collect(),
            owner: self.program.is_some().then_some(STORE_ID),
            env: bytes(config.env),
            entrypoint: bytes(config.entrypoint),
            cmd: bytes(config.cmd),
            workdir: some(config.workdir).map(ByteStr::from),
            user: some(config.user),
        };
        let notes = notes.take();
        let ready = Ready { resolved: Some(resolved), image: Some(image), notes, ..Ready::nothing() };
        Ok(Ready { guard: Some(prepared.guard), ..ready })
    }

    /// Where what fetches the image runs.
    fn fetchers(&self, of: For<'_>) -> Arc<dyn Confine> {
        Arc::new(of.fetchers(&self.cgroups))
    }

    /// Where what unpacks the image runs.
    fn unpackers(&self, of: For<'_>) -> Arc<dyn Confine> {
        Arc::new(Unpackers::new(&self.cgroups, of.user.uid, &self.root))
    }

    /// Waits until one more may be brought; of `image`, where it is known which. `waits` is called where that takes a while.
    fn import_place<F>(
        &self,
        pull: &Pull<'_, F>,
        image: Option<&Digest>,
        waits: &dyn Fn(),
    ) -> berth_images::Result<Place<'_>> {
        let wish = Wish { user: pull.of.user.uid, image, ahead: pull.ahead, stop: pull.stop };
        self.imports.place(&wish, waits).ok_or_else(|| {
            if pull.ahead {
                // Not wanted here now, which is no failure of a gateway's.
                pull.stop.store(true, Ordering::Relaxed);
            }
            let reason = match pull.ahead {
                true => {
                    "the places of imports are left to images that are needed now, and this one comes when its job starts"
                }
                false => "it waited for others of the images that are brought, and is not wanted any more",
            };
            berth_images::Error::new(ErrorKind::Io, "image", reason)
        })
    }
}

/// Whether nothing is started for an image that is there: its user has shown before that it is theirs, or there is nobody to whom to show it.
fn has_shown(
    store: &Store,
    helpers: Option<&Helpers>,
    image: &ResolvedManifest,
) -> berth_images::Result<bool> {
    match helpers.and_then(|helpers| helpers.user.as_ref()) {
        Some(user) => store.is_granted(image, user.uid),
        None => Ok(true),
    }
}

/// An image that was found, as jobs carry it.
pub fn resolved_image(resolved: Resolved) -> ResolvedImage {
    match resolved {
        Resolved::Host => ResolvedImage::Host,
        Resolved::RootDir(path) => ResolvedImage::RootDir { path: ByteStr::from(path.as_path()) },
        Resolved::Manifest(m) => ResolvedImage::Manifest {
            source: m.source,
            digest: m.digest.to_string(),
            insecure: m.insecure,
            indexes: m.indexes.iter().map(Digest::to_string).collect(),
            pin: m.pin,
        },
    }
}

/// The other way round: nothing for what is used where it is. `name`: as people know it.
///
/// # Errors
/// A digest is none.
pub fn pinned(image: &ResolvedImage, name: Option<String>) -> berth_images::Result<Option<ResolvedManifest>> {
    let ResolvedImage::Manifest { source, digest, insecure, indexes, pin } = image else { return Ok(None) };
    let indexes = indexes.iter().map(|index| index.parse()).collect::<Result<_, _>>()?;
    let (source, insecure, pin) = (source.clone(), *insecure, *pin);
    Ok(Some(ResolvedManifest { source, digest: digest.parse()?, insecure, name, indexes, pin }))
}

#[cfg(test)]
mod tests;
