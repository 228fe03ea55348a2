//! Images between nodes: what a node may want, and for whom. A node gets from others what a run of a job needs that it has, or
//! was told to fetch for, and nothing else: to know a digest is not to have the image.

use super::Cluster;
use super::images::may_be_kept;
use super::said::lines;
use super::timers::Timer;
use crate::event::{Effect, LoginOf};
use crate::exchange::{NO_RUN, NotTold, Want};
use crate::job::Job;
use crate::launch;
use crate::rows::StepRow;
use crate::store::PayloadKey;
use berth_model::exchange::{FromPeers, ImageWay, ToPeers};
use berth_model::ids::{Attempt, JobId, NodeName, Uid};
use berth_model::launch::Program;
use berth_model::link::{Start, ToAgent};
use berth_model::login::SealedLogin;
use berth_model::pin::travels;
use berth_model::request::{Actor, Refusal, RefusalCode, Response};
use berth_model::spec::{ContainerSpec, ResolvedImage};
use berth_model::time::{Span, Time};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Longest address and key that a node may name.
pub(super) const MOST_TEXT: usize = 300;
/// Most images of one message.
const MOST_HELD: usize = 10_000;
/// Longest reason.
const MOST_WHY: usize = 1000;
/// Longest source of an image.
pub(super) const MOST_SOURCE: usize = 8192;
/// For how long a node may want what a user asked for.
const ASKED: Span = Span::from_secs(3600);
/// Most that users ask for at the same time, of all nodes, and most that one of them does.
const MOST_ASKED: usize = 50_000;
const MOST_ASKED_OF_ONE: usize = 10_000;

/// Images that users asked for by name of the nodes, each for a while: of these a node may want what it was asked for, for whom it was asked.
/// Nothing of it is stored: after a restart nodes fetch by themselves.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    wanted: BTreeMap<Which, Wanted>,
}

/// For whom, which digest, and on which node.
type Which = (Uid, Arc<str>, NodeName);

/// What was asked for, and until when that counts.
#[derive(Clone, Debug)]
struct Wanted {
    image: Arc<ResolvedImage>,
    until: Time,
    /// The login that came with it, until the node has the image or has said why not.
    login: Option<Arc<SealedLogin>>,
}

impl Asked {
    /// What a node may want.
    fn want(&self, node: &NodeName, user: Uid, digest: &str, now: Time) -> Option<Want> {
        let wanted = self.wanted.get(&(user, digest.into(), node.clone()))?;
        (now < wanted.until).then(|| wanted.want(user)).flatten()
    }

    /// What a user asked of nodes, by its digest.
    fn all<'a>(&'a self, user: Uid, digest: &'a str, now: Time) -> impl Iterator<Item = &'a Wanted> {
        let first: Which = (user, digest.into(), NodeName(String::new()));
        let of_it = move |((of, what, _), _): &(&Which, &Wanted)| *of == user && **what == *digest;
        let all = self.wanted.range(first..).take_while(of_it).map(|(_, wanted)| wanted);
        all.filter(move |wanted| now < wanted.until)
    }

    /// The login that came with what nodes wait for still.
    fn login(&self, want: &Want, now: Time) -> Option<Arc<SealedLogin>> {
        self.all(want.user, &want.digest, now).find_map(|wanted| wanted.login.clone())
    }

    /// A node has it, or has said why not: it needs no login any more.
    fn ended(&mut self, node: &NodeName, want: &Want) {
        let which: Which = (want.user, want.digest.as_str().into(), node.clone());
        if let Some(wanted) = self.wanted.get_mut(&which) {
            wanted.login = None;
        }
    }

    /// Forgets what does not count any more.
    pub(super) fn expire(&mut self, now: Time) {
        self.wanted.retain(|_, wanted| now < wanted.until);
    }
}

impl Wanted {
    fn want(&self, user: Uid) -> Option<Want> {
        let ResolvedImage::Manifest { source, digest, .. } = &*self.image else { return None };
        Some(Want { digest: digest.clone(), source: source.clone(), user })
    }
}

impl Cluster {
    /// A user will have nodes fetch an image.
    pub(super) fn pull_image(
        &mut self,
        actor: &Actor,
        image: &ResolvedImage,
        nodes: Vec<NodeName>,
        login: Option<SealedLogin>,
    ) -> Result<Response, Refusal> {
        let now = self.clock;
        let ResolvedImage::Manifest { source, digest, pin, .. } = image else { return Ok(Response::Done) };
        if !travels(source, pin.as_ref()) {
            return Ok(Response::Done);
        }
        if !may_be_kept(image) {
            return Err(Refusal::new(RefusalCode::Invalid, "the image's name or digest is too long"));
        }
        let (until, uid) = (now + ASKED, actor.identity.uid);
        self.asked.expire(now);
        let all = &mut self.asked.wanted;
        let mut own = all.keys().filter(|(of, ..)| *of == uid).count();
        // They are the same for all nodes, and kept once.
        let (digest, image): (Arc<str>, _) = (digest.as_str().into(), Arc::new(image.clone()));
        let login = login.map(Arc::new);
        for node in nodes.into_iter().filter(|node| self.nodes.contains_key(node)) {
            if all.len() >= MOST_ASKED || own >= MOST_ASKED_OF_ONE {
                // Whoever comes now fetches by themselves.
                break;
            }
            let wanted = Wanted { image: Arc::clone(&image), until, login: login.clone() };
            own += usize::from(all.insert((uid, digest.clone(), node), wanted).is_none());
        }
        self.timers.insert((until, Timer::Asked));
        Ok(Response::Done)
    }

    pub(super) fn peers(&mut self, node: &NodeName, said: FromPeers) {
        let now = self.clock;
        self.exchange.set_gateways(&self.config.gateways);
        self.exchange.set_agreed(self.config.images.forms_agreed);
        let anew = heard_anew(node, &said);
        let told = match said {
            FromPeers::Ready { address, key, connected, .. } => {
                if address.len() > MOST_TEXT || key.len() > MOST_TEXT {
                    return;
                }
                let told = match self.members.get(node) {
                    // It was exchanged, and the node says the other one as soon as it has it.
                    Some(member) if member.key.0 != key => Vec::new(),
                    _ => self.exchange.ready(node, address, key.clone()),
                };
                self.told_of_keys(node, key, connected);
                told
            }
            FromPeers::Wanted { ask, job, attempt, digest, bytes, failed } => {
                let asker = (node.clone(), ask);
                let sent = || self.exchange.fetched_by(&asker, &digest);
                let sent = || self.config.gateways.contains(node).then(sent).flatten();
                match self.image_wanted(node, job, attempt, &digest).or_else(sent) {
                    want if self.is_for_nobody((node, ask), (job, attempt), want.as_ref()) => {
                        vec![(node.clone(), ToPeers::Unwanted { ask })]
                    }
                    Some(want) => {
                        let run = self.job(job).and_then(|job| job.run());
                        let nodes = run.map_or(1, |run| run.allocation.nodes.len());
                        let asked = ((job, attempt), bytes, failed);
                        self.exchange.wanted_among(asker, want, asked, nodes, now)
                    }
                    None => {
                        vec![(node.clone(), ToPeers::Way { ask, way: ImageWay::Source, note: String::new() })]
                    }
                }
            }
            FromPeers::Asked { ask, user, digest, bytes, failed } => {
                match self.user_wants(node, user, &digest) {
                    Some(want) => {
                        let nodes = self.asked.all(user, &digest, now).count();
                        let asked = (NO_RUN, bytes, failed);
                        self.exchange.wanted_among((node.clone(), ask), want, asked, nodes, now)
                    }
                    None => {
                        vec![(node.clone(), ToPeers::Way { ask, way: ImageWay::Source, note: String::new() })]
                    }
                }
            }
            FromPeers::Found { ask, key, image } => {
                let image = self.pin_image(node, key, image);
                image.map(|image| (node.clone(), ToPeers::Pinned { ask, image })).into_iter().collect()
            }
            FromPeers::Name { ask, key } => self.name_asked(node, ask, key),
            FromPeers::Named { key, image, why, proof } => {
                let why = lines(&why, MOST_WHY);
                self.name_found(node, key, image.map(|image| (image, proof)), why)
            }
            FromPeers::Holds { all, images, gone } => {
                let fits = |digest: &String| digest.len() <= MOST_TEXT;
                let images = images.into_iter().filter(|image| fits(&image.digest)).take(MOST_HELD);
                let parted =
                    images.map(|image| ((image.digest.clone(), image.users), (image.digest, image.made)));
                let (held, made): (Vec<_>, Vec<_>) = parted.unzip();
                self.exchange.holds(node, all, held, &gone);
                for dispute in self.exchange.made(node, all, made) {
                    self.note_disputed(node, &dispute);
                }
                return;
            }
            FromPeers::Removed { ask, by, user, images } => {
                self.note_removed(node, by, &user, &images);
                vec![(node.clone(), ToPeers::Noted { ask })]
            }
            FromPeers::Done { ask, there, why } => {
                let why = lines(&why, MOST_WHY);
                let result = if there { Ok(()) } else { Err(why) };
                let asker = (node.clone(), ask);
                if let Some(want) = self.exchange.without_job(&asker) {
                    self.asked.ended(node, want);
                }
                self.exchange.over(&asker, result, now)
            }
        };
        self.tell_peers(anew.into_iter().chain(told).collect());
    }

    pub(super) fn tell_peers(&mut self, mut told: Vec<(NodeName, ToPeers)>) {
        loop {
            for (to, said) in told {
                if let ToPeers::Way { ask, way: ImageWay::Source, .. } = &said {
                    self.send_login(&to, *ask);
                }
                self.send(&to, ToAgent::Peers(said));
            }
            let fetches = self.exchange.take_fetches();
            if fetches.is_empty() {
                return;
            }
            told = Vec::new();
            for (gateway, run, want) in fetches {
                if let Err(why) = self.send_fetch(&gateway, run, &want) {
                    // It is not asked again for this image, or not for this question: so this comes to an end.
                    told.extend(self.exchange.not_told(&gateway, &want, why, self.clock));
                }
            }
        }
    }

    /// The login that came with what a user asked for goes to whoever is to fetch it from where it is, once.
    fn send_login(&mut self, node: &NodeName, ask: u64) {
        let Some(link) = self.nodes.get(node).filter(|n| n.answers_as_gateway()).and_then(|n| n.link) else {
            return;
        };
        let Some(want) = self.exchange.begins_without_job(&(node.clone(), ask)) else { return };
        let Some(login) = self.asked.login(&want, self.clock) else { return };
        self.out.effects.push(Effect::Send {
            connection: link.connection,
            message: ToAgent::Peers(ToPeers::Login { ask, login: None }),
            payload: None,
            login: Some(LoginOf::Kept(want.user, login)),
        });
    }

    /// Tells a gateway to fetch the image that a run has, as the run's user and with the login that came with it. Who cannot does not ask for it,
    /// and is not waited for.
    ///
    /// # Errors
    /// It is not told: why, and whose affair that is.
    fn send_fetch(&mut self, gateway: &NodeName, run: (JobId, Attempt), want: &Want) -> Result<(), NotTold> {
        if self.nodes.get(gateway).is_none_or(|n| n.link.is_none()) {
            return Err(NotTold::Gateway("it is not connected to the controller"));
        }
        if run == NO_RUN {
            return self.send_fetch_for_user(gateway, want);
        }
        let (id, _) = run;
        let Some(job) = self.jobs.get(&id) else {
            return Err(NotTold::Asker("the job that wants the image is over"));
        };
        let common = self.common_of_others();
        let has = |container: &Option<ContainerSpec>| {
            container.as_ref().is_some_and(|container| source_of(container, &want.digest).is_some())
        };
        let step =
            job.steps.iter().find(|(_, row)| row.spec.as_ref().is_some_and(|spec| has(&spec.container)));
        let of_step = step.and_then(|(_, row)| start_of(&common, job, row));
        let login = job.spec.login.then_some(PayloadKey::Login(job.row.spec_of));
        let of_job = || launch::ahead(&common, job, gateway).map(|(start, payload)| (start, payload, login));
        // Of an allocation, whose steps have its image.
        let of_running = || {
            let (row, run) = (job.steps.values().next()?, job.run()?);
            launch::start(&common, job, run, (row, launch::Layouts::of(run, row)), 0)
                .map(|(start, payload)| (start, payload, login))
        };
        let Some(found) = of_step.or_else(of_job).or_else(of_running) else {
            return Err(NotTold::Asker("the job that wants the image does not run"));
        };
        self.tell_fetch(gateway, found);
        Ok(())
    }

    /// The same, where a user asked for the image without a job: they are who the gateway knows by this uid.
    fn send_fetch_for_user(&mut self, gateway: &NodeName, want: &Want) -> Result<(), NotTold> {
        if !self.nodes.get(gateway).is_some_and(|n| n.answers_as_gateway()) {
            return Err(NotTold::WithoutJob("its agent is of an earlier version"));
        }
        let wanted = self.asked.all(want.user, &want.digest, self.clock).next();
        let Some(image) = wanted.map(|wanted| (*wanted.image).clone()) else {
            return Err(NotTold::Asker("it is too long ago that a user asked for the image"));
        };
        self.send(gateway, ToAgent::Peers(ToPeers::Fetch { user: want.user, image }));
        Ok(())
    }

    /// What a node may want that a user asked for: of that node, or of another one that waits for this one, a gateway.
    fn user_wants(&self, node: &NodeName, user: Uid, digest: &str) -> Option<Want> {
        let own = self.asked.want(node, user, digest, self.clock);
        own.or_else(|| self.exchange.sent(node, user, digest))
    }

    /// What the Starts have in common that tell nodes of other nodes' steps, or of a job that has none yet.
    pub(super) fn common_of_others(&self) -> launch::Common<'_> {
        launch::Common {
            cluster: &self.config.cluster,
            term: self.term,
            kill_wait: self.config.kill_wait,
            told_within: self.config.told_within,
            now: self.clock,
            leaps: &self.leaps,
            asked: None,
            het: None,
            master: None,
        }
    }

    /// Tells a gateway of the image of a step: identity, environment, image and login of the Start are meant.
    pub(super) fn tell_fetch(&mut self, gateway: &NodeName, (mut start, payload, login): ForGateway) {
        start.launch.program = Program::Argv(Vec::new());
        let Some(link) = self.nodes.get(gateway).and_then(|n| n.link) else { return };
        self.out.effects.push(Effect::Send {
            connection: link.connection,
            message: ToAgent::Fetch(Box::new(start)),
            payload: Some(payload),
            login: login.map(LoginOf::Stored),
        });
    }

    /// Whether a gateway fetches for a job that is gone, and for which no other node waits.
    fn is_for_nobody(
        &self,
        (node, ask): (&NodeName, u64),
        (id, attempt): (JobId, Attempt),
        want: Option<&Want>,
    ) -> bool {
        let gone = self.job(id).is_none_or(|job| job.row.base_state().is_terminal());
        // What runs on the gateway itself is ended with its job.
        let for_others = self
            .nodes
            .get(node)
            .is_some_and(|known| known.answers_as_gateway() && !known.held.contains_key(&(id, attempt)));
        gone && for_others
            && self.config.gateways.contains(node)
            && !self.exchange.others_wait(&(node.clone(), ask), want)
    }

    /// The image with this digest that a run has, whose own word counts for where it is from; nothing where the node has nothing to do with
    /// the run, or the run with the image.
    fn image_wanted(&self, node: &NodeName, id: JobId, attempt: Attempt, digest: &str) -> Option<Want> {
        let job = self.job(id)?;
        let held = self.nodes.get(node)?.held.contains_key(&(id, attempt));
        let first = job.spec.first_step.as_ref().and_then(|step| step.container.as_ref());
        let steps = job.steps.values().filter_map(|step| step.spec.as_ref()?.container.as_ref());
        let mut all = job.spec.spec.container.iter().chain(first).chain(steps);
        let source = all.find_map(|container| source_of(container, digest))?;
        let want =
            Want { digest: digest.to_string(), source: source.to_string(), user: job.spec.identity.uid };
        let told = || self.ahead.contains(&(node.clone(), id, attempt)) || self.exchange.is_sent(node, &want);
        (held || told()).then_some(want)
    }
}

/// What a node is told first that says that it has no way to where an image is itself: what it hears behind that is said knowing of it, and
/// what it heard before may not have been.
fn heard_anew(node: &NodeName, said: &FromPeers) -> Option<(NodeName, ToPeers)> {
    let (FromPeers::Wanted { ask, failed, .. } | FromPeers::Asked { ask, failed, .. }) = said else {
        return None;
    };
    let way = ToPeers::Way { ask: *ask, way: ImageWay::Wait, note: String::new() };
    failed.contains(node).then(|| (node.clone(), way))
}

/// What a gateway is told of a step: its Start, and where environment and login are.
pub(super) type ForGateway = (Start, PayloadKey, Option<PayloadKey>);

/// That of a step of a job that runs.
pub(super) fn start_of(common: &launch::Common<'_>, job: &Job, row: &StepRow) -> Option<ForGateway> {
    let login = match (row.login, job.spec.login) {
        (true, _) => Some(PayloadKey::StepLogin(job.row.job, row.key.step)),
        (false, true) => Some(PayloadKey::Login(job.row.spec_of)),
        (false, false) => None,
    };
    let run = job.run()?;
    let (start, payload) = launch::start(common, job, run, (row, launch::Layouts::of(run, row)), 0)?;
    Some((start, payload, login))
}

/// Where a container's image is from, if it is this one, and may travel.
fn source_of<'a>(container: &'a ContainerSpec, wanted: &str) -> Option<&'a str> {
    match container.image.resolved.as_ref()? {
        ResolvedImage::Manifest { source, digest, pin, .. } if digest == wanted => {
            Some(source.as_str()).filter(|source| travels(source, pin.as_ref()))
        }
        _ => None,
    }
}
