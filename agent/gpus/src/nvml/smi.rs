//! Which instance each part of a divided GPU is. Where the library does not say it, `nvidia-smi`, which comes with the library, has it in its
//! XML, in the library's order.

use super::InstanceOf;
use nvml_wrapper::Device;
use std::process::{Command, Stdio};

/// Instances by the library's index of the part: GPU instance and compute instance.
pub type Instances = Vec<(u32, (u32, u32))>;

/// Those of all parts of a GPU, at an address. `of`: asks the library.
pub fn instances(gpu: &Device<'_>, bus: &str, of: InstanceOf) -> Instances {
    let most = gpu.mig_device_count().unwrap_or(0);
    let parts: Vec<_> = (0..most).filter_map(|n| Some((n, of(&gpu.mig_device_by_index(n).ok()?)))).collect();
    let said: Option<Instances> = parts.into_iter().map(|(n, instance)| Some((n, instance?))).collect();
    said.unwrap_or_else(|| ask(bus))
}

/// Asks `nvidia-smi` for one GPU. Nothing where the program is not there.
fn ask(bus: &str) -> Instances {
    let out = Command::new("nvidia-smi").args(["-q", "-x", "-i", bus]).stdin(Stdio::null()).output();
    out.map_or_else(|_| Vec::new(), |out| parse(&String::from_utf8_lossy(&out.stdout)))
}

/// Reads the parts in the XML of one GPU.
fn parse(xml: &str) -> Instances {
    let mut found = Vec::new();
    for part in xml.split("<mig_device>").skip(1) {
        let part = part.split("</mig_device>").next().unwrap_or_default();
        let number = |name: &str| {
            let (_, rest) = part.split_once(&format!("<{name}>"))?;
            rest.split('<').next()?.trim().parse::<u32>().ok()
        };
        let all = (number("index"), number("gpu_instance_id"), number("compute_instance_id"));
        if let (Some(index), Some(gpu), Some(compute)) = all {
            found.push((index, (gpu, compute)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_read() {
        let xml = "<gpu><mig_devices>
            <mig_device><index>0</index><gpu_instance_id>7</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device>
            <mig_device><index>1</index><gpu_instance_id>9</gpu_instance_id>
                <compute_instance_id>1</compute_instance_id></mig_device>
            <mig_device><index>x</index></mig_device></mig_devices></gpu>";
        assert_eq!(parse(xml), [(0, (7, 0)), (1, (9, 1))]);
        assert!(parse("").is_empty() && parse("<mig_device>").is_empty());
    }
}
