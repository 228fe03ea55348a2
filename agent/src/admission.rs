//! Whether the site's rules let a step have its image: by its name, before anybody is asked what that means, and by where the image
//! comes from on the node itself.

use berth_images::{Helpers, Reference, Through, real_path};
use berth_model::admission::Asked;
use berth_model::config::ImagesConfig;
use berth_model::spec::ResolvedImage;
use std::path::Path;

/// Judges an image by its name alone, before a registry, a mirror or an engine is asked for it: one that the site refuses hears of
/// nothing, and is shown no login. What a path is [`admit`] judges, which looks at it.
///
/// # Errors
/// As of [`ImagesConfig::admits_place`].
pub fn admit_named(config: &ImagesConfig, typed: &str, asked: Asked<'_>) -> Result<(), String> {
    if !config.judges_images() {
        return Ok(());
    }
    // What is no reference is refused by whoever looks it up, with the reason.
    let place = typed.parse::<Reference>().ok().and_then(|reference| reference.place());
    place.map_or(Ok(()), |place| config.admits_place(typed, &place, asked))
}

/// What may lie on the way to an image's file when it is opened: no link, where a rule is about paths. What was judged and what is
/// opened are then the same, whatever somebody exchanges in between.
pub fn through(config: &ImagesConfig) -> Through {
    if config.judges_paths() { Through::NoLinks } else { Through::Links }
}

/// Judges an image that is about to be used, whenever it came to the node: a path as it is written, since by that it is opened, and
/// as it is without links. It may have become another one since somebody judged its name: `helpers` look at it as the user, where
/// there are any. Where a rule is about paths, one with a link in it is refused.
///
/// # Errors
/// The step may not have it: by which rule, and what to do.
pub fn admit(
    config: &ImagesConfig,
    typed: &str,
    resolved: &ResolvedImage,
    asked: Asked<'_>,
    helpers: Option<&Helpers>,
) -> Result<(), String> {
    if !config.judges_images() {
        return Ok(());
    }
    let Some(place) = resolved.place().map_err(|why| format!("image {typed}: {why}"))? else { return Ok(()) };
    config.admits_place(typed, &place, asked)?;
    if !place.starts_with('/') {
        return Ok(());
    }
    let real = match helpers {
        Some(helpers) => helpers.real_path(Path::new(&place)),
        None => real_path(Path::new(&place)),
    };
    let real = real.map_err(|e| format!("image {typed}: {e}"))?;
    let real = real.to_str().ok_or_else(|| format!("image {typed}: {} is not UTF-8", real.display()))?;
    config.admits_place(typed, real, asked)?;
    if real != place && through(config) == Through::NoLinks {
        return Err(format!(
            "image {typed}: {place} is {real} on this node, and this cluster's rules judge images by paths without links: name it \
             anew by that"
        ));
    }
    Ok(())
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
    fn a_path_is_judged_as_it_is_written_and_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for made in ["shared", "mine", "shared/inner"] {
            std::fs::create_dir(dir.join(made)).unwrap();
        }
        // Of a user who exchanges them for directories when they were looked at.
        std::os::unix::fs::symlink("../shared", dir.join("mine/in")).unwrap();
        std::os::unix::fs::symlink("../mine", dir.join("shared/out")).unwrap();
        std::os::unix::fs::symlink("inner", dir.join("shared/other")).unwrap();
        let allow = dir.join("shared").to_str().unwrap().to_owned();
        let ruled = ImagesConfig { allow: vec![allow], ..ImagesConfig::default() };
        let judged = |config: &ImagesConfig, path: &str| {
            let path = dir.join(path);
            let sources = [
                image(&format!("sqsh:{}", path.display())),
                ResolvedImage::RootDir { path: path.as_path().into() },
            ];
            let all = sources.map(|image| admit(config, "x", &image, Asked::Job(None), None));
            assert_eq!(all[0], all[1], "{}", path.display());
            all[0].clone()
        };
        assert_eq!(judged(&ruled, "shared/inner/a"), Ok(()));
        for (path, says) in [
            ("mine/in/inner/a", "images.allow names only"),
            ("mine/a", "images.allow names only"),
            ("shared/out/a", "images.allow names only"),
            ("shared/other/a", "without links"),
        ] {
            let why = judged(&ruled, path).unwrap_err();
            assert!(why.contains(says), "{path}: {why}");
        }
        // Where no rule is about paths, links are the user's affair.
        let registries = ImagesConfig { deny: vec!["quay.io".into()], ..ImagesConfig::default() };
        assert_eq!(judged(&registries, "mine/in/inner/a"), Ok(()));
        assert_eq!((through(&ruled), through(&registries)), (Through::NoLinks, Through::Links));
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
            let why = admit_named(&config, typed, Asked::Job(account)).unwrap_err();
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
            assert_eq!(admit_named(&config, typed, Asked::Job(account)), Ok(()), "{typed}");
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
