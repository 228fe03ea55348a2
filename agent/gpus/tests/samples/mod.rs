//! What steps use of GPUs: samples by the library, by the counters of parts, and by the kernel.

use super::library;
use super::trees::Recorded;
use berth_gpus::nvml::sampler::Sampler;
use berth_gpus::sample::{Account, ProcessSample};
use berth_gpus::xid::Fatal;
use berth_gpus::{Tree, look};
use berth_model::hardware::GresDevice;
use std::path::Path;
use std::time::Duration;

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
