//! Of an ordinary user's node, which has a store and nobody to speak to.

use super::*;
use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey};
use berth_rpc::Uplink;
use berth_runtime::cgroup::CgroupFacts;
use std::cell::Cell;

#[test]
fn the_store_makes_layers_one_where_the_runtime_mounts_no_more() {
    for kernel in [(5, 15), (6, 1), (6, 7), (6, 8), (6, 18), (7, 0)] {
        let release = format!("{}.{}.3-x", kernel.0, kernel.1);
        assert_eq!(berth_images::most_layers(&release), berth_runtime::plan::most_layers(kernel));
    }
}

/// The node, with a state directory that goes with it.
fn node(config: &ImagesConfig) -> (tempfile::TempDir, Images) {
    let state = tempfile::tempdir().unwrap();
    let paths = Paths::new(state.path());
    let kept = Arc::new(KeptContainers::new(paths.clone()));
    let peers = Arc::new(Peers::new(NodeName::from("n1"), &Uplink::Local("/nonexistent".into())));
    let cgroups = Cgroups::detect(state.path(), &[], CgroupFacts::default(), false).unwrap();
    let program = (PathBuf::from("/nonexistent"), false);
    let (room, _) = Room::new();
    let images = Images::open(&paths, program, config, kept, room, (peers, Arc::new(cgroups)));
    (state, images.unwrap())
}

fn launch() -> StepLaunch {
    berth_samples::launch(StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Batch })
}

/// Counts how often somebody wants a place.
struct Counted<'a>(&'a Images, Cell<u32>);

impl Placing for Counted<'_> {
    fn place(&self) -> berth_images::Result<Place<'_>> {
        self.1.set(self.1.get() + 1);
        let stop = AtomicBool::new(false);
        let wish = Wish { user: Uid(1), image: None, ahead: false, stop: &stop };
        Ok(self.0.imports.place(&wish, || panic!("nobody else has one")).unwrap())
    }
}

#[test]
fn who_asks_gateways_for_a_name_keeps_no_place_of_an_import_meanwhile() {
    let config = ImagesConfig { gateways: "gw".into(), ..ImagesConfig::default() };
    let (_state, images) = node(&config);
    images.peers.serves();
    let (launch, counted) = (launch(), Counted(&images, Cell::new(0)));
    let of = For { placing: Some(&counted), ..For::elsewhere(&launch) };
    let find = |typed: &str, stop: bool| {
        let stop = Arc::new(AtomicBool::new(stop));
        images.find(typed, of, (None, &credentials(of)), &stop).unwrap_err()
    };
    // As long as no gateway answers.
    let why = find("registry.invalid/team/x:1", true);
    assert!(why.contains("not wanted any more"), "{why}");
    assert_eq!(counted.1.get(), 0);
    // What the node itself looks for takes one.
    find("/nonexistent/image.sqsh", false);
    assert_eq!(counted.1.get(), 1);
}

/// Otherwise processes are started, be all of it here: these have their place among those that bring images.
#[test]
fn an_image_that_is_here_needs_nothing_more_once_its_user_has_shown_that_it_is_theirs() {
    let (_state, images) = node(&ImagesConfig::default());
    let (store, launch) = (images.store().unwrap(), launch());
    let image = ResolvedManifest {
        source: "oci-archive:/shared/image.tar".into(),
        digest: format!("sha256:{:064x}", 1).parse().unwrap(),
        insecure: false,
        name: None,
        indexes: Vec::new(),
        pin: None,
    };
    let of = For::step(&launch);
    let helpers = |system| helpers(Path::new("/nonexistent"), images.registries(), of, system);
    let shown = |helpers: Option<&Helpers>| has_shown(&store, helpers, &image).unwrap();
    assert!(shown(None) && shown(Some(&helpers(false))));
    assert!(!shown(Some(&helpers(true))));
}
