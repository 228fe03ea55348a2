//! Whether the site's rules let a step have its image, by where it comes from on the node itself.

use berth_images::{Helpers, real_path};
use berth_model::config::ImagesConfig;
use berth_model::spec::ResolvedImage;
use std::path::Path;

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

    #[test]
    fn a_source_is_judged_by_the_name_by_which_it_is_opened() {
        let digest = format!("sha256:{}", "0".repeat(64));
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
                        let named = ResolvedImage::Manifest {
                            source: source.clone(),
                            digest: digest.clone(),
                            insecure: false,
                            indexes: Vec::new(),
                            pin: None,
                        };
                        let Ok(Some(place)) = named.place() else { continue };
                        let digest = digest.parse().unwrap();
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
