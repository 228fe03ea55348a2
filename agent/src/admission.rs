//! Whether the site's rules let a step have its image: by its name, before anybody is asked what that means, and by where the image
//! comes from on the node itself.

use berth_images::{Helpers, Reference, real_path};
use berth_model::config::ImagesConfig;
use berth_model::spec::ResolvedImage;
use std::path::Path;

/// Judges an image by its name alone, before a registry, a mirror or an engine is asked for it: one that the site refuses hears of
/// nothing, and is shown no login. What a path is [`admit`] judges, which looks at it.
///
/// # Errors
/// As of [`ImagesConfig::admits_place`].
pub fn admit_named(config: &ImagesConfig, typed: &str, account: Option<&str>) -> Result<(), String> {
    if !config.judges_images() {
        return Ok(());
    }
    // What is no reference is refused by whoever looks it up, with the reason.
    let place = typed.parse::<Reference>().ok().and_then(|reference| reference.place());
    place.map_or(Ok(()), |place| config.admits_place(typed, &place, account))
}

/// Judges an image that is about to be used, whenever it came to the node. A path may have become another one since somebody
/// judged its name: `helpers` look at it as the user, where there are any.
///
/// # Errors
/// The step may not have it: by which rule, and what to do.
pub fn admit(
    config: &ImagesConfig,
    typed: &str,
    resolved: &ResolvedImage,
    account: Option<&str>,
    helpers: Option<&Helpers>,
) -> Result<(), String> {
    if !config.judges_images() {
        return Ok(());
    }
    let Some(place) = resolved.place().map_err(|why| format!("image {typed}: {why}"))? else { return Ok(()) };
    if !place.starts_with('/') {
        return config.admits_place(typed, &place, account);
    }
    let real = match helpers {
        Some(helpers) => helpers.real_path(Path::new(&place)),
        None => real_path(Path::new(&place)),
    };
    let real = real.map_err(|e| format!("image {typed}: {e}"))?;
    let real = real.to_str().ok_or_else(|| format!("image {typed}: {} is not UTF-8", real.display()))?;
    config.admits_place(typed, real, account)
}

/// Whether the paths that rules name are what they are called on this machine: images are judged by paths without links.
///
/// # Errors
/// Which path, and what it is.
pub fn check(config: &ImagesConfig) -> Result<(), String> {
    for (key, path) in config.ruled_paths() {
        let whole = path.trim_end_matches('/');
        let real = real_path(Path::new(if whole.is_empty() { "/" } else { whole }))
            .map_err(|e| format!("{key}: {e}"))?;
        if real.as_os_str() != whole && !whole.is_empty() {
            return Err(format!(
                "{key}: {path} is {} on this machine, and images are judged by paths without links; write that",
                real.display()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_images::ResolvedManifest;
    use berth_model::admission::ImageRule;

    const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    /// An image as jobs carry it.
    fn image(source: &str) -> ResolvedImage {
        ResolvedImage::Manifest {
            source: source.to_owned(),
            digest: DIGEST.to_owned(),
            insecure: false,
            indexes: Vec::new(),
            pin: None,
        }
    }

    #[test]
    fn a_name_is_judged_as_what_it_turns_out_to_mean() {
        let mut judged = 0;
        for registry in
            ["", "docker.io", "INDEX.docker.io", "GHCR.io", "ghcr.io:0443", "node7", "localhost", "[::1]:5"]
        {
            for (user, mark) in [("", "/"), ("", "#"), ("me@", "#"), ("", ""), ("me@", "")] {
                for repository in ["debian", "library/debian", "ghcr.io/team/app"] {
                    for end in ["", ":1", &format!(":1@{DIGEST}"), &format!("@{DIGEST}")] {
                        for scheme in ["", "docker://"] {
                            let typed = format!("{scheme}{user}{registry}{mark}{repository}{end}");
                            let Ok(Reference::Registry(name)) = typed.parse() else { continue };
                            let source = name.source();
                            let place = Reference::Registry(name).place();
                            assert_eq!(image(&source).place(), Ok(place), "{typed}");
                            judged += 1;
                        }
                    }
                }
            }
        }
        assert!(judged > 200, "{judged}");
        for (typed, source) in
            [("podman://box:1", "containers-storage:sha256:00"), ("dockerd://box", "docker-daemon:sha256:00")]
        {
            let named: Reference = typed.parse().unwrap();
            assert_eq!(image(source).place(), Ok(named.place()), "{typed}");
        }
    }

    #[test]
    fn a_name_is_enough_to_refuse_a_registry_an_engine_or_an_account() {
        let list = |places: &[&str]| places.iter().map(|place| (*place).to_owned()).collect::<Vec<_>>();
        let rule =
            ImageRule { accounts: list(&["physics"]), deny: list(&["ghcr.io/team"]), ..ImageRule::default() };
        let config = ImagesConfig {
            deny: list(&["quay.io", "docker.io/library", "containers-storage:", "/shared"]),
            rules: vec![rule],
            ..ImagesConfig::default()
        };
        for (typed, account, says) in [
            ("me@QUAY.io:443#x:1", None, "images.deny names quay.io"),
            ("debian:12", None, "image debian:12 (from docker.io/library/debian)"),
            ("podman://box:1", None, "images.deny names containers-storage:"),
            ("ghcr.io/team/app", Some("Physics"), "images.rule[1].deny names ghcr.io/team"),
        ] {
            let why = admit_named(&config, typed, account).unwrap_err();
            assert!(why.contains(says), "{typed}: {why}");
        }
        // A path is what it is when somebody looks, and what is no reference is refused by whoever looks it up.
        for (typed, account) in [
            ("ghcr.io/team/app", None),
            ("ghcr.io/team-evil/app", Some("physics")),
            ("dockerd://box", None),
            ("/shared/a.sqsh", None),
            ("host:", None),
            ("QUAY.io/Upper", None),
        ] {
            assert_eq!(admit_named(&config, typed, account), Ok(()), "{typed}");
        }
    }

    #[test]
    fn a_source_is_judged_by_the_name_by_which_it_is_opened() {
        let mut judged = 0;
        for registry in
            ["", "docker.io", "DOCKER.io", "index.docker.io", "ghcr.io", "ghcr.io:0443", "node7", "[::1]:5"]
        {
            for user in ["", "me@", "me@ghcr.io@", "@"] {
                for mark in ["/", "#", "", "//", "/#", "#/"] {
                    for repository in
                        ["debian", "library/debian", "a/../b", "a:1", "a@b", "A", "a#b", "ghcr.io/a", ""]
                    {
                        let source = format!("docker://{user}{registry}{mark}{repository}");
                        let Ok(Some(place)) = image(&source).place() else { continue };
                        let digest = DIGEST.parse().unwrap();
                        let opened = ResolvedManifest {
                            source: source.clone(),
                            digest,
                            insecure: false,
                            name: None,
                            indexes: Vec::new(),
                            pin: None,
                        };
                        // What cannot be opened has no place there.
                        assert!(["", &place].contains(&opened.place().as_str()), "{source}: {place}");
                        judged += 1;
                    }
                }
            }
        }
        assert!(judged > 5, "{judged}");
    }
}
