//! How people name jobs, array tasks and steps: `12`, `12_3`, `12_[1-5]`, `12+1`, `sCN1M7XK76CZ00`, `12.0`, `12_3.batch`.

use crate::grammar::{BadText, digits};
use crate::ids::{JobId, StepId};
use crate::spec::{ArraySpec, JobSelector};
use std::fmt;
use std::str::FromStr;

const WHAT: &str = "a job id";

impl fmt::Display for JobSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobSelector::Job(job) => f.pad(&job.to_string()),
            JobSelector::Task(job, task) => f.pad(&format!("{job}_{task}")),
            JobSelector::Tasks(job, tasks) => f.pad(&format!("{job}_[{tasks}]")),
            JobSelector::Component(job, offset) => f.pad(&format!("{job}+{offset}")),
            JobSelector::Sluid(sluid) => fmt::Display::fmt(sluid, f),
        }
    }
}

impl FromStr for JobSelector {
    type Err = BadText;

    fn from_str(text: &str) -> Result<JobSelector, BadText> {
        let bad = |why: &str| BadText::new(text, WHAT, why);
        const FORMS: &str = "write JOB, ARRAY_TASK, ARRAY_[TASKS], JOB+COMPONENT or a SLUID, such as 12, 12_3, 12_[1-5,7], 12+1 or \
             sCN1M7XK76CZ00";
        if text.starts_with(['s', 'S']) {
            return text.parse().map(JobSelector::Sluid).map_err(|_: BadText| bad(FORMS));
        }
        let id = |s: &str| digits(s).and_then(|n| u32::try_from(n).ok());
        let job = |s: &str| id(s).filter(|n| *n > 0).map(JobId).ok_or_else(|| bad(FORMS));
        if let Some((leader, offset)) = text.split_once('+') {
            let offset = id(offset).ok_or_else(|| bad(FORMS))?;
            return Ok(JobSelector::Component(job(leader)?, offset));
        }
        match text.split_once('_') {
            None => Ok(JobSelector::Job(job(text)?)),
            // Pasting squeue's `12_[1-9%2]` works; the most at once says nothing about which tasks.
            Some((array, tasks)) if tasks.starts_with('[') => {
                let mut set: ArraySpec = tasks.parse().map_err(|e: BadText| bad(&e.why))?;
                set.max_running = None;
                Ok(JobSelector::Tasks(job(array)?, set))
            }
            Some((array, task)) => Ok(JobSelector::Task(job(array)?, id(task).ok_or_else(|| bad(FORMS))?)),
        }
    }
}

/// A job and, after a dot, one of its steps: `12`, `12.0`, `12_3.batch`.
pub fn with_step(text: &str) -> Result<(JobSelector, Option<StepId>), BadText> {
    match text.split_once('.') {
        None => Ok((text.parse()?, None)),
        Some((job, step)) => {
            let step = step
                .parse()
                .map_err(|e: crate::ids::BadStepId| BadText::new(text, "a step id", e.to_string()))?;
            Ok((job.parse()?, Some(step)))
        }
    }
}

/// A list of such names, separated by commas outside brackets.
pub fn list(text: &str) -> Result<Vec<(JobSelector, Option<StepId>)>, BadText> {
    let mut depth = 0i32;
    text.split(|c| {
        depth += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    })
    .filter(|item| !item.is_empty())
    .map(with_step)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use crate::sluid::Sluid;
    use proptest::prelude::*;

    #[test]
    fn names_of_jobs_tasks_and_steps_are_read() {
        assert_eq!("12".parse(), Ok(JobSelector::Job(JobId(12))));
        assert_eq!("12_3".parse(), Ok(JobSelector::Task(JobId(12), 3)));
        let Ok(JobSelector::Tasks(JobId(12), tasks)) = "12_[1-5,7%2]".parse() else { panic!() };
        assert_eq!(tasks.to_string(), "1-5,7");
        assert_eq!("12+1".parse(), Ok(JobSelector::Component(JobId(12), 1)));
        let part = JobSelector::Component(JobId(12), 1);
        assert_eq!(with_step("12+1.0"), Ok((part, Some(StepId::Number(0)))));
        let sluid: Sluid = "sCN1M7XK76CZ00".parse().unwrap();
        assert_eq!("SCN1M7XK76CZ00".parse(), Ok(JobSelector::Sluid(sluid)));
        assert_eq!(with_step("sCN1M7XK76CZ00.batch"), Ok((JobSelector::Sluid(sluid), Some(StepId::Batch))));
        assert_eq!(list("1,sCN1M7XK76CZ00,4.0").unwrap().len(), 3);
        assert_eq!(with_step("12.0"), Ok((JobSelector::Job(JobId(12)), Some(StepId::Number(0)))));
        assert_eq!(with_step("12_3.batch"), Ok((JobSelector::Task(JobId(12), 3), Some(StepId::Batch))));
        assert_eq!(list("1,2_[3,5],4.0").unwrap().len(), 3);
        for text in [
            "",
            "0",
            "a",
            "-1",
            "12_",
            "12_a",
            "12_[",
            "12+",
            "+1",
            "12+1+2",
            "12_1+1",
            "12+a",
            "_3",
            "4294967296",
            "12__3",
            "s",
            "sCN1M7XK76CZ0",
            "sCN1M7XK76CZ00_1",
            "sCN1M7XK76CZ00+1",
        ] {
            assert!(text.parse::<JobSelector>().is_err(), "{text}");
        }
        for text in ["12.", "12.x", "12.0+1", ".0", "12.-1"] {
            assert!(with_step(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(job in 1u32.., task in 0u32..100, step in any::<u32>(), form in 0..5) {
            let job = JobId(job);
            let selector = match form {
                0 => JobSelector::Job(job),
                1 => JobSelector::Task(job, task),
                3 => JobSelector::Component(job, task),
                4 => JobSelector::Sluid(Sluid(u64::from(step) + 1)),
                _ => JobSelector::Tasks(job, ArraySpec::from_indices([task, task + 2, 300], None)),
            };
            prop_assert_eq!(selector.to_string().parse(), Ok(selector.clone()));
            let named = format!("{selector}.{}", StepId::Number(step));
            prop_assert_eq!(with_step(&named), Ok((selector, Some(StepId::Number(step)))));
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok((selector, _)) = with_step(&text) {
                prop_assert_eq!(selector.to_string().parse(), Ok(selector));
            }
            let _ = list(&text);
        }
    }
}
