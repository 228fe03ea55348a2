//! What steps used, as Slurm's lists of trackable resources write it, and what of GPUs Slurm has no column for.

use super::sacct::{Style, bytes};
use super::time;
use berth_model::Span;
use berth_model::launch::{GpuUsage, Usage};
use berth_model::record::StepInfo;

/// Which of the three lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// `TRESUsageInAve`: by task; of GPUs how busy one of them was on the average.
    Average,
    /// `TRESUsageInMax`: the highest on one node; of GPUs the most that all of them there did at once.
    Highest,
    /// `TRESUsageInTot`: all nodes together.
    Total,
}

/// `cpu=00:00:03,gres/gpumem=36864K,gres/gpuutil=87,mem=1696K`: in the order of names, as Slurm has it. Of GPUs where some were looked at.
pub fn tres(step: &StepInfo, of: Of, style: &Style) -> String {
    let (usage, tasks) = (&step.usage, step.layout.tasks.iter().map(Vec::len).sum::<usize>().max(1) as u64);
    let cpu = usage.user_us.saturating_add(usage.system_us);
    let rss = usage.rss_in_all();
    let (cpu, mem) = match of {
        Of::Average => (cpu / tasks, rss / tasks),
        Of::Highest => (cpu, usage.max_rss),
        Of::Total => (cpu, rss),
    };
    let mut parts = Vec::new();
    // The time of one node alone is not on record.
    if of != Of::Highest || step.layout.nodes.len() <= 1 {
        parts.push(format!("cpu={}", time::long(span(cpu))));
    }
    if let Some(gpu) = &usage.gpu {
        let gpus = step.allocated.gres.iter().find(|(key, _)| key.name == "gpu" && key.kind.is_none());
        let (memory, busy) = match of {
            Of::Average => (gpu.memory_in_all() / tasks, gpu.average()),
            Of::Highest => (gpu.max_memory, gpu.peak.into()),
            Of::Total => (gpu.memory_in_all(), gpu.average() * gpus.map_or(1, |(_, n)| (*n).max(1))),
        };
        parts.push(format!("gres/gpumem={}", bytes(memory, style)));
        if gpu.is_told() {
            parts.push(format!("gres/gpuutil={busy}"));
        }
    }
    parts.push(format!("mem={}", bytes(mem, style)));
    parts.join(",")
}

/// For how long GPUs were busy; nothing where none was looked at, or none says it.
pub fn gpu_time(usage: &Usage) -> String {
    of_told(usage, |gpu| time::long(span(gpu.busy_us)))
}

/// What follows from how busy GPUs were; nothing where nobody said it.
pub fn of_told(usage: &Usage, text: impl Fn(GpuUsage) -> String) -> String {
    usage.gpu.filter(GpuUsage::is_told).map(text).unwrap_or_default()
}

fn span(micros: u64) -> Span {
    Span(i64::try_from(micros).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::sacct::Units;
    use super::super::samples::{step, view};
    use super::*;
    use berth_model::StepId;
    use berth_model::state::ExitStatus;
    use berth_model::tres::GresKey;

    #[test]
    fn lists_are_slurms() {
        let style = Style { view: view(0), units: Units::Whole, live: false };
        let mut s = step(StepId::Number(0), "train", ExitStatus::default());
        s.layout.nodes = vec!["n1".into(), "n2".into()];
        s.layout.tasks = vec![vec![0, 1], vec![2, 3]];
        s.usage = Usage {
            user_us: 6_000_000,
            system_us: 2_000_000,
            max_rss: 3 << 20,
            rss_of_all: 4 << 20,
            gpu: Some(GpuUsage {
                busy_us: 90_000_000,
                watched_us: 120_000_000,
                peak: 180,
                max_memory: 8 << 20,
                memory_of_all: 12 << 20,
            }),
        };
        s.allocated.gres.insert(GresKey { name: "gpu".into(), kind: None }, 4);
        let list = |of| tres(&s, of, &style);
        assert_eq!(list(Of::Average), "cpu=00:00:02,gres/gpumem=3072K,gres/gpuutil=75,mem=1024K");
        assert_eq!(list(Of::Highest), "gres/gpumem=8192K,gres/gpuutil=180,mem=3072K");
        assert_eq!(list(Of::Total), "cpu=00:00:08,gres/gpumem=12288K,gres/gpuutil=300,mem=4096K");
        assert_eq!(gpu_time(&s.usage), "00:01:30");
        s.layout.nodes.truncate(1);
        // Parts of GPUs: how busy they were nobody said.
        s.usage.gpu = Some(GpuUsage { max_memory: 1 << 20, ..GpuUsage::default() });
        assert_eq!(tres(&s, Of::Highest, &style), "cpu=00:00:08,gres/gpumem=1024K,mem=3072K");
        assert_eq!(gpu_time(&s.usage), "");
        s.usage.gpu = None;
        assert_eq!(tres(&s, Of::Highest, &style), "cpu=00:00:08,mem=3072K");
        assert_eq!(gpu_time(&s.usage), "");
    }
}
