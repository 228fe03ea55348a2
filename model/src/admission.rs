//! Which images jobs may run: `images.allow`, `images.deny` and `[[images.rule]]` of `berth.toml`, judged by where an image
//! comes from.

use crate::config::ImagesConfig;
use crate::place;
use crate::spec::ResolvedImage;
use serde::{Deserialize, Deserializer, Serialize};

/// The node's own filesystem, as a rule names it.
pub const HOST: &str = "host:";
/// podman's store of the user, as a rule names it.
pub const PODMAN: &str = "containers-storage:";
/// The store of docker's daemon, as a rule names it.
pub const DOCKER: &str = "docker-daemon:";

/// Most places of a list that a refusal repeats.
const MOST_TOLD: usize = 8;

/// For what an image is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// A job of this account, or of none.
    Job(Option<&'a str>),
    /// No job: rules about jobs are not about it.
    Pull,
}

/// `[[images.rule]]`: what holds for jobs of some accounts, or for those of all others, beside what holds for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageRule {
    /// Accounts as jobs name them (`--account`); upper and lower case are the same.
    pub accounts: Vec<String>,
    /// It is about all jobs that no rule with accounts is about, those without an account among them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub otherwise: bool,
    /// As [`ImagesConfig::allow`].
    #[serde(deserialize_with = "places", skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// As [`ImagesConfig::deny`].
    #[serde(deserialize_with = "places", skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

/// A list that is written down and empty could be meant as "nothing" and as "everything".
pub(crate) fn places<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let list = Vec::deserialize(from)?;
    if list.is_empty() {
        return Err(serde::de::Error::custom(
            "the list is empty: name the places it is about, or leave it out (deny = [\"/\"] refuses all files)",
        ));
    }
    Ok(list)
}

impl ResolvedImage {
    /// Where the image comes from, as rules name it: `registry/repository`, an absolute path, or one of [`HOST`], [`PODMAN`]
    /// and [`DOCKER`]; nothing for a container that is there already, which has an image of its own.
    ///
    /// # Errors
    /// The source is not written as [`ResolvedImage::Manifest`] says. A text that is nearly such a source could be read
    /// as another one by whoever fetches it.
    pub fn place(&self) -> Result<Option<String>, String> {
        let place = match self {
            ResolvedImage::Host => HOST.to_owned(),
            ResolvedImage::Kept => return Ok(None),
            ResolvedImage::RootDir { path } => {
                let text = std::str::from_utf8(&path.0).ok().filter(|text| text.starts_with('/'));
                text.ok_or_else(|| format!("'{}' is no absolute path in UTF-8", path.display()))?.to_owned()
            }
            ResolvedImage::Manifest { source, .. } => source_place(source).ok_or_else(|| {
                format!("'{source}' is not the whole name of a source; name the image anew")
            })?,
        };
        Ok(Some(place))
    }
}

/// The place of a canonical source; nothing for any other text.
fn source_place(source: &str) -> Option<String> {
    if let Some(name) = source.strip_prefix("docker://") {
        let (registry, repository) = match name.split_once('#') {
            Some((registry, repository)) => (registry.rsplit('@').next()?, repository),
            None => name.split_once('/').filter(|(registry, _)| place::is_registry(registry))?,
        };
        let whole = place::is_canonical(registry)
            && !repository.split('/').any(|part| matches!(part, "" | "." | ".."))
            && !repository.contains([':', '@', '#'])
            && !repository.bytes().any(|b| b.is_ascii_uppercase())
            && (registry != "docker.io" || repository.contains('/'));
        return whole.then(|| format!("{registry}/{repository}"));
    }
    let (scheme, rest) = source.split_once(':')?;
    if [PODMAN, DOCKER].iter().any(|store| store.strip_suffix(':') == Some(scheme)) {
        return Some(format!("{scheme}:"));
    }
    // `FORM:/path`
    (rest.starts_with('/') && !rest.starts_with("//")).then(|| rest.to_owned())
}

/// One of the lists, and by what key people find it.
struct Lists<'a> {
    key: String,
    allow: &'a [String],
    deny: &'a [String],
}

impl Lists<'_> {
    /// What refuses a place, if something does.
    fn refusal(&self, place: &str) -> Option<String> {
        let covers = |rule: &&String| place::below(rule, place).is_some();
        if let Some(rule) = self.deny.iter().find(covers) {
            return Some(format!("{}.deny names {rule}", self.key));
        }
        // Nothing is fetched for it: what would be allowed is everything.
        if self.allow.is_empty() || place == HOST || self.allow.iter().any(|rule| covers(&rule)) {
            return None;
        }
        let told: Vec<&str> = self.allow.iter().take(MOST_TOLD).map(String::as_str).collect();
        let more = if self.allow.len() > told.len() { ", …" } else { "" };
        Some(format!("{}.allow names only {}{more}", self.key, told.join(", ")))
    }
}

impl ImagesConfig {
    /// Whether any image could be refused.
    pub fn judges_images(&self) -> bool {
        !self.allow.is_empty() || !self.deny.is_empty() || !self.rules.is_empty()
    }

    /// Whether what comes from `place`, as [`ResolvedImage::place`] gives it, may be had for this. `named`: as people know it.
    ///
    /// # Errors
    /// It may not: which image, by which rule, and what to do.
    pub fn admits_place(&self, named: &str, place: &str, asked: Asked<'_>) -> Result<(), String> {
        let cluster = Lists { key: "images".into(), allow: &self.allow, deny: &self.deny };
        let names = |rule: &ImageRule| {
            let Asked::Job(Some(account)) = asked else { return false };
            rule.accounts.iter().any(|a| a.eq_ignore_ascii_case(account))
        };
        let otherwise = matches!(asked, Asked::Job(_)) && !self.rules.iter().any(names);
        let of_job = self.rules.iter().enumerate();
        let of_job = of_job.filter(|(_, rule)| names(rule) || (rule.otherwise && otherwise));
        let of_job = of_job.map(|(at, rule)| {
            let key = format!("images.rule[{}]", at + 1);
            Lists { key, allow: &rule.allow, deny: &rule.deny }
        });
        let refusal = std::iter::once(cluster).chain(of_job).find_map(|lists| {
            let why = lists.refusal(place)?;
            Some(match asked {
                _ if lists.key == "images" => why,
                Asked::Job(Some(account)) => format!("{why}, for account {account}"),
                Asked::Job(None) | Asked::Pull => format!("{why}, for jobs without an account"),
            })
        });
        let Some(why) = refusal else { return Ok(()) };
        let what = match place {
            HOST => "the node's own filesystem (host:, a job or step without --container-image)".to_owned(),
            place if named.contains(place) => format!("image {named}"),
            place => format!("image {named} (from {place})"),
        };
        Err(format!(
            "{what} may not be used on this cluster: {why} in berth.toml. Use {}, or ask an administrator of the cluster",
            if place == HOST { "an image (--container-image)" } else { "an image from another place" }
        ))
    }

    /// As [`ImagesConfig::admits_place`], for an image as jobs carry it.
    ///
    /// # Errors
    /// As there; or it cannot be said where the image comes from.
    pub fn admits(&self, named: &str, image: &ResolvedImage, asked: Asked<'_>) -> Result<(), String> {
        if !self.judges_images() {
            return Ok(());
        }
        match image.place().map_err(|why| format!("image {named}: {why}"))? {
            Some(place) => self.admits_place(named, &place, asked),
            None => Ok(()),
        }
    }

    /// What is wrong with the rules, by key.
    pub(crate) fn check_rules(&self, add: &mut dyn FnMut(String, String)) {
        check_lists("images", &self.allow, &self.deny, add);
        for (at, rule) in self.rules.iter().enumerate() {
            let key = format!("images.rule[{}]", at + 1);
            if rule.accounts.is_empty() && !rule.otherwise {
                add(
                    format!("{key}.accounts"),
                    "there is none; name accounts, write otherwise = true for the jobs of all others, or write the lists into [images] \
                     for all jobs"
                        .into(),
                );
            }
            if rule.otherwise && !rule.accounts.is_empty() {
                add(
                    format!("{key}.otherwise"),
                    "it is about accounts that no rule names, and names some; make it two rules".into(),
                );
            }
            for account in rule.accounts.iter().filter(|a| a.trim() != a.as_str() || a.is_empty()) {
                add(
                    format!("{key}.accounts"),
                    format!("'{account}' is no account; write it as --account has it"),
                );
            }
            if rule.allow.is_empty() && rule.deny.is_empty() {
                add(key.clone(), "it refuses nothing; write allow or deny, or remove it".into());
            }
            check_lists(&key, &rule.allow, &rule.deny, add);
        }
    }

    /// Whether a rule names a path: then an image is what lies at its very path, and nothing that a link leads to.
    pub fn judges_paths(&self) -> bool {
        self.ruled_paths().next().is_some()
    }

    /// All paths that rules name, by key.
    pub fn ruled_paths(&self) -> impl Iterator<Item = (String, &str)> {
        let cluster = ("images".to_owned(), &self.allow, &self.deny);
        let rules = self.rules.iter().enumerate();
        let rules = rules.map(|(at, rule)| (format!("images.rule[{}]", at + 1), &rule.allow, &rule.deny));
        std::iter::once(cluster).chain(rules).flat_map(|(key, allow, deny)| {
            let all = allow.iter().map(|path| ("allow", path)).chain(deny.iter().map(|path| ("deny", path)));
            let paths = all.filter(|(_, place)| place.starts_with('/'));
            paths.map(move |(list, path)| (format!("{key}.{list}"), path.as_str()))
        })
    }
}

fn check_lists(key: &str, allow: &[String], deny: &[String], add: &mut dyn FnMut(String, String)) {
    for (list, rules) in [("allow", allow), ("deny", deny)] {
        for rule in rules {
            let why = match rule.as_str() {
                HOST if list == "allow" => {
                    Err("host: is no image, and jobs without one run unless deny names it; leave it out"
                        .to_owned())
                }
                HOST | PODMAN | DOCKER => Ok(()),
                "podman://" | "dockerd://" => Err(format!(
                    "'{rule}' is another name of an engine's store; write {}",
                    if rule.starts_with('p') { PODMAN } else { DOCKER }
                )),
                other => place::check(other),
            };
            if let Err(why) = why {
                add(format!("{key}.{list}"), why);
            }
        }
    }
    for rule in allow {
        if let Some(denied) = deny.iter().find(|denied| place::below(denied, rule).is_some()) {
            add(
                format!("{key}.allow"),
                format!("'{rule}' allows nothing, since deny names {denied}; remove one of them"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::ByteStr;

    fn list(places: &[&str]) -> Vec<String> {
        places.iter().map(|place| (*place).to_owned()).collect()
    }

    fn image(source: &str) -> ResolvedImage {
        ResolvedImage::Manifest {
            source: source.to_owned(),
            digest: format!("sha256:{}", "0".repeat(64)),
            insecure: false,
            indexes: Vec::new(),
            pin: None,
        }
    }

    fn config(allow: &[&str], deny: &[&str]) -> ImagesConfig {
        ImagesConfig { allow: list(allow), deny: list(deny), ..ImagesConfig::default() }
    }

    fn admitted(config: &ImagesConfig, source: &str) -> bool {
        config.admits("x", &image(source), Asked::Job(None)).is_ok()
    }

    #[test]
    fn an_allow_list_refuses_all_else_and_deny_wins() {
        let config = config(
            &["docker.io/library", "ghcr.io/team/app", "/shared/images"],
            &["docker.io/library/ubuntu", "/shared/images/old"],
        );
        for (source, is) in [
            ("docker://docker.io/library/debian", true),
            ("docker://me@docker.io#library/debian", true),
            ("docker://docker.io/library/ubuntu", false),
            ("docker://docker.io/library/ubuntu-core", true),
            ("docker://docker.io/library-evil/debian", false),
            ("docker://docker.io/other/debian", false),
            ("docker://docker.io.evil.org/library/debian", false),
            ("docker://evil.org/docker.io/library/debian", false),
            ("docker://ghcr.io/team/app", true),
            ("docker://ghcr.io:443/team/app", true),
            ("docker://ghcr.io:0443/team/app/x", true),
            ("docker://ghcr.io:5000/team/app", false),
            ("docker://ghcr.io/team/app-evil", false),
            ("docker://ghcr.io/team", false),
            ("sqsh:/shared/images/a.sqsh", true),
            ("docker-archive:/shared/images/a.tar", true),
            ("sif:/shared/images/old/a.sif", false),
            ("oci:/shared/images-of-mine/a", false),
            ("oci:/shared/images/../../home/a", false),
            ("containers-storage:sha256:00", false),
            ("docker-daemon:sha256:00", false),
        ] {
            assert_eq!(admitted(&config, source), is, "{source}");
        }
        let judged = |image: &ResolvedImage| config.admits("x", image, Asked::Job(None));
        assert!(judged(&ResolvedImage::Host).is_ok());
        assert!(judged(&ResolvedImage::Kept).is_ok());
        let root = |path: &[u8]| ResolvedImage::RootDir { path: ByteStr(path.to_vec()) };
        assert!(judged(&root(b"/shared/images/root")).is_ok());
        assert!(judged(&root(b"/home/root")).is_err());
        assert!(judged(&root(b"/shared/images/\xff")).is_err());
        assert!(judged(&root(b"shared/images")).is_err());
    }

    #[test]
    fn a_deny_list_alone_refuses_what_it_names() {
        let config = config(&[], &["ghcr.io/team", "host:", "docker-daemon:", "[::1]:5000"]);
        for (source, is) in [
            ("docker://ghcr.io/team/app", false),
            ("docker://ghcr.io:443/team", false),
            ("docker://ghcr.io:00443/team", false),
            ("docker://me@ghcr.io#team/app", false),
            ("docker://[0:0:0:0:0:0:0:1]:5000/x", false),
            ("docker://ghcr.io/team-evil/app", true),
            ("docker://docker.io/library/debian", true),
            ("docker-daemon:sha256:00", false),
            ("containers-storage:sha256:00", true),
            ("sqsh:/home/a.sqsh", true),
        ] {
            assert_eq!(admitted(&config, source), is, "{source}");
        }
        let why = config.admits("host:", &ResolvedImage::Host, Asked::Job(None)).unwrap_err();
        assert!(why.contains("images.deny names host:") && why.contains("--container-image"), "{why}");
    }

    #[test]
    fn what_is_nearly_a_source_is_refused_wherever_images_are_judged() {
        let config = config(&[], &["quay.io"]);
        for source in [
            "docker://GHCR.io/team/app",
            "docker://index.docker.io/library/debian",
            "docker://docker.io/debian",
            "docker://debian",
            "docker://team/app",
            "docker://ghcr.io/team/app:1",
            "docker://ghcr.io/team/app@sha256:00",
            "docker://me@ghcr.io/team/app",
            "docker://ghcr.io//team",
            "docker://ghcr.io/../team",
            "docker://ghcr.io/Team",
            "docker://a/b#team",
            "podman://x",
            "dockerd://x",
            "sqsh:a.sqsh",
            "sqsh://quay.io/x",
            "quay.io/x",
            "",
        ] {
            assert!(!admitted(&config, source), "{source}");
            assert!(admitted(&ImagesConfig::default(), source), "{source}");
        }
    }

    #[test]
    fn rules_of_an_account_narrow_what_is_allowed_to_all() {
        let rule = |accounts: &[&str], allow: &[&str], deny: &[&str]| ImageRule {
            accounts: list(accounts),
            allow: list(allow),
            deny: list(deny),
            ..ImageRule::default()
        };
        let config = ImagesConfig {
            deny: list(&["evil.org"]),
            rules: vec![
                rule(&["physics", "bio"], &["ghcr.io", "evil.org"], &[]),
                rule(&["physics"], &[], &["ghcr.io/old"]),
            ],
            ..ImagesConfig::default()
        };
        for (account, source, is) in [
            (None, "docker://quay.io/x", true),
            (Some("chem"), "docker://quay.io/x", true),
            (Some("physics"), "docker://quay.io/x", false),
            (Some("PHYSICS"), "docker://quay.io/x", false),
            (Some("physics2"), "docker://quay.io/x", true),
            (Some("bio"), "docker://ghcr.io/old/x", true),
            (Some("physics"), "docker://ghcr.io/old/x", false),
            (Some("physics"), "docker://ghcr.io/new/x", true),
            (Some("bio"), "docker://evil.org/x", false),
        ] {
            let judged = config.admits("x", &image(source), Asked::Job(account));
            assert_eq!(judged.is_ok(), is, "{account:?} {source}");
        }
        let bio = Asked::Job(Some("bio"));
        let why = config.admits("quay.io/x:1", &image("docker://quay.io/x"), bio).unwrap_err();
        for says in ["image quay.io/x:1 may", "images.rule[1].allow names only ghcr.io, evil.org", "bio"] {
            assert!(why.contains(says), "{why}");
        }
        // Where the name does not say it.
        let why = config.admits("box", &image("docker://quay.io/x"), bio).unwrap_err();
        assert!(why.contains("image box (from quay.io/x) may"), "{why}");
    }

    #[test]
    fn a_rule_for_all_others_holds_for_jobs_that_name_no_account_or_one_of_no_rule() {
        let rule = |accounts: &[&str], allow: &[&str]| ImageRule {
            accounts: list(accounts),
            otherwise: accounts.is_empty(),
            allow: list(allow),
            ..ImageRule::default()
        };
        let config = ImagesConfig {
            rules: vec![rule(&[], &["docker.io/library"]), rule(&["physics"], &["ghcr.io/team"])],
            ..ImagesConfig::default()
        };
        let (base, team) = ("docker://docker.io/library/debian", "docker://ghcr.io/team/app");
        for (account, admitted) in [
            (None, [true, false]),
            (Some("chem"), [true, false]),
            (Some(""), [true, false]),
            (Some("Physics"), [false, true]),
        ] {
            let judged = [base, team].map(|source| config.admits("x", &image(source), Asked::Job(account)));
            assert_eq!(judged.map(|judged| judged.is_ok()), admitted, "{account:?}");
        }
        let why = config.admits("x", &image(team), Asked::Job(None)).unwrap_err();
        assert!(
            why.contains("images.rule[1].allow names only docker.io/library, for jobs without an account"),
            "{why}"
        );
        // What is fetched for no job is under the lists for all alone.
        assert_eq!(config.admits("x", &image(team), Asked::Pull), Ok(()));
        // Versions that know of no such rule are told of one only where there is one: they take no jobs then.
        let told: Vec<String> = config.rules.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
        assert_eq!(told.iter().filter(|told| told.contains("otherwise")).count(), 1, "{told:?}");
    }

    #[test]
    fn rules_that_could_not_work_are_named() {
        let mut config = config(
            &["host:", "library/debian", "ghcr.io/Team", "quay.io/x", "ok.io"],
            &["quay.io", "ghcr.io/team:1", "podman://", "docker-daemon:"],
        );
        config.rules =
            vec![ImageRule { accounts: list(&[" x"]), ..ImageRule::default() }, ImageRule::default()];
        config.rules[1].deny = list(&["/home/../x"]);
        config.rules.push(ImageRule {
            accounts: list(&["x"]),
            otherwise: true,
            deny: list(&["a.io"]),
            ..ImageRule::default()
        });
        config.rules.push(ImageRule { otherwise: true, deny: list(&["a.io"]), ..ImageRule::default() });
        let mut keys = Vec::new();
        config.check_rules(&mut |key, _| keys.push(key));
        let short: Vec<&str> = keys.iter().map(|key| key.trim_start_matches("images")).collect();
        let wanted = [
            ".allow",
            ".allow",
            ".allow",
            ".deny",
            ".deny",
            ".allow",
            ".rule[1].accounts",
            ".rule[1]",
            ".rule[2].accounts",
            ".rule[2].deny",
            ".rule[3].otherwise",
        ];
        assert_eq!(short, wanted);
        let paths: Vec<(String, &str)> = config.ruled_paths().collect();
        assert_eq!(paths, [("images.rule[2].deny".to_owned(), "/home/../x")]);
    }
}
