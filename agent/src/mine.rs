//! Images of the node's store for their users, who cannot enter it: each sees what they have, and nothing of what others have.

use crate::clients::Service;
use crate::images::{Images, Quiet};
use crate::removals::{Others, user_name};
use crate::signatures::signers;
use berth_images::{
    Digest, DiskUsage, ErrorKind, GrantedImage, ImageDetails, ImageInfo, PruneOptions, Removed,
    ResolvedManifest, Store, Usage,
};
use berth_model::ByteStr;
use berth_model::exchange::RemovedImage;
use berth_model::ids::{Gid, Uid};
use berth_model::request::Peer;
use berth_model::spec::{Identity, ImageRef, ResolvedImage};
use berth_stream::asynchronous::write_frame;
use berth_stream::{Frame, FrameError, ImagesQuery, MAX_PAYLOAD, WholeQuery};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;

/// What the agent says of a user's images.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagesAnswer {
    /// The node's store is the caller's own: they look into it themselves.
    Own,
    /// All of them.
    List(Vec<ListedImage>),
    /// Everything about one. What its maker wrote the asking user reads, not the agent.
    Details(Box<ImageDetails<GrantedImage, String>>),
    /// What was given back, and how much less the caller's images take now.
    Removed(GrantedImage, u64),
    /// What they take, and may take at most.
    Usage(Usage, Option<u64>),
    /// All images of the store.
    Whole(Vec<ImageInfo>),
    /// What all of them take.
    WholeUsage(DiskUsage),
    /// What was fetched.
    Pulled {
        /// `sha256:...` of its manifest.
        digest: String,
        /// Bytes that were fetched.
        bytes: u64,
        /// Whether all of it was there.
        hit: bool,
        /// What the user is to know.
        notes: Vec<String>,
    },
    /// The one that was asked for by a name.
    Found(Digest),
    /// There is none of that name; in words. Whoever asks many nodes tells it from what failed.
    Missing(String),
    /// What was removed of the store.
    WholeRemoved(Removed),
    /// It is in the agent's log, and told to the controller.
    Noted,
}

/// An image in a user's list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListedImage {
    /// The image.
    #[serde(flatten)]
    pub image: GrantedImage,
    /// Whether the user keeps a container of it under a name.
    pub kept: bool,
}

/// Questions of one user that are answered at the same time: an answer may have the megabytes of an image's configuration.
const MOST_AT_ONCE: u32 = 4;

/// How many questions of each user are being answered.
#[derive(Default)]
pub struct Asking(Mutex<BTreeMap<Uid, u32>>);

/// A question that is being answered.
struct Turn<'a>(&'a Asking, Uid);

impl Asking {
    fn map(&self) -> MutexGuard<'_, BTreeMap<Uid, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, user: Uid) -> Option<Turn<'_>> {
        let mut map = self.map();
        let count = map.entry(user).or_default();
        (*count < MOST_AT_ONCE).then(|| *count += 1).map(|()| Turn(self, user))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut map = self.0.map();
        if let Some(count) = map.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.1);
            }
        }
    }
}

/// The image of the store that is called so, or the answer that there is none.
fn named(store: &Store, name: &str) -> Result<Result<Digest, ImagesAnswer>, String> {
    match store.find(name) {
        Ok(digest) => Ok(Ok(digest)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Err(ImagesAnswer::Missing(e.to_string()))),
        Err(e) => Err(e.to_string()),
    }
}

/// Answers a user.
pub async fn answer(
    stream: &mut UnixStream,
    query: ImagesQuery,
    peer: Peer,
    service: &Service,
) -> Result<(), FrameError> {
    let caller = peer.uid;
    let Some(_turn) = service.asking.turn(caller) else {
        let why = format!(
            "{MOST_AT_ONCE} questions of yours about images are being answered: try again when they are"
        );
        return write_frame(stream, &Frame::Refused(why)).await;
    };
    let released = matches!(query, ImagesQuery::Remove(_));
    let images = Arc::clone(&service.images);
    let found = match query {
        ImagesQuery::Pull(image) => pulled(stream, images, image, caller).await?,
        query => {
            let found = tokio::task::spawn_blocking(move || images.answer(query, peer));
            found.await.map_err(io::Error::other)?
        }
    };
    let text = match found {
        Ok(answer) => serde_json::to_vec(&answer).map_err(io::Error::other)?,
        Err(why) => return write_frame(stream, &Frame::Refused(why)).await,
    };
    if released {
        // So that there is room when the user is told so. What cannot go now goes later.
        service.images.room().drop_released().await;
    }
    for part in text.chunks(MAX_PAYLOAD) {
        write_frame(stream, &Frame::Part(part.to_vec())).await?;
    }
    write_frame(stream, &Frame::Accepted).await
}

/// Fetches an image for a user. Whoever asks hears now and then that it goes on, in spaces before the answer, and when they are gone it ends.
async fn pulled(
    stream: &mut UnixStream,
    images: Arc<Images>,
    image: ImageRef,
    caller: Uid,
) -> Result<Result<ImagesAnswer, String>, FrameError> {
    let stop = Stopping(Arc::new(AtomicBool::new(false)));
    let (said, mut heard) = tokio::sync::oneshot::channel();
    let wanted = Arc::clone(&stop.0);
    crate::threads::start("image", move || {
        // Who does not listen any more needs nothing.
        let _ = said.send(images.pull_as(&image, caller, &Quiet::default(), &wanted));
    })?;
    loop {
        match tokio::time::timeout(GOES_ON, &mut heard).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(_)) => return Ok(Err("it ended without a result: the agent's log tells why".into())),
            Err(_) => write_frame(stream, &Frame::Part(b" ".to_vec())).await?,
        }
    }
}

/// How often somebody who waits for an image hears that it is on its way.
const GOES_ON: Duration = Duration::from_secs(10);

/// Ends what is not waited for any more.
struct Stopping(Arc<AtomicBool>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Who a user is on this node.
fn identity(uid: Uid) -> Result<Identity, String> {
    use nix::unistd::{Group, User, getgrouplist};
    let unknown = || format!("this node knows no user with uid {uid}: 'id {uid}' there says whether it does");
    let user = User::from_uid(nix::unistd::Uid::from_raw(uid.0)).ok().flatten().ok_or_else(unknown)?;
    let name = std::ffi::CString::new(user.name.as_str()).map_err(|_| unknown())?;
    let groups = getgrouplist(&name, user.gid).map_err(|e| format!("groups of {}: {e}", user.name))?;
    let group = Group::from_gid(user.gid).ok().flatten().map(|group| group.name).unwrap_or_default();
    Ok(Identity {
        uid,
        gid: Gid(user.gid.as_raw()),
        groups: groups.into_iter().map(|group| Gid(group.as_raw())).collect(),
        user: user.name,
        group,
        home: ByteStr::from(user.dir.as_path()),
        shell: ByteStr::from(user.shell.as_path()),
    })
}

impl Images {
    fn pull_as(
        &self,
        image: &ImageRef,
        caller: Uid,
        pulling: &Quiet,
        stop: &Arc<AtomicBool>,
    ) -> Result<ImagesAnswer, String> {
        let owner = rustix::process::geteuid().as_raw();
        if !self.is_shared() && caller.0 != owner {
            return Err(format!("this cluster and its images are uid {owner}'s, and you are uid {caller}"));
        }
        if !matches!(image.resolved, Some(ResolvedImage::Manifest { .. })) {
            return Err("it is used where it is: there is nothing to fetch".into());
        }
        let (fetched, notes) = self.pull_for(&identity(caller)?, image, pulling, stop)?;
        let digest = fetched.digest.unwrap_or_default();
        tracing::info!("image {digest}: fetched for uid {caller}, who asked for it");
        Ok(ImagesAnswer::Pulled { digest, bytes: fetched.bytes, hit: fetched.hit, notes })
    }

    /// As a gateway: fetches an image for other nodes, which wait for it, for a user who asked for it without a job, until `stop` is set.
    pub(crate) fn fetch_for_user(
        &self,
        user: Uid,
        image: ResolvedImage,
        pulling: &Quiet,
        stop: &Arc<AtomicBool>,
    ) -> Result<(), String> {
        let ResolvedImage::Manifest { source, digest, .. } = &image else {
            return Err("it is used where it is: there is nothing to fetch".into());
        };
        let typed = format!("{source}@{digest}");
        let image = ImageRef { typed, resolved: Some(image) };
        self.pull_as(&image, user, pulling, stop).map(drop)
    }

    fn answer(&self, query: ImagesQuery, peer: Peer) -> Result<ImagesAnswer, String> {
        match query {
            ImagesQuery::Whole(query) => self.whole(query, peer),
            ImagesQuery::Pull(_) => Err("asked as if it took no time".into()),
            query => self.of_user(query, peer.uid),
        }
    }

    /// About the whole store: for root of the cluster and for the owner, and for no job of theirs, whose node may be anybody's.
    fn whole(&self, query: WholeQuery, peer: Peer) -> Result<ImagesAnswer, String> {
        let owner = rustix::process::geteuid().as_raw();
        if !may_whole(peer, owner) {
            return Err(
                "all images of a node are root's affair, outside jobs: you see what you have there".into()
            );
        }
        let store = self.store().map_err(|e| e.to_string())?;
        let text = |e: berth_images::Error| e.to_string();
        let others = || Others::than(peer.uid, &store).map_err(text);
        let removed = |others: &Others, removed: Removed| {
            for image in &removed.images {
                tracing::info!("image {image}: removed, as uid {} asked", peer.uid);
            }
            self.note_removed(peer.uid, &others.among(&removed.images));
            ImagesAnswer::WholeRemoved(removed)
        };
        match query {
            WholeQuery::List => store.list().map(ImagesAnswer::Whole).map_err(text),
            WholeQuery::Usage => store.df().map(ImagesAnswer::WholeUsage).map_err(text),
            WholeQuery::Find(name) => {
                named(&store, &name).map(|found| found.map_or_else(|missing| missing, ImagesAnswer::Found))
            }
            WholeQuery::Remove(name) => {
                let digest = match named(&store, &name)? {
                    Ok(digest) => digest,
                    Err(missing) => return Ok(missing),
                };
                let others = others()?;
                store.remove(&digest).map(|all| removed(&others, all)).map_err(text)
            }
            WholeQuery::Removed(images) => {
                self.note_removed(peer.uid, &images);
                Ok(ImagesAnswer::Noted)
            }
            WholeQuery::Prune { older_than, all, keep } => {
                let mut stays = self.kept_images()?;
                for digest in keep {
                    stays.push(digest.parse::<Digest>().map_err(text)?);
                }
                let older_than = older_than.map(Duration::from_secs);
                let options = PruneOptions { older_than, all, keep: stays.into_iter().collect() };
                let others = others()?;
                store.prune(&options).map(|all| removed(&others, all)).map_err(text)
            }
        }
    }

    /// Who removed which images of others: in the agent's log, and by the controller in the audit log.
    fn note_removed(&self, by: Uid, images: &[RemovedImage]) {
        if images.is_empty() {
            return;
        }
        let user = user_name(by);
        for RemovedImage { digest, name, owners } in images {
            tracing::info!("image {digest} ({name:?}) of {}: removed by {user}", owners.join(", "));
        }
        self.peers().note_removed(by, &user, images);
    }

    fn of_user(&self, query: ImagesQuery, caller: Uid) -> Result<ImagesAnswer, String> {
        if !self.is_shared() {
            let owner = rustix::process::geteuid().as_raw();
            return match caller.0 == owner {
                true => Ok(ImagesAnswer::Own),
                false => {
                    Err(format!("this cluster and its images are uid {owner}'s, and you are uid {caller}"))
                }
            };
        }
        let store = self.store().map_err(|e| e.to_string())?;
        self.of_user_in(&store, query, caller)
    }

    fn of_user_in(&self, store: &Store, query: ImagesQuery, caller: Uid) -> Result<ImagesAnswer, String> {
        let uid = caller.0;
        let text = |e: berth_images::Error| e.to_string();
        let granted = || store.granted(uid).map_err(text);
        let usage = || store.usage(uid).map_err(text);
        // What others have is not there.
        let find = |digest: String| {
            let mut images = granted()?.into_iter();
            images.find(|image| image.digest.to_string() == digest).ok_or_else(|| {
                format!(
                    "image {digest}: you have no such image on this node; list yours with 'berth image ls'"
                )
            })
        };
        Ok(match query {
            ImagesQuery::List => {
                let kept = self.kept_images_of(caller);
                let listed = |image: GrantedImage| ListedImage { kept: kept.contains(&image.digest), image };
                ImagesAnswer::List(granted()?.into_iter().map(listed).collect())
            }
            ImagesQuery::Inspect(digest) => {
                let mut details = store.inspect_granted(find(digest)?).map_err(text)?;
                let known = self.signed_as(&details.info);
                details.signatures.retain(|verdict| known.contains(&verdict.identity));
                ImagesAnswer::Details(Box::new(details))
            }
            ImagesQuery::Remove(digest) => {
                let (image, before) = (find(digest)?, usage()?);
                store.take_back(&image.digest, uid).map_err(text)?;
                ImagesAnswer::Removed(image, before.bytes.saturating_sub(usage()?.bytes))
            }
            ImagesQuery::Usage => ImagesAnswer::Usage(usage()?, self.quota_of(caller)),
            ImagesQuery::Whole(_) | ImagesQuery::Pull(_) => {
                return Err("asked as if it were about one user's images".into());
            }
        })
    }

    fn quota_of(&self, user: Uid) -> Option<u64> {
        // A user whom nobody knows has what is everybody's.
        let known = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(user.0)).ok().flatten();
        self.rules().quota_of(known.as_ref().map_or("", |user| &user.name), user.0)
    }

    /// What signers have to call an image of these sources. What was found for others' sources is theirs.
    fn signed_as(&self, image: &GrantedImage) -> Vec<String> {
        let place = |source: &String| {
            let (source, digest) = (source.clone(), image.digest.clone());
            ResolvedManifest { source, digest, insecure: false, name: None, indexes: Vec::new(), pin: None }
                .place()
        };
        let signers = image.sources.iter().filter_map(|source| signers(self.rules(), &place(source)).ok()?);
        signers.map(|signers| signers.identity).collect()
    }
}

/// Whether somebody has a say in all images of the store of `owner`.
fn may_whole(peer: Peer, owner: u32) -> bool {
    peer.job.is_none() && (peer.uid.0 == 0 || peer.uid.0 == owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::JobId;

    #[test]
    fn the_whole_store_is_its_owners_and_roots_outside_jobs() {
        let peer = |uid, job: Option<u32>| Peer { uid: Uid(uid), gid: Gid(uid), job: job.map(JobId) };
        assert!(may_whole(peer(0, None), 0) && may_whole(peer(7, None), 7) && may_whole(peer(0, None), 7));
        // A node speaks for the jobs that run on it, and root may have one there.
        assert!(!may_whole(peer(0, Some(3)), 0) && !may_whole(peer(7, Some(3)), 7));
        assert!(!may_whole(peer(8, None), 0) && !may_whole(peer(8, None), 7));
    }

    #[test]
    fn that_there_is_no_image_of_a_name_is_an_answer_and_what_is_there_damaged_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let missing = named(&store, "no/such:1").unwrap().unwrap_err();
        assert!(matches!(missing, ImagesAnswer::Missing(why) if why.contains("no/such:1")));
        let digests = ["0a".repeat(32), "0a".repeat(31) + "0b"];
        for hex in &digests {
            std::fs::write(store.root().join(format!("images/sha256-{hex}.json")), "{").unwrap();
        }
        let found = named(&store, &digests[1]).unwrap().unwrap();
        assert_eq!(found.hex(), digests[1]);
        // Which of both is meant nobody knows: that is no word of what is there.
        assert!(named(&store, "0a0a").unwrap_err().contains("2 images"));
    }

    #[test]
    fn one_users_questions_are_few_at_a_time_and_nobody_elses_matter() {
        let asking = Asking::default();
        let mut turns: Vec<_> = (0..MOST_AT_ONCE).map(|_| asking.turn(Uid(1)).unwrap()).collect();
        assert!(asking.turn(Uid(1)).is_none());
        assert!(asking.turn(Uid(2)).is_some());
        turns.pop();
        assert!(asking.turn(Uid(1)).is_some());
        drop(turns);
        assert!(asking.map().is_empty());
    }
}
