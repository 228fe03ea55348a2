//! Who fetches an image that several nodes want, who waits for it, and which node gives it to which. Pure, and nothing of it is
//! stored: what nodes say again after a restart makes it anew, and a node that hears nothing fetches by itself.
//!
//! An image is wanted for one user, from one source: what one user has shown to have, another has not. Of the nodes that want it
//! one fetches; whoever has it gives it to [`FAN`] others at a time, which then give it on, so that the time grows with the
//! logarithm of the number of nodes.

mod alone;

use crate::forms::Forms;
use alone::Alone;
use berth_model::exchange::{ImageWay, MadeForm, ToPeers};
use berth_model::ids::{Attempt, JobId, NodeName, Uid};
use berth_model::pin::file_of;
use berth_model::time::{Span, Time};
use std::collections::{BTreeMap, BTreeSet};

/// To how many nodes one gives an image at the same time.
pub(crate) const FAN: usize = 4;
/// One who fetches and is not heard of for so long is not waited for any more: it says so every five seconds.
const SILENT: Span = Span::from_secs(20);
/// Nor one to whom nothing comes.
const STALLED: Span = Span::from_secs(60);
/// Whoever has waited for so long fetches by itself.
const PATIENCE: Span = Span::from_secs(600);
/// For how long a node may fetch from another one.
const SERVED: Span = Span::from_secs(3600);
/// For so long a node that has no way to where an image is waits for others of the same run that have not asked yet.
const COMING: Span = Span::from_secs(10);
/// Questions of one node that are open; what is beyond is answered at once.
const MOST_ASKS: usize = 256;
/// Images of which it is known who has them; what is beyond is found by asking where it comes from.
const MOST_IMAGES: usize = 20_000;

/// An image, for somebody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Want {
    pub(crate) digest: String,
    pub(crate) source: String,
    pub(crate) user: Uid,
}

/// Nodes that have an image, and for whom: those have shown there that they may have it.
pub(crate) type Holders = BTreeMap<NodeName, BTreeSet<Uid>>;

/// A run of a job, which has the image on record.
pub(crate) type RunOf = (JobId, Attempt);
/// Where an image is wanted without a job: no job has this number.
pub(crate) const NO_RUN: RunOf = (JobId(0), Attempt(0));

/// A node, and the number of its question.
type Asker = (NodeName, u64);
/// What is said to a node.
type Said = (NodeName, ToPeers);

#[derive(Clone, Debug)]
struct Peer {
    address: String,
    key: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waits,
    /// From where it is.
    Fetches,
    /// From this node.
    Takes(NodeName),
}

#[derive(Clone, Debug)]
struct Ask {
    run: RunOf,
    state: State,
    since: Time,
    heard: Time,
    /// When the number of bytes last was another one.
    moved: Time,
    bytes: u64,
    failed: BTreeSet<NodeName>,
    /// Since when it is known that the node has no way to where the image is, and how many nodes there are for which that is wanted.
    no_way: Option<(Time, usize)>,
    /// It was seen that it fetches: what goes with that is told once.
    begun: bool,
}

/// Those who want one image.
#[derive(Clone, Debug, Default)]
struct Group {
    asks: BTreeMap<Asker, Ask>,
    waiting: BTreeSet<Asker>,
    /// For whom the others wait. A gateway that was told to fetch has the number 0 until it asks itself.
    fetcher: Option<Asker>,
    /// When that was told.
    sent: Time,
    /// For whose question a gateway was told.
    sent_for: Option<Asker>,
    /// Gateways that did not get it.
    tried: BTreeMap<NodeName, Tried>,
}

/// What a gateway said that did not get an image.
#[derive(Clone, Debug)]
struct Tried {
    why: String,
    /// That says nothing of what runs of jobs want.
    without_job: bool,
}

impl Tried {
    fn new(why: &str) -> Tried {
        Tried { why: why.to_string(), without_job: false }
    }

    /// Whether it is not asked for this run.
    fn counts(&self, run: RunOf) -> bool {
        !self.without_job || run == NO_RUN
    }
}

/// Why a gateway was not told to fetch an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTold {
    /// It cannot: it is not asked again for this image.
    Gateway(&'static str),
    /// It cannot fetch what is wanted without a job: it is not asked again for that.
    WithoutJob(&'static str),
    /// What was asked for does not count any more. That is held against no gateway: others may ask for the same image.
    Asker(&'static str),
}

/// The exchange.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exchange {
    /// Nodes that fetch for all others.
    gateways: BTreeSet<NodeName>,
    /// What gateways are to be told to fetch: for which run, and which image.
    fetches: Vec<(NodeName, RunOf, Want)>,
    peers: BTreeMap<NodeName, Peer>,
    groups: BTreeMap<Want, Group>,
    asks: BTreeMap<Asker, Want>,
    /// Of nodes that neither give nor take.
    alone: Alone,
    holders: BTreeMap<String, Holders>,
    /// How many take from a node.
    load: BTreeMap<NodeName, usize>,
    /// What nodes made of layers.
    forms: Forms,
}

impl Exchange {
    /// So many nodes have to have made a layer's read-only image alike before others are told of it.
    pub(crate) fn set_agreed(&mut self, needed: u32) {
        self.forms.set_needed(needed);
    }

    /// What a node made by itself of layers of images that it has: all of it, or only what changed. Gives in words on what nodes do not
    /// agree since now.
    pub(crate) fn made(
        &mut self,
        node: &NodeName,
        all: bool,
        images: Vec<(String, Vec<MadeForm>)>,
    ) -> Vec<String> {
        if all {
            self.forms.forget(node);
        }
        if self.forms.wants_room() {
            let holders = &self.holders;
            self.forms.keep(|image| holders.contains_key(image));
        }
        images.into_iter().flat_map(|(image, forms)| self.forms.made(node, &image, forms)).collect()
    }

    /// From now on these nodes fetch for all others.
    pub(crate) fn set_gateways(&mut self, gateways: &BTreeSet<NodeName>) {
        self.gateways.clone_from(gateways);
    }

    /// What gateways are to be told since this was asked last.
    pub(crate) fn take_fetches(&mut self) -> Vec<(NodeName, RunOf, Want)> {
        std::mem::take(&mut self.fetches)
    }

    /// A gateway was not told to fetch an image, and why: the next one is to, or else those who wait ask by themselves.
    pub(crate) fn not_told(&mut self, gateway: &NodeName, want: &Want, why: NotTold, now: Time) -> Vec<Said> {
        let Some(group) = self.groups.get_mut(want) else { return Vec::new() };
        if !group.fetcher.as_ref().is_some_and(|(node, ask)| node == gateway && *ask == 0) {
            return Vec::new();
        }
        group.fetcher = None;
        let mut said = Vec::new();
        match why {
            NotTold::Gateway(why) => {
                group.tried.insert(gateway.clone(), Tried::new(why));
            }
            NotTold::WithoutJob(why) => {
                let tried = Tried { without_job: true, ..Tried::new(why) };
                group.tried.entry(gateway.clone()).or_insert(tried);
            }
            NotTold::Asker(why) => said.extend(group.by_itself(why, now)),
        }
        said.extend(self.decide(want, now));
        said
    }

    /// What a node was told to fetch for others of this digest, for this user: that counts for as long as somebody waits for it.
    pub(crate) fn sent(&self, node: &NodeName, user: Uid, digest: &str) -> Option<Want> {
        let first = Want { digest: digest.to_string(), source: String::new(), user: Uid(0) };
        let mut all = self.groups.range(first..).take_while(|(want, _)| want.digest == digest);
        let found = all.find(|(want, group)| want.user == user && group.is_fetched_by(node));
        found.map(|(want, _)| want.clone())
    }

    /// What a question is about for which others wait: that counts also when its own job is forgotten meanwhile.
    pub(crate) fn fetched_by(&self, asker: &Asker, digest: &str) -> Option<Want> {
        let want = self.asks.get(asker).filter(|want| want.digest == digest)?;
        let fetches = self.groups.get(want)?.fetcher.as_ref() == Some(asker);
        fetches.then(|| want.clone())
    }

    /// Whether a gateway was told to fetch the image, or does.
    pub(crate) fn is_sent(&self, node: &NodeName, want: &Want) -> bool {
        self.groups.get(want).is_some_and(|group| group.is_fetched_by(node))
    }

    /// Whether other nodes wait for what somebody asks for: for this, or for what is known of the question.
    pub(crate) fn others_wait(&self, asker: &Asker, want: Option<&Want>) -> bool {
        let group = self.asks.get(asker).or(want).and_then(|want| self.groups.get(want));
        group.is_some_and(|group| group.asks.keys().any(|(node, _)| *node != asker.0))
    }

    /// For how many images others wait for this node.
    pub(crate) fn fetches_of(&self, node: &NodeName) -> usize {
        self.groups.values().filter(|group| group.is_fetched_by(node)).count()
    }

    /// Others can fetch from a node.
    pub(crate) fn ready(&mut self, node: &NodeName, address: String, key: String) -> Vec<Said> {
        let before = self.peers.insert(node.clone(), Peer { address, key: key.clone() });
        // A key that was rotated may have been stolen.
        before.filter(|before| before.key != key).map_or_else(Vec::new, |before| self.end_all(before.key))
    }

    /// What a node said of where others find it: `host:port`, or the port alone on the controller's machine.
    pub(crate) fn address(&self, node: &NodeName) -> Option<&str> {
        self.peers.get(node).map(|peer| peer.address.as_str())
    }

    /// The same, with the digest of the key that it shows.
    pub(crate) fn reached(&self, node: &NodeName) -> Option<(&str, &str)> {
        self.peers.get(node).map(|peer| (peer.address.as_str(), peer.key.as_str()))
    }

    /// A machine has another key: nobody gives anything to who has the old one, and it is no node of the exchange until it shows the
    /// new one. A login node is none anyway.
    pub(crate) fn rekeyed(&mut self, node: &NodeName, old: String, now: Time) -> Vec<Said> {
        let mut said = self.end_all(old);
        said.extend(self.gone(node, now));
        // It says anew what it made, by the new one.
        self.forms.forget(node);
        said
    }

    /// Nobody gives anything to who has this key.
    fn end_all(&self, key: String) -> Vec<Said> {
        let end = |to: &NodeName| (to.clone(), ToPeers::EndServe { key: key.clone(), digest: None });
        self.peers.keys().map(end).collect()
    }

    /// The node is out of reach: it neither gives nor takes, and what it fetched for others somebody else fetches.
    pub(crate) fn gone(&mut self, node: &NodeName, now: Time) -> Vec<Said> {
        self.has_nothing(node);
        self.alone.gone(node);
        let asks: Vec<u64> = self.asks_of(node).collect();
        let mut said = Vec::new();
        for ask in asks {
            said.extend(self.over(
                &(node.clone(), ask),
                Err("its connection to the controller broke".into()),
                now,
            ));
        }
        self.peers.remove(node);
        // Whoever takes from it finds that out, and asks again.
        said.retain(|(to, _)| to != node);
        said
    }

    /// It is none of the cluster's any more: nobody gives anything to who has its key from now on.
    pub(crate) fn revoked(&mut self, node: &NodeName, key: Option<String>, now: Time) -> Vec<Said> {
        let shown = self.peers.get(node).map(|peer| peer.key.clone());
        let mut said = self.gone(node, now);
        self.forms.forget(node);
        let keys: BTreeSet<String> = key.into_iter().chain(shown).collect();
        said.extend(keys.into_iter().flat_map(|key| self.end_all(key)));
        said
    }

    fn asks_of(&self, node: &NodeName) -> impl Iterator<Item = u64> {
        let (first, last) = ((node.clone(), 0), (node.clone(), u64::MAX));
        self.asks.range(first..=last).map(|((_, ask), _)| *ask)
    }

    /// A node wants an image, or still does.
    #[cfg(test)]
    pub(crate) fn wanted(
        &mut self,
        asker: Asker,
        want: Want,
        (run, bytes, failed): (RunOf, u64, Vec<NodeName>),
        now: Time,
    ) -> Vec<Said> {
        self.wanted_among(asker, want, (run, bytes, failed), 1, now)
    }

    /// A node wants an image, or still does, for something for which so many nodes want it. Itself among those that failed: it has no way to
    /// where the image is, and waits for who has, as long as there may be somebody.
    pub(crate) fn wanted_among(
        &mut self,
        asker: Asker,
        want: Want,
        (run, bytes, failed): (RunOf, u64, Vec<NodeName>),
        nodes: usize,
        now: Time,
    ) -> Vec<Said> {
        let known = self.asks.get(&asker);
        let alone = !self.peers.contains_key(&asker.0) || self.alone.has(&asker);
        if alone && run == NO_RUN && known.is_none() {
            self.alone.asks(&asker, &want);
        }
        if known.is_some_and(|known| *known != want)
            || asker.1 == 0
            || alone
            || (known.is_none() && self.asks_of(&asker.0).count() >= MOST_ASKS)
        {
            let (to, ask) = asker;
            return vec![(to, ToPeers::Way { ask, way: ImageWay::Source, note: String::new() })];
        }
        self.asks.insert(asker.clone(), want.clone());
        let group = self.groups.entry(want.clone()).or_default();
        let ask = group.asks.entry(asker.clone()).or_insert_with(|| {
            let sent = group.fetcher.as_ref().is_some_and(|(node, ask)| *node == asker.0 && *ask == 0);
            let state = if sent { State::Fetches } else { State::Waits };
            if sent {
                group.fetcher = Some(asker.clone());
            } else {
                group.waiting.insert(asker.clone());
            }
            let failed = BTreeSet::new();
            Ask { run, state, since: now, heard: now, moved: now, bytes, failed, no_way: None, begun: false }
        });
        ask.heard = now;
        if ask.bytes != bytes {
            (ask.bytes, ask.moved) = (bytes, now);
        }
        let fresh = ask.since == now;
        // Names of nodes that there are not cost nothing but room.
        ask.failed.extend(failed.into_iter().take(MOST_ASKS));
        let mut freed = false;
        // A gateway that cannot says so when it is over.
        if ask.no_way.is_none() && ask.failed.contains(&asker.0) && !self.gateways.contains(&asker.0) {
            ask.no_way = Some((now, nodes));
            if ask.state == State::Fetches {
                (ask.state, freed) = (State::Waits, true);
                group.waiting.insert(asker.clone());
                if group.fetcher.as_ref() == Some(&asker) {
                    group.fetcher = None;
                }
            }
        }
        if let State::Takes(from) = &ask.state
            && ask.failed.contains(from)
        {
            unload(&mut self.load, from);
            (ask.state, freed) = (State::Waits, true);
            group.waiting.insert(asker.clone());
        }
        let (waits, late) = (ask.state == State::Waits, now.since(ask.since) > PATIENCE);
        let held_up = late || group.fetcher.is_none() || group.stalled(now);
        let mut said = Vec::new();
        if freed || (waits && (fresh || held_up)) {
            said = self.decide(&want, now);
        }
        if !said.iter().any(|(to, told)| *to == asker.0 && is_way_of(told, asker.1)) {
            said.extend(self.way(&asker, &want));
        }
        said
    }

    /// What a question is about that is asked for no job.
    pub(crate) fn without_job(&self, asker: &Asker) -> Option<&Want> {
        if let Some(want) = self.alone.want(asker) {
            return Some(want);
        }
        let want = self.asks.get(asker)?;
        self.groups.get(want)?.asks.get(asker).filter(|ask| ask.run == NO_RUN)?;
        Some(want)
    }

    /// The same, where its node is to fetch the image from where it is, and that is asked for the first time.
    pub(crate) fn begins_without_job(&mut self, asker: &Asker) -> Option<Want> {
        if self.alone.has(asker) {
            return self.alone.begins(asker);
        }
        let want = self.asks.get(asker)?;
        let ask = self.groups.get_mut(want)?.asks.get_mut(asker)?;
        let fetches = ask.run == NO_RUN && ask.state == State::Fetches;
        (fetches && !std::mem::replace(&mut ask.begun, true)).then(|| want.clone())
    }

    /// How things are for a question.
    fn way(&self, asker: &Asker, want: &Want) -> Option<Said> {
        let ask = self.groups.get(want)?.asks.get(asker)?;
        let way = match &ask.state {
            State::Waits => ImageWay::Wait,
            State::Fetches => ImageWay::Source,
            State::Takes(from) => {
                let peer = self.peers.get(from)?;
                let (address, key) = (peer.address.clone(), peer.key.clone());
                ImageWay::Peer { node: from.clone(), address, key, forms: self.forms.agreed(&want.digest) }
            }
        };
        let note = self.groups.get(want).map(|group| group.note(ask.run)).unwrap_or_default();
        Some((asker.0.clone(), ToPeers::Way { ask: asker.1, way, note }))
    }

    /// A question is over: the image is there, or it is said why not.
    pub(crate) fn over(&mut self, asker: &Asker, result: Result<(), String>, now: Time) -> Vec<Said> {
        let Some(want) = self.asks.remove(asker) else {
            self.alone.over(asker);
            return Vec::new();
        };
        let mut said = Vec::new();
        if let Some(group) = self.groups.get_mut(&want) {
            group.waiting.remove(asker);
            if group.fetcher.as_ref() == Some(asker) {
                group.fetcher = None;
                // Without a reason nobody wanted it there any more: it is asked again.
                if let (true, Err(why)) = (self.gateways.contains(&asker.0), &result)
                    && !why.is_empty()
                {
                    group.tried.insert(asker.0.clone(), Tried::new(why));
                }
            }
            if let Some(State::Takes(from)) = group.asks.remove(asker).map(|ask| ask.state) {
                unload(&mut self.load, &from);
                let others = group.asks.iter();
                let same =
                    |(to, ask): (&Asker, &Ask)| to.0 == asker.0 && ask.state == State::Takes(from.clone());
                if let (Some(peer), false) = (self.peers.get(&asker.0), others.into_iter().any(same)) {
                    let digest = Some(want.digest.clone());
                    said.push((from, ToPeers::EndServe { key: peer.key.clone(), digest }));
                }
            }
        }
        if result.is_ok() {
            self.has(&asker.0, &want.digest, want.user);
        }
        said.extend(self.decide(&want, now));
        if self.groups.get(&want).is_some_and(|group| group.asks.is_empty()) {
            self.groups.remove(&want);
        }
        said
    }

    /// A node has an image, which somebody has shown there to have.
    pub(crate) fn has(&mut self, node: &NodeName, digest: &str, user: Uid) {
        if self.holders.len() >= MOST_IMAGES && !self.holders.contains_key(digest) {
            return;
        }
        self.holders.entry(digest.to_string()).or_default().entry(node.clone()).or_default().insert(user);
    }

    /// What a node has: all of it, or only what changed.
    pub(crate) fn holds(
        &mut self,
        node: &NodeName,
        all: bool,
        images: Vec<(String, Vec<Uid>)>,
        gone: &[String],
    ) {
        if all {
            self.has_nothing(node);
        }
        let lost = gone.iter().chain(images.iter().map(|(digest, _)| digest));
        for digest in lost {
            if let Some(nodes) = self.holders.get_mut(digest) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.holders.remove(digest);
                }
            }
        }
        for (digest, users) in images {
            users.iter().for_each(|user| self.has(node, &digest, *user));
        }
    }

    fn has_nothing(&mut self, node: &NodeName) {
        self.holders.retain(|_, nodes| {
            nodes.remove(node);
            !nodes.is_empty()
        });
    }

    /// Who has an image.
    pub(crate) fn holders(&self, digest: &str) -> Option<&Holders> {
        self.holders.get(digest)
    }

    /// Goes through those who wait for an image.
    fn decide(&mut self, want: &Want, now: Time) -> Vec<Said> {
        let at_work = |gateway: &NodeName| (gateway.clone(), self.fetches_of(gateway));
        let at_work: BTreeMap<NodeName, usize> = self.gateways.iter().map(at_work).collect();
        let Exchange { peers, groups, holders, load, gateways, fetches, forms, .. } = self;
        let Some(group) = groups.get_mut(want) else { return Vec::new() };
        if group.stalled(now)
            && let Some((node, ask)) = group.fetcher.take()
            && gateways.contains(&node)
            // Where it never asked, and what it was to be fetched for is over, it may not have been told.
            && (ask != 0 || group.sent_for.as_ref().is_none_or(|of| group.asks.contains_key(of)))
        {
            group.tried.insert(node, Tried::new("it gets nowhere"));
        }
        let has = |(node, users): (&NodeName, &BTreeSet<Uid>)| {
            (users.contains(&want.user) && peers.contains_key(node)).then(|| node.clone())
        };
        let have: Vec<NodeName> = holders.get(&want.digest).into_iter().flatten().filter_map(has).collect();
        let mut free: BTreeSet<(usize, NodeName)> =
            have.iter().map(|node| (load.get(node).copied().unwrap_or(0), node.clone())).collect();
        free.retain(|(takers, _)| *takers < FAN);
        let mut said = Vec::new();
        let mut waiting: Vec<Asker> = group.waiting.iter().cloned().collect();
        // Who has no way to where it is comes behind those who may have one.
        waiting.sort_by_key(|asker| group.asks.get(asker).is_some_and(|ask| ask.no_way.is_some()));
        for asker in waiting {
            let others_come = group.others_come(&asker, now);
            let Some(ask) = group.asks.get_mut(&asker) else { continue };
            let usable = |node: &NodeName| *node != asker.0 && !ask.failed.contains(node);
            let (to, number) = asker.clone();
            if let Some((takers, from)) = free.iter().find(|(_, node)| usable(node)).cloned()
                && let (Some(peer), Some(own)) = (peers.get(&from), peers.get(&to))
            {
                free.remove(&(takers, from.clone()));
                load.insert(from.clone(), takers + 1);
                if takers + 1 < FAN {
                    free.insert((takers + 1, from.clone()));
                }
                ask.state = State::Takes(from.clone());
                group.waiting.remove(&asker);
                let (digest, source) = (want.digest.clone(), want.source.clone());
                said.push((
                    from.clone(),
                    ToPeers::Serve {
                        node: to.clone(),
                        key: own.key.clone(),
                        digest,
                        source,
                        user: want.user,
                        time: SERVED,
                    },
                ));
                let (address, key) = (peer.address.clone(), peer.key.clone());
                let forms = forms.agreed(&want.digest);
                let way = ImageWay::Peer { node: from, address, key, forms };
                said.push((to, ToPeers::Way { ask: number, way, note: String::new() }));
                continue;
            }
            let wait = have.iter().any(usable) || group.fetcher.is_some() || others_come;
            if wait && now.since(ask.since) <= PATIENCE {
                continue;
            }
            let run = ask.run;
            let of_use = |node: &&NodeName| {
                let tried = group.tried.get(*node);
                peers.contains_key(*node) && !tried.is_some_and(|tried| tried.counts(run))
            };
            // A gateway has a way to registries, and perhaps none to the file system that the job sees.
            let by_gateway = file_of(&want.source).is_none() && !gateways.contains(&to);
            // The one that has least to do; of equals the first by name.
            let gateway = gateways.iter().filter(of_use).min_by_key(|node| at_work.get(*node));
            let gateway = gateway.filter(|_| by_gateway);
            if let (Some(gateway), true) = (gateway, now.since(ask.since) <= PATIENCE) {
                fetches.push((gateway.clone(), run, want.clone()));
                (group.fetcher, group.sent) = (Some((gateway.clone(), 0)), now);
                group.sent_for = Some(asker);
                continue;
            }
            (ask.state, ask.moved) = (State::Fetches, now);
            group.waiting.remove(&asker);
            group.fetcher.get_or_insert(asker);
            said.push((to, ToPeers::Way { ask: number, way: ImageWay::Source, note: group.note(run) }));
        }
        said
    }
}

impl Group {
    /// Whether the others wait for this node.
    fn is_fetched_by(&self, node: &NodeName) -> bool {
        self.fetcher.as_ref().is_some_and(|(of, _)| of == node)
    }

    /// Whether a node has no way to where the image is, and others that want it for the same may have one, which have not asked yet.
    fn others_come(&self, asker: &Asker, now: Time) -> bool {
        let Some((run, (since, nodes))) = self.asks.get(asker).and_then(|ask| Some((ask.run, ask.no_way?)))
        else {
            return false;
        };
        let there: BTreeSet<&NodeName> =
            self.asks.iter().filter(|(_, ask)| ask.run == run).map(|((node, _), _)| node).collect();
        there.len() < nodes && now.since(since) < COMING
    }

    /// Whether the one for whom the others wait gets nowhere.
    fn stalled(&self, now: Time) -> bool {
        self.fetcher.as_ref().is_some_and(|asker| match self.asks.get(asker) {
            Some(ask) => now.since(ask.heard) > SILENT || now.since(ask.moved) > STALLED,
            // It has not asked yet.
            None => now.since(self.sent) > SILENT,
        })
    }

    /// Whoever a gateway was to fetch it for does so by itself, and nobody waits for that.
    fn by_itself(&mut self, why: &str, now: Time) -> Option<Said> {
        let (to, number) = self.sent_for.take()?;
        let ask = self.asks.get_mut(&(to.clone(), number)).filter(|ask| ask.state == State::Waits)?;
        (ask.state, ask.moved) = (State::Fetches, now);
        let run = ask.run;
        self.waiting.remove(&(to.clone(), number));
        let why = format!("no gateway is asked: {why}");
        let note = [self.note(run), why].into_iter().filter(|said| !said.is_empty());
        let note = note.collect::<Vec<_>>().join("; ");
        Some((to, ToPeers::Way { ask: number, way: ImageWay::Source, note }))
    }

    /// What gateways said that did not get it for this run.
    fn note(&self, run: RunOf) -> String {
        let tried = self.tried.iter().filter(|(_, tried)| tried.counts(run));
        let all: Vec<String> = tried.map(|(node, tried)| format!("gateway {node}: {}", tried.why)).collect();
        all.join("; ")
    }
}

fn unload(load: &mut BTreeMap<NodeName, usize>, node: &NodeName) {
    if let Some(takers) = load.get_mut(node) {
        *takers = takers.saturating_sub(1);
        if *takers == 0 {
            load.remove(node);
        }
    }
}

fn is_way_of(said: &ToPeers, ask: u64) -> bool {
    matches!(said, ToPeers::Way { ask: of, .. } if *of == ask)
}

#[cfg(test)]
mod tests;
