//! Looks before a step's start whether its tasks may lock as much memory as its fast networks need: with too little, libraries fall
//! back to TCP without a word.

use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use berth_model::fabric::FabricChoice;
use berth_model::limits::{LimitValue, Resource};
use berth_runtime::limits::granted;

/// Bytes below which not even the queues of one connection can be made.
const LEAST: u64 = 1 << 20;
/// Bytes that the buffers of programs which do more than try it out take at least.
const ENOUGH: u64 = 64 << 20;

/// A note for the user where tasks may lock less.
///
/// # Errors
/// A fabric was asked for by name: it would not be used.
pub(super) fn check(file: &LaunchFile) -> Result<Option<String>, LaunchFailure> {
    let names = &file.node.fabric.names;
    if names.is_empty() || file.launch.receive.is_some() {
        return Ok(None);
    }
    let limit = match granted(&file.launch.limits, Resource::Memlock) {
        Some(LimitValue::At(bytes)) if bytes < ENOUGH => bytes,
        _ => return Ok(None),
    };
    let choice = file.launch.fabric.unwrap_or_default();
    let short = format!(
        "tasks may lock {} KiB of memory (ulimit -l), and programs that use {} want {} KiB or more",
        limit >> 10,
        names.join(", "),
        ENOUGH >> 10
    );
    let step = "write 'ulimit -l unlimited' into the script before srun, or ask for it with --propagate=MEMLOCK; where the node \
                gives no more, its administrator raises LimitMEMLOCK of the agent's service";
    if limit < LEAST && matches!(choice, FabricChoice::Ib | FabricChoice::Efa) {
        return Err(LaunchFailure::new(format!("--fabric={choice}: {short}; {step}")));
    }
    Ok(Some(format!("{short}: they may fall back to TCP; {step}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::FabricPart;
    use berth_model::ids::{Attempt, JobId, StepId, StepKey};

    fn file(kib: Option<u64>, choice: Option<FabricChoice>, names: &[&str]) -> LaunchFile {
        let mut launch =
            berth_samples::launch(StepKey { job: JobId(1), attempt: Attempt(1), step: StepId::Number(0) });
        launch.fabric = choice;
        launch.limits.soft.clear();
        launch.limits.soft.extend(kib.map(|kib| (Resource::Memlock, LimitValue::At(kib << 10))));
        let mut file = LaunchFile { format: crate::spool::FORMAT, launch, node: Default::default() };
        file.node.fabric =
            FabricPart { files: Vec::new(), names: names.iter().map(|name| (*name).to_string()).collect() };
        file
    }

    #[test]
    fn too_little_is_said_and_refused_where_the_fabric_was_asked_for() {
        let names = ["mlx5_0", "mlx5_1"];
        let note = check(&file(Some(64), None, &names)).unwrap().unwrap();
        assert!(
            note.starts_with(
                "tasks may lock 64 KiB of memory (ulimit -l), and programs that use mlx5_0, mlx5_1 want 65536 KiB"
            ),
            "{note}"
        );
        let refused = check(&file(Some(64), Some(FabricChoice::Ib), &names)).unwrap_err().text;
        assert!(refused.contains("--fabric=ib: tasks may lock 64 KiB"), "{refused}");
        let note = check(&file(Some(8192), Some(FabricChoice::Ib), &names)).unwrap().unwrap();
        assert!(note.contains("8192 KiB"), "{note}");
        assert_eq!(check(&file(Some(64), Some(FabricChoice::None), &[])).unwrap(), None);
        assert_eq!(check(&file(Some(64), None, &[])).unwrap(), None);
    }
}
