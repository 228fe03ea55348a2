//! Detection and injection on recorded trees of several drivers, with a library that stands in for NVIDIA's.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod mps;
mod trees;

use berth_gpus::inject::{LIBRARIES, capabilities, specification};
use berth_gpus::nvml::helper::Helper;
use berth_gpus::nvml::sampler::Sampler;
use berth_gpus::sample::{Account, ProcessSample};
use berth_gpus::xid::Fatal;
use berth_gpus::{Found, Tree, drm, look};
use berth_model::hardware::{GresDevice, Vendor};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use trees::{Recorded, sets};

/// Is run in a process of its own by the others.
#[test]
fn asks() {
    if let Some(tree) = std::env::var_os("ASKS") {
        println!();
        berth_gpus::nvml::ask::main(&Tree::at(tree), |_| None, std::io::stdout()).unwrap();
    }
}

/// Builds the stand-in into a directory.
fn library(dir: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standin.c");
    let out = dir.join("libnvidia-ml.so.1");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(&out)
        .arg(source)
        .status();
    assert!(built.unwrap().success());
}

/// Is run in a process of its own, likewise.
#[test]
fn watches() {
    if let Some(tree) = std::env::var_os("WATCHES") {
        println!();
        berth_gpus::nvml::watch::main(&Tree::at(tree), |_| None, std::io::stdin().lock(), std::io::stdout())
            .unwrap();
    }
}

fn sampler(lib: &Path, tree: &Tree, gpus: u32, mode: &str) -> Sampler {
    let exe = std::env::current_exe().unwrap().display().to_string();
    let words = [
        format!("LD_LIBRARY_PATH={}", lib.display()),
        format!("PATH={}:/usr/bin:/bin", lib.display()),
        format!("STANDIN_GPUS={gpus}"),
        format!("STANDIN_MODE={mode}"),
        format!("STANDIN_USE={}", lib.join("use").display()),
        format!("WATCHES={}", tree.path("/").display()),
        exe,
        "--exact".into(),
        "watches".into(),
        "--nocapture".into(),
    ];
    Sampler::new("/usr/bin/env".into(), words.into())
}

const PATIENT: Duration = Duration::from_secs(60);

#[test]
fn one_process_says_again_and_again_what_gpus_and_processes_do() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let recorded = Recorded::debian("535.54.03").gpus(2);
    let tree = recorded.tree();
    let does = |text: &str| std::fs::write(lib.path().join("use"), text).unwrap();
    does("device 0 80 2048\nprocess 0 41 1500 60\nprocess 0 42 500 20\n");
    let mut sampler = sampler(lib.path(), &tree, 2, "ok");
    let sample = sampler.sample(PATIENT).unwrap();
    let [first, second] = &sample.devices[..] else { panic!("{sample:?}") };
    assert_eq!((first.bus.as_str(), first.busy, first.used), ("0000:80:00.0", Some(80), Some(2048 << 20)));
    let process = |pid, mib: u64, busy| ProcessSample { pid, memory: Some(mib << 20), busy: Some(busy) };
    assert_eq!(first.processes, Some(vec![process(41, 1500, 60), process(42, 500, 20)]));
    assert_eq!((second.busy, second.processes.as_deref()), (Some(37), Some(&[][..])));
    let device = GresDevice { uuid: first.uuid.clone(), ..GresDevice::default() };
    assert_eq!(sample.of(&device), Some(first));
    // The driver keeps account of those that have ended, and of the others says less.
    does("device 0 10 2048\nprocess 0 41 1500 -1\naccount 0 42 1000000 2500 80 700\n");
    let sample = sampler.sample(PATIENT).unwrap();
    let first = &sample.devices[0];
    let account = Account { pid: 42, began_us: 1_000_000, took_us: 2_500_000, busy: 80, memory: 700 << 20 };
    assert_eq!((first.ended.as_slice(), first.accounting), (&[account][..], true));
    assert_eq!(first.processes.as_ref().unwrap()[0].busy, Some(0));
    // A driver that hangs is left behind, and takes nobody with it.
    does("hang\n");
    assert!(sampler.sample(Duration::from_millis(300)).unwrap_err().contains("no sample"));
    does("");
    assert_eq!(sampler.sample(PATIENT).unwrap().devices.len(), 2);
}

#[test]
fn what_the_driver_counted_of_a_process_is_told_once_and_never_too_much_at_a_time() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let recorded = Recorded::debian("535.54.03").gpus(2);
    let tree = recorded.tree();
    let accounts = |first: u32, last: u32| -> String {
        (first..=last).map(|n| format!("account 0 {n} {n}000000 1 50 1\n")).collect()
    };
    let does = |text: String| std::fs::write(lib.path().join("use"), text).unwrap();
    let mut sampler = sampler(lib.path(), &tree, 2, "ok");
    let told = |sampler: &mut Sampler| -> Vec<u32> {
        sampler.sample(PATIENT).unwrap().devices[0].ended.iter().map(|account| account.pid).collect()
    };
    does(accounts(1, 1100));
    let glance = sampler.glance(PATIENT).unwrap();
    assert!(
        glance.devices[0].ended.is_empty() && glance.devices[0].processes.is_some(),
        "that is not its business"
    );
    let all = told(&mut sampler);
    assert_eq!((all.len(), all[0], all[1023]), (1024, 1100, 77), "the newest");
    assert!(told(&mut sampler).is_empty());
    does(accounts(2, 1101));
    assert_eq!(told(&mut sampler), [1101]);
    // Another process has one's number; then that one has ended.
    does(format!("process 0 1000 1 1\n{}", accounts(2, 1101)));
    assert!(told(&mut sampler).is_empty());
    does(accounts(2, 1101));
    assert_eq!(told(&mut sampler), [1000]);
}

#[test]
fn parts_are_sampled_with_what_the_driver_says_of_them() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let recorded = Recorded::debian("535.54.03").gpus(1);
    let tree = recorded.tree();
    std::fs::write(lib.path().join("use"), "process 100 41 1500 -1\n").unwrap();
    let sample = sampler(lib.path(), &tree, 1, "mig").sample(PATIENT).unwrap();
    let uuids: Vec<&str> = sample.devices.iter().filter_map(|d| d.uuid.as_deref()).collect();
    assert!(uuids.len() == 2 && uuids.iter().all(|uuid| uuid.starts_with("MIG-")), "{uuids:?}");
    assert_eq!((sample.devices[0].busy, sample.devices[0].processes.as_ref().unwrap().len()), (None, 1));
    // Without a library there is a word instead.
    std::fs::remove_file(lib.path().join("libnvidia-ml.so.1")).unwrap();
    let sample = self::sampler(lib.path(), &tree, 1, "ok").sample(PATIENT).unwrap();
    assert!(sample.devices.is_empty() && sample.trouble.is_some(), "{sample:?}");
}

/// As `nvidia-smi` writes which GPU instances the two parts are.
fn instances(lib: &Path, of: [u32; 2]) {
    let part = |(n, gpu): (usize, u32)| {
        format!(
            "<mig_device><index>{n}</index><gpu_instance_id>{gpu}</gpu_instance_id><compute_instance_id>{n}</compute_instance_id></mig_device>"
        )
    };
    let xml: String = of.into_iter().enumerate().map(part).collect();
    let file = lib.join("nvidia-smi");
    std::fs::write(&file, format!("#!/bin/sh\necho '{xml}'\n")).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn how_busy_parts_are_is_measured_by_their_counters_and_never_made_up() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let recorded = Recorded::debian("535.54.03").gpus(1);
    let tree = recorded.tree();
    let does = |text: &str| std::fs::write(lib.path().join("use"), text).unwrap();
    let told = |sampler: &mut Sampler| -> Vec<(Option<u32>, String)> {
        // Counters are looked at no sooner again.
        std::thread::sleep(Duration::from_millis(250));
        let devices = sampler.sample(PATIENT).unwrap().devices;
        devices.into_iter().map(|seen| (seen.busy, seen.unmeasured.unwrap_or_default())).collect()
    };
    let says = |busy: [Option<u32>; 2]| busy.map(|busy| (busy, String::new())).to_vec();
    instances(lib.path(), [7, 9]);
    let mut watching = sampler(lib.path(), &tree, 1, "gpm");
    does("device 100 0 700\ninstance 7 10\ninstance 9 20\nprocess 100 41 600 -1\n");
    assert_eq!(told(&mut watching), says([None, None]), "there is nothing before it");
    does("device 100 0 700\ninstance 7 64\ninstance 9 0\n");
    assert_eq!(told(&mut watching), says([Some(64), Some(0)]));
    let glance = watching.glance(PATIENT).unwrap();
    assert_eq!((glance.devices[0].busy, glance.devices[0].used), (None, Some(700 << 20)), "memory alone");
    // What the driver does not say is nothing, and no 0.
    does("instance 7 -1\ninstance 9 -2\n");
    for (busy, why) in told(&mut watching) {
        assert!(busy.is_none() && why.contains("do not say it"), "{busy:?} {why}");
    }
    does("instance 9 30\n");
    let now = told(&mut watching);
    assert_eq!((now[0].0, &now[1]), (None, &(Some(30), String::new())), "{now:?}");
    assert!(now[0].1.contains("GPU instance 7 cannot be read"), "{now:?}");
    does("instance 7 80\ninstance 9 30\n");
    assert_eq!(told(&mut watching), says([None, Some(30)]));
    assert_eq!(told(&mut watching), says([Some(80), Some(30)]));
    // Counters of an instance are not those of one of its parts.
    let why = |mode: &str| -> String {
        let now = told(&mut sampler(lib.path(), &tree, 1, mode));
        assert!(now.iter().all(|(busy, why)| busy.is_none() && *why == now[0].1), "{now:?}");
        now[0].1.clone()
    };
    instances(lib.path(), [7, 7]);
    assert!(why("gpm").contains("has 2 parts"), "{}", why("gpm"));
    std::fs::write(lib.path().join("nvidia-smi"), "#!/bin/sh\nexit 9\n").unwrap();
    assert!(why("gpm").contains("nvidia-smi"), "{}", why("gpm"));
    assert!(why("mig").contains("no counters of a GPU's parts"), "{}", why("mig"));
}

#[test]
fn amds_are_sampled_by_the_kernels_files() {
    let tree = Recorded::new();
    tree.amd(1, 128, 0x8300, 1);
    tree.amd(2, 129, 0x4300, 2);
    tree.write("/sys/class/drm/renderD128/device/gpu_busy_percent", "73\n");
    tree.write("/sys/class/drm/renderD128/device/mem_info_vram_used", "1048576\n");
    let gpu = tree.tree().number("/sys/class/kfd/kfd/topology/nodes/1/gpu_id").unwrap();
    tree.write(&format!("/sys/class/kfd/kfd/proc/77/vram_{gpu}"), "4096\n");
    tree.write(&format!("/sys/class/kfd/kfd/proc/78/vram_{gpu}"), "0\n");
    let lib = tempfile::tempdir().unwrap();
    let sample = sampler(lib.path(), &tree.tree(), 0, "ok").sample(PATIENT).unwrap();
    let found = look(&tree.tree(), &Fatal::new(), || panic!("asked"));
    let seen = found.devices.iter().map(|d| sample.of(d).unwrap()).collect::<Vec<_>>();
    assert_eq!((seen[0].busy, seen[0].used, seen[0].processes.as_deref()), (None, None, Some(&[][..])));
    assert_eq!((seen[1].busy, seen[1].used), (Some(73), Some(1 << 20)));
    let process = ProcessSample { pid: 77, memory: Some(4096), busy: None };
    assert_eq!(seen[1].processes.as_deref(), Some(&[process][..]));
}

fn helper(lib: &Path, gpus: u32, mode: &str, seconds: f32) -> Helper {
    // Nothing is recorded below the library.
    helper_of(&Tree::at(lib), lib, gpus, mode, seconds)
}

/// The same, for what the tree has besides.
fn helper_of(tree: &Tree, lib: &Path, gpus: u32, mode: &str, seconds: f32) -> Helper {
    let tree = tree.path("/").display().to_string();
    let exe = std::env::current_exe().unwrap().display().to_string();
    let lib = lib.display();
    let words = [
        format!("LD_LIBRARY_PATH={lib}"),
        format!("PATH={lib}:/usr/bin:/bin"),
        format!("STANDIN_GPUS={gpus}"),
        format!("STANDIN_MODE={mode}"),
        format!("ASKS={tree}"),
        exe,
        "--exact".into(),
        "asks".into(),
        "--nocapture".into(),
    ];
    Helper::new("/usr/bin/env".into(), words.into(), Duration::from_secs_f32(seconds))
}

/// A tree with `gpus` GPUs, and what is found with the library in that mode.
fn found(gpus: u32, mode: &str) -> Found {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let tree = Recorded::debian("535.54.03").gpus(gpus);
    tree.write(
        "/proc/driver/nvidia/capabilities/gpu0/mig/gi7/access",
        "DeviceFileMinor: 66\nDeviceFileMode: 292\n",
    );
    tree.write("/proc/driver/nvidia/capabilities/gpu0/mig/gi7/ci0/access", "DeviceFileMinor: 67\n");
    tree.write("/dev/nvidia-caps/nvidia-cap66", "");
    tree.write("/dev/nvidia-caps/nvidia-cap67", "");
    let smi = "#!/bin/sh\necho '<mig_device><index>0</index><gpu_instance_id>7</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device>'\n";
    let file = lib.path().join("nvidia-smi");
    std::fs::write(&file, smi).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    look(&tree.tree(), &Fatal::new(), || helper(lib.path(), gpus, mode, 60.0).ask())
}

fn faults(found: &Found) -> Vec<&str> {
    found.devices.iter().map(|d| d.fault.as_deref().unwrap_or("")).collect()
}

#[test]
fn gpus_are_found_in_the_order_of_their_addresses() {
    let found = found(2, "links");
    let [first, second] = &found.devices[..] else { panic!("{found:?}") };
    // The library counts from the highest address.
    assert_eq!((first.index, first.bus.as_deref()), (0, Some("0000:70:00.0")));
    assert_eq!(first.uuid.as_deref(), Some("GPU-00000001-0000-0000-0000-000000000000"));
    assert_eq!(first.kind.as_deref(), Some("nvidia_a100-sxm4-40gb"));
    let files: Vec<String> = first.files.iter().map(|f| f.display().into_owned()).collect();
    assert_eq!(files, ["/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]);
    assert_eq!((first.memory, first.numa, &first.cpus[..]), (40960, Some(1), &[16, 17, 18, 19, 40][..]));
    assert_eq!((&first.links[..], &second.links[..], second.index), (&[1][..], &[0][..], 1));
    assert_eq!((faults(&found), first.vendor), (vec!["", ""], Vendor::Nvidia));
    assert_eq!(found.answer.cuda, Some((12, 2)));
    assert_eq!(found.answer.gpus[0].brand.as_deref(), Some("tesla"));
    assert_eq!((found.answer.gpus[0].busy, found.answer.gpus[0].used), (Some(37), Some(1024)));
}

#[test]
fn gpus_on_one_switch_are_one_island_and_those_without_links_are_none() {
    let links = |found: &Found| found.devices.iter().map(|d| d.links.clone()).collect::<Vec<_>>();
    let eight = links(&found(8, "switch"));
    for (at, reached) in (0..8).zip(&eight) {
        assert_eq!(*reached, (0..8).filter(|n| *n != at).collect::<Vec<u32>>());
    }
    assert_eq!(links(&found(2, "ok")), [Vec::<u32>::new(), Vec::new()]);
    assert_eq!(links(&found(4, "links")), [[1], [0], [3], [2]]);
}

#[test]
fn parts_of_a_divided_gpu_are_devices_with_their_own_files() {
    let found = found(2, "mig");
    let kinds: Vec<&str> = found.devices.iter().filter_map(|d| d.kind.as_deref()).collect();
    let part = "nvidia_a100-sxm4-40gb_1g.5gb";
    assert_eq!(kinds, ["nvidia_a100-sxm4-40gb", part, part]);
    let one = &found.devices[1];
    assert!(one.uuid.as_deref().is_some_and(|u| u.starts_with("MIG-")) && one.memory == 4864, "{one:?}");
    let files: Vec<String> = one.files.iter().map(|f| f.display().into_owned()).collect();
    assert!(files.contains(&"/dev/nvidia0".to_string()), "{files:?}");
    assert_eq!(files[files.len() - 2..], ["/dev/nvidia-caps/nvidia-cap66", "/dev/nvidia-caps/nvidia-cap67"]);
    assert_eq!(found.devices.iter().map(|d| d.place).collect::<Vec<_>>(), [Some(0), Some(1), Some(1)]);
    // Nobody knows which files the other one has.
    assert_eq!((one.fault.clone(), found.devices[2].fault.is_some()), (None, true));
}

#[test]
fn what_is_missing_of_a_part_is_named() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let tree = Recorded::debian("535.54.03").gpus(1);
    let fault = || {
        let found = look(&tree.tree(), &Fatal::new(), || helper(lib.path(), 1, "mig", 60.0).ask());
        found.devices[0].fault.clone().unwrap_or_default()
    };
    // In the first place of PATH, and says nothing.
    let smi = lib.path().join("nvidia-smi");
    std::fs::write(&smi, "#!/bin/sh\nexit 9\n").unwrap();
    std::fs::set_permissions(&smi, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(fault().starts_with("neither the driver's library nor nvidia-smi says"), "{}", fault());
    let says = "<mig_device><index>0</index><gpu_instance_id>7</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device>";
    std::fs::write(&smi, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
    let access = "/proc/driver/nvidia/capabilities/gpu0/mig/gi7";
    assert!(fault().starts_with(&format!("{access}/access does not say")), "{}", fault());
    tree.write(&format!("{access}/access"), "DeviceFileMinor: 66\n");
    assert!(
        fault().contains("/dev/nvidia-caps/nvidia-cap66, which belongs to this part, is not there"),
        "{}",
        fault()
    );
    tree.write("/dev/nvidia-caps/nvidia-cap66", "");
    tree.write(&format!("{access}/ci0/access"), "DeviceFileMinor: 67\n");
    tree.write("/dev/nvidia-caps/nvidia-cap67", "");
    assert_eq!(fault(), "");
}

#[test]
fn without_cudas_own_file_no_gpu_is_given_and_it_is_said_how_to_have_it() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let tree = Recorded::debian("535.54.03").gpus(2);
    std::fs::remove_file(tree.tree().path("/dev/nvidia-uvm")).unwrap();
    let found = || look(&tree.tree(), &Fatal::new(), || helper(lib.path(), 2, "ok", 60.0).ask());
    let told = |found: &Found| faults(found).iter().all(|f| f.contains("modprobe nvidia-uvm"));
    assert!(told(&found()), "{:?}", found());
    tree.write("/dev/nvidia-uvm", "");
    assert_eq!(faults(&found()), ["", ""]);
}

#[test]
fn the_file_by_which_screens_are_set_up_is_for_those_who_ask_for_graphics() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let tree = Recorded::debian("535.54.03").gpus(1);
    tree.write("/dev/nvidia-modeset", "");
    let found = look(&tree.tree(), &Fatal::new(), || helper(lib.path(), 1, "ok", 60.0).ask());
    let has = |files: &[berth_model::ByteStr]| files.contains(&"/dev/nvidia-modeset".into());
    assert!(has(&found.devices[0].files), "nobody else opens it");
    for (wanted, expected) in [(None, false), (Some("compute,utility,video"), false), (Some("display"), true)]
    {
        let wanted = capabilities(wanted);
        let mut devices = found.devices.clone();
        drm::narrow(&mut devices, &wanted);
        assert_eq!(has(&devices[0].files), expected, "{wanted:?}");
        assert!(devices[0].files.contains(&"/dev/nvidiactl".into()));
        let own = found.devices[0].files[..1].to_vec();
        assert_eq!(has(&drm::beside(&tree.tree(), &own, &wanted)), expected, "{wanted:?}");
        assert!(!has(&drm::beside(&tree.tree(), &[], &wanted)), "without a GPU words give nothing");
    }
}

#[test]
fn the_files_by_which_a_gpu_draws_are_its_own_and_come_with_graphics_alone() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let tree = Recorded::debian("535.54.03").gpus(3);
    // One that the driver is told to leave alone.
    tree.write(
        "/proc/driver/nvidia/gpus/0000:60:00.0/information",
        "Device Minor: \t 2\nGPU Excluded:\t Yes\n",
    );
    for (bus, number) in [("0000:60:00.0", 3), ("0000:70:00.0", 0), ("0000:80:00.0", 1)] {
        tree.draws(bus, number);
    }
    let text = |files: &[berth_model::ByteStr]| -> Vec<String> {
        files.iter().map(|f| f.display().into_owned()).filter(|f| f.contains("dri")).collect()
    };
    let found = look(&tree.tree(), &Fatal::new(), || helper(lib.path(), 2, "ok", 60.0).ask());
    let of = |index: usize| text(&found.devices[index].files);
    assert_eq!(
        (found.devices.len(), of(0)),
        (2, vec!["/dev/dri/card0".into(), "/dev/dri/renderD128".into()])
    );
    assert_eq!(of(1), ["/dev/dri/card1", "/dev/dri/renderD129"]);
    assert_eq!(found.withheld, ["/dev/dri/card3", "/dev/dri/renderD131"]);
    for (wanted, expected) in
        [(None, 0), (Some("compute,video"), 0), (Some("graphics"), 2), (Some("display"), 2), (Some("all"), 2)]
    {
        let wanted = capabilities(wanted);
        let mut devices = found.devices.clone();
        drm::narrow(&mut devices, &wanted);
        assert_eq!(text(&devices[0].files).len(), expected, "{wanted:?}");
        assert!(devices[0].files.contains(&"/dev/nvidia1".into()), "its other files stay");
        let spec = specification(&found.devices, found.driver.as_ref(), &wanted, "", false);
        let nodes = spec.all_edits().device_nodes;
        assert_eq!(nodes.iter().filter(|node| node.path.contains("dri")).count(), 2 * expected, "{wanted:?}");
        // A container that is started without the agent has devices by their names.
        let own = ["/dev/nvidia1".into(), "/dev/nvidiactl".into()];
        assert_eq!(drm::beside(&tree.tree(), &own, &wanted).len(), expected, "{wanted:?}");
    }
    let part = ["/dev/nvidia1".into(), "/dev/nvidia-caps/nvidia-cap66".into()];
    assert!(drm::beside(&tree.tree(), &part, &capabilities(Some("all"))).is_empty());
    // AMD's have no other files to compute by.
    let mut amd = [GresDevice {
        vendor: Vendor::Amd,
        files: vec!["/dev/dri/renderD9".into()],
        ..GresDevice::default()
    }];
    drm::narrow(&mut amd, &capabilities(None));
    assert_eq!(amd[0].files.len(), 1);
    // Parts cannot draw, and nobody else has what their GPU draws by.
    let found = look(&tree.tree(), &Fatal::new(), || helper(lib.path(), 2, "mig", 60.0).ask());
    let divided = found.devices.iter().filter(|d| d.bus.as_deref() == Some("0000:80:00.0"));
    assert!(divided.clone().count() == 2 && divided.clone().all(|d| text(&d.files).is_empty()), "{found:?}");
    assert!(found.withheld.contains(&"/dev/dri/renderD129".to_string()), "{:?}", found.withheld);
}

#[test]
fn a_gpu_that_is_to_be_divided_and_is_not_is_shown_with_what_to_do() {
    let found = found(2, "undivided");
    let told = faults(&found);
    assert_eq!((told.len(), told[0]), (2, ""));
    assert!(told[1].contains("has no parts") && told[1].contains("nvidia-smi -mig 0"), "{told:?}");
}

#[test]
fn what_is_wrong_fences_the_gpu_or_all_with_the_reason() {
    for (mode, all, said) in [
        ("mismatch", true, "the kernel module is 535.54.03"),
        ("nodriver", true, "no driver is loaded"),
        ("crash", true, "signal: 6"),
        ("lost", false, "fell off the bus"),
        ("ecc", false, "3 uncorrected memory errors"),
    ] {
        let found = found(2, mode);
        let faults = faults(&found);
        assert_eq!(faults.len(), 2, "{mode}");
        assert_eq!(
            faults.iter().filter(|f| f.contains(said)).count(),
            if all { 2 } else { 1 },
            "{mode}: {faults:?}"
        );
        assert!(found.wrong.iter().any(|w| w.contains(said) && w.contains("is fenced")), "{:?}", found.wrong);
        assert_eq!(
            found.mismatch.is_some(),
            mode == "mismatch",
            "of all that fences GPUs this alone fences the node"
        );
        if !all {
            assert_eq!(faults.iter().filter(|f| f.is_empty()).count(), 1, "{mode}: {faults:?}");
        }
    }
}

#[test]
fn a_call_that_hangs_fences_the_gpus_and_not_the_agent() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let tree = Recorded::debian("535.54.03").gpus(1);
    let found = look(&tree.tree(), &Fatal::new(), || helper(lib.path(), 1, "hang", 0.2).ask());
    assert!(faults(&found)[0].contains("did not answer within 0.2 s"), "{found:?}");
}

#[test]
fn a_node_without_a_library_or_with_another_one_says_so() {
    let lib = tempfile::tempdir().unwrap();
    let tree = Recorded::debian("535.54.03").gpus(1);
    let found = look(&tree.tree(), &Fatal::new(), || helper(lib.path(), 1, "ok", 60.0).ask());
    assert!(faults(&found)[0].contains("libnvidia-ml.so.1 is not on the node"), "{found:?}");
    // The package was upgraded under a driver that is still loaded.
    library(lib.path());
    let tree = Recorded::debian("535.54.03").gpus(1);
    tree.driver("/usr/lib/x86_64-linux-gnu", "550.54.14");
    let found = look(&tree.tree(), &Fatal::new(), || helper(lib.path(), 1, "ok", 60.0).ask());
    assert!(faults(&found)[0].contains("module is 535.54.03, libnvidia-ml is 550.54.14"), "{found:?}");
    assert_eq!(found.mismatch.as_deref(), Some(faults(&found)[0]));
    // Without the driver nobody is asked.
    let none = look(&Recorded::new().tree(), &Fatal::new(), || panic!("asked"));
    assert_eq!(none, Found::default());
}

#[test]
fn the_library_is_opened_where_the_driver_is_though_the_loader_does_not_look_there() {
    let (lib, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    library(lib.path());
    let tree = Recorded::new().gpus(1);
    tree.write("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04\n");
    tree.driver("/usr/local/nvidia/lib64", "580.159.04");
    let file = tree.tree().path("/usr/local/nvidia/lib64/libnvidia-ml.so.580.159.04");
    let ask = || helper_of(&tree.tree(), empty.path(), 1, "ok", 60.0).ask();
    // What cannot be loaded is as good as absent.
    let found = look(&tree.tree(), &Fatal::new(), ask);
    assert!(faults(&found)[0].contains("libnvidia-ml.so.1 is not on the node"), "{found:?}");
    std::fs::copy(lib.path().join("libnvidia-ml.so.1"), file).unwrap();
    let found = look(&tree.tree(), &Fatal::new(), ask);
    assert_eq!((faults(&found), found.mismatch.as_deref()), (vec![""], None));
    let gpu = &found.devices[0];
    assert!(gpu.memory > 0 && gpu.uuid.is_some() && found.driver.is_some(), "{gpu:?}");
}

#[test]
fn errors_in_the_kernels_log_and_devices_that_read_as_ones_are_faults() {
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let tree = Recorded::debian("535.54.03").gpus(3);
    tree.bytes("/sys/bus/pci/devices/0000:80:00.0/config", &[0xff; 64]);
    let log = "4,700,12100000,-;NVRM: Xid (PCI:0000:70:00): 79, pid=1, GPU has fallen off the bus.";
    let fatal = berth_gpus::xid::fatal(log);
    let found = look(&tree.tree(), &fatal, || helper(lib.path(), 3, "ok", 60.0).ask());
    let faults = faults(&found);
    assert_eq!(faults[0], "");
    assert!(faults[1].starts_with("Xid 79") && faults[2].starts_with("it fell off"), "{faults:?}");
    // The same without a word of the driver's.
    let by_kernel = |bus: &str| berth_gpus::by_kernel(&tree.tree(), &fatal, bus).unwrap_or_default();
    let of_each = ["0000:60:00.0", "0000:70:00.0", "0000:80:00.0"].map(by_kernel);
    assert_eq!(of_each.each_ref().map(String::as_str), [faults[0], faults[1], faults[2]]);
}

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
fn amds_and_intels_are_found_by_the_kernels_files() {
    let tree = Recorded::new();
    tree.amd(1, 128, 0x8300, 1);
    tree.amd(2, 129, 0x4300, 2);
    tree.write("/sys/class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 64\nsimd_count 0\n");
    tree.write("/dev/kfd", "");
    tree.intel(130, "0000:9a:00.0", 0x0bda);
    tree.intel(131, "0000:00:02.0", 0x4680);
    let found = look(&tree.tree(), &Fatal::new(), || panic!("asked"));
    let [first, second, third] = &found.devices[..] else { panic!("{found:?}") };
    assert_eq!(
        (first.bus.as_deref(), first.kind.as_deref()),
        (Some("0000:43:00.0"), Some("amd_instinct_mi250x"))
    );
    let files = |d: &GresDevice| d.files.iter().map(|f| f.display().into_owned()).collect::<Vec<_>>();
    assert_eq!(files(first), ["/dev/kfd", "/dev/dri/renderD129", "/dev/dri/card1"]);
    assert_eq!((first.memory, &first.links[..], first.vendor), (65520, &[1][..], Vendor::Amd));
    assert_eq!((second.index, &second.links[..]), (1, &[0][..]));
    assert_eq!((third.index, third.kind.as_deref()), (2, Some("intel_max_1100")));
    assert_eq!(
        (files(third), third.vendor),
        (vec!["/dev/dri/renderD130".to_string(), "/dev/dri/card2".into()], Vendor::Intel)
    );
    // Each maker's library counts from 0, Intel's the processor's own graphics, too.
    assert_eq!(found.devices.iter().map(|d| d.place).collect::<Vec<_>>(), [Some(0), Some(1), Some(1)]);
    // One that does not answer is fenced, whoever made it.
    assert_eq!(faults(&found), ["", "", ""]);
    for bus in ["0000:83:00.0", "0000:9a:00.0"] {
        tree.bytes(&format!("/sys/bus/pci/devices/{bus}/config"), &[0xff; 64]);
    }
    let found = look(&tree.tree(), &Fatal::new(), || panic!("asked"));
    let lost = |fault: &&str| fault.starts_with("it fell off the bus");
    assert_eq!(faults(&found).iter().map(lost).collect::<Vec<_>>(), [false, true, true], "{found:?}");
    tree.write("/sys/bus/pci/devices/0000:9a:00.0/power/runtime_status", "suspended\n");
    let found = look(&tree.tree(), &Fatal::new(), || panic!("asked"));
    assert_eq!(faults(&found)[2], "", "one that sleeps is left asleep");
}

#[test]
fn an_amd_with_errors_that_were_not_corrected_is_fenced() {
    let tree = Recorded::new();
    tree.write("/dev/kfd", "");
    tree.amd(1, 128, 0x8300, 1);
    tree.amd(2, 129, 0x4300, 2);
    let ras = |bus: &str, block: &str, text: &str| {
        tree.write(&format!("/sys/bus/pci/devices/{bus}/ras/{block}"), text);
    };
    let lib = tempfile::tempdir().unwrap();
    library(lib.path());
    let found =
        || look(&tree.tree(), &Fatal::new(), || helper_of(&tree.tree(), lib.path(), 0, "ok", 60.0).ask());
    // What was corrected, or waits to be, is no fault.
    ras("0000:43:00.0", "umc_err_count", "ue: 0\nce: 7\nde: 2\n");
    ras("0000:83:00.0", "features", "feature mask: 0x1\n");
    ras("0000:83:00.0", "gfx_err_count", "nonsense\n");
    assert_eq!(faults(&found()), ["", ""]);
    ras("0000:83:00.0", "umc_err_count", "ue: 3\nce: 0\n");
    ras("0000:83:00.0", "sdma_err_count", "ue: 1\nce: 0\n");
    let told = found();
    let told = faults(&told);
    assert_eq!(told[0], "");
    assert!(told[1].contains("1 in sdma, 3 in umc") && told[1].contains("amd-smi reset"), "{told:?}");
    // The driver may hang with its GPU: before a job begins it is not asked, and where it does not answer that is told.
    assert_eq!(berth_gpus::by_kernel(&tree.tree(), &Fatal::new(), "0000:83:00.0"), None);
    let silent = look(&tree.tree(), &Fatal::new(), || Err("it hangs".into()));
    let silent = faults(&silent);
    assert!(silent[0].contains("cannot be read: it hangs") && silent[1].contains("it hangs"), "{silent:?}");
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
