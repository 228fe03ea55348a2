//! What the planner promises, by example and by property.

use super::*;
use crate::request::{ExtraMount, ImageConfig};
use berth_model::spec::{Identity, MountSpec};
use berth_model::{Gid, Uid};
use proptest::prelude::*;

fn request() -> ContainerRequest {
    let identity = Identity {
        uid: Uid(1000),
        gid: Gid(1000),
        groups: vec![Gid(20), Gid(1000), Gid(20)],
        user: "ann".into(),
        group: "ann".into(),
        home: "/home/ann".into(),
        shell: "/bin/bash".into(),
    };
    let root = Rootfs::Overlay { layers: vec!["/l/2".into(), "/l/1".into()], owner: None };
    ContainerRequest::new(root, identity, "/work".into())
}

fn facts(privileged: bool) -> HostFacts {
    let uid = if privileged { 0 } else { 1000 };
    HostFacts { privileged, uid, kernel: (6, 18), hostname: "node1".into(), ..HostFacts::default() }
}

fn env<'a>(plan: &'a Plan, name: &str) -> Option<(&'a [u8], Origin)> {
    plan.env.iter().find(|v| v.name.0 == name.as_bytes()).map(|v| (v.value.0.as_slice(), v.origin))
}

#[test]
fn one_id_is_mapped_for_users_and_all_groups_by_root() {
    let user = plan(&request(), &facts(false)).unwrap();
    assert_eq!(user.gid_map.len(), 1);
    let system = plan(&request(), &facts(true)).unwrap();
    assert_eq!(system.gid_map, [1000, 20].map(|g| IdMap::of_one(g, g)));
    assert!(system.confinement.no_new_privs && system.confinement.seccomp && !system.confinement.fake_ids);
}

#[test]
fn another_users_container_needs_root() {
    let mut r = request();
    r.identity.uid = Uid(1001);
    assert_eq!(plan(&r, &facts(false)), Err(PlanError::OtherUser { uid: 1000, wanted: 1001 }));
    assert!(plan(&r, &facts(true)).is_ok());
}

#[test]
fn the_images_user_is_read_and_noted() {
    let mut r = request();
    r.image.user = Some("app".into());
    assert!(plan(&r, &facts(false)).unwrap().notes[0].contains("USER app"));
    r.image.user = Some("99999999999".into());
    let error = plan(&r, &facts(false)).unwrap_err().to_string();
    assert!(error.contains("USER '99999999999'") && error.contains("4294967294"), "{error}");
}

#[test]
fn images_have_as_many_layers_as_two_overlays_take() {
    for (kernel, most) in [((6, 18), 999), ((6, 8), 999), ((6, 7), 399)] {
        let facts = HostFacts { kernel, ..facts(true) };
        let of = |count: usize| {
            let layers = (0..count).map(|n| format!("/l/{n}").into()).collect();
            let root = Rootfs::Overlay { layers, owner: None };
            plan(&ContainerRequest { root, ..request() }, &facts)
        };
        assert!(of(most).is_ok());
        assert_eq!(of(most + 1), Err(PlanError::TooManyLayers { count: most + 1, most }));
    }
}

#[test]
fn precedence_of_the_environment() {
    let mut r = request();
    let words = ["A=image", "HOME=/image", "NVIDIA_IMEX_CHANNELS=0", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=100"];
    r.image = ImageConfig { env: words.map(Into::into).to_vec(), ..ImageConfig::default() };
    r.env = [
        "A=mine",
        "SLURM_JOB_ID=5",
        "NVIDIA_IMEX_CHANNELS=3",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=30",
        "XDG_RUNTIME_DIR=/run/user/1000",
        "BASH_FUNC_f%%=() {\n}",
        "=x",
        "novalue",
    ]
    .map(Into::into)
    .to_vec();
    let p = plan(&r, &facts(false)).unwrap();
    assert_eq!(env(&p, "A"), Some((&b"image"[..], Origin::Image)));
    assert_eq!(env(&p, "HOME"), Some((&b"/home/ann"[..], Origin::Berth)));
    assert_eq!(env(&p, "SLURM_JOB_ID"), Some((&b"5"[..], Origin::Job)));
    assert_eq!(env(&p, "NVIDIA_IMEX_CHANNELS"), Some((&b"3"[..], Origin::Job)));
    assert_eq!(env(&p, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"), Some((&b"30"[..], Origin::Job)));
    assert_eq!(env(&p, "XDG_RUNTIME_DIR"), None);
    assert_eq!(env(&p, "BASH_FUNC_f%%"), Some((&b"() {\n}"[..], Origin::Submitter)));
    r.container_env = vec!["A".into(), "ABSENT".into()];
    let p = plan(&r, &facts(false)).unwrap();
    assert_eq!(env(&p, "A"), Some((&b"mine"[..], Origin::ContainerEnv)));
    r.container_env = vec!["A=B".into()];
    assert!(matches!(plan(&r, &facts(false)), Err(PlanError::EnvName(_))));
    r.container_env.clear();
    r.image.env.push("broken".into());
    assert!(matches!(plan(&r, &facts(false)), Err(PlanError::EnvFormat { .. })));
}

#[test]
fn no_container_option_goes_unheard_without_an_image() {
    let set: [fn(&mut ContainerRequest); 7] = [
        |r| r.mounts.push(MountSpec { source: "/a".into(), target: "/a".into(), flags: vec![] }),
        |r| r.mount_home = true,
        |r| r.remap_root = true,
        |r| r.writable = Some(true),
        |r| r.writable = Some(false),
        |r| r.entrypoint = true,
        |r| r.container_env.push("A".into()),
    ];
    for set in set {
        for privileged in [false, true] {
            let mut r = request();
            r.root = Rootfs::Host;
            set(&mut r);
            assert!(matches!(plan(&r, &facts(privileged)), Err(PlanError::NeedsImage { .. })));
        }
    }
}

#[test]
fn a_host_step_is_not_confined() {
    let mut r = request();
    r.root = Rootfs::Host;
    r.extra_mounts = vec![ExtraMount { source: "/j/tmp".into(), target: "/tmp".into(), read_only: false }];
    let system = plan(&r, &facts(true)).unwrap();
    assert_eq!(system.confinement, Confinement::default());
    assert_eq!((system.namespaces.user, system.namespaces.pid), (Ns::Node, Ns::Own));
    assert!(system.namespaces.mount);
    assert_eq!(env(&system, "TMPDIR"), Some((&b"/tmp"[..], Origin::Berth)));
    let user = plan(&r, &facts(false)).unwrap();
    assert_eq!(user.namespaces, Namespaces::default());
    assert_eq!(user.notes.len(), 1);
}

#[test]
fn what_is_mounted_below_tmp_is_mounted_after_it() {
    let mount = |source: &str, target: &str| ExtraMount {
        source: source.into(),
        target: target.into(),
        read_only: true,
    };
    let targets = |extra: Vec<ExtraMount>| {
        let request = ContainerRequest { extra_mounts: extra, writable: Some(false), ..request() };
        let mounts = plan(&request, &facts(true)).unwrap().mounts;
        let targets = mounts.into_iter().map(|mount| mount.target.display().into_owned());
        targets.filter(|target| target.starts_with("/tmp")).collect::<Vec<String>>()
    };
    let pipes = || mount("/tmp/nvidia-mps", "/tmp/nvidia-mps");
    assert_eq!(targets(vec![pipes()]), ["/tmp", "/tmp/nvidia-mps"]);
    assert_eq!(targets(vec![mount("/j/tmp", "/tmp"), pipes()]), ["/tmp", "/tmp/nvidia-mps"]);
}

#[test]
fn a_plan_is_stored_and_printed_whole() {
    let mut r = request();
    r.mounts.push(MountSpec { source: "./d".into(), target: "/d".into(), flags: vec!["ro".into()] });
    let p = plan(&r, &facts(true)).unwrap();
    let text = serde_json::to_string(&p).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), p);
    let shown = p.to_string();
    assert!(shown.contains("mount: /d <- rbind /work/d [ro,nosuid,nodev] (--container-mounts)"), "{shown}");
    assert!(shown.contains("env: HOME=/home/ann (Berth)"), "{shown}");
}

#[test]
fn missing_sources_devices_and_names() {
    let mut r = request();
    r.mounts.push(MountSpec { source: "./d/../e".into(), target: "/d".into(), flags: vec![] });
    let mut f = facts(false);
    f.missing_sources.insert("/work/e".into());
    assert_eq!(plan(&r, &f), Err(PlanError::MountSourceMissing("/work/e".into())));
    let mut r = request();
    r.devices = vec!["/dev/../etc".into()];
    assert!(matches!(plan(&r, &facts(false)), Err(PlanError::Path { .. })));
    let mut r = request();
    r.hostname = Some("a b".into());
    assert!(matches!(plan(&r, &facts(false)), Err(PlanError::Hostname(_))));
    let mut r = request();
    r.identity.user = "a:0:0".into();
    assert!(matches!(plan(&r, &facts(false)), Err(PlanError::UserName(_))));
}

fn any_mount() -> impl Strategy<Value = MountSpec> {
    let path = "(/|\\./|)[a-z./]{0,12}|tmpfs|umount";
    let flag =
        "ro|rw|rbind|bind|nodev|size=[0-9a-z]{0,3}|mode=[0-9]{0,5}|x-create=(dir|file|auto)|[a-z=]{0,8}";
    (path, "(/|)[a-z./]{0,12}", proptest::collection::vec(flag, 0..4)).prop_map(|(source, target, flags)| {
        MountSpec { source: source.as_str().into(), target: target.as_str().into(), flags }
    })
}

proptest! {
    #[test]
    fn no_planned_target_is_relative_or_climbs(mounts in proptest::collection::vec(any_mount(), 0..4), privileged in any::<bool>()) {
        let mut r = request();
        r.mounts = mounts;
        if let Ok(p) = plan(&r, &facts(privileged)) {
            for m in &p.mounts {
                prop_assert_eq!(m.target.0.first(), Some(&b'/'));
                prop_assert!(m.target.0 != b"/");
                let climbs = m.target.0.split(|b| *b == b'/').any(|part| part == b"..");
                prop_assert!(!climbs);
            }
        }
    }

    #[test]
    fn the_same_request_gives_the_same_plan(env in proptest::collection::vec(".{0,20}", 0..10)) {
        let mut r = request();
        r.env = env.iter().map(|e| e.as_str().into()).collect();
        let (a, b) = (plan(&r, &facts(true)).unwrap(), plan(&r, &facts(true)).unwrap());
        prop_assert_eq!(&a, &b);
        // No name twice, no zero byte: what the kernel would misread.
        let mut names: Vec<_> = a.env.iter().map(|v| &v.name.0).collect();
        let count = names.len();
        names.dedup();
        prop_assert_eq!(names.len(), count);
        prop_assert!(a.env.iter().all(|v| !v.name.0.is_empty() && !v.name.0.contains(&b'=') && !v.value.0.contains(&0)));
    }
}

/// `docs/containers.md` lists the variables that are treated apart: exactly those of the code.
#[test]
fn the_page_lists_the_variables_as_they_are() {
    use super::env::{DEFAULT_PATH, JOB_NAMES, JOB_PREFIXES, NOT_INHERITED};
    let page = include_str!("../../../docs/containers.md");
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_string).collect::<Vec<_>>();
    let row = |origin: &str| page.lines().find(|l| l.contains(&format!("| {origin} |"))).unwrap().to_string();
    let start = page.find("Not inherited from the submitter").unwrap();
    let list = &page[start..start + page[start..].find("`/run/berth/bin`").unwrap()];
    let mut stay: Vec<String> = quoted(list);
    stay.retain(|name| name != "--container-env");
    assert_eq!(stay, NOT_INHERITED);
    assert_eq!(quoted(&row("job")), [JOB_PREFIXES, JOB_NAMES].concat());
    assert!(quoted(&row("image")).contains(&DEFAULT_PATH.to_string()));
}
