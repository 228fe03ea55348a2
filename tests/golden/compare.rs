//! Whether two outputs say the same: what differs between any two runs is levelled first.

use regex::{Captures, Regex};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// How much two outputs agree, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Equal but for ids and times.
    Same,
    /// Equal but for durations, figures of usage, and the order of lines.
    Shape,
    /// Ours says all of it on standard error, and more.
    Fuller,
    /// Not equal.
    Differs,
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Exit status.
    pub rc: String,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Which of our job ids stands for which of theirs.
#[derive(Debug, Default)]
pub struct Ids {
    ours: BTreeMap<String, String>,
    theirs: BTreeSet<String>,
    /// Whether what is compared is the answer to a submission.
    submission: bool,
    /// The least and the greatest id of a transcript whose ids are all large.
    range: Option<(u32, u32)>,
}

fn re(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of this file is well formed")
}

static ID: LazyLock<Regex> = LazyLock::new(|| {
    re(
        r"(?m)(?:[Jj]ob |Job |Std(?:Out|Err)=\D*|slurm-|err\.|o#|JobId=|JOBID=|JOB_ID=|job allocation |StepId=|STEP |^)(\d+)(?:_\d+)?\b",
    )
});
/// Below this, a number is more likely something else.
const SURELY_IDS: u32 = 100;
/// What is surely an id, however small.
static SUBMITTED: LazyLock<Regex> = LazyLock::new(|| {
    re(r"^((Submitted batch job )?\d+$|sbatch: Job \d+ to start|srun: Job \d+ to start|Std(Out|Err)=.*\d\d)")
});
static WORD: LazyLock<Regex> = LazyLock::new(|| re(r"\d+|\D"));
static BLANKS: LazyLock<Regex> = LazyLock::new(|| re(r" {2,}"));

static LEVEL: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\] ", "slurmstepd: "),
        (r"error: (_\w+|gres_job_state_validate): ", "error: "),
        (r"(Account|QOS)=\S*", "$1="),
        (r"(?m)^SLURM_(JOB_ACCOUNT|JOB_QOS|CONF|TOPOLOGY_\w+)=.*\n", ""),
        (r"(?m)^ +PreemptEligibleTime=\S+ PreemptTime=\S+\n", ""),
        (r" PreemptEligibleTime=\S+ PreemptTime=\S+", ""),
        (r" LastSchedEval=\S+( Scheduler=\S+)?", ""),
        (r"(?m)^ *(ResvPorts|CPUFreqReq|SrunHost:Pid|CurrentWatts|NodeSets)=.*\n", ""),
        (r"\|(physics|chem)\|", "||"),
        (r"\bphysics\b", "       "),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "TTTT-TT-TTTTT:TT:TT"),
        (r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}", "DATE"),
        (r"\bs[0-9A-Z]{13}\b", "SLUID"),
        (r"\b1[0-9]{9}\b", "EPOCH"),
        (r"\bnode0\b", "n1"),
        (r"(Sid|Pid)=\w+:\d+", "$1=HOST:PID"),
        (r"\bpid \d+", "pid PID"),
        (r"(SLURM_TASK_PID|SLURM_STEP_LAUNCHER_PORT|SLURM_SRUN_COMM_PORT|SLURM_LAUNCH_NODE_IPADDR|SLURM_SRUN_COMM_HOST)=.*", "$1="),
    ]
    .map(|(pattern, to)| (re(pattern), to))
    .into()
});

static SHAPE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        // An exit code is no duration.
        (r"ExitCode=(\d+):(\d+)", "ExitCode=$1.$2"),
        // What has been running, here and there, has done so for less than ten minutes; limits of time are longer.
        (r"\b00:0\d:\d\d(\.\d+)?\b", "DURATION"),
        (r"\b0?\d:\d\d( |\.\d+|$)", "DURATION$1"),
        (r"(Priority|CPULoad|FreeMem|TmpDisk|Port|OS|Version|Arch)=\S*", "$1="),
        (r"\b0\.\d{14}\b", "PRIORITY"),
        // A job fills another share of a node with other cores.
        (r"\b(mix-?|alloc|mixed-?|allocated)(\s|\||$)", "BUSY$2"),
        // Usage of memory and of disks.
        (r"\b\d+(\.\d+)?[KMG]\|", "FIGURE|"),
        (r" +$", ""),
        (r" {2,}", " "),
    ]
    .map(|(pattern, to)| (re(pattern), to))
    .into()
});

fn level(text: &str, rules: &[(Regex, &str)]) -> String {
    rules.iter().fold(text.to_string(), |text, (pattern, to)| pattern.replace_all(&text, *to).into_owned())
}

impl Ids {
    /// Notes which numbers of a transcript's outputs are job ids.
    pub fn harvest<'a>(&mut self, outputs: impl Iterator<Item = &'a str>) {
        let found: BTreeSet<String> = outputs
            .flat_map(|out| ID.captures_iter(out).map(|c| c[1].to_string()).collect::<Vec<_>>())
            .collect();
        let numbers =
            || found.iter().filter_map(|id| id.parse::<u32>().ok()).filter(|id| *id < 900_000 && *id > 9);
        self.range = numbers().min().zip(numbers().max()).filter(|(least, _)| *least >= SURELY_IDS);
        self.theirs.extend(found);
    }

    /// Notes that one stands for the other.
    pub fn know(&mut self, theirs: &str, ours: &str) {
        self.theirs.insert(theirs.to_string());
        self.ours.insert(theirs.to_string(), ours.to_string());
    }

    fn is_id(&self, word: &str) -> bool {
        let within = |id: u32| self.range.is_some_and(|(least, most)| (least..=most).contains(&id));
        self.theirs.contains(word) || word.parse().is_ok_and(within)
    }

    /// Their command with our ids.
    pub fn translate(&self, command: &str) -> String {
        static NUMBER: LazyLock<Regex> = LazyLock::new(|| re(r"(^|[ ,=]|slurm-)(\d+)([ ,_.+;)]|$)"));
        let mut text = command.to_string();
        // Twice: neighbours share the separator between them.
        for _ in 0..2 {
            text = NUMBER
                .replace_all(&text, |c: &Captures<'_>| match self.ours.get(&c[2]) {
                    Some(ours) => format!("{}\u{1}{ours}\u{1}{}", &c[1], &c[3]),
                    None => c[0].to_string(),
                })
                .into_owned();
        }
        text.replace('\u{1}', "")
    }

    /// Our ids for theirs, separated by `|`.
    pub fn ours(&self, jobs: &str) -> String {
        jobs.split('|').map(|id| self.ours.get(id).map_or(id, String::as_str)).collect::<Vec<_>>().join("|")
    }

    /// Their output with our ids, as far as both are known.
    pub fn in_ours(&self, text: &str) -> String {
        static NUMBER: LazyLock<Regex> = LazyLock::new(|| re(r"\d+"));
        NUMBER
            .replace_all(text, |c: &Captures<'_>| match self.ours.get(&c[0]) {
                Some(ours) if self.is_id(&c[0]) => ours.clone(),
                _ => c[0].to_string(),
            })
            .into_owned()
    }

    /// Whether the lines are equal when ids stand for each other; a first meeting makes a pair.
    fn equal(&mut self, theirs: &str, ours: &str) -> bool {
        if theirs == ours {
            if self.submission && SUBMITTED.is_match(theirs) {
                let id = theirs.rsplit(' ').next().unwrap_or_default().to_string();
                if id.bytes().all(|b| b.is_ascii_digit()) {
                    self.ours.insert(id.clone(), id);
                }
            }
            return true;
        }
        let split = |line: &str| {
            let line = BLANKS.replace_all(line.trim_end(), " ").into_owned();
            WORD.find_iter(line.trim_start()).map(|m| m.as_str().to_string()).collect::<Vec<_>>()
        };
        let (a, b) = (split(theirs), split(ours));
        let mut fresh: BTreeMap<String, String> = BTreeMap::new();
        let number = |w: &String| w.starts_with(|c: char| c.is_ascii_digit());
        let matches = a.len() == b.len()
            && a.iter().zip(&b).all(|(x, y)| match self.ours.get(x).or_else(|| fresh.get(x)) {
                _ if !number(x) || !number(y) => x == y,
                Some(pair) if pair == y => true,
                _ if x == y => true,
                None if self.is_id(x) && (x.len() > 2 || self.submission && SUBMITTED.is_match(theirs)) => {
                    // One id of ours is not two of theirs.
                    let taken = self.ours.values().chain(fresh.values()).any(|other| other == y);
                    fresh.insert(x.clone(), y.clone());
                    !taken
                }
                _ => false,
            });
        // Only ids of another width excuse other blanks.
        let excused = matches && (!fresh.is_empty() || a != b);
        if excused {
            self.ours.extend(fresh);
        }
        excused
    }

    fn all(&mut self, theirs: &str, ours: &str) -> bool {
        let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
        theirs.ends_with('\n') == ours.ends_with('\n') && self.in_order(&lines(theirs), &lines(ours))
    }

    /// Whether all lines are equal; if not, nothing was learnt from those that are.
    fn in_order(&mut self, theirs: &[String], ours: &[String]) -> bool {
        let before = self.ours.clone();
        let equal = theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(x, y)| self.equal(x, y));
        if !equal {
            self.ours = before;
        }
        equal
    }

    /// Compares one output.
    fn text(&mut self, theirs: &str, ours: &str) -> Verdict {
        let (a, b) = (level(theirs, &LEVEL), level(ours, &LEVEL));
        if self.all(&a, &b) {
            return Verdict::Same;
        }
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(|l| level(l, &SHAPE)).collect();
            lines.sort();
            lines
        };
        let lines = |text: &str| text.lines().map(|l| level(l, &SHAPE)).collect::<Vec<_>>();
        if self.in_order(&lines(&a), &lines(&b)) || self.in_order(&sorted(&a), &sorted(&b)) {
            return Verdict::Shape;
        }
        Verdict::Differs
    }

    /// Compares all that was said in answer to a command.
    pub fn compare(&mut self, command: &str, theirs: &Said, ours: &Said) -> Verdict {
        self.submission = ["sbatch", "srun", "salloc"].iter().any(|name| command.starts_with(name));
        let out = self.text(&theirs.out, &ours.out);
        if theirs.rc != ours.rc || out == Verdict::Differs {
            return Verdict::Differs;
        }
        match self.text(&theirs.err, &ours.err) {
            Verdict::Differs if self.within(&theirs.err, &ours.err) => Verdict::Fuller,
            err => err.max(out),
        }
    }

    /// Whether ours has all their lines, perhaps continued, among others. Where they say nothing there is nothing to add to.
    fn within(&mut self, theirs: &str, ours: &str) -> bool {
        let (a, b) = (level(theirs, &LEVEL), level(ours, &LEVEL));
        if a.trim().is_empty() {
            return false;
        }
        let left: Vec<&str> = b.lines().collect();
        let longer =
            |line: &str, wanted: &str| wanted.len() > 12 && line.contains(wanted.trim_end_matches('.'));
        a.lines().map(str::trim).filter(|l| !l.is_empty()).all(|wanted| {
            left.iter().any(|line| self.equal(wanted, line) || longer(line, &self.in_ours(wanted)))
        })
    }
}

/// The text without the lines about these jobs.
pub fn without(text: &str, jobs: &str) -> String {
    let about = re(&format!(r"^\s*(\S+ )?({jobs})(_\[?\d\S*)?([\s|.]|$)|\s({jobs})$"));
    text.lines().filter(|l| !about.is_match(l)).map(|l| format!("{l}\n")).collect()
}

/// The text without the lines that match.
pub fn without_lines(text: &str, pattern: &str) -> String {
    let pattern = re(pattern);
    text.lines().filter(|l| !pattern.is_match(l)).map(|l| format!("{l}\n")).collect()
}

/// Lines of both, `-` theirs and `+` ours, equal ones left out but for a few.
pub fn diff(theirs: &str, ours: &str) -> Vec<String> {
    let (theirs, ours) = (level(theirs, &LEVEL), level(ours, &LEVEL));
    let (a, b): (Vec<&str>, Vec<&str>) = (theirs.lines().collect(), ours.lines().collect());
    let mut common = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] =
                if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(format!("- {}", a[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", b[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(out: &str, err: &str) -> Said {
        Said { rc: "0".into(), out: out.into(), err: err.into() }
    }

    #[test]
    fn ids_stand_for_each_other_everywhere_after_the_first_meeting() {
        let mut ids = Ids::default();
        ids.harvest(["Submitted batch job 47\n"].into_iter());
        let submitted = said("Submitted batch job 47\n", "");
        assert_eq!(ids.compare("sbatch x", &submitted, &said("Submitted batch job 3\n", "")), Verdict::Same);
        assert_eq!(ids.translate("scancel 47 470; cat slurm-47.out"), "scancel 3 470; cat slurm-3.out");
        assert_eq!(ids.compare("sbatch x", &said("   47  R\n", ""), &said("    3  R\n", "")), Verdict::Same);
        assert_eq!(
            ids.compare("sbatch x", &said("   47  R\n", ""), &said("    4  R\n", "")),
            Verdict::Differs
        );
        assert_eq!(ids.compare("sbatch x", &said("a  b\n", ""), &said("a b\n", "")), Verdict::Shape);
    }

    #[test]
    fn one_id_of_ours_is_not_two_of_theirs() {
        let mut ids = Ids::default();
        ids.harvest(["Submitted batch job 147\nSubmitted batch job 149\n"].into_iter());
        let row = |first: u32, second: u32| said(&format!("{first} R\n{second} PD\n"), "");
        assert_eq!(ids.compare("squeue", &row(147, 148), &row(3, 3)), Verdict::Differs);
        assert_eq!(ids.compare("squeue", &row(147, 148), &row(3, 4)), Verdict::Same);
        assert_eq!(ids.compare("squeue", &said("147 147\n", ""), &said("3 3\n", "")), Verdict::Same);
        assert_eq!(ids.compare("squeue", &said("147 149\n", ""), &said("3 4\n", "")), Verdict::Differs);
    }

    #[test]
    fn times_are_levelled_and_durations_compared_by_shape() {
        let mut ids = Ids::default();
        let at = |t: &str| said(&format!("StartTime=2026-11-20T{t} EndTime=Unknown\n"), "");
        assert_eq!(ids.compare("sbatch x", &at("22:44:06"), &at("01:02:03")), Verdict::Same);
        assert_eq!(
            ids.compare("sbatch x", &at("22:44:06"), &said("StartTime=Unknown EndTime=Unknown\n", "")),
            Verdict::Differs
        );
        assert_eq!(
            ids.compare("sbatch x", &said("  1:27 n1\n", ""), &said("  0:03 n1\n", "")),
            Verdict::Shape
        );
        assert_eq!(ids.compare("sbatch x", &said("b\na\n", ""), &said("a\nb\n", "")), Verdict::Shape);
    }

    #[test]
    fn limits_counts_and_exit_codes_are_no_shapes() {
        for (theirs, ours) in [
            ("TimeLimit=00:30:00\n", "TimeLimit=01:00:00\n"),
            ("30:00 n1\n", "1:00:00 n1\n"),
            ("1-00:00:00\n", "2-00:00:00\n"),
            ("ExitCode=0:15\n", "ExitCode=0:10\n"),
            ("CANCELLED|0:15|\n", "CANCELLED|0:10|\n"),
            ("4|8|\n", "4|9|\n"),
        ] {
            let verdict = Ids::default().compare("sacct", &said(theirs, ""), &said(ours, ""));
            assert_eq!(verdict, Verdict::Differs, "{theirs}{ours}");
        }
    }

    #[test]
    fn lines_about_some_jobs_are_left_out() {
        assert_eq!(
            without("JOBID ST\n  18 R\n 118 R\n18.batch\n18_[1-2]|x\n PD 18\n9|18 |\n", "18|19"),
            "JOBID ST\n 118 R\n9|18 |\n"
        );
    }

    #[test]
    fn a_next_step_may_be_added_to_an_error() {
        let mut ids = Ids::default();
        let theirs = said("", "x: error: bad\n");
        assert_eq!(
            ids.compare("sbatch x", &theirs, &said("", "x: error: bad\nx: do this\n")),
            Verdict::Fuller
        );
        assert_eq!(ids.compare("sbatch x", &theirs, &said("", "x: do this\n")), Verdict::Differs);
        assert_eq!(
            ids.compare("sbatch x", &said("", ""), &said("", "x: a word of ours\n")),
            Verdict::Differs
        );
        assert_eq!(
            ids.compare("sbatch x", &theirs, &Said { rc: "1".into(), ..theirs.clone() }),
            Verdict::Differs
        );
        assert_eq!(diff("a\nb\n", "a\nc\n"), ["- b", "+ c"]);
    }
}
