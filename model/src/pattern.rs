//! File-name patterns of `--output`, `--error` and `--input`: `slurm-%A_%a.out`, `%5j`, `\%`.

use crate::ids::{JobId, StepId};
use crate::launch::StepLaunch;
use crate::sluid::Sluid;
use crate::spec::JobKind;

/// Printed for `%a` in a job that is no array, as Slurm does.
const NO_TASK: u64 = 4_294_967_294;
/// Largest width that is honoured.
const MOST_WIDTH: usize = 10;

/// What the letters of a pattern stand for in one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// `%j`.
    pub job: JobId,
    /// `%A` and `%a`, in an array.
    pub array: Option<(JobId, u32)>,
    /// `%s`, and with the job `%J`.
    pub step: StepId,
    /// `%r`.
    pub restarts: u32,
    /// `%S`.
    pub sluid: Option<Sluid>,
    /// `%t`.
    pub task: u32,
    /// `%n`.
    pub node_index: u32,
    /// `%N` is this up to its first dot.
    pub node: &'a str,
    /// `%u`.
    pub user: &'a str,
    /// `%x`.
    pub job_name: &'a str,
}

impl<'a> Place<'a> {
    /// The place of `task` (by global number) of a step.
    pub fn of(launch: &'a StepLaunch, task: u32) -> Place<'a> {
        let named_by_step = launch.job.kind != JobKind::Batch && launch.key.step != StepId::Batch;
        Place {
            job: launch.key.job,
            array: launch.job.array.map(|a| (a.array, a.task)),
            step: launch.key.step,
            restarts: launch.job.restarts,
            sluid: launch.job.sluid,
            task,
            node_index: launch.node_index,
            node: &launch.node.0,
            user: &launch.identity.user,
            job_name: if named_by_step { &launch.name } else { &launch.job.name },
        }
    }
}

/// The file name that `pattern` stands for in `place`. A backslash anywhere switches expansion off and is
/// itself dropped; an unknown letter stands for itself.
pub fn expand(pattern: &[u8], place: &Place<'_>) -> Vec<u8> {
    if pattern.contains(&b'\\') {
        return unescape(pattern);
    }
    let mut out = Vec::with_capacity(pattern.len() + 16);
    for token in tokens(pattern) {
        match token {
            Token::Text(text) => out.extend_from_slice(text),
            Token::Letter { raw, letter, width } => match place.value(letter) {
                Some(Value::Number(n)) => {
                    out.extend_from_slice(format!("{n:0width$}", width = width.min(MOST_WIDTH)).as_bytes());
                }
                Some(Value::Text(text)) => out.extend_from_slice(text.as_bytes()),
                None => out.extend_from_slice(raw),
            },
        }
    }
    out
}

/// Which tasks share a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spread {
    /// One file for the whole step.
    Step,
    /// One file on each node (`%n`, `%N`).
    Node,
    /// One file for each task (`%t`).
    Task,
}

/// How many files a pattern stands for.
pub fn spread(pattern: &[u8]) -> Spread {
    letters(pattern)
        .map(|letter| match letter {
            b't' => Spread::Task,
            b'n' | b'N' => Spread::Node,
            _ => Spread::Step,
        })
        .max()
        .unwrap_or(Spread::Step)
}

/// The letters that a pattern has expanded; none where a backslash switches expansion off.
fn letters(pattern: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let pattern = if pattern.contains(&b'\\') { &[] } else { pattern };
    tokens(pattern).filter_map(|token| match token {
        Token::Letter { letter, .. } => Some(letter),
        Token::Text(_) => None,
    })
}

enum Value<'a> {
    Number(u64),
    Text(std::borrow::Cow<'a, str>),
}

impl Place<'_> {
    fn value(&self, letter: u8) -> Option<Value<'_>> {
        // Slurm's srun expands on the client, where a job that is no array has task 0.
        let none = if self.step == StepId::Batch { NO_TASK } else { 0 };
        let index = self.array.map_or(none, |(_, task)| u64::from(task));
        let number = |n: u32| Value::Number(u64::from(n));
        Some(match letter {
            b'%' => Value::Text("%".into()),
            b'A' => number(self.array.map_or(self.job, |(array, _)| array).0),
            b'a' => Value::Number(index),
            b'b' => Value::Number(index % 10),
            b'j' => number(self.job.0),
            b'J' => match self.step {
                StepId::Batch => number(self.job.0),
                step => Value::Text(format!("{}.{step}", self.job).into()),
            },
            b'N' => Value::Text(self.node.split('.').next().unwrap_or(self.node).into()),
            b'n' => number(self.node_index),
            b'r' => number(self.restarts),
            // Of a job without one it is the name of none, as in Slurm.
            b'S' => Value::Text(self.sluid.unwrap_or_default().to_string().into()),
            b's' => match self.step {
                StepId::Number(n) => number(n),
                step => Value::Text(step.to_string().into()),
            },
            b't' => number(self.task),
            b'u' => Value::Text(self.user.into()),
            b'x' => Value::Text(self.job_name.into()),
            _ => return None,
        })
    }
}

enum Token<'a> {
    Text(&'a [u8]),
    Letter { raw: &'a [u8], letter: u8, width: usize },
}

/// Cuts a pattern at its `%`. A `%` (with or without digits) at the very end is dropped, as Slurm does.
fn tokens(pattern: &[u8]) -> impl Iterator<Item = Token<'_>> {
    let mut rest = pattern;
    std::iter::from_fn(move || {
        let (first, _) = rest.split_first()?;
        if *first != b'%' {
            let end = rest.iter().position(|b| *b == b'%').unwrap_or(rest.len());
            let (text, after) = rest.split_at(end);
            rest = after;
            return Some(Token::Text(text));
        }
        let digits = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
        let Some(letter) = rest.get(1 + digits) else {
            rest = &[];
            return None;
        };
        let (raw, after) = rest.split_at(digits + 2);
        rest = after;
        let width = raw[1..=digits].iter().fold(0usize, |w, d| (w * 10 + usize::from(d - b'0')).min(99));
        Some(Token::Letter { raw, letter: *letter, width })
    })
}

fn unescape(pattern: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pattern.len());
    let mut bytes = pattern.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'\\' {
            out.push(*byte);
        } else if let Some(next) = bytes.next() {
            out.push(*next);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(array: Option<(JobId, u32)>) -> Place<'static> {
        Place {
            job: JobId(178),
            array,
            step: StepId::Batch,
            restarts: 0,
            sluid: Some(Sluid(14_593_501_092_478_253_056)),
            task: 0,
            node_index: 0,
            node: "n1.site.org",
            user: "alice",
            job_name: "myname",
        }
    }

    fn name(pattern: &str, place: &Place<'_>) -> String {
        String::from_utf8(expand(pattern.as_bytes(), place)).unwrap()
    }

    #[test]
    fn a_batch_scripts_names_are_slurms() {
        for (pattern, expected) in [
            ("%j", "178"),
            ("%A", "178"),
            ("%a", "4294967294"),
            ("%x", "myname"),
            ("%u", "alice"),
            ("%N", "n1"),
            ("%n", "0"),
            ("%t", "0"),
            ("%s", "batch"),
            ("%J", "178"),
            ("%b", "4"),
            ("%%", "%"),
            ("%5j", "00178"),
            ("%05j", "00178"),
            ("%3a", "4294967294"),
            ("%12j", "0000000178"),
            ("%20j", "0000000178"),
            ("%99999999999999999999j", "0000000178"),
            ("%A_%a", "178_4294967294"),
            ("%q", "%q"),
            ("%", ""),
            ("a%", "a"),
            ("a%5", "a"),
            ("%jj", "178j"),
            ("%-3j", "%-3j"),
            ("%x-%j.out", "myname-178.out"),
            ("a b %j", "a b 178"),
            ("\\%j", "%j"),
            ("a\\\\%j", "a\\%j"),
            ("%X", "%X"),
            ("%0j", "178"),
            ("%r", "0"),
            ("%S-%j", "sCN1M7XJ371Y00-178"),
            ("%20S", "sCN1M7XJ371Y00"),
            ("%T", "%T"),
            ("", ""),
        ] {
            assert_eq!(name(pattern, &batch(None)), expected, "{pattern}");
        }
    }

    #[test]
    fn an_array_tasks_names_carry_its_index() {
        let place = batch(Some((JobId(205), 7)));
        for (pattern, expected) in [
            ("%a", "7"),
            ("%3a", "007"),
            ("%A_%a.out", "205_7.out"),
            ("%b", "7"),
            ("%J", "178"),
            ("%4A_%4a", "0205_0007"),
        ] {
            assert_eq!(name(pattern, &place), expected, "{pattern}");
        }
    }

    #[test]
    fn the_sluid_of_a_job_without_one_is_that_of_none() {
        assert_eq!(name("%S", &Place { sluid: None, ..batch(None) }), "s0000000000000");
    }

    #[test]
    fn a_steps_names_carry_task_and_node() {
        let place =
            Place { step: StepId::Number(0), task: 2, node_index: 1, job_name: "sname", ..batch(None) };
        for (pattern, expected) in [
            ("%J", "178.0"),
            ("%s", "0"),
            ("%t", "2"),
            ("%2t", "02"),
            ("%n", "1"),
            ("%05n", "00001"),
            ("%x", "sname"),
            ("%a", "0"),
            ("%b", "0"),
            ("%j-%2t.out", "178-02.out"),
            ("%J.%N", "178.0.n1"),
        ] {
            assert_eq!(name(pattern, &place), expected, "{pattern}");
        }
    }

    #[test]
    fn the_pattern_says_who_shares_the_file() {
        for (pattern, expected) in [
            ("x", Spread::Step),
            ("%j", Spread::Step),
            ("%N", Spread::Node),
            ("%3n", Spread::Node),
            ("%n-%t", Spread::Task),
            ("%%t", Spread::Step),
            ("\\%t", Spread::Step),
        ] {
            assert_eq!(spread(pattern.as_bytes()), expected, "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_pattern(pattern in proptest::collection::vec(prop_oneof![Just(b'%'), Just(b'\\'), any::<u8>()], 0..40)) {
            let out = expand(&pattern, &batch(None));
            if !pattern.contains(&b'%') && !pattern.contains(&b'\\') {
                prop_assert_eq!(&out, &pattern);
            }
            spread(&pattern);
        }

        #[test]
        fn what_is_escaped_is_taken_as_it_is(text in proptest::collection::vec(any::<u8>(), 1..40)) {
            let escaped: Vec<u8> = text.iter().flat_map(|b| [b'\\', *b]).collect();
            prop_assert_eq!(expand(&escaped, &batch(None)), text);
        }
    }
}
