//! What a container that is started without the agent gets with NVIDIA's devices: the driver that is on this machine.

use berth_client::error::Failure;
use berth_gpus::inject::{capabilities, missing, specification};
use berth_gpus::nvml::helper::Helper;
use berth_gpus::require::{Have, Verdict, is_disabled, judge};
use berth_gpus::{Driver, Tree, drm, mps, nvidia};
use berth_model::ByteStr;
use berth_model::gpus::MPS_PIPES;
use berth_model::hardware::{GresDevice, Vendor};
use berth_runtime::{ContainerRequest, ExtraMount, Rootfs};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long the driver may take to say which CUDA it runs, where the image asks.
const DEADLINE: Duration = Duration::from_secs(20);

/// The devices of this machine that work, each with its index and its files; those by which it draws are added where they are wanted
/// ([`inject`]).
///
/// # Errors
/// None is there, or none works: which, and why.
pub fn of_machine() -> Result<Vec<(u32, Vec<ByteStr>)>, String> {
    let program = crate::own_path().map_err(|e| e.to_string());
    let found = berth_gpus::look(&Tree::here(), &berth_gpus::xid::Fatal::new(), || {
        Helper::new(program?, vec!["internal-gpus".to_string()], DEADLINE).ask()
    });
    let mut sound: Vec<GresDevice> = found.devices.into_iter().filter(|d| d.fault.is_none()).collect();
    drm::narrow(&mut sound, &BTreeSet::new());
    let sound: Vec<(u32, Vec<ByteStr>)> = sound.into_iter().map(|d| (d.index, d.files)).collect();
    match sound.is_empty() {
        false => Ok(sound),
        true if found.wrong.is_empty() => Err("this machine has no GPU with a driver that is loaded".into()),
        true => Err(format!("no GPU of this machine works: {}", found.wrong.join("; "))),
    }
}

/// Adds it to a request that has such devices; returns what is to be told of it.
///
/// # Errors
/// The image cannot run with this driver, by its own words.
pub fn inject(request: &mut ContainerRequest) -> Result<Option<String>, Failure> {
    let is_gpu = |file: &ByteStr| {
        let number = file.0.strip_prefix(b"/dev/nvidia");
        number.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit))
    };
    if matches!(request.root, Rootfs::Host | Rootfs::Joined) || !request.devices.iter().any(is_gpu) {
        return Ok(None);
    }
    let tree = Tree::here();
    // Devices of that name without the driver are somebody's own.
    let Some(version) = nvidia::kernel_version(&tree) else { return Ok(None) };
    let driver = Driver::find(&tree, &version).map_err(Failure::user)?;
    let env = || request.image.env.iter().chain(&request.env).map(|pair| pair.0.as_slice());
    let value = |name: &str| {
        let mut found = env().filter_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        found.next_back().map(|value| String::from_utf8_lossy(value).into_owned())
    };
    // In a job its node's, by the job's own variable.
    let pipes = value(mps::VARIABLE).filter(|dir| dir.starts_with('/')).unwrap_or_else(|| MPS_PIPES.into());
    let driver = Driver { mps: mps::find(&tree, &pipes).ok(), ..driver };
    let of_image = || request.image.env.iter().map(|pair| pair.0.as_slice());
    let requires = env().any(|pair| pair.starts_with(b"NVIDIA_REQUIRE_"));
    let verdict = if requires || of_image().any(|pair| pair.starts_with(b"CUDA_VERSION=")) {
        let words = vec!["internal-gpus".to_string()];
        let answer = match Helper::new(crate::own_path()?, words, DEADLINE).ask() {
            Err(why) if requires => {
                let why = format!("the image has requirements of the driver, which cannot be asked: {why}");
                return Err(Failure::user(why));
            }
            // That an image brings some CUDA asks for no answer.
            answer => answer.unwrap_or_default(),
        };
        let first = answer.gpus.first();
        let have = Have {
            cuda: answer.cuda,
            driver: version,
            brand: first.and_then(|gpu| gpu.brand.clone()),
            arch: first.and_then(|gpu| gpu.arch),
        };
        judge(of_image(), env(), &have).map_err(Failure::user)?
    } else {
        Verdict::Runs
    };
    let asked = value("NVIDIA_DRIVER_CAPABILITIES");
    let wanted = capabilities(asked.as_deref());
    let note = missing(asked.as_deref(), &driver);
    let glibc = driver.needs(&wanted).filter(|_| !is_disabled(env()));
    let path = request.image.env.iter().rev().find_map(|pair| pair.0.strip_prefix(b"LD_LIBRARY_PATH="));
    let path = path.map(|path| String::from_utf8_lossy(path).into_owned()).unwrap_or_default();
    let device = GresDevice { vendor: Vendor::Nvidia, ..GresDevice::default() };
    let compat = verdict == Verdict::WithCompat;
    let edits = specification(&[device], Some(&driver), &wanted, &path, compat).all_edits();
    request.glibc = glibc;
    let drawing = drm::beside(&tree, &request.devices, &wanted);
    request.devices.extend(drawing);
    request.image.env.extend(edits.env.iter().map(|pair| ByteStr::from(pair.as_str())));
    for mount in edits.mounts {
        let target = ByteStr::from(mount.container_path.as_str());
        if mount.container_path.contains(".so") {
            request.libraries.push(target.clone());
        }
        let source = ByteStr::from(tree.path(&mount.host_path).as_path());
        request.extra_mounts.push(ExtraMount { source, target, read_only: true });
    }
    Ok(note)
}
