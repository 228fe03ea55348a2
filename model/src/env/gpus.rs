//! The variables by which programs find their GPUs: Slurm's, and what the vendors' libraries read.

use super::{Devices, count, join};
use crate::bind::gpu::GpuHow;
use crate::bytes::ByteStr;
use crate::devices::{MPS, SHARD, is_share};
use crate::hardware::{GresDevice, Vendor};
use crate::ids::StepId;
use crate::launch::{NodeShare, StepLaunch};

/// Whether a device is a GPU, or a part of one.
pub fn is_gpu(device: &GresDevice) -> bool {
    device.name == crate::devices::GPU || is_share(&device.name)
}

/// The GPUs of a share, in the order in which programs see them.
pub fn of_share(share: &NodeShare) -> Vec<&GresDevice> {
    share.gres.iter().filter(|device| is_gpu(device)).collect()
}

/// Whether each task of the step is told of its own GPUs.
pub fn per_task(launch: &StepLaunch) -> bool {
    let bound = launch.gpu_bind.as_ref().is_some_and(|bind| bind.how != GpuHow::None);
    bound
        && matches!(launch.key.step, StepId::Number(_))
        && launch.enter.is_none()
        && launch.receive.is_none()
}

/// What is the same for all tasks of a step on one node.
pub(super) fn of_step(launch: &StepLaunch, devices: Devices) -> Vec<(String, ByteStr)> {
    let mut env: Vec<(String, ByteStr)> = Vec::new();
    let mut set = |name: &str, value: String| env.push((name.to_string(), ByteStr::from(value)));
    let indices = |gpus: &[&GresDevice]| join(&gpus.iter().map(|gpu| gpu.index).collect::<Vec<u32>>());
    let (job, own) = (of_share(&launch.job.share), of_share(&launch.share));
    if !job.is_empty() {
        set("SLURM_JOB_GPUS", indices(&job));
    }
    if own.is_empty() {
        return env;
    }
    let shards: u64 = own.iter().filter(|gpu| gpu.name == SHARD).map(|gpu| u64::from(gpu.shares)).sum();
    if shards > 0 {
        set("SLURM_SHARDS_ON_NODE", shards.to_string());
    }
    // MPS's server holds its client to it.
    if let Some(part) = own.iter().find(|gpu| gpu.name == MPS) {
        set("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", part.shares.to_string());
    }
    set("SLURM_GPUS_ON_NODE", own.len().to_string());
    if launch.key.step != StepId::Batch {
        set("SLURM_STEP_GPUS", indices(&own));
    }
    // Whatever an image or a user says of channels: the job has this one.
    if let Some(channel) =
        launch.job.imex_channel.filter(|_| own.iter().any(|gpu| gpu.vendor == Vendor::Nvidia))
    {
        set("NVIDIA_IMEX_CHANNELS", channel.to_string());
    }
    if !per_task(launch) {
        let all: Vec<u32> = (0..count_of(&own)).collect();
        env.extend(visible(launch, devices, &all));
    }
    env
}

fn count_of(gpus: &[&GresDevice]) -> u32 {
    count(&gpus.iter().map(|gpu| gpu.index).collect::<Vec<u32>>())
}

/// What the libraries of vendors read: the GPUs at these places of the step's own. Each library counts those of its vendor alone: where a
/// step or task sees only its own devices, from 0, and where it sees the node's, by their places there.
pub fn visible(launch: &StepLaunch, devices: Devices, places: &[u32]) -> Vec<(String, ByteStr)> {
    let own = of_share(&launch.share);
    let chosen: Vec<(usize, &GresDevice)> = places
        .iter()
        .filter_map(|at| {
            let gpu = *own.get(*at as usize)?;
            let seen = |place: &usize| {
                let mine = || places.iter().any(|own| *own as usize == *place);
                own[*place].vendor == gpu.vendor && (devices != Devices::OfTask || mine())
            };
            let before = (0..*at as usize).filter(seen).count();
            Some((before, gpu))
        })
        .collect();
    let list = |vendor: Vendor, unique: bool| {
        let mine = chosen.iter().filter(|(_, gpu)| gpu.vendor == vendor);
        let word = mine.map(|(before, gpu)| match (&gpu.uuid, devices) {
            // A slice of a GPU has no number that the libraries know.
            (Some(uuid), _) if unique || uuid.starts_with("MIG-") => uuid.clone(),
            (_, Devices::Confined | Devices::OfTask) => before.to_string(),
            // Its library does not count by addresses, and knows it by this.
            (Some(uuid), Devices::Open) if vendor == Vendor::Amd => uuid.clone(),
            (_, Devices::Open) => gpu.place.unwrap_or(gpu.index).to_string(),
        });
        word.collect::<Vec<_>>().join(",")
    };
    let chosen_of = |vendor: Vendor| chosen.iter().filter(|(_, gpu)| gpu.vendor == vendor).count();
    // It is about those that ROCR_VISIBLE_DEVICES has left.
    let ordinals =
        |vendor: Vendor| (0..chosen_of(vendor)).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    // Not all that are seen are meant: the library has to count as we do.
    let counts = |vendor: Vendor| match devices {
        Devices::Open => true,
        Devices::Confined => chosen_of(vendor) < own.iter().filter(|gpu| gpu.vendor == vendor).count(),
        Devices::OfTask => false,
    };
    let mut env: Vec<(String, ByteStr)> = Vec::new();
    for vendor in [Vendor::Generic, Vendor::Nvidia, Vendor::Amd, Vendor::Intel] {
        if chosen.iter().all(|(_, gpu)| gpu.vendor != vendor) {
            continue;
        }
        let names: &[&str] = match vendor {
            // Nobody knows what reads it.
            Vendor::Generic => &VISIBLE,
            Vendor::Nvidia => &["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NV_GPU"],
            Vendor::Amd => &["GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES"],
            Vendor::Intel => &["ZE_AFFINITY_MASK"],
        };
        for name in names {
            if env.iter().any(|(there, _)| there == name) {
                continue;
            }
            let value = match *name {
                "GPU_DEVICE_ORDINAL" => ordinals(vendor),
                name => list(vendor, name == "NVIDIA_VISIBLE_DEVICES"),
            };
            env.push((name.to_string(), ByteStr::from(value)));
        }
        let order = match vendor {
            Vendor::Nvidia => Some(("CUDA_DEVICE_ORDER", "PCI_BUS_ID")),
            Vendor::Intel => Some(("ZE_ENABLE_PCI_ID_DEVICE_ORDER", "1")),
            Vendor::Amd | Vendor::Generic => None,
        };
        env.extend(
            order.filter(|_| counts(vendor)).map(|(name, value)| (name.to_string(), ByteStr::from(value))),
        );
    }
    env
}

/// Names of all variables that libraries of vendors read.
pub const VISIBLE: [&str; 6] = [
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "NVIDIA_VISIBLE_DEVICES",
    "NV_GPU",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Attempt, JobId, StepKey};

    fn launch(gpus: &[GresDevice]) -> StepLaunch {
        let key = StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Number(0) };
        let mut launch = super::super::tests::minimal();
        launch.key = key;
        launch.share.gres = gpus.to_vec();
        launch.job.share.gres = gpus.to_vec();
        launch
    }

    fn gpu(index: u32, vendor: Vendor, uuid: &str) -> GresDevice {
        let uuid = (!uuid.is_empty()).then(|| uuid.to_string());
        GresDevice { name: "gpu".into(), index, vendor, uuid, ..GresDevice::default() }
    }

    fn told(launch: &StepLaunch, devices: Devices) -> String {
        let all = of_step(launch, devices);
        let own = all.iter().filter(|(name, _)| VISIBLE.contains(&name.as_str()));
        own.map(|(name, value)| format!("{name}={} ", value.display())).collect()
    }

    #[test]
    fn where_all_of_the_nodes_are_seen_each_library_is_told_as_it_counts() {
        let at = |place: u32, gpu: GresDevice| GresDevice { place: Some(place), ..gpu };
        let mixed = launch(&[
            at(1, gpu(1, Vendor::Nvidia, "GPU-b")),
            at(0, gpu(2, Vendor::Amd, "GPU-00a1")),
            at(2, gpu(4, Vendor::Amd, "")),
            at(1, gpu(5, Vendor::Intel, "")),
        ]);
        assert_eq!(
            told(&mixed, Devices::Open),
            "CUDA_VISIBLE_DEVICES=1 NVIDIA_VISIBLE_DEVICES=GPU-b NV_GPU=1 GPU_DEVICE_ORDINAL=0,1 \
             ROCR_VISIBLE_DEVICES=GPU-00a1,2 ZE_AFFINITY_MASK=1 "
        );
        let all = of_step(&mixed, Devices::Open);
        for (name, value) in [("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("ZE_ENABLE_PCI_ID_DEVICE_ORDER", "1")] {
            assert!(all.contains(&(name.to_string(), ByteStr::from(value))), "{name}: {all:?}");
        }
        // Who sees just the own ones counts them in any order.
        let all = of_step(&mixed, Devices::Confined);
        assert!(!all.iter().any(|(name, _)| name.ends_with("_ORDER")), "{all:?}");
        // A task is told of its own, and the ordinals begin anew for it.
        let all = visible(&mixed, Devices::Open, &[2]);
        let said: Vec<String> =
            all.iter().map(|(name, value)| format!("{name}={}", value.display())).collect();
        assert_eq!(said, ["GPU_DEVICE_ORDINAL=0", "ROCR_VISIBLE_DEVICES=2"]);
        // Devices that an earlier version found have no place.
        let earlier = launch(&[gpu(2, Vendor::Nvidia, "GPU-b")]);
        assert!(told(&earlier, Devices::Open).starts_with("CUDA_VISIBLE_DEVICES=2 "));
    }

    #[test]
    fn each_vendors_library_is_told_of_its_own() {
        let two =
            launch(&[gpu(2, Vendor::Nvidia, "GPU-b"), gpu(4, Vendor::Amd, ""), gpu(5, Vendor::Amd, "")]);
        assert_eq!(
            told(&two, Devices::Confined),
            "CUDA_VISIBLE_DEVICES=0 NVIDIA_VISIBLE_DEVICES=GPU-b NV_GPU=0 GPU_DEVICE_ORDINAL=0,1 ROCR_VISIBLE_DEVICES=0,1 "
        );
        let slice = launch(&[gpu(0, Vendor::Nvidia, "MIG-x")]);
        // A task whose own GPUs alone open counts those alone, and of each maker from 0.
        let mixed =
            launch(&[gpu(0, Vendor::Nvidia, ""), gpu(1, Vendor::Amd, ""), gpu(2, Vendor::Nvidia, "")]);
        let of_task = |devices| {
            let all = visible(&mixed, devices, &[1, 2]);
            let value =
                |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.display().into_owned());
            (value("CUDA_VISIBLE_DEVICES"), value("ROCR_VISIBLE_DEVICES"))
        };
        assert_eq!(of_task(Devices::Confined), (Some("1".into()), Some("0".into())));
        let value = |name: &str| {
            let all = visible(&mixed, Devices::Confined, &[1, 2]);
            all.iter().find(|(n, _)| n == name).map(|(_, v)| v.display().into_owned())
        };
        // Of what ROCR_VISIBLE_DEVICES has left, and in the order by which it was counted.
        assert_eq!(value("GPU_DEVICE_ORDINAL").as_deref(), Some("0"));
        assert_eq!(value("CUDA_DEVICE_ORDER").as_deref(), Some("PCI_BUS_ID"));
        assert_eq!(of_task(Devices::OfTask), (Some("0".into()), Some("0".into())));
        assert!(told(&slice, Devices::Confined).starts_with("CUDA_VISIBLE_DEVICES=MIG-x "));
        assert_eq!(told(&launch(&[gpu(1, Vendor::Intel, "")]), Devices::Confined), "ZE_AFFINITY_MASK=0 ");
        let part = GresDevice { name: SHARD.into(), shares: 2, ..gpu(3, Vendor::Nvidia, "GPU-d") };
        let all = of_step(&launch(&[part]), Devices::Confined);
        assert!(all.contains(&("SLURM_SHARDS_ON_NODE".into(), "2".into())), "{all:?}");
        let part = GresDevice { name: MPS.into(), shares: 30, mps: true, ..gpu(3, Vendor::Nvidia, "GPU-d") };
        let all = of_step(&launch(&[part]), Devices::Confined);
        assert!(all.contains(&("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE".into(), "30".into())), "{all:?}");
        assert!(!all.iter().any(|(name, _)| name == "SLURM_SHARDS_ON_NODE"), "{all:?}");
    }
}
