//! Lines with the task's number before them (`srun --label`): whole lines of one task at a time.

use std::collections::BTreeMap;

/// Collects bytes of each task and stream until a line is complete.
#[derive(Debug)]
pub struct Labels {
    width: usize,
    open: BTreeMap<(u32, bool), Vec<u8>>,
}

/// A line longer than this is printed in pieces, so that no task makes us hold more.
const LONGEST: usize = 64 * 1024;

impl Labels {
    /// For a step of `tasks` tasks: numbers are as wide as the largest.
    pub fn new(tasks: u32) -> Labels {
        Labels { width: tasks.saturating_sub(1).to_string().len(), open: BTreeMap::new() }
    }

    /// The complete lines that these bytes end, each with its label.
    pub fn feed(&mut self, task: u32, stderr: bool, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len() + data.len() / 8);
        let rest = self.open.entry((task, stderr)).or_default();
        for piece in data.split_inclusive(|b| *b == b'\n') {
            rest.extend_from_slice(piece);
            if rest.ends_with(b"\n") || rest.len() >= LONGEST {
                label(&mut out, self.width, task, rest);
                rest.clear();
            }
        }
        out
    }

    /// What tasks left without a line feed: (stderr, bytes).
    pub fn finish(&mut self) -> Vec<(bool, Vec<u8>)> {
        let open = std::mem::take(&mut self.open);
        open.into_iter()
            .filter(|(_, rest)| !rest.is_empty())
            .map(|((task, stderr), rest)| {
                let mut out = Vec::new();
                label(&mut out, self.width, task, &rest);
                (stderr, out)
            })
            .collect()
    }
}

fn label(out: &mut Vec<u8>, width: usize, task: u32, line: &[u8]) {
    out.extend_from_slice(format!("{task:>width$}: ").as_bytes());
    out.extend_from_slice(line);
    if !line.ends_with(b"\n") {
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tasks_do_not_mix() {
        let mut labels = Labels::new(12);
        assert_eq!(labels.feed(3, false, b"a\n\nb"), b" 3: a\n 3: \n");
        assert_eq!(labels.feed(11, false, b"x\n"), b"11: x\n");
        assert_eq!(labels.feed(3, false, b"c\n"), b" 3: bc\n");
        labels.feed(0, true, b"no newline");
        assert_eq!(labels.finish(), [(true, b" 0: no newline\n".to_vec())]);
    }

    #[test]
    fn a_single_task_has_one_digit() {
        assert_eq!(Labels::new(1).feed(0, false, b"hi\n"), b"0: hi\n");
    }
}
