//! What steps used of processors, memory and GPUs.

use serde::{Deserialize, Serialize};

/// What a step used on one node, or on all of its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// User CPU time in microseconds.
    pub user_us: u64,
    /// System CPU time in microseconds.
    pub system_us: u64,
    /// Peak memory in bytes: of the cgroup where there is one, else of the largest process. Of several nodes the highest.
    pub max_rss: u64,
    /// The peaks of all nodes together; 0 where it is one node's own.
    #[serde(skip_serializing_if = "is_zero")]
    pub rss_of_all: u64,
    /// What of its GPUs it used; absent where none was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuUsage>,
}

impl Usage {
    /// Takes another node's in: sums times, keeps the larger peak.
    pub fn merge(&mut self, other: &Usage) {
        self.rss_of_all = self.rss_in_all().saturating_add(other.rss_in_all());
        self.user_us = self.user_us.saturating_add(other.user_us);
        self.system_us = self.system_us.saturating_add(other.system_us);
        self.max_rss = self.max_rss.max(other.max_rss);
        self.gpu = match (self.gpu, other.gpu) {
            (Some(own), Some(other)) => Some(own.with(&other)),
            (own, other) => own.or(other),
        };
    }

    /// The peaks of all nodes together, in bytes.
    pub fn rss_in_all(&self) -> u64 {
        self.rss_of_all.max(self.max_rss)
    }
}

/// What a step used of its GPUs, as they were sampled while it ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuUsage {
    /// For how long its programs kept GPUs busy, in microseconds: two that are busy at once count twice.
    pub busy_us: u64,
    /// For how long its GPUs were looked at that say how busy they are, in microseconds, likewise.
    pub watched_us: u64,
    /// The highest utilisation that was seen, in per cent: all GPUs of a node together, of several nodes the highest.
    pub peak: u32,
    /// Peak memory in bytes: all GPUs of a node together, of several nodes the highest.
    pub max_memory: u64,
    /// The peaks of all nodes together; 0 where it is one node's own.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_of_all: u64,
}

impl GpuUsage {
    /// With what was used on another node.
    #[must_use]
    pub fn with(&self, other: &GpuUsage) -> GpuUsage {
        GpuUsage {
            busy_us: self.busy_us.saturating_add(other.busy_us),
            watched_us: self.watched_us.saturating_add(other.watched_us),
            peak: self.peak.max(other.peak),
            max_memory: self.max_memory.max(other.max_memory),
            memory_of_all: self.memory_in_all().saturating_add(other.memory_in_all()),
        }
    }

    /// The peaks of all nodes together, in bytes.
    pub fn memory_in_all(&self) -> u64 {
        self.memory_of_all.max(self.max_memory)
    }

    /// Whether anybody said how busy they are: of parts of a GPU (MIG) not every driver does. What was not measured is never shown as 0.
    pub fn is_told(&self) -> bool {
        self.watched_us > 0 || self.busy_us > 0 || self.peak > 0
    }

    /// How busy one of its GPUs was on the average, in per cent.
    pub fn average(&self) -> u64 {
        let rounded = u128::from(self.busy_us) * 100 + u128::from(self.watched_us / 2);
        u64::try_from(rounded.checked_div(u128::from(self.watched_us)).unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands references
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_add_up_and_peaks_are_of_one_node() {
        let gpu = |busy_us, peak, max_memory| GpuUsage {
            busy_us,
            watched_us: 100,
            peak,
            max_memory,
            memory_of_all: 0,
        };
        let node = |rss, gpu| Usage { user_us: 1, system_us: 2, max_rss: rss, gpu, ..Usage::default() };
        let mut all = Usage::default();
        all.merge(&node(5, Some(gpu(50, 90, 7))));
        assert_eq!(all.gpu.map(|g| (g.average(), g.memory_in_all())), Some((50, 7)));
        all.merge(&node(9, None));
        all.merge(&node(6, Some(gpu(99, 40, 3))));
        assert_eq!((all.user_us, all.max_rss, all.rss_in_all()), (3, 9, 20));
        let sum = all.gpu.unwrap();
        assert_eq!((sum.average(), sum.peak, sum.max_memory, sum.memory_in_all()), (75, 90, 7, 10));
        assert_eq!(GpuUsage::default().average(), 0, "not looked at");
        assert!(sum.is_told() && !GpuUsage { max_memory: 7, ..GpuUsage::default() }.is_told());
        assert_eq!(GpuUsage { busy_us: u64::MAX, watched_us: 1, ..sum }.average(), u64::MAX);
    }

    #[test]
    fn what_earlier_versions_wrote_can_be_read_and_they_read_what_is_written_without_gpus() {
        let text = r#"{"user_us":1,"system_us":2,"max_rss":3}"#;
        let read: Usage = serde_json::from_str(text).unwrap();
        assert_eq!(read, Usage { user_us: 1, system_us: 2, max_rss: 3, ..Usage::default() });
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}
