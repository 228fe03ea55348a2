//! `berth image rm --cluster`: what each node had of what was named. What one of them has not, and another one had, is no error.

use super::{Asker, LONG, PATIENCE, after, unexpected};
use berth_agent::ImagesAnswer;
use berth_client::agent::{ImagesQuery, WholeQuery};
use berth_images::{Digest, GrantedImage, find_granted, find_listed};
use berth_model::NodeName;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Digests of images that went, and bytes that came free.
type Gone = (Vec<String>, u64);

/// What a node says of what it was to remove.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// Digests of the images that went.
    removed: Vec<String>,
    bytes: u64,
    /// Names of which it has nothing.
    missing: Vec<String>,
    /// What failed with others.
    failed: Vec<String>,
}

impl Removal {
    fn add(&mut self, name: &str, one: Result<Option<Gone>, String>) {
        match one {
            Ok(Some((removed, bytes))) => {
                self.removed.extend(removed);
                self.bytes = self.bytes.saturating_add(bytes);
            }
            Ok(None) => self.missing.push(name.to_string()),
            Err(why) => self.failed.push(why),
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        self.removed.contains(&digest.to_string())
    }
}

/// What a node says of the removal of one; `None` where it has none of that name. Whatever else it says, the image may be there.
fn gone(answer: ImagesAnswer) -> Result<Option<Gone>, String> {
    match answer {
        ImagesAnswer::WholeRemoved(one) => {
            Ok(Some((one.images.iter().map(Digest::to_string).collect(), one.bytes)))
        }
        ImagesAnswer::Missing(_) => Ok(None),
        _ => Err(unexpected()),
    }
}

/// What is told of it: an image that no node has that answered is an error of each of them.
pub(super) fn judged(answers: Vec<Result<Removal, String>>, whole: bool) -> Vec<Result<Value, String>> {
    let of_all = answers.iter().flatten();
    let names = of_all.clone().flat_map(|node| node.missing.iter());
    let nowhere: BTreeSet<String> =
        names.filter(|name| of_all.clone().all(|node| node.missing.contains(name))).cloned().collect();
    let judge = |all: Removal| {
        let Removal { removed, bytes, missing, mut failed } = all;
        let wrong = missing.iter().filter(|name| nowhere.contains(*name));
        failed.extend(wrong.map(|name| match whole {
            true => format!("image {name}: there is none of that name there"),
            false => format!("image {name}: you have none of that name there"),
        }));
        match failed.is_empty() {
            true => Ok(json!({"removed": removed, "bytes": bytes, "missing": missing})),
            false => Err(after(&removed, failed.join("; "))),
        }
    };
    answers.into_iter().map(|answer| answer.and_then(judge)).collect()
}

impl Asker<'_> {
    /// Removes what a node has of these. One that fails keeps none of the others.
    pub(super) fn remove(&self, node: &NodeName, names: &[String], force: bool) -> Result<Removal, String> {
        let mut all = Removal::default();
        if !self.whole {
            let images: Vec<GrantedImage> =
                self.listed(node)?.into_iter().map(|listed| listed.image).collect();
            for name in names {
                match find_granted(&images, name) {
                    // Under another name.
                    Ok(Some(image)) if all.has(&image.digest) => {}
                    Ok(Some(image)) => all.add(name, self.give_back(node, &image.digest).map(Some)),
                    Ok(None) => all.add(name, Ok(None)),
                    Err(e) => all.add(name, Err(e.to_string())),
                }
            }
            return Ok(all);
        }
        let ImagesAnswer::Whole(there) = self.ask(node, ImagesQuery::Whole(WholeQuery::List), PATIENCE)?
        else {
            return Err(unexpected());
        };
        for name in names {
            let listed = find_listed(&there, name);
            if listed.as_ref().is_ok_and(|found| found.is_some_and(|digest| all.has(digest))) {
                continue;
            }
            // What is not in the list may be there all the same, with a record that cannot be read: the node is asked.
            all.add(name, self.remove_of_all(node, name, force));
        }
        Ok(all)
    }

    /// As who has a say in all images of the node; `None` where it has none of that name.
    fn remove_of_all(&self, node: &NodeName, name: &str, force: bool) -> Result<Option<Gone>, String> {
        let ask = |query, patience| self.ask(node, ImagesQuery::Whole(query), patience);
        let mut name = name.to_string();
        if !force {
            let digest = match ask(WholeQuery::Find(name), PATIENCE)? {
                ImagesAnswer::Found(digest) => digest,
                other => return gone(other),
            };
            if let Some(why) = self.needs.refusal(&digest) {
                return Err(why);
            }
            name = digest.to_string();
        }
        gone(ask(WholeQuery::Remove(name), LONG)?)
    }

    /// As a user among others.
    pub(super) fn give_back(&self, node: &NodeName, digest: &Digest) -> Result<Gone, String> {
        match self.ask(node, ImagesQuery::Remove(digest.to_string()), LONG)? {
            ImagesAnswer::Removed(_, less) => Ok((vec![digest.to_string()], less)),
            _ => Err(unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_images::Removed;

    fn node(removed: &[&str], missing: &[&str], failed: &[&str]) -> Result<Removal, String> {
        let [removed, missing, failed] =
            [removed, missing, failed].map(|all| all.iter().map(|text| (*text).to_string()).collect());
        Ok(Removal { removed, bytes: 1, missing, failed })
    }

    #[test]
    fn only_what_a_node_says_it_has_not_is_missing() {
        let missing = gone(ImagesAnswer::Missing("image a: is not in the store".into()));
        let digest = Digest::of(berth_images::Algorithm::Sha256, b"a");
        let one = Removed { images: vec![digest.clone()], layers: 1, bytes: 7 };
        let cases = [missing, gone(ImagesAnswer::WholeRemoved(one)), gone(ImagesAnswer::Noted)];
        let mut all = Removal::default();
        // The agent is gone, the image is in use, or cannot be read: it may be there.
        let cases = cases.into_iter().chain([Err("in use".to_string())]);
        ["a", "b", "c", "d"].into_iter().zip(cases).for_each(|(name, answer)| all.add(name, answer));
        assert_eq!((all.missing.as_slice(), all.bytes), (&["a".to_string()][..], 7));
        assert_eq!(all.removed, [digest.to_string()]);
        assert_eq!(all.failed, [unexpected(), "in use".to_string()]);
        // Another node had it: what failed here fails all the same.
        let told = judged(vec![Ok(all), node(&["sha256:1"], &[], &[])], true);
        assert!(told[0].as_ref().unwrap_err().contains("in use") && told[1].is_ok(), "{told:?}");
    }

    #[test]
    fn what_one_node_had_is_no_error_of_another_and_what_none_had_is_one_of_each() {
        let all =
            vec![node(&["sha256:1"], &["b"], &[]), node(&[], &["a", "b"], &[]), Err("no answer".into())];
        let told = judged(all, false);
        let of = |at: usize| told[at].as_ref().unwrap_err().clone();
        assert!(
            of(0).contains("image b: you have none") && of(0).contains("removed before: sha256:1"),
            "{}",
            of(0)
        );
        assert!(of(1).contains("image b: ") && !of(1).contains("image a: "), "{}", of(1));
        assert_eq!(of(2), "no answer");
        let told = judged(vec![node(&["sha256:1"], &[], &[]), node(&[], &["a"], &[])], true);
        assert_eq!(told[1], Ok(json!({"removed": [], "bytes": 1, "missing": ["a"]})));
        assert!(told[0].is_ok());
        // What failed is told, beside what went.
        let told = judged(vec![node(&["sha256:1"], &[], &["image c: job 3 needs it"])], true);
        assert_eq!(told[0], Err("image c: job 3 needs it (removed before: sha256:1)".to_string()));
    }
}
