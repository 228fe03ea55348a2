//! `berth image rm --cluster`: what each node had of what was named. What one of them has not, and another one had, is no error.

use super::{Asker, LONG, PATIENCE, after, unexpected};
use berth_agent::ImagesAnswer;
use berth_client::agent::{ImagesQuery, WholeQuery};
use berth_images::{Digest, GrantedImage, find_granted, find_listed};
use berth_model::NodeName;
use serde_json::{Value, json};
use std::collections::BTreeSet;

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
    fn add(&mut self, name: &str, one: Result<Option<(Vec<String>, u64)>, String>) {
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
            // What is not in the list may be there all the same, with a record that cannot be read.
            let one = match self.remove_of_all(node, name, force) {
                Err(_) if matches!(listed, Ok(None)) => Ok(None),
                one => one.map(Some),
            };
            all.add(name, one);
        }
        Ok(all)
    }

    /// As who has a say in all images of the node.
    fn remove_of_all(&self, node: &NodeName, name: &str, force: bool) -> Result<(Vec<String>, u64), String> {
        let ask = |query, patience| self.ask(node, ImagesQuery::Whole(query), patience);
        let mut name = name.to_string();
        if !force {
            let ImagesAnswer::Found(digest) = ask(WholeQuery::Find(name), PATIENCE)? else {
                return Err(unexpected());
            };
            if let Some(why) = self.needs.refusal(&digest) {
                return Err(why);
            }
            name = digest.to_string();
        }
        match ask(WholeQuery::Remove(name), LONG)? {
            ImagesAnswer::WholeRemoved(one) => {
                Ok((one.images.iter().map(Digest::to_string).collect(), one.bytes))
            }
            _ => Err(unexpected()),
        }
    }

    /// As a user among others.
    pub(super) fn give_back(&self, node: &NodeName, digest: &Digest) -> Result<(Vec<String>, u64), String> {
        match self.ask(node, ImagesQuery::Remove(digest.to_string()), LONG)? {
            ImagesAnswer::Removed(_, less) => Ok((vec![digest.to_string()], less)),
            _ => Err(unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(removed: &[&str], missing: &[&str], failed: &[&str]) -> Result<Removal, String> {
        let [removed, missing, failed] =
            [removed, missing, failed].map(|all| all.iter().map(|text| (*text).to_string()).collect());
        Ok(Removal { removed, bytes: 1, missing, failed })
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
