//! The table against Slurm's lists of options, and the parser against GNU's conventions.

mod devices;
mod lists;
mod variables;

use super::*;
use crate::bytes::ByteStr;
use crate::distribution::Distribution;
use crate::grammar::soup;
use crate::ids::{JobId, NodeName, SubmissionId};
use crate::limits::{LimitValue, Limits, Resource};
use crate::spec::{
    ImageRef, JobKind, JobSelector, MemoryRequest, NameFlag, NameScope, NamedSpec, OpenMode, ResolvedImage,
    TimeLimit, Unshared,
};
use crate::time::{Span, Time};
use jiff::tz::TimeZone;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn context() -> Context {
    Context { now: Time::from_secs(1_795_216_174), zone: TimeZone::UTC }
}

fn words(line: &str) -> Vec<ByteStr> {
    line.split_whitespace().map(ByteStr::from).collect()
}

fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<ByteStr> + 'a {
    move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| ByteStr::from(*v))
}

fn all(command: Command, line: &str, pairs: &[(&str, &str)]) -> Result<SubmitOptions, OptionError> {
    let mut settings = parse(command, &words(line), Source::CommandLine)?.settings;
    settings.extend(from_environment(command, env(pairs))?);
    resolve(command, settings, &context())
}

fn sbatch(line: &str) -> Result<SubmitOptions, OptionError> {
    all(Command::Sbatch, line, &[])
}

fn srun(line: &str) -> Result<SubmitOptions, OptionError> {
    all(Command::Srun, line, &[])
}

fn error(result: Result<SubmitOptions, OptionError>) -> String {
    result.map(|_| ()).unwrap_err().render("sbatch")
}

/// Section 3.1 of the reference: option and commands (b, a, r).
const MUST: &str = "account:bar array:b begin:bar chdir:bar comment:bar constraint:bar cpus-per-task:bar \
    cpus-per-gpu:bar dependency:bar distribution:bar error:br exclude:bar exclusive:bar export:br gpus:bar \
    gpus-per-node:bar gpus-per-task:bar gpus-per-socket:bar gres:bar help:bar usage:bar version:bar hold:bar \
    immediate:ar input:br job-name:bar jobid:r kill-on-bad-exit:r label:r licenses:bar mem:bar mem-per-cpu:bar \
    mem-per-gpu:bar mail-type:bar mail-user:bar mpi:r multi-prog:r nice:bar no-requeue:b requeue:b nodelist:bar \
    nodes:bar ntasks:bar ntasks-per-node:bar tasks-per-node:bar open-mode:br output:br overcommit:bar overlap:r \
    parsable:b partition:bar priority:bar pty:r qos:bar quiet:bar verbose:bar reservation:bar signal:bar \
    test-only:br time:bar time-min:bar wait:br wrap:b x11:ar";

/// Sections 3.2 and 3.3, and Pyxis's options.
const MORE: &str = "acctg-freq batch bcast bcast-exclude bell no-bell bb bbf clusters cluster-constraint compress \
    contiguous container container-id core-spec cores-per-socket cpu-bind cpu-freq deadline delay-boot \
    disable-status epilog prolog task-prolog task-epilog exact export-file extra extra-node-info get-user-env gid uid \
    gpu-bind gpu-freq gres-flags het-group hint interactive kill-on-invalid-dep kill-command mem-bind mincpus \
    msg-timeout network no-allocate no-kill no-shell nodefile ntasks-per-core ntasks-per-socket ntasks-per-gpu \
    oversubscribe prefer preserve-env profile propagate quit-on-interrupt reboot relative resv-ports send-libs \
    sockets-per-node spread-job switches threads threads-per-core tmp tres-bind tres-per-task unbuffered use-min-nodes \
    wait-all-nodes wckey accel-bind async consolidate-segments context debugger-test external external-launcher \
    ignore-pbs ignore-signals mcs-label mem-update ntasks-per-tres oom-kill-step pack-group resources runtime segment \
    slurmd-debug spread-segments stepmgr thread-spec treewidth wait-for-children whole cpu_bind container-image \
    container-mounts container-workdir container-name container-save container-mount-home no-container-mount-home \
    container-remap-root no-container-remap-root container-entrypoint no-container-entrypoint \
    container-entrypoint-log container-writable container-readonly container-env container-unshare";

#[test]
fn every_option_of_slurm_and_pyxis_is_in_the_table() {
    let has = |command: Command, name: &str| rows(command).any(|row| row.names().any(|long| long == name));
    for item in MUST.split_whitespace() {
        let (name, commands) = item.split_once(':').unwrap();
        for (letter, command) in [('b', Command::Sbatch), ('a', Command::Salloc), ('r', Command::Srun)] {
            assert_eq!(has(command, name), commands.contains(letter), "{} --{name}", command.name());
        }
    }
    for name in MORE.split_whitespace() {
        assert!(Command::ALL.iter().any(|command| has(*command, name)), "--{name}");
    }
}

#[test]
fn short_letters_are_slurms() {
    for (command, letters) in [
        (Command::Sbatch, "ABCDFGHIJLMNOQSVWabcdehikmnopqstvwx"),
        (Command::Salloc, "ABCDFGHIJKLMNOQSVbcdhkmnpqstvwx"),
        (Command::Srun, "ABCDEFGHIJKLMNOQSTVWXZbcdehiklmnopqrstuvwx"),
    ] {
        let there: String = letters
            .chars()
            .filter(|letter| rows(command).any(|row| row.short.is_some_and(|s| char::from(s) == *letter)))
            .collect();
        // sbatch has no -I.
        assert_eq!(
            there,
            letters.replace(if command == Command::Sbatch { "I" } else { "\0" }, ""),
            "{}",
            command.name()
        );
    }
}

#[test]
fn names_letters_and_variables_are_unique_and_every_row_is_explained() {
    for command in Command::ALL {
        let mut seen = BTreeSet::new();
        for row in rows(command) {
            for name in row.names().map(str::to_string).chain(row.short.map(|s| char::from(s).to_string())) {
                assert!(seen.insert(name.clone()), "{} {name}", command.name());
            }
            for name in row.env_of(command) {
                assert!(seen.insert(name.to_string()), "{} {name}", command.name());
            }
            match row.action {
                Action::Refused(instead) => assert!(!instead.is_empty(), "{}", row.long),
                _ => assert!(row.help.ends_with('.'), "{}", row.long),
            }
            // As a line that goes on without saying so would leave them.
            assert!(!row.help.contains("  "), "{}: two blanks in a row", row.long);
        }
    }
}

#[test]
fn words_follow_getopt_long() {
    let options = sbatch("-n4 -N 2 --time=30:00 --mem 1G -J name --exclusive -Hvv script -n 9").unwrap();
    assert_eq!(options.ntasks, Some(4));
    assert_eq!(options.nodes.map(|n| (n.min, n.max)), Some((2, 2)));
    assert_eq!(options.time, Some(TimeLimit::Minutes(30)));
    assert_eq!(options.mem, Some(1024));
    assert!(options.exclusive && options.hold);
    assert_eq!(options.verbose, 2);
    let read = |line: &str| parse(Command::Srun, &words(line), Source::CommandLine).unwrap();
    assert_eq!(read("-n2 prog -n3 --help").rest, words("prog -n3 --help"));
    assert_eq!(read("-n2 -- -prog").rest, words("-prog"));
    assert_eq!(read("- x").rest, words("- x"));
    assert_eq!(read("-n2 --help --bogus").info, Some(Info::Help));
    // Optional values only glued or behind =.
    assert!(!srun("-K0 true").unwrap().kill_on_bad_exit);
    assert!(srun("-K 0").unwrap().kill_on_bad_exit);
    assert_eq!(read("-K 0").rest, words("0"));
    assert_eq!(srun("-I true").unwrap().immediate, Some(Span::from_secs(1)));
    assert_eq!(srun("--immediate=9 true").unwrap().immediate, Some(Span::from_secs(9)));
    // Prefixes.
    assert_eq!(sbatch("--job x").unwrap().job_name.as_deref(), Some("x"));
    assert_eq!(sbatch("--part=x").unwrap().partition.as_deref(), Some("x"));
    assert_eq!(srun("--tasks-per=2").unwrap().ntasks_per_node, Some(2));
    assert_eq!(sbatch("--mem=5").unwrap().mem, Some(5), "an exact name is no ambiguous prefix");
}

#[test]
fn usage_errors_have_getopts_words() {
    for (line, text) in [
        ("--bogus=1", "sbatch: unrecognized option '--bogus=1'"),
        ("-Z", "sbatch: invalid option -- 'Z'"),
        ("-N", "sbatch: option requires an argument -- 'N'"),
        ("--input", "sbatch: option '--input' requires an argument"),
        ("--get-user-env=bad", "sbatch: option '--get-user-env' doesn't allow an argument"),
        ("--jobid=777", "sbatch: unrecognized option '--jobid=777'"),
    ] {
        let error = sbatch(line).unwrap_err();
        assert_eq!(error.exit_code, 255);
        assert_eq!(error.render("sbatch"), format!("{text}\nTry \"sbatch --help\" for more information"));
    }
    let ambiguous = error(sbatch("--n=1"));
    assert!(
        ambiguous.starts_with("sbatch: option '--n=1' is ambiguous; possibilities: '--network' '--nice' ")
    );
    assert!(srun("sh -c :").is_ok());
}

#[test]
fn refused_options_name_themselves_and_the_way_out() {
    for line in
        ["--qos=high", "-q high", "-C big", "--dependency=afterok:1", "--container-id=x", "--mail-type=END"]
    {
        let error = sbatch(line).unwrap_err();
        assert_eq!((error.exit_code, error.lines.len()), (255, 2), "{line}");
        assert!(error.lines[0].contains("is not supported by this release"), "{line}");
    }
    let variable = all(Command::Sbatch, "", &[("SBATCH_QOS", "high")]).unwrap_err();
    assert!(variable.lines[0].contains("--qos (environment variable SBATCH_QOS)"), "{variable}");
    // A refused flag that the environment switches off asks for nothing.
    assert!(all(Command::Sbatch, "", &[("SBATCH_SPREAD_JOB", "0")]).is_ok());
    assert!(all(Command::Sbatch, "", &[("SBATCH_SPREAD_JOB", "yes")]).is_err());
}

#[test]
fn values_are_refused_in_slurms_words() {
    for (line, code, text) in [
        ("--time=bad", 255, "sbatch: error: Invalid --time specification"),
        ("--mem=1.5G", 255, "sbatch: error: Invalid --mem specification"),
        ("-n 0", 1, "sbatch: error: Invalid numeric value \"0\" for --ntasks."),
        ("-n -1", 1, "sbatch: error: Invalid numeric value \"-1\" for --ntasks."),
        ("-c abc", 1, "sbatch: error: Invalid numeric value \"abc\" for --cpus-per-task."),
        ("--ntasks-per-node=bad", 1, "sbatch: error: Invalid numeric value \"bad\" for --ntasks-per-node."),
        ("-N abc", 255, "sbatch: error: \"abc\" is not a valid node count"),
        ("-N 1-2-3", 255, "sbatch: error: \"2-3\" is not a valid node count"),
        ("-N 3-1", 255, "sbatch: error: Maximum node count 1 is less than minimum node count 3"),
        ("--signal=bogus", 255, "sbatch: error: Invalid --signal specification"),
        ("--exclusive=bogus", 255, "sbatch: error: Invalid --exclusive specification"),
        ("--open-mode=x", 255, "sbatch: error: Invalid --open-mode specification"),
        ("-m bogus", 255, "sbatch: error: Invalid --distribution specification"),
        ("--nice=99999999999", 255, "sbatch: error: Invalid --nice value, out of range (+/- 2147483645)"),
        ("--begin=now+1min", 255, "sbatch: error: Invalid --begin specification"),
        (
            "-a 5-1",
            1,
            "sbatch: error: Batch job submission failed: Invalid job array specification: '5-1' is not an array specification: a range must ascend",
        ),
        (
            "-N 0",
            1,
            "sbatch: error: Batch job submission failed: Node count specification invalid: write a number from 1, or MIN-MAX; k means 1024 and m 1048576",
        ),
        ("-w n[1", 1, "sbatch: fatal: Invalid node list specified"),
        (
            "--mem=1 --mem-per-cpu=1",
            1,
            "sbatch: fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.",
        ),
        (
            "-w n1 -x n1",
            1,
            "sbatch: error: Batch job submission failed: Invalid node name specified: a node stands both in --nodelist and in --exclude; leave it out of one of them",
        ),
        ("-p a,b", 255, "sbatch: error: Invalid --partition specification"),
        ("--gres=gpu:-1", 1, "sbatch: error: Invalid generic resource (gres) specification"),
        ("-G a100:x", 1, "sbatch: error: Invalid generic resource (gres) specification"),
        (
            "-n2 --tres-per-task=bogus=1",
            1,
            "sbatch: error: Batch job submission failed: Invalid Trackable RESource (TRES) specification: \
             --tres-per-task: 'bogus=1' is not resources of a task: write cpu=COUNT and gres/NAME[:TYPE]=COUNT, such as \
             cpu=4,gres/gpu=1",
        ),
        ("--gres-flags=bogus", 255, "sbatch: error: Invalid --gres-flags specification: bogus"),
        ("--gpu-bind=bogus", 255, "sbatch: error: Invalid --gpu-bind argument: bogus"),
    ] {
        let error = sbatch(line).unwrap_err();
        assert_eq!(error.render("sbatch").lines().next(), Some(text), "{line}");
        assert_eq!(error.exit_code, code, "{line}");
    }
    let refused = srun("--mpi=bogus true").unwrap_err();
    let text = "srun: error: Invalid MPI type 'bogus', --mpi=list for acceptable types";
    assert_eq!((refused.render("srun").lines().next(), refused.exit_code), (Some(text), 1));
    let refused = srun("--cpu-bind=bogus true").unwrap_err();
    let text = "srun: error: unrecognized --cpu-bind argument \"bogus\"\n\
                srun: fatal: Failed to parse --cpu-bind= values.\n\
                srun: fatal: write none, rank, ";
    assert!(refused.render("srun").starts_with(text) && refused.exit_code == 1, "{}", refused.render("srun"));
    let text = error(all(Command::Sbatch, "", &[("SBATCH_TIMELIMIT", "bad")]));
    assert!(text.contains("environment variable SBATCH_TIMELIMIT: 'bad' is not a time limit"), "{text}");
}

#[test]
fn the_command_line_comes_before_the_environment_and_that_before_the_script() {
    let script =
        parse(Command::Sbatch, &words("-J script -t 1 -p script"), Source::Script(3)).unwrap().settings;
    let mut settings = parse(Command::Sbatch, &words("-J line"), Source::CommandLine).unwrap().settings;
    settings.extend(
        from_environment(Command::Sbatch, env(&[("SBATCH_JOB_NAME", "env"), ("SBATCH_TIMELIMIT", "2")]))
            .unwrap(),
    );
    settings.extend(script);
    let options = resolve(Command::Sbatch, settings, &context()).unwrap();
    assert_eq!(options.job_name.as_deref(), Some("line"));
    assert_eq!(options.time, Some(TimeLimit::Minutes(2)));
    assert_eq!(options.partition.as_deref(), Some("script"));
    assert_eq!(options.source("partition"), Some(Source::Script(3)));
    assert_eq!(options.source("time"), Some(Source::Environment("SBATCH_TIMELIMIT")));
    // Memory of a greater source replaces the other kind of a lesser one.
    let memory = |line, pairs: &[(&str, &str)]| all(Command::Srun, line, pairs).unwrap().memory();
    assert_eq!(memory("--mem=9", &[("SLURM_MEM_PER_CPU", "5")]), MemoryRequest::PerNode(9));
    assert_eq!(memory("--mem-per-cpu=9", &[("SLURM_MEM_PER_NODE", "5")]), MemoryRequest::PerCpu(9));
    assert_eq!(memory("", &[("SLURM_MEM_PER_CPU", "5")]), MemoryRequest::PerCpu(5));
    assert_eq!(memory("--mem-per-cpu=0", &[]), MemoryRequest::PerNode(0));
    assert_eq!(memory("", &[]), MemoryRequest::Default);
    let both =
        all(Command::Srun, "", &[("SLURM_MEM_PER_CPU", "5"), ("SLURM_MEM_PER_NODE", "5")]).unwrap_err();
    assert!(both.lines[0].starts_with("SLURM_MEM_PER_CPU,"));
}

#[test]
fn variables_count_as_set_by_slurms_rule() {
    for (value, set) in
        [("", true), ("yes", true), ("1", true), ("7", true), ("0", false), ("no", false), ("x", false)]
    {
        assert_eq!(all(Command::Srun, "", &[("SLURM_LABELIO", value)]).unwrap().label, set, "{value}");
    }
    // Each command reads its own.
    assert_eq!(all(Command::Srun, "", &[("SBATCH_PARTITION", "x")]).unwrap().partition, None);
    assert_eq!(
        all(Command::Salloc, "", &[("SALLOC_PARTITION", "x")]).unwrap().partition.as_deref(),
        Some("x")
    );
    assert_eq!(all(Command::Srun, "", &[("SLURM_PARTITION", "")]).unwrap().partition, None);
    assert_eq!(
        all(Command::Srun, "", &[("SLURM_JOB_ID", "12")]).unwrap().jobid,
        Some(JobSelector::Job(JobId(12)))
    );
}

#[test]
fn container_options_have_pyxis_meaning_and_are_never_ignored() {
    let options = srun(
        "--container-image=debian:12 --container-mounts=/a:/b:ro,/c --container-mounts=/d --container-env=A,B \
         --no-container-mount-home --container-remap-root --container-readonly --container-workdir=/w true",
    )
    .unwrap();
    let container = &options.container;
    assert_eq!(container.image.as_deref(), Some("debian:12"));
    assert_eq!(container.mounts.len(), 3);
    assert_eq!(
        (container.mount_home, container.remap_root, container.writable),
        (Some(false), Some(true), Some(false))
    );
    assert_eq!(container.env, ["A", "B"]);
    for (line, text) in [
        (
            "--container-writable --container-readonly",
            "both --container-writable and --container-readonly were specified",
        ),
        (
            "--container-mount-home --no-container-mount-home",
            "both --container-mount-home and --no-container-mount-home were specified",
        ),
        ("--container-image=a --container-image=b", "--container-image specified multiple times"),
        ("--container-image=", "--container-image: argument required"),
        ("--container-env=A=1", "--container-env: invalid format: A=1"),
        ("--container-workdir=rel", "--container-workdir: 'rel' is not an absolute path"),
    ] {
        let error = srun(line).unwrap_err();
        assert_eq!((error.lines[0].as_str(), error.exit_code), (text, 255), "{line}");
    }
    assert!(srun("--container-image=a --container-image=a").is_ok());
    // The environment is the fallback, and can switch off.
    let pairs = [
        ("PYXIS_CONTAINER_IMAGE", "x"),
        ("PYXIS_CONTAINER_MOUNT_HOME", "no"),
        ("PYXIS_CONTAINER_MOUNTS", "/e"),
    ];
    let options =
        all(Command::Srun, "--container-image=y --container-writable --container-mounts=/f", &pairs).unwrap();
    assert_eq!(options.container.image.as_deref(), Some("y"));
    assert_eq!(options.container.mount_home, Some(false));
    assert_eq!(options.container.mounts.len(), 1, "the command line's list replaces the environment's");
    assert!(all(Command::Srun, "--container-writable", &[("PYXIS_CONTAINER_READONLY", "1")]).is_ok());
    assert!(all(Command::Srun, "", &[("PYXIS_CONTAINER_MOUNT_HOME", "maybe")]).is_err());
    // Without an image.
    let by = submitter();
    for (line, pairs) in [("--container-mounts=/a", &[][..]), ("", &[("PYXIS_CONTAINER_READONLY", "1")][..])]
    {
        let options = all(Command::Sbatch, line, pairs).unwrap();
        let error = options.job_spec(&by, None).unwrap_err();
        assert!(error.lines[0].contains("--container-image is not set"), "{error}");
        assert_eq!(error.exit_code, 255);
    }
}

fn submitter() -> Submitter {
    Submitter {
        submission: SubmissionId("s".into()),
        default_name: "name".into(),
        cwd: ByteStr::from("/home/alice/work"),
        umask: 0o22,
        nice: 0,
        limits: Limits {
            soft: BTreeMap::from([
                (Resource::Nofile, LimitValue::At(1024)),
                (Resource::Stack, LimitValue::Unlimited),
            ]),
            required: vec![],
        },
        in_job: false,
        host: "node0".into(),
        sid: 7,
        command: ByteStr::from("/home/alice/work/ok.sh"),
        submit_line: ByteStr::from("sbatch ok.sh"),
    }
}

#[test]
fn limits_travel_as_propagate_says() {
    let of = |line: &str, in_job| {
        let by = Submitter { in_job, ..submitter() };
        let limits = sbatch(line).unwrap().job_spec(&by, None).unwrap().spec.limits;
        (limits.soft.into_keys().collect::<Vec<_>>(), limits.required)
    };
    let (files, stack) = (Resource::Nofile, Resource::Stack);
    assert_eq!(of("", false), (vec![stack], vec![]));
    assert_eq!(of("", true), (vec![files, stack], vec![]));
    for all in ["--propagate", "--propagate=ALL"] {
        assert_eq!(of(all, false), (vec![files, stack], vec![files, stack]));
    }
    assert_eq!(of("--propagate=NONE", true), (vec![], vec![]));
    assert_eq!(of("--propagate=RLIMIT_NOFILE", false), (vec![files], vec![files]));
    assert!(sbatch("--propagate=FILES").unwrap_err().to_string().contains("FILES"));
}

#[test]
fn salloc_tells_its_steps_which_limits_go_with_them() {
    let carried = |options: &SubmitOptions| {
        let sent = options.environment(&[], &submitter(), false);
        sent.iter().find_map(|text| Some(text.display().strip_prefix("SLURM_PROPAGATE=")?.to_string()))
    };
    for (given, told) in [
        ("--propagate", "ALL"),
        ("--propagate=NONE", "NONE"),
        ("--propagate=stack,RLIMIT_NOFILE", "STACK,NOFILE"),
    ] {
        let options = all(Command::Salloc, given, &[]).unwrap();
        assert_eq!(carried(&options).as_deref(), Some(told), "{given}");
        let inside = all(Command::Srun, "true", &[("SLURM_PROPAGATE", told)]).unwrap();
        assert_eq!(inside.propagate, options.propagate, "{given}");
    }
    assert_eq!(carried(&all(Command::Salloc, "", &[]).unwrap()), None);
    assert_eq!(carried(&sbatch("--propagate").unwrap()), None, "a script's limits go with its steps");
}

#[test]
fn a_terminal_may_be_named_by_its_descriptor() {
    let of = |line: &str| srun(line).map(|options| (options.pty, options.pty_from)).unwrap();
    assert_eq!(of("--pty true"), (true, None));
    assert_eq!(of("--pty=7 true"), (true, Some(7)));
    assert_eq!(of("--pty=7 --pty true"), (true, None), "the last one counts");
    let why = srun("--pty=x true").unwrap_err().to_string();
    assert!(why.contains("--pty") && why.contains('x'), "{why}");
}

fn image() -> ImageRef {
    ImageRef {
        typed: "/images/root".into(),
        resolved: Some(ResolvedImage::RootDir { path: "/images/root".into() }),
    }
}

#[test]
fn options_become_a_job() {
    let options = sbatch(
        "-J n -N2-4 -n5 -c2 --mem-per-cpu=100 --gres=gpu:1,nic:2 -t 10 -p gpu -A chem -x n9 -w n[1-3] -D sub/dir -o x.%j \
         --no-requeue --signal=B:USR1@9 --nice=5 --hold --propagate=NOFILE --export=NONE --open-mode=append --array=1-3%2",
    )
    .unwrap();
    let job = options.job_spec(&submitter(), Some(image())).unwrap().spec;
    assert_eq!(job.kind, JobKind::Batch);
    assert_eq!((job.resources.min_nodes, job.resources.max_nodes), (3, Some(4)));
    assert_eq!((job.resources.tasks, job.resources.cpus_per_task), (Some(5), Some(2)));
    assert_eq!(crate::gres::print(&job.resources.gres), "gpu:1,nic:2");
    assert_eq!(job.resources.exclude, [NodeName::from("n9")]);
    assert_eq!(job.work_dir, ByteStr::from("/home/alice/work/sub/dir"));
    assert_eq!(job.io.open_mode, Some(OpenMode::Append));
    assert_eq!((job.requeue, job.nice, job.hold, job.user_env), (Some(false), 5, true, true));
    assert_eq!(job.limits.required, [Resource::Nofile]);
    assert!(job.container.is_some());
    assert_eq!(job.array.unwrap().to_string(), "1-3%2");
    let plain = sbatch("").unwrap().job_spec(&submitter(), None).unwrap().spec;
    assert_eq!(
        (plain.name.as_str(), plain.resources.min_nodes, plain.resources.max_nodes),
        ("name", 1, None)
    );
    assert_eq!(plain.limits.soft.keys().collect::<Vec<_>>(), [&Resource::Stack]);
    let fewer = sbatch("-N3 -n1").unwrap().job_spec(&submitter(), None).unwrap();
    assert_eq!(fewer.spec.resources.min_nodes, 1);
    assert_eq!(fewer.notes, ["can't run 1 processes on 3 nodes, setting nnodes to 1"]);
}

#[test]
fn a_name_needs_no_image_and_what_belongs_to_it_needs_a_name() {
    let line = "--container-name=box:create --container-scope=user --container-unshare=net,uts --container-save=a/b.oci/";
    let spec = sbatch(line).unwrap().job_spec(&submitter(), None).unwrap().spec.container.unwrap();
    let named = spec.named.clone().unwrap();
    assert_eq!((named.name.as_str(), named.flag, named.scope), ("box", NameFlag::Create, NameScope::User));
    assert_eq!(spec.image.resolved, Some(ResolvedImage::Kept));
    assert_eq!(spec.unshare, [Unshared::Net, Unshared::Uts]);
    assert_eq!(
        spec.save,
        Some(ByteStr::from("/home/alice/work/a/b.oci/")),
        "a slash at the end says directory"
    );
    // A step of the job has the name, finds what the script made, and saves nothing.
    let step = |job: &str, options: &str| {
        let job = sbatch(job).unwrap().job_spec(&submitter(), None).unwrap().spec;
        let step = srun(&format!("{options} true")).unwrap();
        step.step_spec(&submitter(), words("true"), vec![], None, None, Some(&job))
            .unwrap()
            .spec
            .container
            .unwrap()
    };
    let container = step(line, "--container-workdir=/");
    assert_eq!((container.named, container.save), (Some(NamedSpec { flag: NameFlag::Auto, ..named }), None));
    let flag = |job: &str, options: &str| step(job, options).named.unwrap().flag;
    assert_eq!(flag("--container-name=box:no_exec", "--container-workdir=/"), NameFlag::Auto);
    assert_eq!(flag("--container-name=box:exec", "--container-workdir=/"), NameFlag::Exec);
    assert_eq!(flag("--container-name=box:create", "--container-name=box:no_exec"), NameFlag::NoExec);
    // salloc makes no container itself.
    for flag in ["create", "no_exec"] {
        let error = all(Command::Salloc, &format!("--container-name=box:{flag}"), &[]).unwrap_err();
        assert!(error.lines[1].contains(&format!("srun --container-name=box:{flag}")), "{error}");
    }
    assert!(all(Command::Salloc, "--container-name=box:exec", &[]).is_ok());
    let host = ImageRef { typed: "host:".into(), resolved: Some(ResolvedImage::Host) };
    let error = sbatch("--container-name=x").unwrap().job_spec(&submitter(), Some(host)).unwrap_err();
    assert!(error.lines[0].contains("--container-name") && error.lines[0].contains("host:"), "{error}");
    for line in [
        "--container-scope=user",
        "--container-name=a --container-name=b",
        "--container-name=a/b",
        "--container-name=a:now",
        "--container-name=a --container-writable-layer=tmpfs",
        "--container-unshare=pid",
    ] {
        let error = sbatch(line).unwrap_err();
        assert!(error.exit_code == 255 && error.lines.len() == 2, "{line}: {error}");
    }
}

#[test]
fn ranges_of_ids_are_for_root_in_the_container() {
    let spec = |line: &str| sbatch(line).unwrap().job_spec(&submitter(), Some(image())).unwrap().spec;
    let ids = |c: &crate::spec::ContainerSpec| (c.subids, c.remap_root);
    assert_eq!(ids(&spec("--container-subids").container.unwrap()), (Some(true), Some(true)));
    assert_eq!(ids(&spec("--no-container-subids").container.unwrap()), (Some(false), None));
    assert_eq!(ids(&spec("--container-remap-root").container.unwrap()), (None, Some(true)));
    let step = |options: &str| {
        let job = spec("--container-subids");
        let step = srun(&format!("{options} true")).unwrap();
        let step = step.step_spec(&submitter(), words("true"), vec![], None, None, Some(&job));
        ids(&step.unwrap().spec.container.unwrap())
    };
    assert_eq!(step("--container-workdir=/"), (Some(true), Some(true)));
    assert_eq!(step("--no-container-subids"), (Some(false), Some(true)));
    assert_eq!(step("--no-container-remap-root"), (None, Some(false)));
    for (line, text) in [
        ("--container-subids --no-container-subids", "both --container-subids and --no-container-subids"),
        (
            "--container-subids --no-container-remap-root",
            "both --container-subids and --no-container-remap-root",
        ),
    ] {
        let error = srun(line).unwrap_err();
        assert!(error.lines[0].contains(text) && error.exit_code == 255, "{error}");
    }
    let error = sbatch("--container-subids").unwrap().job_spec(&submitter(), None).unwrap_err();
    assert!(error.lines[0].starts_with("--container-subids was given"), "{error}");
}

#[test]
fn options_become_a_step() {
    let job = sbatch("--container-mounts=/j --container-readonly")
        .unwrap()
        .job_spec(&submitter(), Some(image()))
        .unwrap()
        .spec;
    let step = |line: &str, pairs: &[(&str, &str)]| {
        all(Command::Srun, line, pairs).unwrap().step_spec(
            &submitter(),
            words("true"),
            vec![],
            None,
            None,
            Some(&job),
        )
    };
    let plain = step("-n2 --label -K -W 5 true", &[]).unwrap().spec;
    assert_eq!((plain.tasks, plain.kill_on_bad_exit, plain.container), (Some(2), true, None));
    assert_eq!(plain.wait_after_first_exit, Some(Span::from_secs(5)));
    let over =
        step("--container-mounts=./s:./t --container-writable true", &[]).unwrap().spec.container.unwrap();
    assert_eq!((over.writable, over.mounts.len()), (Some(true), 1));
    assert_eq!(over.mounts[0].source, ByteStr::from("/home/alice/work/s"));
    assert_eq!(over.mounts[0].target, ByteStr::from("/home/alice/work/t"));
    // What the job's environment carries.
    let pairs = [
        ("SLURM_JOB_NAME", "wrap"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_JOB_NUM_NODES", "2"),
        ("SLURM_NTASKS_PER_NODE", "2"),
    ];
    let inherited = step("", &pairs).unwrap();
    assert_eq!(
        (inherited.spec.name.as_str(), inherited.spec.tasks, inherited.spec.nodes),
        ("name", Some(4), Some(2))
    );
    assert_eq!(inherited.spec.tasks_per_node, Some(2));
    let own = step("-n1 -J mine", &pairs).unwrap();
    assert_eq!((own.spec.name.as_str(), own.spec.nodes, own.spec.tasks_per_node), ("mine", Some(1), None));
    assert!(own.notes.is_empty(), "the environment's nodes yield silently");
    let between = |words: &str| {
        let spec = step(words, &pairs).unwrap().spec;
        (spec.nodes, spec.max_nodes)
    };
    assert_eq!(between("-N1-2 -n4"), (Some(1), Some(2)));
    assert_eq!(between("-N2-2 -n4"), (Some(2), None));
    assert_eq!(between("-N3-8 -n2"), (Some(2), None), "as many as there are tasks");
    assert_eq!(step("", &[("SLURM_MEM_PER_NODE", "500")]).unwrap().spec.memory, MemoryRequest::Default);
    assert_eq!(
        step("--mem=100", &[("SLURM_MEM_PER_NODE", "500")]).unwrap().spec.memory,
        MemoryRequest::PerNode(100)
    );
    // Options of a job.
    assert!(step("-p x", &[]).unwrap_err().lines[0].starts_with("--partition is about a job"));
    assert!(step("", &[("SLURM_PARTITION", "x")]).is_ok());
    // Streams.
    let io = |line: &str| step(line, &[]).unwrap().spec.io;
    assert_eq!(io("-o none").stdout, Some(ByteStr::from("/dev/null")));
    assert_eq!(io("-o all").stdout, None);
    assert_eq!(io("-n2 -o 1").stdout, None);
    assert_eq!(io("-n2 -o 5").stdout, Some(ByteStr::from("5")));
    assert_eq!(io("-o %t.out").stdout, Some(ByteStr::from("%t.out")));
    assert_eq!(Stream::of(Some(&ByteStr::from("1")), 2), Stream::Task(1));
}

#[test]
fn a_job_carries_its_choices_to_its_steps() {
    let environ = |pairs: &[(&str, &str)]| -> Vec<(ByteStr, ByteStr)> {
        pairs.iter().map(|(n, v)| (ByteStr::from(*n), ByteStr::from(*v))).collect()
    };
    let shown = |options: &SubmitOptions, environ: &[(ByteStr, ByteStr)], inside| {
        let all = options.environment(environ, &submitter(), inside);
        all.iter().map(|v| v.display().into_owned()).collect::<Vec<_>>().join(" ")
    };
    let options = sbatch("--export=ALL,X=1 --open-mode=truncate --gpus-per-node=1 --exclusive").unwrap();
    let carried = "SLURM_EXPORT_ENV=ALL,X=1 SLURM_OPEN_MODE=t SLURM_GPUS_PER_NODE=1 SLURM_JOB_EXCLUSIVE=NODE \
                   SLURM_JOB_OVERSUBSCRIBE=NO SLURM_SUBMIT_DIR=/home/alice/work";
    let outside = environ(&[("A", "1"), ("SLURM_NTASKS", "3"), ("CUDA_VISIBLE_DEVICES", "7")]);
    assert_eq!(
        shown(&options, &outside, false),
        format!("A=1 SLURM_NTASKS=3 CUDA_VISIBLE_DEVICES=7 X=1 {carried}")
    );
    // From inside a job, what is that job's stays behind.
    let nested = environ(&[
        ("A", "1"),
        ("SLURM_JOB_ID", "9"),
        ("SLURM_NTASKS", "3"),
        ("CUDA_VISIBLE_DEVICES", "7"),
        ("SLURM_SUBMIT_DIR", "/x"),
        ("SLURM_TIME_FORMAT", "relative"),
    ]);
    assert_eq!(shown(&options, &nested, false), format!("A=1 SLURM_TIME_FORMAT=relative X=1 {carried}"));
    // A step keeps all of it, and may have a name of its own.
    let step = shown(&srun("-J mine").unwrap(), &nested, true);
    assert!(
        step.contains("SLURM_JOB_ID=9")
            && step.contains("SLURM_SUBMIT_DIR=/x")
            && step.ends_with("SLURM_JOB_NAME=mine")
    );
    // What is not UTF-8 arrives as it was.
    let bytes = [(ByteStr::from("B"), ByteStr(vec![0xff, 0xe9]))];
    assert!(
        srun("").unwrap().environment(&bytes, &submitter(), true).contains(&ByteStr(b"B=\xff\xe9".to_vec()))
    );
}

#[test]
fn help_pages_and_completion_name_every_option() {
    for command in Command::ALL {
        let (help, man) = (help(command), man_page(command, "0.1.0"));
        for row in rows(command) {
            assert!(help.contains(&format!("--{}", row.long)), "{}", row.long);
            assert!(man.contains(&row.long.replace('-', "\\-")), "{}", row.long);
        }
        assert!(help.lines().all(|line| line.len() <= 100), "a line of the help is too long");
        assert!(usage(command).starts_with("Usage: "));
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completion_script(command, shell);
            for row in rows(command) {
                let there = script.contains(&format!("--{}", row.long))
                    || script.contains(&format!("-l {}", row.long));
                assert!(there || !row.works(), "{}", row.long);
            }
        }
    }
}

proptest! {
    #[test]
    fn no_words_make_it_panic(
        command in prop_oneof![Just(Command::Srun), Just(Command::Sbatch), Just(Command::Salloc)],
        row in any::<prop::sample::Index>(), long: bool, value in soup(), tail in proptest::collection::vec(soup(), 0..3)
    ) {
        let rows: Vec<_> = rows(command).filter(|row| row.works()).collect();
        let row = row.get(&rows);
        let word = match row.short {
            Some(letter) if !long => format!("-{}{value}", char::from(letter)),
            _ => format!("--{}={value}", row.long),
        };
        let words: Vec<ByteStr> = std::iter::once(word).chain(tail).map(ByteStr::from).collect();
        if let Ok(read) = parse(command, &words, Source::CommandLine)
            && let Ok(options) = resolve(command, read.settings, &context())
        {
            let _ = options.job_spec(&submitter(), Some(image()));
            let _ = options.step_spec(&submitter(), vec![], vec![], None, None, None);
            options.environment(&[], &submitter(), false);
        }
    }
}

#[test]
fn a_layout_is_told_in_the_job_and_followed_there() {
    let carried = |line: &str| {
        let env = sbatch(line).unwrap().environment(&[], &submitter(), false);
        let text = env.iter().map(|variable| variable.display().into_owned());
        text.filter(|text| text.starts_with("SLURM_DIST")).collect::<Vec<String>>()
    };
    assert_eq!(carried("-n2"), Vec::<String>::new());
    assert_eq!(carried("-m cyclic:fcyclic"), ["SLURM_DISTRIBUTION=cyclic:fcyclic"]);
    assert_eq!(carried("-m plane=4"), ["SLURM_DISTRIBUTION=plane=4", "SLURM_DIST_PLANESIZE=4"]);
    assert_eq!(carried("-n2 -m arbitrary -w n1,n2"), ["SLURM_DISTRIBUTION=arbitrary"]);
    let job = sbatch("").unwrap().job_spec(&submitter(), None).unwrap().spec;
    let step = |line: &str, told: &str, inside: bool| {
        let options = all(Command::Srun, line, &[("SLURM_DISTRIBUTION", told)])?;
        let inside = inside.then_some(&job);
        Ok::<_, OptionError>(
            options.step_spec(&submitter(), vec![], vec![], None, None, inside)?.spec.distribution,
        )
    };
    assert_eq!(step("", "plane=4", true), Ok(Some(Distribution::Plane(4))));
    // The list is the job's, which its environment does not have; whoever types it has one of his own.
    assert_eq!(step("", "arbitrary", true), Ok(None));
    assert!(step("-m arbitrary", "block", true).is_err() && step("", "arbitrary", false).is_err());
    let own = step("-n2 -w n2,n1", "arbitrary", true);
    assert_eq!(own, Ok(Some(Distribution::Arbitrary(vec![NodeName::from("n2"), NodeName::from("n1")]))));
    assert_eq!(step("-n3 -w n2,n1", "arbitrary", true), Ok(None), "its nodes, and no list of its tasks");
    // What another step is does not travel into this one.
    let environ = ["SLURM_DIST_PLANESIZE", "SLURM_PTY_WIN_COL", "SLURM_PROCID"];
    let environ = environ.map(|name| (ByteStr::from(name), ByteStr::from("4")));
    // The nice value is that of the command, whatever a job's environment says of another one.
    let told = |nice: i32| {
        let job = [(ByteStr::from("SLURM_PRIO_PROCESS"), ByteStr::from("7"))];
        srun("").unwrap().environment(&job, &Submitter { nice, ..submitter() }, true)
    };
    assert!(told(0).is_empty());
    assert_eq!(told(3), [ByteStr::from("SLURM_PRIO_PROCESS=3")]);
    let env = srun("-m cyclic").unwrap().environment(&environ, &submitter(), true);
    assert_eq!(env, [ByteStr::from("SLURM_PROCID=4")]);
}
