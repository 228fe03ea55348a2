//! Detection, injection and samples on recorded trees of several drivers, with a library that stands in for NVIDIA's.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod libraries;
mod mps;
mod samples;
mod trees;

use berth_gpus::inject::{capabilities, specification};
use berth_gpus::nvml::helper::Helper;
use berth_gpus::xid::Fatal;
use berth_gpus::{Found, Tree, drm, look};
use berth_model::hardware::{GresDevice, Vendor};
use std::path::Path;
use std::time::Duration;
use trees::Recorded;

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
