//! Images of the node's store for their users, who cannot enter it: each sees what they have, and nothing of what others have.

use crate::clients::Service;
use crate::images::Images;
use crate::signatures::signers;
use berth_images::{GrantedImage, ImageDetails, ResolvedManifest, Store, Usage};
use berth_model::ids::Uid;
use berth_stream::asynchronous::write_frame;
use berth_stream::{Frame, FrameError, ImagesQuery, MAX_PAYLOAD};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Answers a user.
pub async fn answer(
    stream: &mut UnixStream,
    query: ImagesQuery,
    caller: Uid,
    service: &Service,
) -> Result<(), FrameError> {
    let Some(_turn) = service.asking.turn(caller) else {
        let why = format!(
            "{MOST_AT_ONCE} questions of yours about images are being answered: try again when they are"
        );
        return write_frame(stream, &Frame::Refused(why)).await;
    };
    let released = matches!(query, ImagesQuery::Remove(_));
    let images = Arc::clone(&service.images);
    let found = tokio::task::spawn_blocking(move || images.of_user(query, caller));
    let text = match found.await.map_err(io::Error::other)? {
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

impl Images {
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
            ResolvedManifest { source, digest, insecure: false, name: None, indexes: Vec::new() }.place()
        };
        let signers = image.sources.iter().filter_map(|source| signers(self.rules(), &place(source)).ok()?);
        signers.map(|signers| signers.identity).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
