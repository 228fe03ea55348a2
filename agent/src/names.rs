//! What names of images mean that came without their meaning: found by a gateway, where this node is none of the cluster's gateways, or
//! else by asking the registry as the step's user; and the other way round, what a gateway finds for others.

use crate::admission;
use crate::images::{For, Images, resolved_image};
use crate::peers::Named;
use berth_images::{
    Credentials, Digest, Helpers, Reference, RegistryRef, ResolveOptions, Result as ImageResult, leads_to,
    resolve, resolve_with_proof,
};
use berth_model::config::ImagesConfig;
use berth_model::hostlist;
use berth_model::ids::NodeName;
use berth_model::launch::StepLaunch;
use berth_model::login::Login;
use berth_model::spec::ResolvedImage;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether gateways ask registries for this node.
pub fn has_gateways(config: &ImagesConfig, node: &NodeName) -> bool {
    let all = hostlist::expand(&config.gateways).unwrap_or_default();
    !all.is_empty() && !all.contains(&node.0)
}

impl Images {
    /// What a name means. Where gateways ask registries for this node, it asks one itself only when none of them finds it.
    pub(crate) fn find(
        &self,
        typed: &str,
        of: For<'_>,
        (helpers, credentials): (Option<&Helpers>, &Credentials),
        stop: &Arc<AtomicBool>,
    ) -> Result<ResolvedImage, String> {
        let reference: Reference = typed.parse().map_err(|e: berth_images::Error| e.to_string())?;
        let mut note = String::new();
        if let (Reference::Registry(name), Some(key)) = (&reference, of.step)
            && self.asks_gateways()
        {
            match self.peers().name(key, stop) {
                Ok(found) => {
                    let insecure = self.registries().insecure.contains(&name.registry);
                    return believed(typed, name, insecure, found);
                }
                Err(said) if stop.load(Ordering::Relaxed) => return Err(format!("{typed}: {said}")),
                Err(said) => note = said,
            }
        }
        let found = of.placed().and_then(|_place| self.resolve(&reference, of, helpers, credentials));
        let found = found.map_err(|e| if note.is_empty() { e } else { e.beside(&note) });
        found.map_err(|e| e.to_string())
    }

    /// As a gateway: what the name of another node's step means, asked as its user and with the login that came with it, until
    /// `stop` is set. With what proves it where the name says the digest of an index.
    ///
    /// # Errors
    /// It is no name of a registry's image, the site's rules refuse it, or the registry does not say.
    pub fn name_for_others(
        &self,
        launch: &StepLaunch,
        login: Option<&Login>,
        stop: &Arc<AtomicBool>,
    ) -> Result<(ResolvedImage, Vec<String>), String> {
        let image = launch.container.as_ref().map(|container| &container.image);
        let typed = image.map(|image| image.typed.as_str()).unwrap_or_default();
        let of = of_others(launch);
        admission::admit_named(self.rules(), typed, of.asked)?;
        let reference: Reference = typed.parse().map_err(|e: berth_images::Error| e.to_string())?;
        if !matches!(reference, Reference::Registry(_)) {
            return Err(format!("{typed} is no image of a registry, and gateways are asked for these alone"));
        }
        let (helpers, credentials) = self.asking(of, login, stop, false)?;
        let found = match &helpers {
            Some(helpers) => helpers.resolve_with_proof(&reference, of.directory),
            None => resolve_with_proof(&reference, &credentials, &self.options(of)),
        };
        let found = found.map(|(resolved, proof)| (resolved_image(resolved), proof));
        found.map_err(|e| e.to_string())
    }

    fn resolve(
        &self,
        reference: &Reference,
        of: For<'_>,
        helpers: Option<&Helpers>,
        credentials: &Credentials,
    ) -> ImageResult<ResolvedImage> {
        let resolved = match helpers {
            Some(helpers) => helpers.resolve(reference, of.directory),
            None => resolve(reference, credentials, &self.options(of)),
        };
        resolved.map(resolved_image)
    }

    fn options(&self, of: For<'_>) -> ResolveOptions {
        let directory = Some(of.directory.to_path_buf());
        ResolveOptions { registries: self.registries().clone(), directory, ..ResolveOptions::default() }
    }
}

/// For whom a gateway asks: the step's user. The cores and devices of its job are another node's, whose numbers and names mean others here.
fn of_others(launch: &StepLaunch) -> For<'_> {
    For::elsewhere(launch)
}

/// What a name means for a step: what another node of its job found first, so that all of it run the same. A name that says a digest means the
/// same everywhere, and what was found here was judged here: no other node puts anything in its place.
pub(crate) fn of_the_job(typed: &str, own: ResolvedImage, told: ResolvedImage) -> ResolvedImage {
    match typed.parse() {
        Ok(Reference::Registry(name)) if name.digest.is_some() => own,
        _ => told,
    }
}

/// A gateway's word, where it is about the place that the name says, and about the image where the name says a digest: a tag moves, a place
/// does not, nor does a digest. So a node that lies sends nobody elsewhere, nor to where others listen. `insecure`: the registry is spoken to
/// without TLS.
fn believed(typed: &str, name: &RegistryRef, insecure: bool, found: Named) -> Result<ResolvedImage, String> {
    let Named { image, by, proof } = found;
    let says = if by.is_empty() { String::new() } else { format!("gateway {by}: ") };
    let digest = match &image {
        ResolvedImage::Manifest { source, digest, insecure: without_tls, pin: None, .. }
            if *source == name.source() && (insecure || !without_tls) =>
        {
            digest
        }
        _ => {
            return Err(format!(
                "{typed}: {says}it says that this is another image than the name does: name the image by its digest, and see what the \
                 agent there says of it"
            ));
        }
    };
    let own = |pinned: &Digest| *digest == pinned.to_string();
    if let Some(pinned) = name.digest.as_ref().filter(|pinned| !own(pinned)) {
        let shown = digest.parse::<Digest>().and_then(|digest| leads_to(pinned, &proof, &digest));
        shown.map_err(|e| {
            format!(
                "{typed}: {says}it does not show that the name means {digest}: {e}: name the image by that digest where it is right, and \
                 upgrade that node where its agent is of an earlier version"
            )
        })?;
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::Cgroups;
    use berth_images::Algorithm;
    use berth_model::hardware::GresDevice;
    use berth_model::ids::{Attempt, JobId, StepId, StepKey};
    use berth_runtime::cgroup::CgroupFacts;
    use std::path::Path;

    #[test]
    fn nodes_that_are_no_gateways_ask_none_of_the_registries() {
        let with = |gateways: &str, node: &str| {
            let config = ImagesConfig { gateways: gateways.into(), ..ImagesConfig::default() };
            has_gateways(&config, &NodeName::from(node))
        };
        assert!(with("gw[1-2]", "n1") && !with("gw[1-2]", "gw2") && !with("", "n1"));
    }

    #[test]
    fn another_node_of_the_job_says_what_a_tag_means_and_not_what_a_digest_does() {
        let image = |n: u8| ResolvedImage::Manifest {
            source: "docker://r.io/x".into(),
            digest: format!("sha256:{n:064x}"),
            insecure: false,
            indexes: Vec::new(),
            pin: None,
        };
        assert_eq!(of_the_job("r.io/x:1", image(1), image(2)), image(2));
        let by_digest = format!("r.io/x@sha256:{:064x}", 1);
        assert_eq!(of_the_job(&by_digest, image(1), image(2)), image(1));
    }

    #[test]
    fn what_a_gateway_asks_has_no_cores_and_no_devices_of_another_nodes_job() {
        let key = StepKey { job: JobId(7), attempt: Attempt(0), step: StepId::Batch };
        let mut launch = berth_samples::launch(key);
        launch.job.share.cpus = vec![191];
        launch.job.share.gres = vec![GresDevice { files: vec!["/dev/null".into()], ..GresDevice::default() }];
        let facts = CgroupFacts::default();
        let cgroups = Arc::new(Cgroups::detect(Path::new("/nonexistent"), &[], facts, false).unwrap());
        let of = |whose: For<'_>| format!("{:?}", whose.fetchers(&cgroups));
        let (here, there) = (of(For::step(&launch)), of(of_others(&launch)));
        assert!(["job_7", "191", "/dev/null"].iter().all(|word| here.contains(word)), "{here}");
        assert!(["job_7", "191", "/dev/null"].iter().all(|word| !there.contains(word)), "{there}");
        let whose = format!("{:?}, whose: \"no_job\"", launch.identity.uid);
        assert!(there.contains(&whose), "{there}");
    }

    #[test]
    fn a_gateways_word_counts_for_the_place_that_the_name_says() {
        let digest = |n: u8| format!("sha256:{n:064x}");
        let image = |source: &str, insecure: bool| ResolvedImage::Manifest {
            source: source.into(),
            digest: digest(1),
            insecure,
            indexes: vec![digest(2)],
            pin: None,
        };
        let judged = |typed: &str, insecure: bool, image: ResolvedImage| {
            let Ok(Reference::Registry(name)) = typed.parse() else { panic!("{typed}") };
            believed(typed, &name, insecure, Named { image, by: "gw".into(), proof: Vec::new() })
        };
        let good = image("docker://r.io/team/x", false);
        for typed in ["r.io/team/x:1".to_string(), format!("r.io/team/x@{}", digest(1))] {
            assert_eq!(judged(&typed, false, good.clone()), Ok(good.clone()));
        }
        judged("r.io/team/x:1", true, image("docker://r.io/team/x", true)).unwrap();
        for (typed, image) in [
            ("r.io/team/x:1", image("docker://evil.io/team/x", false)),
            ("r.io/team/x:1", image("docker://r.io/team/y", false)),
            ("r.io/team/x:1", image("docker://r.io/team/x", true)),
            (format!("r.io/team/x@{}", digest(3)).as_str(), good),
            ("r.io/team/x:1", ResolvedImage::Host),
        ] {
            let why = judged(typed, false, image).unwrap_err();
            assert!(why.contains("gateway gw") && why.contains(typed), "{why}");
        }
    }

    #[test]
    fn a_gateway_puts_no_image_in_the_place_of_one_that_is_named_by_its_indexs_digest() {
        let of = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        let index = |lists: &Digest| {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let entry = serde_json::json!({"mediaType": kind, "digest": lists.to_string(), "size": 2});
            serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string()
        };
        let (right, evil) = (of("right"), of("evil"));
        let (listing, lie) = (index(&right), index(&evil));
        let pinned = of(&listing);
        let typed = format!("r.io/team/x@{pinned}");
        let judged = |digest: &Digest, by: &str, proof: &[&String]| {
            let Ok(Reference::Registry(name)) = typed.parse() else { panic!("{typed}") };
            let image = ResolvedImage::Manifest {
                source: "docker://r.io/team/x".into(),
                digest: digest.to_string(),
                insecure: false,
                // That the name's own is among these shows nothing: it is the gateway's word.
                indexes: vec![pinned.to_string()],
                pin: None,
            };
            let proof = proof.iter().map(|text| (*text).clone()).collect();
            believed(&typed, &name, false, Named { image, by: by.into(), proof })
        };
        judged(&right, "gw", &[&listing]).unwrap();
        for (digest, proof) in [
            (&evil, vec![]),
            (&evil, vec![&listing]),
            (&evil, vec![&lie]),
            (&evil, vec![&listing, &lie]),
            (&right, vec![]),
        ] {
            let why = judged(digest, "gw", &proof).unwrap_err();
            assert!(why.contains("gateway gw: it does not show") && why.contains(&typed), "{why}");
        }
        // Nor is anything of another node of the job's believed without, which the controller would have on record.
        judged(&right, "", &[]).unwrap_err();
    }
}
