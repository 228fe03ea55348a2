//! Read-only images of layers that nodes make, and which of them are believed. Their bytes are in no registry's manifest: that they are
//! what a layer's archive makes is known only by several nodes' having made the very same, each by itself. One that was broken into
//! can keep others from taking an image, which then make their own, and cannot have them take its own.
//!
//! Nothing of it is stored: nodes say all that they made with each registration. What a node said counts until it says something else
//! or is none of the cluster's any more, also while it is out of reach: that nobody hears the one who disagrees is no agreement.

use berth_model::exchange::MadeForm;
use berth_model::ids::NodeName;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Nodes that are remembered of those that made one thing: more than are ever needed to believe it.
const MOST_MAKERS: usize = 64;
/// Different things made of one layer that are remembered.
const MOST_KINDS: usize = 8;
/// Layers of which one node is heard.
const MOST_OF_ONE: usize = 8192;
/// Layers of one image.
const MOST_LAYERS: usize = 64;
/// Layers, and images, in all.
const MOST: usize = 50_000;
/// Longest text of what is said.
const MOST_TEXT: usize = 300;
/// So many messages are heard before it is looked once more what nobody has, which goes through all there is.
const REST: u32 = 1000;
/// Nodes that an alarm names of those that made one thing.
const NAMED: usize = 5;

/// A layer, and what wrote its image.
type Key = (Arc<str>, Arc<str>);
/// What was made of it: digest and bytes.
type What = (Arc<str>, u64);

/// What nodes made of one layer.
#[derive(Clone, Debug, Default)]
struct Votes {
    by: BTreeMap<What, BTreeSet<NodeName>>,
    /// It was said that they do not agree.
    disputed: bool,
}

impl Votes {
    /// Takes a node's vote back, unless it is for this.
    fn take_back(&mut self, node: &NodeName, but: Option<&What>) {
        self.by.retain(|what, nodes| {
            if Some(what) != but {
                nodes.remove(node);
            }
            !nodes.is_empty()
        });
        self.disputed &= self.by.len() > 1;
    }
}

/// What nodes made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forms {
    /// So many have to agree; 0: nobody is told of any.
    needed: usize,
    votes: BTreeMap<Key, Votes>,
    /// Of which layers a node was heard.
    of: BTreeMap<NodeName, BTreeSet<Key>>,
    /// Layers of images, by the digests of their manifests.
    images: BTreeMap<String, BTreeSet<Key>>,
    /// Messages until it may be looked again what nobody has.
    rest: u32,
}

impl Forms {
    /// From now on so many nodes have to agree.
    pub(crate) fn set_needed(&mut self, needed: u32) {
        self.needed = usize::try_from(needed).unwrap_or(usize::MAX);
    }

    /// What a node says that it made by itself of an image's layers. Gives in words on what nodes do not agree since now.
    pub(crate) fn made(&mut self, node: &NodeName, image: &str, forms: Vec<MadeForm>) -> Vec<String> {
        if self.needed == 0 {
            return Vec::new();
        }
        // Layer and digest are in alarms: whoever says them puts no other words there.
        let word = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = |form: &MadeForm| {
            let short =
                [&form.layer, &form.writer, &form.digest].into_iter().all(|text| text.len() <= MOST_TEXT);
            short && word(&form.layer) && word(&form.digest)
        };
        let mut disputes = Vec::new();
        for form in forms.into_iter().filter(fits).take(MOST_LAYERS) {
            let key: Key = (form.layer.into(), form.writer.into());
            // One text for all who say it.
            let key = self.votes.get_key_value(&key).map_or(key, |(known, _)| known.clone());
            if self.count(node, &key, (form.digest.into(), form.size)) {
                self.note_image(image, &key);
                disputes.extend(self.dispute(&key));
            }
        }
        disputes
    }

    /// Counts what a node made of a layer; false where there is no room for it.
    fn count(&mut self, node: &NodeName, key: &Key, what: What) -> bool {
        if self.votes.len() >= MOST && !self.votes.contains_key(key) {
            return false;
        }
        let own = self.of.get(node);
        if own.is_some_and(|own| own.len() >= MOST_OF_ONE && !own.contains(key)) {
            return false;
        }
        let votes = self.votes.entry(key.clone()).or_default();
        votes.take_back(node, Some(&what));
        let mut counts = false;
        if votes.by.len() < MOST_KINDS || votes.by.contains_key(&what) {
            let nodes = votes.by.entry(what).or_default();
            counts = nodes.contains(node) || nodes.len() < MOST_MAKERS && nodes.insert(node.clone());
        }
        // Of who is one too many nothing is to be forgotten: what is kept grows with the layers, and not with the nodes.
        if counts {
            self.of.entry(node.clone()).or_default().insert(key.clone());
        } else if let Some(own) = self.of.get_mut(node) {
            own.remove(key);
        }
        true
    }

    fn note_image(&mut self, image: &str, key: &Key) {
        if self.images.len() >= MOST && !self.images.contains_key(image) {
            return;
        }
        let layers = self.images.entry(image.to_string()).or_default();
        if layers.len() < MOST_LAYERS {
            layers.insert(key.clone());
        }
    }

    /// Says once that nodes do not agree.
    fn dispute(&mut self, key: &Key) -> Option<String> {
        let votes = self.votes.get_mut(key).filter(|votes| votes.by.len() > 1 && !votes.disputed)?;
        votes.disputed = true;
        let said = votes.by.iter().map(|((digest, size), nodes)| {
            let named: Vec<&str> = nodes.iter().take(NAMED).map(|node| node.0.as_str()).collect();
            let more = nodes.len() - named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{}{more} made {digest} ({size} bytes)", named.join(", "))
        });
        let said: Vec<String> = said.collect();
        Some(format!("nodes made different read-only images of layer {}: {}", key.0, said.join("; ")))
    }

    /// What a node said counts no more.
    pub(crate) fn forget(&mut self, node: &NodeName) {
        for key in self.of.remove(node).unwrap_or_default() {
            if let Some(votes) = self.votes.get_mut(&key) {
                votes.take_back(node, None);
                if votes.by.is_empty() {
                    self.votes.remove(&key);
                }
            }
        }
    }

    /// What of an image's layers is believed: so many nodes made it, and none made anything else.
    pub(crate) fn agreed(&self, image: &str) -> Vec<MadeForm> {
        if self.needed == 0 {
            return Vec::new();
        }
        let agreed = |key: &Key| {
            let mut all = self.votes.get(key)?.by.iter();
            let (((digest, size), nodes), None) = (all.next()?, all.next()) else { return None };
            (nodes.len() >= self.needed).then(|| MadeForm {
                layer: key.0.to_string(),
                writer: key.1.to_string(),
                digest: digest.to_string(),
                size: *size,
            })
        };
        self.images.get(image).into_iter().flatten().filter_map(agreed).collect()
    }

    /// Whether it is to be looked what nobody has any more: there is no room, and it was not looked just now.
    pub(crate) fn wants_room(&mut self) -> bool {
        self.rest = self.rest.saturating_sub(1);
        let wants = self.is_full() && self.rest == 0;
        if wants {
            self.rest = REST;
        }
        wants
    }

    fn is_full(&self) -> bool {
        self.votes.len() >= MOST || self.images.len() >= MOST
    }

    /// Forgets layers of images that nobody has.
    pub(crate) fn keep(&mut self, is_held: impl Fn(&str) -> bool) {
        let Forms { votes, of, images, .. } = self;
        images.retain(|image, _| is_held(image));
        let used: HashSet<&Key> = images.values().flatten().collect();
        votes.retain(|key, _| used.contains(key));
        of.values_mut().for_each(|keys| keys.retain(|key| used.contains(key)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: usize) -> NodeName {
        NodeName(format!("n{n}"))
    }

    fn form(layer: &str, digest: &str) -> MadeForm {
        MadeForm { layer: layer.into(), writer: "w".into(), digest: digest.into(), size: 7 }
    }

    fn needing(needed: u32) -> Forms {
        let mut forms = Forms::default();
        forms.set_needed(needed);
        forms
    }

    /// Says that a node made this; gives the alarms.
    fn made(forms: &mut Forms, n: usize, digest: &str) -> Vec<String> {
        forms.made(&node(n), "image", vec![form("layer", digest)])
    }

    #[test]
    fn what_one_node_says_alone_is_not_believed_however_often_it_says_it() {
        let mut forms = needing(2);
        for _ in 0..3 {
            assert!(made(&mut forms, 1, "a").is_empty());
            assert_eq!(forms.agreed("image"), []);
        }
        made(&mut forms, 2, "a");
        assert_eq!(forms.agreed("image"), [form("layer", "a")]);
        assert_eq!(forms.agreed("other"), []);
        // Of another writer it is another thing.
        let other = MadeForm { writer: "v".into(), ..form("layer", "b") };
        assert!(forms.made(&node(3), "image", vec![other]).is_empty());
        assert_eq!(forms.agreed("image"), [form("layer", "a")]);
    }

    #[test]
    fn where_nodes_do_not_agree_none_is_believed_and_that_is_said_once() {
        let mut forms = needing(2);
        for n in 0..10 {
            assert!(made(&mut forms, n, "a").is_empty());
        }
        let said = made(&mut forms, 99, "b");
        assert!(said.len() == 1 && said[0].contains("n99 made b"), "{said:?}");
        assert!(said[0].contains("n0, n1, n2, n3, n4 and 5 more made a"), "{said:?}");
        assert_eq!(forms.agreed("image"), []);
        assert!(made(&mut forms, 99, "b").is_empty() && made(&mut forms, 98, "b").is_empty());
        // As many as there are: that is no election.
        (100..160).for_each(|n| drop(made(&mut forms, n, "b")));
        assert_eq!(forms.agreed("image"), []);
        forms.forget(&node(98));
        forms.forget(&node(99));
        assert_eq!(forms.agreed("image"), []);
        (100..160).for_each(|n| forms.forget(&node(n)));
        assert_eq!(forms.agreed("image"), [form("layer", "a")]);
        assert_eq!(made(&mut forms, 1, "c").len(), 1, "another dispute is another alarm");
    }

    #[test]
    fn who_is_gone_counts_no_more_and_what_is_switched_off_is_told_to_nobody() {
        let mut forms = needing(2);
        made(&mut forms, 1, "a");
        made(&mut forms, 2, "a");
        forms.set_needed(3);
        assert_eq!(forms.agreed("image"), []);
        forms.set_needed(0);
        assert_eq!(forms.agreed("image"), []);
        forms.set_needed(1);
        assert_eq!(forms.agreed("image").len(), 1);
        forms.set_needed(2);
        forms.forget(&node(2));
        assert_eq!(forms.agreed("image"), []);
        forms.forget(&node(1));
        assert!(forms.votes.is_empty() && forms.of.is_empty());
        forms.set_needed(0);
        made(&mut forms, 1, "a");
        assert!(forms.votes.is_empty());
    }

    #[test]
    fn as_many_are_remembered_as_may_be_needed() {
        let needed = berth_model::config::ImagesConfig::MOST_AGREED;
        let mut forms = needing(needed);
        (0..needed).for_each(|n| drop(made(&mut forms, usize::try_from(n).unwrap(), "a")));
        assert_eq!(forms.agreed("image").len(), 1);
    }

    #[test]
    fn one_node_cannot_fill_the_table_and_what_nobody_has_makes_room() {
        let mut forms = needing(1);
        for n in 0..MOST_OF_ONE + 10 {
            forms.made(&node(1), &n.to_string(), vec![form(&n.to_string(), "a")]);
        }
        assert_eq!(forms.votes.len(), MOST_OF_ONE);
        let many: Vec<MadeForm> = (0..MOST_LAYERS + 10).map(|n| form(&format!("l{n}"), "a")).collect();
        forms.made(&node(2), "image", many);
        assert_eq!(forms.agreed("image").len(), MOST_LAYERS);
        let long = form(&"x".repeat(MOST_TEXT + 1), "a");
        forms.made(&node(3), "long", vec![long]);
        assert_eq!(forms.agreed("long"), []);
        for other in [form("l: n9 made x", "a"), form("l", "a\nALARM"), form("l", "a b")] {
            forms.made(&node(3), "words", vec![other]);
        }
        assert_eq!(forms.agreed("words"), []);
        assert!(!forms.wants_room());
        forms.keep(|image| image == "5");
        assert_eq!((forms.votes.len(), forms.of[&node(1)].len()), (1, 1));
        assert_eq!(forms.agreed("5"), [form("5", "a")]);
    }

    #[test]
    fn nothing_is_kept_of_nodes_whose_word_is_not_needed() {
        let mut forms = needing(2);
        (0..MOST_MAKERS + 100).for_each(|n| drop(made(&mut forms, n, "a")));
        assert_eq!((forms.of.len(), forms.votes.len()), (MOST_MAKERS, 1));
        // Said again, and otherwise: it is one's own word that is taken back.
        made(&mut forms, 0, "a");
        assert_eq!(forms.of.len(), MOST_MAKERS);
        let last = MOST_MAKERS + 99;
        assert_eq!(made(&mut forms, last, "b").len(), 1);
        assert_eq!(forms.agreed("image"), []);
        made(&mut forms, last, "a");
        assert_eq!(forms.agreed("image"), [form("layer", "a")]);
        (0..MOST_MAKERS).for_each(|n| forms.forget(&node(n)));
        assert!(forms.votes.is_empty());
    }

    #[test]
    fn where_there_is_no_room_it_is_looked_now_and_then_what_nobody_has() {
        let mut forms = needing(1);
        for n in 0..MOST {
            let (by, name) = (node(n / MOST_OF_ONE), n.to_string());
            forms.made(&by, &name, vec![form(&name, "a")]);
        }
        assert!(forms.wants_room());
        // All of it is somebody's: whoever says more does not have all gone through each time.
        forms.keep(|_| true);
        assert_eq!((1..REST).filter(|_| forms.wants_room()).count(), 0);
        forms.made(&node(99), "more", vec![form("more", "a")]);
        assert_eq!(forms.agreed("more"), []);
        assert!(forms.wants_room());
        forms.keep(|image| image != "7");
        forms.made(&node(99), "more", vec![form("more", "a")]);
        assert_eq!(forms.agreed("more"), [form("more", "a")]);
    }
}
