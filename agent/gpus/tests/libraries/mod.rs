//! What a container gets of a node's driver: the libraries of its very version, where they are, and a cache by which they are found.

use super::trees::{Recorded, sets};
use berth_gpus::inject::{LIBRARIES, capabilities, specification};
use berth_gpus::xid::Fatal;
use berth_gpus::{Found, look};
use berth_model::hardware::{GresDevice, Vendor};
use std::collections::BTreeSet;

fn given(found: &Found, wanted: Option<&str>, path: &str) -> (Vec<String>, Vec<String>) {
    let spec = specification(&found.devices, found.driver.as_ref(), &capabilities(wanted), path, false);
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(berth_gpus::cdi::Spec::parse(&text).unwrap(), spec, "what is made can be read");
    let edits = spec.all_edits();
    (edits.mounts.into_iter().map(|m| format!("{} {}", m.host_path, m.container_path)).collect(), edits.env)
}

#[test]
fn a_container_gets_the_libraries_of_the_drivers_very_version() {
    for (tree, version, dir) in [
        (Recorded::debian("470.256.02"), "470.256.02", "/usr/lib/x86_64-linux-gnu"),
        (Recorded::debian("535.54.03"), "535.54.03", "/usr/lib/x86_64-linux-gnu"),
        (Recorded::open("550.54.14"), "550.54.14", "/usr/lib64"),
        (Recorded::open("570.86.10"), "570.86.10", "/usr/lib64"),
    ] {
        // What an upgrade left behind.
        tree.write(&format!("{dir}/libcuda.so.418.1.1"), "");
        tree.write("/usr/share/vulkan/icd.d/nvidia_icd.json", "{}");
        let found = look(&tree.gpus(1).tree(), &Fatal::new(), || Err("not asked".into()));
        let device = GresDevice { vendor: Vendor::Nvidia, ..GresDevice::default() };
        let found = Found { devices: vec![device], ..found };
        let (mounts, env) = given(&found, None, "/opt/lib");
        let has = |text: String| assert!(mounts.contains(&text), "{version}: {text}: {mounts:?}");
        has(format!("{dir}/libcuda.so.{version} {LIBRARIES}/libcuda.so.1"));
        has(format!("{dir}/libcuda.so.{version} {LIBRARIES}/libcuda.so"));
        has(format!("{dir}/libnvidia-ml.so.{version} {LIBRARIES}/libnvidia-ml.so.1"));
        has(format!("{dir}/libnvidia-ptxjitcompiler.so.{version} {LIBRARIES}/libnvidia-ptxjitcompiler.so.1"));
        has("/usr/bin/nvidia-smi /usr/bin/nvidia-smi".into());
        has(format!("/lib/firmware/nvidia/{version} /lib/firmware/nvidia/{version}"));
        has("/run/nvidia-persistenced/socket /run/nvidia-persistenced/socket".into());
        assert_eq!(env, [format!("LD_LIBRARY_PATH={LIBRARIES}:/opt/lib")]);
        assert!(
            !mounts.iter().any(|m| ["418", "GLX", "encode", "vulkan"].iter().any(|other| m.contains(other))),
            "{mounts:?}"
        );
        let (all, _) = given(&found, Some("all"), "");
        let icd = "/usr/share/vulkan/icd.d/nvidia_icd.json";
        assert!(all.contains(&format!("{icd} {icd}")), "{all:?}");
        assert!(all.iter().any(|m| m.ends_with("libGLX_nvidia.so.0")) && all.len() > mounts.len());
        let (utility, _) = given(&found, Some("utility,nonsense"), "");
        assert!(!utility.iter().any(|m| m.contains("libcuda")), "{utility:?}");
    }
}

/// Each version has libraries that others do not have, and some are named in another way.
#[test]
fn a_container_gets_just_the_libraries_that_a_driver_of_its_version_has() {
    for set in sets::ALL {
        let tree = Recorded::of(set);
        let found = look(&tree.tree(), &Fatal::new(), || Err("not asked".into()));
        let device = GresDevice { vendor: Vendor::Nvidia, ..GresDevice::default() };
        let found = Found { devices: vec![device], ..found };
        let named = |name: &str| name.replace("{}", set.version);
        let brings = |wanted: Option<&str>| -> BTreeSet<String> {
            let (mounts, _) = given(&found, wanted, "");
            let in_libraries = mounts.iter().filter_map(|m| m.split_once(' ')).map(|(_, target)| target);
            in_libraries
                .filter_map(|t| t.strip_prefix(LIBRARIES)?.strip_prefix('/'))
                .map(String::from)
                .collect()
        };
        let expected = |all: bool| -> BTreeSet<String> {
            let mut names = BTreeSet::from(["libcuda.so".to_string()]);
            for library in set.libraries.iter().filter(|library| all || library.given) {
                names.insert(named(library.file));
                names.extend(Some(named(library.link)).filter(|link| !link.is_empty()));
            }
            names
        };
        assert_eq!(brings(None), expected(false), "{}", set.version);
        assert_eq!(brings(Some("all")), expected(true), "{}", set.version);
        let (mounts, _) = given(&found, None, "");
        let firmware = format!("/lib/firmware/nvidia/{0} /lib/firmware/nvidia/{0}", set.version);
        assert!(mounts.contains(&firmware), "{mounts:?}");
    }
}

/// An upgrade left the compiler's library of another driver, to which the link leads.
#[test]
fn a_library_of_another_driver_is_not_taken_for_one_with_a_version_of_its_own() {
    let tree = Recorded::of(&sets::R470);
    let link = tree.tree().path("/usr/lib/x86_64-linux-gnu/libnvidia-nvvm.so.4");
    std::fs::remove_file(&link).unwrap();
    tree.write("/usr/lib/x86_64-linux-gnu/libnvidia-nvvm.so.470.1.1", "");
    std::os::unix::fs::symlink("libnvidia-nvvm.so.470.1.1", &link).unwrap();
    let found = look(&tree.tree(), &Fatal::new(), || Err("not asked".into()));
    let libraries = found.driver.unwrap().libraries;
    assert!(!libraries.iter().any(|l| l.path.contains("nvvm")), "{libraries:?}");
}

/// The head of an ELF file: of 64 bits for x86-64 and ARM's, or of 32.
fn elf(class: u8, machine: u8) -> Vec<u8> {
    let mut head = b"\x7fELF\0\x01\x01".to_vec();
    head[4] = class;
    head.resize(18, 0);
    head.extend([machine, 0]);
    head.resize(64, 0);
    head
}

/// Packages of 32 bits have the same names, and are found first here: by the loader's cache, and by a link to a version of its own.
#[test]
fn libraries_of_32_bits_are_for_those_who_ask_and_never_taken_for_the_others() {
    use berth_model::ldcache::{Entry, narrow_flags, native_flags, write};
    let native = if cfg!(target_arch = "aarch64") { elf(2, 183) } else { elf(2, 62) };
    let version = "535.54.03";
    let tree = Recorded::debian(version);
    let dir = "/usr/lib/x86_64-linux-gnu";
    for name in ["libcuda", "libnvidia-ml"] {
        tree.bytes(&format!("{dir}/{name}.so.{version}"), &native);
    }
    let device = GresDevice { vendor: Vendor::Nvidia, ..GresDevice::default() };
    let mounts = |wanted: &str| {
        let found = look(&tree.tree(), &Fatal::new(), || Err("not asked".into()));
        let found = Found { devices: vec![device.clone()], ..found };
        let note = berth_gpus::inject::missing(Some(wanted), found.driver.as_ref().unwrap());
        let (mounts, env) = given(&found, Some(wanted), "");
        (mounts, env, note)
    };
    // A node without any says so to whoever asks for them, and to nobody else.
    let note = mounts("compute,compat32").2.unwrap();
    assert!(note.contains("compat32") && note.contains(version), "{note}");
    assert_eq!((mounts("all").2, mounts("compute").2), (None, None));
    // Where the loader's cache says, beside the others, and in a directory that both have.
    for name in ["libcuda", "libnvidia-ml", "libnvidia-encode"] {
        tree.bytes(&format!("/opt/both/{name}.so.{version}"), &elf(1, 3));
    }
    tree.bytes("/opt/both/libnvidia-egl-gbm.so.1", &elf(1, 3));
    tree.bytes(&format!("{dir}/libnvidia-egl-gbm.so.1"), &native);
    let entry = |flags| Entry {
        flags,
        name: "libcuda.so.1".into(),
        path: "/opt/both/libcuda.so.1".into(),
        os: 0,
        hwcap: 0,
    };
    tree.bytes("/etc/ld.so.cache", &write(&[entry(native_flags()), entry(narrow_flags())]));
    let (all, env, _) = mounts("compute,graphics");
    assert!(!all.iter().any(|m| m.contains("/opt/both") || m.contains("/usr/local/nvidia/lib/")), "{all:?}");
    for name in [format!("libcuda.so.{version}"), "libnvidia-egl-gbm.so.1".into()] {
        assert!(all.contains(&format!("{dir}/{name} {LIBRARIES}/{name}")), "{name}: {all:?}");
    }
    assert_eq!(env, [format!("LD_LIBRARY_PATH={LIBRARIES}")]);
    if cfg!(target_arch = "x86_64") {
        let (all, env, note) = mounts("compute,compat32");
        let has = |line: String| assert!(all.contains(&line), "{line}: {all:?}");
        has(format!("/opt/both/libcuda.so.{version} /usr/local/nvidia/lib/libcuda.so.1"));
        has(format!("{dir}/libcuda.so.{version} {LIBRARIES}/libcuda.so.1"));
        assert!(
            !all.iter().any(|m| m.contains("encode") || m.contains("-ml")),
            "not what nobody asked for: {all:?}"
        );
        assert_eq!((env, note), (vec![format!("LD_LIBRARY_PATH={LIBRARIES}:/usr/local/nvidia/lib")], None));
    }
}

#[test]
fn an_images_own_newer_libraries_come_first_where_it_allows_the_older_driver() {
    let found = look(&Recorded::of(&sets::R535).tree(), &Fatal::new(), || Err("not asked".into()));
    let device = [GresDevice { vendor: Vendor::Nvidia, ..GresDevice::default() }];
    let path = |compat| {
        let spec = specification(&device, found.driver.as_ref(), &capabilities(None), "/opt/lib", compat);
        spec.all_edits().env
    };
    assert_eq!(path(true), [format!("LD_LIBRARY_PATH=/usr/local/cuda/compat:{LIBRARIES}:/opt/lib")]);
    assert_eq!(path(false), [format!("LD_LIBRARY_PATH={LIBRARIES}:/opt/lib")]);
}

#[test]
fn without_devices_of_nvidia_nothing_of_its_driver_comes() {
    let found =
        look(&Recorded::debian("535.54.03").gpus(1).tree(), &Fatal::new(), || Err("not asked".into()));
    let other = Found { devices: vec![GresDevice { vendor: Vendor::Amd, ..GresDevice::default() }], ..found };
    assert_eq!(given(&other, Some("all"), ""), (Vec::new(), Vec::new()));
}

#[test]
fn a_driver_without_its_cuda_library_is_told() {
    let tree = Recorded::debian("535.54.03").gpus(1);
    std::fs::remove_file(tree.tree().path("/usr/lib/x86_64-linux-gnu/libcuda.so.535.54.03")).unwrap();
    let found = look(&tree.tree(), &Fatal::new(), || Err("not asked".into()));
    assert!(found.driver.is_none() && found.wrong[0].contains("libcuda.so.535.54.03"), "{:?}", found.wrong);
    // Who wants to compute is not started, and who looks or tries is told.
    let why = found.lacking.unwrap();
    let started = |wanted: Option<&str>, tries| {
        berth_gpus::inject::without_driver(&why, &capabilities(wanted), tries).map_err(|refused| {
            assert!(refused.contains(&why) && refused.contains("NVIDIA_DISABLE_REQUIRE=1"), "{refused}");
        })
    };
    assert!(started(None, false).is_err() && started(Some("utility,graphics"), false).is_err());
    assert!(started(None, true).is_ok_and(|note| note.contains(&why)));
    assert!(started(Some("utility"), false).is_ok_and(|note| note.contains(&why)));
    assert_eq!(
        look(&Recorded::debian("535.54.03").tree(), &Fatal::new(), || Err("not asked".into())).lacking,
        None
    );
}

#[test]
fn the_loader_itself_reads_a_cache_that_was_written() {
    use berth_model::ldcache::{Entry, native_flags, parse, write};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cache");
    let own = std::fs::read("/etc/ld.so.cache").ok().and_then(|bytes| parse(&bytes).ok()).unwrap_or_default();
    let path = format!("{LIBRARIES}/libcuda.so.1");
    let more = Entry {
        flags: native_flags(),
        name: "libcuda.so.1".into(),
        path: path.clone().into(),
        os: 0,
        hwcap: 0,
    };
    std::fs::write(&file, write(&own.into_iter().chain([more]).collect::<Vec<_>>())).unwrap();
    // Not every machine has the program.
    let Ok(out) = std::process::Command::new("/sbin/ldconfig").arg("-p").arg("-C").arg(&file).output() else {
        return;
    };
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find(|l| l.contains("libcuda.so.1")).unwrap_or_default();
    assert!(line.ends_with(&path), "{line}: {text}");
}
