//! Which images must be signed, and by whom: `images.signatures` and `[[images.signature]]` of `berth.toml`.

use crate::config::ImagesConfig;
use crate::place;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What comes of an image without a signature that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignaturePolicy {
    /// Nobody looks.
    #[default]
    Off,
    /// The user and the agent's log are told.
    Warn,
    /// It is refused.
    Require,
}

/// `[[images.signature]]`: for images of one place. Of several that cover an image the closest counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignatureRule {
    /// A registry, a repository or a path, and all below it.
    pub images: String,
    /// What comes of those without a signature.
    pub policy: SignaturePolicy,
    /// Public keys, of which any is enough: a PEM file on each node, absolute, or its text.
    pub keys: Vec<String>,
    /// By what name the signer knows what is at `images`, where that is another: for copies.
    pub signed_as: Option<String>,
}

impl Default for SignatureRule {
    fn default() -> Self {
        let policy = SignaturePolicy::Require;
        SignatureRule { images: String::new(), policy, keys: Vec::new(), signed_as: None }
    }
}

/// What an image needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededSignature<'a> {
    /// Whether it is refused without.
    pub required: bool,
    /// As in [`SignatureRule::keys`].
    pub keys: &'a [String],
    /// What the signer calls the image.
    pub identity: String,
}

/// Whether a key is given as its text.
pub fn is_key_text(key: &str) -> bool {
    key.trim_start().starts_with("-----BEGIN ")
}

impl ImagesConfig {
    /// What an image from `place` (`registry/repository`, or a path) needs; nothing where nobody looks.
    pub fn needed_signature(&self, place: &str) -> Option<NeededSignature<'_>> {
        let covering = self.signature_rules.iter().filter_map(|r| Some((r, place::below(&r.images, place)?)));
        let closest = covering.max_by_key(|(rule, _)| place::depth(&rule.images));
        let (policy, keys, identity) = match closest {
            None => (self.signatures, &[][..], place.to_owned()),
            Some((rule, rest)) => {
                let identity = match &rule.signed_as {
                    None => place.to_owned(),
                    Some(name) if rest.is_empty() => name.clone(),
                    Some(name) => format!("{}/{rest}", name.trim_end_matches('/')),
                };
                (rule.policy, rule.keys.as_slice(), identity)
            }
        };
        let needed = |required| Some(NeededSignature { required, keys, identity });
        match policy {
            SignaturePolicy::Off => None,
            SignaturePolicy::Warn => needed(false),
            SignaturePolicy::Require => needed(true),
        }
    }

    /// What is wrong with the rules, by key.
    pub(crate) fn check_signatures(&self, add: &mut dyn FnMut(String, String)) {
        let mut seen = BTreeSet::new();
        for (at, rule) in self.signature_rules.iter().enumerate() {
            let key = |name: &str| format!("images.signature[{}].{name}", at + 1);
            let file = rule.images.starts_with('/');
            if let Err(why) = place::check(&rule.images) {
                add(key("images"), why);
            } else if !seen.insert(rule.images.trim_end_matches('/')) {
                add(key("images"), format!("there are two rules for '{}'; keep one", rule.images));
            }
            let off = rule.policy == SignaturePolicy::Off;
            match (rule.keys.is_empty(), file, off) {
                (false, true, _) => add(key("keys"), "files have no signatures that a key could be for".into()),
                (false, false, true) => add(
                    key("keys"),
                    "with policy = \"off\" nobody looks for them; leave them out, or write \"warn\" or \"require\"".into(),
                ),
                (true, false, false) => {
                    add(key("keys"), "name the keys by which these images are signed, or write policy = \"off\"".into());
                }
                _ => {}
            }
            for name in rule.keys.iter().filter(|name| !name.starts_with('/') && !is_key_text(name)) {
                add(
                    key("keys"),
                    format!("'{name}' is neither an absolute path nor a key (-----BEGIN PUBLIC KEY-----)"),
                );
            }
            if let Some(name) = &rule.signed_as {
                match place::check(name) {
                    Err(why) => add(key("signed_as"), why),
                    Ok(()) if file || off || name.starts_with('/') => {
                        add(
                            key("signed_as"),
                            "it is for images of registries that are looked for by a signature".into(),
                        );
                    }
                    Ok(()) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(images: &str, policy: SignaturePolicy, keys: &[&str], signed_as: Option<&str>) -> SignatureRule {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        SignatureRule { images: images.to_owned(), policy, keys, signed_as: signed_as.map(str::to_owned) }
    }

    use SignaturePolicy::{Off, Require, Warn};

    #[test]
    fn the_closest_rule_counts_and_else_the_default() {
        let config = ImagesConfig {
            signatures: Require,
            signature_rules: vec![
                rule("ghcr.io/team", Require, &["/k/team.pub"], None),
                rule("ghcr.io/team/dev", Warn, &["/k/dev.pub"], None),
                rule("mirror.local/hub", Require, &["/k/hub.pub"], Some("docker.io/library")),
                rule("/shared/images", Off, &[], None),
            ],
            ..ImagesConfig::default()
        };
        let needed =
            |place: &str| config.needed_signature(place).map(|n| (n.required, n.keys.join(","), n.identity));
        let is =
            |required, keys: &str, identity: &str| Some((required, keys.to_owned(), identity.to_owned()));
        assert_eq!(needed("ghcr.io/team/app"), is(true, "/k/team.pub", "ghcr.io/team/app"));
        assert_eq!(needed("ghcr.io/team/dev/x"), is(false, "/k/dev.pub", "ghcr.io/team/dev/x"));
        assert_eq!(needed("ghcr.io/team-evil/app"), is(true, "", "ghcr.io/team-evil/app"));
        assert_eq!(needed("mirror.local/hub/debian"), is(true, "/k/hub.pub", "docker.io/library/debian"));
        assert_eq!(needed("mirror.local/hub"), is(true, "/k/hub.pub", "docker.io/library"));
        assert_eq!(needed("/shared/images/a.sqsh"), None);
        assert_eq!(needed("/shared/images/../x.sqsh"), is(true, "", "/shared/images/../x.sqsh"));
        assert_eq!(needed("/home/ann/a.sqsh"), is(true, "", "/home/ann/a.sqsh"));
        assert_eq!(ImagesConfig::default().needed_signature("ghcr.io/team/app"), None);
    }

    #[test]
    fn rules_that_could_not_work_are_named() {
        let config = ImagesConfig {
            signature_rules: vec![
                rule("team/app", Require, &["team.pub"], None),
                rule("ghcr.io/team", Require, &[], None),
                rule("ghcr.io/team/", Off, &["/k"], None),
                rule("/shared", Require, &["/k"], Some("/x")),
                rule("good.io", Warn, &["/k", "-----BEGIN PUBLIC KEY-----"], Some("docker.io/library")),
            ],
            ..ImagesConfig::default()
        };
        let mut keys = Vec::new();
        config.check_signatures(&mut |key, _| keys.push(key));
        let short: Vec<&str> = keys.iter().map(|key| key.trim_start_matches("images.signature")).collect();
        let wanted =
            ["[1].images", "[1].keys", "[2].keys", "[3].images", "[3].keys", "[4].keys", "[4].signed_as"];
        assert_eq!(short, wanted);
    }
}
