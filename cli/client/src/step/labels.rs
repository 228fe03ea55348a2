//! Lines with the task's number before them (`srun --label`): whole lines of one task at a time. What goes out before its line feed is there is
//! gone on with where nothing else was written meanwhile, and marked as going on where something was.

use std::collections::BTreeMap;

/// What is kept of a line of one task and stream.
#[derive(Debug, Default)]
struct Line {
    /// What was not written.
    rest: Vec<u8>,
    /// Its start was.
    begun: bool,
}

/// Collects bytes of each task and stream until a line is complete.
#[derive(Debug)]
pub struct Labels {
    width: usize,
    /// `--unbuffered`: nothing is collected.
    unbuffered: bool,
    /// Output and error output go to one place.
    one_place: bool,
    open: BTreeMap<(u32, bool), Line>,
    /// Whose line has no line feed yet in the place of each stream.
    unended: [Option<(u32, bool)>; 2],
}

/// A line longer than this is printed in pieces, so that no task makes us hold more.
const LONGEST: usize = 64 * 1024;

impl Labels {
    /// For a step of `tasks` tasks: numbers are as wide as the largest.
    pub fn new(tasks: u32, unbuffered: bool, one_place: bool) -> Labels {
        let width = tasks.saturating_sub(1).to_string().len();
        Labels { width, unbuffered, one_place, open: BTreeMap::new(), unended: [None; 2] }
    }

    /// The complete lines that these bytes end, each with its label, and what is not to wait for its line feed.
    pub fn feed(&mut self, task: u32, stderr: bool, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len() + data.len() / 8);
        let mut line = self.open.remove(&(task, stderr)).unwrap_or_default();
        for piece in data.split_inclusive(|b| *b == b'\n') {
            line.rest.extend_from_slice(piece);
            let ends = line.rest.ends_with(b"\n");
            if ends || self.unbuffered || line.rest.len() >= LONGEST {
                self.put(&mut out, (task, stderr), &line);
                line.rest.clear();
                line.begun = !ends;
            }
        }
        if line.begun || !line.rest.is_empty() {
            self.open.insert((task, stderr), line);
        }
        out
    }

    /// Writes what is there of a line: behind its start where that was written last, else with a label.
    fn put(&mut self, out: &mut Vec<u8>, whose: (u32, bool), line: &Line) {
        let at = self.place(whose.1);
        let goes_on = self.unended[at] == Some(whose);
        if !goes_on {
            if line.begun && line.rest == b"\n" {
                return; // that was written by whoever came in between, whose own line is left as it is
            }
            if self.unended[at].take().is_some() {
                out.push(b'\n');
            }
            let mark = if line.begun { '>' } else { ':' };
            out.extend_from_slice(format!("{:>width$}{mark} ", whose.0, width = self.width).as_bytes());
        }
        out.extend_from_slice(&line.rest);
        self.unended[at] = (!line.rest.ends_with(b"\n")).then_some(whose);
    }

    fn place(&self, stderr: bool) -> usize {
        usize::from(stderr && !self.one_place)
    }

    /// What tasks left without a line feed: (stderr, bytes).
    pub fn finish(&mut self) -> Vec<(bool, Vec<u8>)> {
        let mut all = Vec::new();
        for (whose, line) in std::mem::take(&mut self.open) {
            if !line.rest.is_empty() {
                let mut out = Vec::new();
                self.put(&mut out, whose, &line);
                all.push((whose.1, out));
            }
        }
        let last = std::mem::take(&mut self.unended);
        all.extend(last.into_iter().flatten().map(|(_, stderr)| (stderr, b"\n".to_vec())));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collecting(tasks: u32) -> Labels {
        Labels::new(tasks, false, false)
    }

    fn finished(labels: &mut Labels) -> Vec<u8> {
        labels.finish().into_iter().flat_map(|(_, bytes)| bytes).collect()
    }

    #[test]
    fn lines_of_tasks_do_not_mix() {
        let mut labels = collecting(12);
        assert_eq!(labels.feed(3, false, b"a\n\nb"), b" 3: a\n 3: \n");
        assert_eq!(labels.feed(11, false, b"x\n"), b"11: x\n");
        assert_eq!(labels.feed(3, false, b"c\n"), b" 3: bc\n");
        labels.feed(0, true, b"no newline");
        let left = [(true, b" 0: no newline".to_vec()), (true, b"\n".to_vec())];
        assert_eq!(labels.finish(), left);
        assert!(labels.finish().is_empty());
    }

    #[test]
    fn a_single_task_has_one_digit() {
        assert_eq!(collecting(1).feed(0, false, b"hi\n"), b"0: hi\n");
    }

    #[test]
    fn a_long_line_gets_no_line_feed_of_ours() {
        let mut labels = collecting(2);
        let long = vec![b'x'; 3 * LONGEST];
        let mut out = Vec::new();
        for piece in long.chunks(1000) {
            out.extend(labels.feed(1, false, piece));
        }
        out.extend(labels.feed(1, false, b"end\nnext\n"));
        assert!(out == [b"1: ".as_slice(), long.as_slice(), b"end\n1: next\n"].concat());
        assert!(labels.finish().is_empty());
    }

    #[test]
    fn what_comes_in_between_begins_a_line_and_what_goes_on_says_so() {
        let mut labels = Labels::new(2, true, false);
        assert_eq!(labels.feed(0, false, b"one"), b"0: one");
        assert_eq!(labels.feed(0, false, b" two"), b" two");
        assert_eq!(labels.feed(1, false, b"x"), b"\n1: x");
        assert_eq!(labels.feed(0, false, b" three\n"), b"\n0>  three\n");
        assert_eq!(labels.feed(1, false, b"\n"), b"", "that was written");
        assert_eq!(labels.feed(1, false, b"y\n"), b"1: y\n");
        // Nor does that end the line of whoever came in between.
        assert_eq!(labels.feed(0, false, b"a"), b"0: a");
        assert_eq!(labels.feed(1, false, b"x"), b"\n1: x");
        assert_eq!(labels.feed(0, false, b"\n"), b"");
        assert_eq!(labels.feed(1, false, b"y\n"), b"y\n");
        assert_eq!(labels.feed(0, false, b"b\n"), b"0: b\n", "its next line");
        // Error output that goes elsewhere ends no line.
        assert_eq!(labels.feed(1, false, b"z"), b"1: z");
        assert_eq!(labels.feed(0, true, b"error\n"), b"0: error\n");
        assert_eq!(labels.feed(1, false, b"!"), b"!");
        assert_eq!(finished(&mut labels), b"\n");
        let mut labels = Labels::new(2, true, true);
        assert_eq!(labels.feed(1, false, b"z"), b"1: z");
        assert_eq!(labels.feed(1, true, b"error\n"), b"\n1: error\n");
        assert_eq!(labels.feed(1, false, b"!"), b"1> !");
        assert_eq!(finished(&mut labels), b"\n");
    }
}
