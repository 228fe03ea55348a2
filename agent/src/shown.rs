//! What a machine has, in lines for people: shown when it joins a cluster.

use crate::{gpus, probe};
use berth_model::hardware::Hardware;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What this machine has. `program`: `berth`, by which the driver of GPUs is asked.
///
/// # Errors
/// The kernel does not say it.
pub fn hardware_in_words(program: &Path) -> Result<String, String> {
    let hardware = probe::hardware(true).map_err(|e| e.to_string())?;
    let found = gpus::found(program);
    Ok(in_words(&Hardware { gres: found.devices, ..hardware }, &found.wrong))
}

/// A line for processors and memory, and one for each of what not every machine has. `wrong`: what is wrong with its GPUs.
fn in_words(hardware: &Hardware, wrong: &[String]) -> String {
    let mut lines = vec![format!(
        "It has {} sockets, {} cores, {} threads and {} MiB of memory ({} MiB held back for the system).",
        hardware.sockets(),
        hardware.cores.len(),
        hardware.cpus(),
        hardware.memory,
        hardware.memory_reserved
    )];
    let numa: BTreeSet<u32> = hardware.cores.iter().map(|core| core.numa).collect();
    if numa.len() > 1 {
        lines.push(format!("Its cores lie in {} NUMA nodes.", numa.len()));
    }
    let mut gpus: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    for gpu in hardware.gres.iter().filter(|device| device.name == "gpu") {
        *gpus.entry((gpu.kind.as_deref().unwrap_or("of unknown type"), gpu.memory)).or_default() += 1;
    }
    if !gpus.is_empty() {
        let kinds = gpus.iter().map(|((kind, memory), count)| match *memory {
            0 => format!("{count} {kind}"),
            memory => format!("{count} {kind} with {memory} MiB"),
        });
        lines.push(format!("GPUs: {}.", kinds.collect::<Vec<_>>().join(", ")));
    }
    if !hardware.fabrics.is_empty() {
        let named = hardware.fabrics.iter().map(|device| format!("{} ({})", device.name, device.kind));
        lines.push(format!("Fabrics: {}.", named.collect::<Vec<_>>().join(", ")));
    }
    lines.extend(wrong.iter().cloned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::fabric::{FabricDevice, FabricKind};
    use berth_model::hardware::{Core, GresDevice};

    #[test]
    fn what_a_machine_has_is_said_and_what_it_has_not_is_not() {
        let core = |numa| Core { socket: 0, numa, cpus: vec![2 * numa, 2 * numa + 1] };
        let plain =
            Hardware { cores: vec![core(0)], memory: 7000, memory_reserved: 500, ..Hardware::default() };
        let line =
            "It has 1 sockets, 1 cores, 2 threads and 7000 MiB of memory (500 MiB held back for the system).";
        assert_eq!(in_words(&plain, &[]), line);
        let gpu = |kind: &str, memory| GresDevice {
            name: "gpu".into(),
            kind: Some(kind.into()),
            memory,
            ..GresDevice::default()
        };
        let fabric =
            |name: &str, kind| FabricDevice { name: name.into(), kind, numa: None, files: Vec::new() };
        let rich = Hardware {
            cores: vec![core(0), core(1)],
            gres: vec![gpu("a100", 40960), gpu("a100", 40960), gpu("1g.5gb", 4864), gpu("mi250", 0)],
            fabrics: vec![fabric("mlx5_0", FabricKind::Infiniband), fabric("rdmap0s6", FabricKind::Efa)],
            ..plain
        };
        let fenced = "GPU 1 (0000:70:00.0) is fenced: it fell off the bus".to_string();
        let told = in_words(&rich, std::slice::from_ref(&fenced));
        let told: Vec<&str> = told.lines().skip(1).collect();
        let expected = [
            "Its cores lie in 2 NUMA nodes.",
            "GPUs: 1 1g.5gb with 4864 MiB, 2 a100 with 40960 MiB, 1 mi250.",
            "Fabrics: mlx5_0 (InfiniBand), rdmap0s6 (EFA).",
            fenced.as_str(),
        ];
        assert_eq!(told, expected);
    }
}
