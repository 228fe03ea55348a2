//! Texts that are almost right, thousands for each grammar: no parser may panic, and what one takes it must take
//! again after printing it.

use berth_model::options::{self, Command, Context, Source};
use berth_model::spec::{ArraySpec, JobSelector, TimeLimit};
use berth_model::when::Sense;
use berth_model::{
    ByteStr, Time, count, export, gres, hostlist, jobid, memory, pattern, runs, sbatch, signal, when,
};
use jiff::tz::TimeZone;
use proptest::prelude::*;

/// Right texts of all grammars.
const SEEDS: &[&str] = &[
    "1-02:03:04",
    "30:00",
    "UNLIMITED",
    "4000M",
    "10gb",
    "2-4k",
    "n[001-003,7],r[1-2]n[1-3].site",
    "a-b-c-[9-11]-ib0",
    "0-15,20-40:5%4",
    "[1-3]",
    "12_[1-5,7%2].batch",
    "12_3.0",
    "B:USR1@50",
    "now+3hours",
    "16:00 PM",
    "2027-01-02T03:04:05",
    "12/31/26-10:00",
    "uts1893456000",
    "gpu:a100:4,nic=2k",
    "gres/gpu",
    "a100:2",
    "2(x3),1",
    "slurm-%A_%3a.out",
    "\\%j%%t",
    "ALL,A='1,2',B=\"x\"",
    "/a:/b:ro+nosuid,tmpfs:/t:size=1g",
    "#SBATCH -J 'a b' --time=5 # c",
    "#!/bin/sh\n#SBATCH -n 4\n#PBS -x\ntrue\n",
    "-n4 --mem=1G -w n[1-2] --exclusive",
    "--container-image=x --container-mounts=/a --gres=gpu:1",
];

fn almost_right() -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), any::<u8>(), 0..5u8);
    let seed = proptest::sample::select(SEEDS);
    (seed.clone(), seed, proptest::collection::vec(edit, 0..6)).prop_map(|(seed, other, edits)| {
        let mut text = seed.as_bytes().to_vec();
        for (at, byte, kind) in edits {
            let at = at.index(text.len() + 1);
            match kind {
                0 => text.insert(at, byte),
                1 if at < text.len() => text[at] = byte,
                2 if at < text.len() => drop(text.remove(at)),
                3 => text.truncate(at),
                _ => drop(text.splice(at..at, other.bytes())),
            }
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn grammars_take_or_refuse_everything(bytes in almost_right()) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Ok(limit) = text.parse::<TimeLimit>() {
            prop_assert_eq!(limit.to_string().parse(), Ok(limit));
        }
        if let Ok(mib) = memory::parse(&text) {
            prop_assert_eq!(memory::parse(&memory::print(mib)), Ok(mib));
        }
        if let Ok(nodes) = text.parse::<count::NodeCount>() {
            prop_assert_eq!(nodes.to_string().parse(), Ok(nodes));
        }
        if let Ok(names) = hostlist::expand(&text) {
            prop_assert!(names.len() <= hostlist::MOST_NAMES);
            prop_assert_eq!(hostlist::expand(&hostlist::compress(&names)), Ok(names));
        }
        if let Ok(set) = text.parse::<ArraySpec>() {
            prop_assert_eq!(set.len(), set.iter().count() as u64);
        }
        if let Ok((job, _)) = jobid::with_step(&text) {
            prop_assert_eq!(job.to_string().parse::<JobSelector>(), Ok(job));
        }
        if let Ok(warning) = signal::parse_warning(&text) {
            prop_assert_eq!(signal::parse_warning(&warning.to_string()), Ok(warning));
        }
        if let Ok(wanted) = gres::parse(&text) {
            prop_assert_eq!(gres::parse(&gres::print(&wanted)), Ok(wanted));
        }
        if let Ok(numbers) = runs::parse(&text) {
            prop_assert_eq!(runs::parse(&runs::print(&numbers)), Ok(numbers));
        }
        let _ = gres::parse_gpus(&text);
        let _ = when::parse(&text, Time::from_secs(1_795_216_174), &TimeZone::UTC, Sense::Ahead);
        let _ = when::parse(&text, Time::from_secs(1_795_216_174), &TimeZone::UTC, Sense::Past);
        pattern::spread(&bytes);
        let _ = export::ExportSpec::parse(&bytes);
        let _ = options::parse_mounts(&bytes);
        let _ = sbatch::check(&bytes);
        let _ = sbatch::directives(&bytes);
    }

    #[test]
    fn command_lines_are_taken_or_refused(bytes in almost_right()) {
        let words: Vec<ByteStr> = bytes.split(|b| *b == b' ').map(ByteStr::from).collect();
        let context = Context { now: Time::from_secs(1_795_216_174), zone: TimeZone::UTC };
        for command in Command::ALL {
            if let Ok(read) = options::parse(command, &words, Source::CommandLine) {
                let _ = options::resolve(command, read.settings, &context);
            }
            let _ = options::from_environment(command, |_| Some(ByteStr::from(bytes.as_slice())));
        }
    }
}
