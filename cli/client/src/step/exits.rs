//! How tasks ended, in srun's words, and the exit code that follows from it.

use berth_model::NodeName;
use berth_model::launch::Layout;
use berth_model::state::ExitStatus;
use std::collections::BTreeMap;

/// Lines such as `n1: tasks 0-1: Exited with exit code 2` for the tasks that failed: tasks of one node that ended
/// alike share a line.
pub fn lines(layout: &Layout, ended: &[(u32, ExitStatus)]) -> Vec<String> {
    let mut groups: BTreeMap<(usize, ExitStatus), Vec<u32>> = BTreeMap::new();
    for (task, status) in ended.iter().filter(|(_, s)| !s.success()) {
        groups.entry((node_of(layout, *task), *status)).or_default().push(*task);
    }
    groups
        .into_iter()
        .map(|((node, status), mut tasks)| {
            tasks.sort_unstable();
            let name = layout.nodes.get(node).map_or("?", |NodeName(n)| n.as_str());
            format!("{name}: {}: {}", tasks_text(&tasks), status_text(status))
        })
        .collect()
}

/// `task 3` or `tasks 0-2,5`.
pub fn tasks_text(tasks: &[u32]) -> String {
    let word = if tasks.len() == 1 { "task" } else { "tasks" };
    let mut runs: Vec<(u32, u32, u32)> = Vec::new();
    for task in tasks {
        match runs.last_mut() {
            Some(run) if run.1.checked_add(1) == Some(*task) => run.1 = *task,
            _ => runs.push((*task, *task, 1)),
        }
    }
    format!("{word} {}", crate::fmt::job::indices(&runs))
}

/// `Exited with exit code 3` or `Killed`.
pub fn status_text(status: ExitStatus) -> String {
    match status.signal {
        0 => format!("Exited with exit code {}", status.code),
        signal => berth_model::signal::describe(i32::from(signal)),
    }
}

/// The index of the node that runs a task.
pub fn node_of(layout: &Layout, task: u32) -> usize {
    layout.tasks.iter().position(|tasks| tasks.contains(&task)).unwrap_or(0)
}

/// srun's exit code: the highest of its tasks, 128 and the signal for one that a signal ended.
pub fn code(statuses: impl Iterator<Item = ExitStatus>) -> u8 {
    statuses.map(ExitStatus::shell_code).max().map_or(0, |c| u8::try_from(c).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: u8, signal: u8) -> ExitStatus {
        ExitStatus { code, signal }
    }

    fn layout() -> Layout {
        Layout {
            nodes: vec!["n1".into(), "n2".into()],
            tasks: vec![vec![0, 1, 2], vec![3]],
            cpus: vec![3, 1],
        }
    }

    #[test]
    fn tasks_that_end_alike_share_a_line() {
        let ended = [(0, exit(2, 0)), (1, exit(2, 0)), (2, exit(0, 9)), (3, exit(2, 0))];
        assert_eq!(
            lines(&layout(), &ended),
            [
                "n1: tasks 0-1: Exited with exit code 2",
                "n1: task 2: Killed",
                "n2: task 3: Exited with exit code 2"
            ]
            .map(String::from)
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
        );
        assert!(lines(&layout(), &[(0, ExitStatus::OK)]).is_empty());
    }

    #[test]
    fn codes() {
        assert_eq!(code([exit(0, 0), exit(3, 0)].into_iter()), 3);
        assert_eq!(code([exit(5, 0), exit(0, 9)].into_iter()), 137);
        assert_eq!(code(std::iter::empty()), 0);
        assert_eq!(status_text(exit(0, 11)), "Segmentation fault");
        assert_eq!(status_text(exit(0, 10)), "User defined signal 1");
    }
}
