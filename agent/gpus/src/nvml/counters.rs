//! How busy the parts of a divided GPU are, by the counters that the driver keeps of each GPU instance (GPM: `nvml.h`, from driver 520 and
//! H100 on). What NVML says of utilisation and keeps of processes is of whole GPUs alone.

use super::InstanceOf;
use super::smi::{self, Instances};
use crate::sample::DeviceSample;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The driver renews its counters every 100 ms: what lies between two looks at them is more.
const APART: Duration = Duration::from_millis(200);

/// A divided GPU in a sample.
pub(super) struct Divided {
    /// The whole.
    pub(super) gpu: Device<'static>,
    /// Its address.
    pub(super) bus: String,
    /// The library's index of each of its parts, and the part's place in the sample.
    pub(super) parts: Vec<(u32, usize)>,
}

/// What was seen of counters.
#[derive(Default)]
pub(super) struct Counters {
    /// Instances of parts by the address of the whole, with the names of the parts of which they were asked.
    instances: BTreeMap<String, (Vec<String>, Instances)>,
    /// By the name of the part.
    last: BTreeMap<String, Last>,
}

/// The latest look at one part's.
struct Last {
    counters: GpmSample<'static>,
    at: Instant,
    busy: Option<u32>,
}

impl Counters {
    /// Says of parts how busy they were since the sample before, or why that is not measured. The first look at a part says neither.
    ///
    /// To be called behind all else that a sample asks: drivers are said to answer other calls worse after these.
    pub(super) fn fill(
        &mut self,
        nvml: &'static Nvml,
        instance_of: InstanceOf,
        divided: &[Divided],
        devices: &mut [DeviceSample],
    ) {
        let names: Vec<String> = devices.iter().map(name).collect();
        self.last.retain(|part, _| names.contains(part));
        for whole in divided {
            let asked = self.of_whole(nvml, instance_of, whole, devices);
            for (at, found) in asked {
                let Some(device) = devices.get_mut(at) else { continue };
                match found {
                    Ok(busy) => device.busy = busy,
                    Err(why) => device.unmeasured = Some(why),
                }
            }
        }
    }

    /// What is found of each part of which nobody else said it, by its place.
    fn of_whole(
        &mut self,
        nvml: &'static Nvml,
        instance_of: InstanceOf,
        whole: &Divided,
        devices: &[DeviceSample],
    ) -> Vec<(usize, Result<Option<u32>, String>)> {
        let silent = |(index, at): &(u32, usize)| {
            let device = devices.get(*at).filter(|device| device.busy.is_none())?;
            Some((*index, *at, name(device)))
        };
        let parts: Vec<(u32, usize, String)> = whole.parts.iter().filter_map(silent).collect();
        if parts.is_empty() {
            return Vec::new();
        }
        // Drivers before 520 do not have the call.
        if !whole.gpu.gpm_support().unwrap_or(false) {
            let why =
                "the driver has no counters of a GPU's parts for this one (GPM: from driver 520 and H100 on)";
            return parts.into_iter().map(|(_, at, _)| (at, Err(why.to_string()))).collect();
        }
        let names: Vec<String> = parts.iter().map(|(.., name)| name.clone()).collect();
        let known = self.instances.get(&whole.bus).filter(|(of, _)| *of == names);
        let instances = match known {
            Some((_, instances)) => instances.clone(),
            None => {
                let instances = smi::instances(&whole.gpu, &whole.bus, instance_of);
                self.instances.insert(whole.bus.clone(), (names, instances.clone()));
                instances
            }
        };
        let found = parts.into_iter().map(|(index, at, name)| {
            let found = instance(&instances, index).and_then(|of| self.measure(nvml, &whole.gpu, of, name));
            (at, found)
        });
        found.collect()
    }

    /// How busy an instance was since it was looked at last: nothing where it was not, or just now.
    fn measure(
        &mut self,
        nvml: &'static Nvml,
        gpu: &Device<'static>,
        instance: u32,
        name: String,
    ) -> Result<Option<u32>, String> {
        let at = Instant::now();
        if let Some(last) = self.last.get(&name).filter(|last| at.duration_since(last.at) < APART) {
            return Ok(last.busy);
        }
        let before = self.last.remove(&name);
        let counters = gpu.gpm_mig_sample(instance).map_err(|e| {
            format!("the driver's counters of its GPU instance {instance} cannot be read: {e}")
        })?;
        let measured = before.map(|last| between(nvml, &last.counters, &counters)).transpose();
        let busy = measured.as_ref().ok().copied().flatten();
        self.last.insert(name, Last { counters, at, busy });
        measured
    }
}

/// What a part is called.
fn name(device: &DeviceSample) -> String {
    device.uuid.clone().unwrap_or_default()
}

/// The GPU instance of a part that has it for itself: the counters are the instance's, and say nothing of who in it was busy.
fn instance(instances: &[(u32, (u32, u32))], index: u32) -> Result<u32, String> {
    let own = instances.iter().find(|(part, _)| *part == index).map(|(_, (gpu, _))| *gpu);
    let own = own.ok_or("neither the driver's library nor nvidia-smi says which GPU instance it is")?;
    match instances.iter().filter(|(_, (gpu, _))| *gpu == own).count() {
        1 => Ok(own),
        parts => {
            Err(format!("its GPU instance has {parts} parts (compute instances), and one count of them all"))
        }
    }
}

/// How much of the time between two looks at an instance something computed or drew on it: what utilisation is of a whole GPU.
fn between(
    nvml: &'static Nvml,
    before: &GpmSample<'static>,
    now: &GpmSample<'static>,
) -> Result<u32, String> {
    let metrics = gpm_metrics_get(nvml, before, now, &[GpmMetricId::GraphicsUtil])
        .map_err(|e| format!("the driver makes nothing of its counters: {e}"))?;
    let value = metrics.into_iter().flatten().find_map(|metric| percent(metric.value));
    value.ok_or_else(|| "the driver's counters do not say it".to_string())
}

/// Rounded; what is no number is nothing.
fn percent(value: f64) -> Option<u32> {
    let rounded = |value: f64| (0..=100u32).rev().find(|n| f64::from(*n) <= value + 0.5);
    rounded(value.max(0.0)).filter(|_| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_and_what_is_none_is_nothing() {
        let values = [0.0, 0.4, 0.6, 63.5, 99.6, 250.0, -3.0];
        assert_eq!(values.map(percent), [0, 0, 1, 64, 100, 100, 0].map(Some));
        assert_eq!([f64::NAN, f64::INFINITY].map(percent), [None, None]);
    }

    #[test]
    fn counters_are_a_parts_where_it_has_its_instance_for_itself() {
        let instances = vec![(0, (7, 0)), (1, (9, 0)), (2, (9, 1))];
        assert_eq!(instance(&instances, 0), Ok(7));
        assert!(instance(&instances, 1).unwrap_err().contains("has 2 parts"));
        assert!(instance(&instances, 3).unwrap_err().contains("nvidia-smi"));
    }
}
