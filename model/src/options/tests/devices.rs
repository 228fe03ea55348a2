//! What the options about GPUs come to together, and what contradicts.

use super::*;
use crate::bind::gpu::GpuHow;
use crate::devices::{DeviceRequest, Nearness};
use crate::gres::{Wanted, print};
use crate::spec::{JobSpec, ResourceRequest, StepSpec};

fn job(line: &str) -> Result<ResourceRequest, OptionError> {
    Ok(sbatch(line)?.job_spec(&submitter(), None)?.spec.resources)
}

fn wanted(text: &str) -> Wanted {
    crate::gres::parse(text).unwrap()
}

fn plain() -> JobSpec {
    sbatch("").unwrap().job_spec(&submitter(), None).unwrap().spec
}

/// A step of a running job.
fn step(line: &str, pairs: &[(&str, &str)]) -> Result<StepSpec, OptionError> {
    let options = all(Command::Srun, line, pairs)?;
    Ok(options.step_spec(&submitter(), vec![], vec![], None, None, Some(&plain()))?.spec)
}

#[test]
fn gpus_are_counted_by_job_node_task_and_socket() {
    let all = job("--gpus=a100:16 -N2").unwrap();
    assert_eq!((all.devices.total, all.max_nodes), (wanted("gpu:a100:16"), Some(2)));
    let free = job("-G 3").unwrap();
    assert_eq!((free.min_nodes, free.max_nodes, print(&free.gres)), (1, None, "none".into()));
    assert_eq!(job("--gpus-per-node=2 -N2").unwrap().gres, wanted("gpu:2"));
    assert_eq!(job("--gpus-per-node=2 --gres=nic:1").unwrap().gres, wanted("gpu:2,nic:1"));
    assert_eq!(job("--gpus-per-node=2 --gres=gpu:2").unwrap().gres, wanted("gpu:2"));
    let tasks = job("--gpus-per-task=1 -n4 --gres=nic:1").unwrap();
    assert_eq!(
        (tasks.devices.per_task, tasks.gres, tasks.tasks),
        (wanted("gpu:1"), wanted("nic:1"), Some(4))
    );
    assert_eq!(job("--gpus-per-socket=2").unwrap().devices.per_socket, wanted("gpu:2"));
    let tres = job("--tres-per-task=cpu=3,gres/gpu=1,gres/nic=2 -n2").unwrap();
    assert_eq!((tres.cpus_per_task, tres.devices.per_task), (Some(3), wanted("gpu:1,nic:2")));
    let more = job("--gpus=2 --cpus-per-gpu=4 --mem-per-gpu=1G --gres-flags=enforce-binding").unwrap();
    assert_eq!((more.devices.cpus_per_gpu, more.memory), (Some(4), MemoryRequest::PerGpu(1024)));
    assert_eq!(more.devices.nearness, Nearness::Enforced);
    assert_eq!(job("-n2").unwrap().devices, DeviceRequest::default());
}

#[test]
fn what_follows_from_two_options_is_worked_out() {
    let by = |line: &str| {
        let r = job(line).unwrap();
        (r.tasks, r.tasks_per_node, r.min_nodes)
    };
    assert_eq!(by("--gpus=8 --gpus-per-task=2"), (Some(4), None, 1));
    assert_eq!(by("--gpus=8 --gpus-per-node=4"), (None, None, 2));
    assert_eq!(by("--gpus-per-node=4 --gpus-per-task=2"), (None, Some(2), 1));
    assert_eq!(by("--gpus=2 --ntasks-per-gpu=3"), (Some(6), None, 1));
    assert_eq!(by("--gres=gpu:2 -N2 --ntasks-per-gpu=3"), (None, Some(6), 2));
    assert_eq!(job("-n6 --ntasks-per-gpu=3").unwrap().devices.tasks_per_gpu, Some(3));
    let bind = |line: &str| step(line, &[]).unwrap().gpu_bind.map(|bind| bind.how);
    assert_eq!(bind("--gpus-per-task=2 -n2"), Some(GpuHow::PerTask(2)));
    assert_eq!(bind("-n2 --ntasks-per-gpu=2"), Some(GpuHow::Single(2)));
    assert_eq!(bind("--gpus-per-task=1 -n2 --gpu-bind=none"), Some(GpuHow::None));
    assert_eq!(bind("--gpus=2 --tres-bind=gres/gpu:closest"), Some(GpuHow::Closest));
    assert_eq!(bind("--gpus=2"), None);
}

#[test]
fn contradictions_are_refused_in_slurms_words() {
    for (line, text) in [
        (
            "-G1 --cpus-per-gpu=2 -c2",
            "fatal: --cpus-per-task, --tres-per-task=cpu:#, and --cpus-per-gpu are mutually exclusive",
        ),
        (
            "--mem=1 --mem-per-gpu=1 -G1",
            "fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.",
        ),
        (
            "--gpus-per-task=1",
            "error: Failed to validate job spec. --gpus-per-task or --tres-per-task used without either --gpus or \
             -n/--ntasks is not allowed.",
        ),
        (
            "--tres-per-task=gres/nic=1",
            "error: Failed to validate job spec. --tres-per-task used without -n/--ntasks is not allowed.",
        ),
        (
            "--ntasks-per-gpu=2",
            "error: --ntasks-per-tres needs either a GRES GPU specification or a node/ntask specification",
        ),
        (
            "-n2 --gpus-per-task=1 --ntasks-per-gpu=1",
            "fatal: --gpus-per-task is mutually exclusive with --ntasks-per-gpu and SLURM_NTASKS_PER_GPU",
        ),
        (
            "-n2 --ntasks-per-node=1 --ntasks-per-gpu=1",
            "fatal: --ntasks-per-node is mutually exclusive with --ntasks-per-gpu and SLURM_NTASKS_PER_GPU",
        ),
        ("--gpu-bind=nearest", "error: Invalid --gpu-bind argument: nearest"),
        ("--gres-flags=x", "error: Invalid --gres-flags specification: x"),
        ("--gres-flags=allow-task-sharing", "error: Invalid --gres-flags specification"),
        (
            "--gpus=3 --gpus-per-node=2",
            "error: Failed to validate job spec, --gpus is not multiple of --gres=gpu/--gpus-per-node: --gpus=3 and \
             --gpus-per-node=2 were given",
        ),
        (
            "--gpus=3 --gpus-per-task=2",
            "error: Failed to validate job spec, --gpus not multiple of --gpus-per-task: --gpus=3 and --gpus-per-task=2 \
             were given",
        ),
        (
            "--gpus=4 --gpus-per-task=1 -n3",
            "error: Failed to validate job spec: 3 tasks with --gpus-per-task=1 are 3 GPUs, and --gpus=4 was given",
        ),
        (
            "--gpus-per-node=2 --gres=gpu:1",
            "error: --gpus-per-node asks for gpu:2 where --gres asks for gpu:1",
        ),
        ("--cpus-per-gpu=2", "error: Requested cpus_per_tres=gres/gpu:2 but did not request any GPU."),
        ("--mem-per-gpu=1G", "error: Requested mem_per_tres=gres/gpu:1024 but did not request any GPU."),
        ("--gpu-bind=closest", "error: --gpu-bind was given, and no GPU was asked for"),
        ("--gres=nic:1 --gpu-bind=single:1", "error: --gpu-bind was given, and no GPU was asked for"),
        ("--tres-bind=gres/gpu:closest", "error: --tres-bind was given, and no GPU was asked for"),
        ("--gpu-freq=high", "error: --gpu-freq is not supported by this release"),
    ] {
        let error = sbatch(line).and_then(|o| o.job_spec(&submitter(), None).map(|_| ())).unwrap_err();
        let shown = error.render("sbatch");
        assert_eq!(shown.lines().next(), Some(format!("sbatch: {text}").as_str()), "{line}");
    }
}

#[test]
fn what_contradicts_about_gpus_ends_with_slurms_last_word_on_it() {
    for line in ["--gpus-per-task=1", "--cpus-per-gpu=2", "--ntasks-per-gpu=2", "--gpus=3 --gpus-per-node=2"]
    {
        let error = sbatch(line).unwrap().job_spec(&submitter(), None).unwrap_err();
        let last = error.lines.last().unwrap();
        assert!(last.starts_with("Invalid generic resource (gres) specification: "), "{line}: {error}");
        assert_eq!((error.lines.len(), error.exit_code), (2, 1), "{line}");
    }
}

#[test]
fn tasks_follow_from_a_single_number_of_nodes_where_nothing_else_says_them() {
    let by = |line: &str| job(line).map(|r| (r.tasks, r.devices.tasks_per_gpu)).ok();
    assert_eq!(by("-N2 --gpus-per-task=1"), Some((Some(2), None)));
    assert_eq!(by("-N2 --ntasks-per-gpu=3"), Some((Some(6), Some(3))));
    assert_eq!(by("-N2 -n4 --gpus-per-task=1"), Some((Some(4), None)));
    for line in ["-N1-2 --gpus-per-task=1", "-N2 -c2 --gpus-per-task=1", "-N1-2 --ntasks-per-gpu=3"] {
        assert_eq!(by(line), None, "{line}");
    }
}

#[test]
fn who_looks_at_a_job_is_told_how_tasks_are_bound_and_counted_by_gpus() {
    let told = |line: &str| {
        let r = job(line).unwrap();
        (r.gpu_bind.map(|bind| bind.to_string()), r.ntasks_per_gpu)
    };
    let per_task = Some("per_task:1".to_string());
    assert_eq!(told("--gpus-per-task=1 -n3"), (per_task.clone(), None));
    assert_eq!(told("--tres-per-task=gres/gpu=1 -n2"), (per_task, None));
    assert_eq!(told("--gpus=1 --gpu-bind=closest"), (Some("closest".into()), None));
    assert_eq!(told("--gpus=2 --ntasks-per-gpu=2"), (None, Some(2)));
    assert_eq!(told("--gpus=2"), (None, None));
}

#[test]
fn binding_needs_gpus_but_in_a_step_of_a_job_and_from_the_environment() {
    let how = |step: StepSpec| step.gpu_bind.map(|bind| bind.how);
    // The job's own GPUs, of which the step need not say anything.
    assert_eq!(how(step("--gpu-bind=closest", &[]).unwrap()), Some(GpuHow::Closest));
    assert_eq!(how(step("", &[("SLURM_GPU_BIND", "single:1")]).unwrap()), Some(GpuHow::Single(1)));
    // What a shell has set for other jobs is no word of this one.
    let options = all(Command::Sbatch, "-n1", &[("SBATCH_GPU_BIND", "closest")]).unwrap();
    assert!(options.job_spec(&submitter(), None).is_ok());
    assert!(job("--gpu-bind=none").is_ok(), "it leaves all as it is");
    assert!(
        job("--gpus=1 --gpu-bind=closest").is_ok() && job("--gpus-per-node=1 --gpu-bind=closest").is_ok()
    );
}

#[test]
fn a_step_finds_what_its_job_asked_for_and_may_ask_for_less() {
    let gres = |line: &str, pairs: &[(&str, &str)]| step(line, pairs).unwrap().gres.map(|g| print(&g));
    assert_eq!(gres("", &[]), None);
    assert_eq!(gres("--gres=gpu:1", &[("SLURM_GPUS", "2")]), Some("gpu:1".into()));
    assert_eq!(gres("--gres=none", &[("SLURM_GPUS", "2")]), Some("none".into()));
    let whole = step("", &[("SLURM_GPUS", "2")]).unwrap();
    assert_eq!((whole.devices.total, whole.gres.map(|g| g.len())), (wanted("gpu:2"), Some(0)));
    // A step on a part of the job's nodes has the GPUs there.
    let part = step("-N1", &[("SLURM_GPUS", "4")]).unwrap();
    assert_eq!((part.devices, part.gres), (DeviceRequest::default(), None));
    let one = step("--gpus=1", &[("SLURM_GPUS", "4"), ("SLURM_GPUS_PER_TASK", "2")]).unwrap();
    assert_eq!(
        (one.devices.total, one.devices.per_task, one.gpu_bind),
        (wanted("gpu:1"), Wanted::new(), None)
    );
    let tasks =
        step("-n2", &[("SLURM_GPUS", "4"), ("SLURM_GPUS_PER_TASK", "1"), ("SLURM_NTASKS", "4")]).unwrap();
    assert_eq!((tasks.devices.total, tasks.devices.per_task), (Wanted::new(), wanted("gpu:1")));
    assert_eq!(tasks.tasks, Some(2));
    // Of tasks of a GPU and GPUs of a task what was typed counts, and a job's environment contradicts nothing.
    let typed = step("--gpus-per-task=1 -n2", &[("SLURM_NTASKS_PER_GPU", "2")]).unwrap();
    assert_eq!(typed.gpu_bind.map(|bind| bind.how), Some(GpuHow::PerTask(1)));
    let both = [("SLURM_NTASKS_PER_GPU", "2"), ("SLURM_NTASKS_PER_NODE", "4"), ("SLURM_NTASKS", "4")];
    assert_eq!(step("", &both).unwrap().gpu_bind.map(|bind| bind.how), Some(GpuHow::Single(2)));
    // What a job's environment says of CPUs and memory of tasks and GPUs contradicts nothing.
    let told = [("SLURM_CPUS_PER_TASK", "2"), ("SLURM_TRES_PER_TASK", "cpu=2"), ("SLURM_MEM_PER_GPU", "100")];
    let told = step("", &told).unwrap();
    assert_eq!((told.cpus_per_task, told.memory), (Some(2), MemoryRequest::Default));
    let options = sbatch("-n4 --gpus-per-task=a100:1 --cpus-per-gpu=2 --gpu-bind=verbose,closest").unwrap();
    let env = options.environment(&[], &submitter(), false);
    let env: Vec<String> = env.iter().map(|v| v.display().into_owned()).collect();
    for variable in ["SLURM_GPUS_PER_TASK=a100:1", "SLURM_CPUS_PER_GPU=2", "SLURM_GPU_BIND=verbose,closest"] {
        assert!(env.iter().any(|v| v == variable), "{variable} {env:?}");
    }
}

/// What a command's environment says under a name.
fn told(options: &SubmitOptions, environ: &[(&str, &str)], inside: bool, name: &str) -> Option<String> {
    let environ: Vec<(ByteStr, ByteStr)> =
        environ.iter().map(|(name, value)| (ByteStr::from(*name), ByteStr::from(*value))).collect();
    let env = options.environment(&environ, &submitter(), inside);
    let mut values = env.iter().filter_map(|variable| {
        let text = variable.display().into_owned();
        Some(text.strip_prefix(name)?.strip_prefix('=')?.to_string())
    });
    let value = values.next();
    assert_eq!(values.next(), None, "{name} stands there twice");
    value
}

#[test]
fn what_each_task_has_travels_into_the_job_and_binds_its_steps() {
    const NAME: &str = "SLURM_TRES_PER_TASK";
    let carried = |line: &str| told(&sbatch(line).unwrap(), &[], false, NAME);
    assert_eq!(carried("-n2 --tres-per-task=gres/gpu=1").as_deref(), Some("gres/gpu=1"));
    let all_of_it = carried("-n2 --tres-per-task=cpu=2,gres/gpu:a100=1,gres/nic=1");
    assert_eq!(all_of_it.as_deref(), Some("cpu=2,gres/gpu:a100=1,gres/nic=1"));
    assert_eq!(carried("-n2 -c3 --tres-per-task=gres/gpu=1").as_deref(), Some("cpu=3,gres/gpu=1"));
    assert_eq!((carried("-n2 -c3"), carried("-n2 --gpus-per-task=1")), (None, None));
    // A step without a word of its own has its tasks bound as the job says.
    let by_job = |list: &str| step("", &[("SLURM_NTASKS", "2"), (NAME, list)]).unwrap();
    let plain = by_job("gres/gpu=1");
    assert_eq!((plain.devices.per_task, plain.tasks), (wanted("gpu:1"), Some(2)));
    assert_eq!(plain.gpu_bind.map(|bind| bind.how), Some(GpuHow::PerTask(1)));
    let more = by_job(&all_of_it.unwrap());
    assert_eq!((more.devices.per_task, more.cpus_per_task), (wanted("gpu:a100:1,nic:1"), Some(2)));
    // Of other devices alone it has all that are the job's, as without a word.
    let nics = by_job("gres/nic=1");
    assert_eq!((nics.devices, nics.gres), (DeviceRequest::default(), None));
    let typed = step("--tres-per-task=gres/nic=1", &[("SLURM_NTASKS", "2")]).unwrap();
    assert_eq!((typed.devices.per_task, typed.gres), (wanted("nic:1"), Some(Wanted::new())));
    // Its tasks are told of what it says itself.
    let job = [(NAME, "cpu=2,gres/gpu=1"), ("SLURM_CPUS_PER_TASK", "2")];
    let own = all(Command::Srun, "-n1 --tres-per-task=gres/gpu=2", &job).unwrap();
    assert_eq!(told(&own, &job, true, NAME).as_deref(), Some("cpu=2,gres/gpu=2"));
    let none = all(Command::Srun, "-n1", &job).unwrap();
    assert_eq!(told(&none, &job, true, NAME).as_deref(), Some("cpu=2,gres/gpu=1"));
}

#[test]
fn cpus_of_gpus_that_a_greater_source_overrules_are_not_told() {
    let both = |line: &str| {
        let mut settings =
            parse(Command::Sbatch, &words("--cpus-per-gpu=2"), Source::Script(1)).unwrap().settings;
        settings.extend(parse(Command::Sbatch, &words(line), Source::CommandLine).unwrap().settings);
        told(&resolve(Command::Sbatch, settings, &context()).unwrap(), &[], false, "SLURM_CPUS_PER_GPU")
    };
    assert_eq!(both("-G1").as_deref(), Some("2"));
    assert_eq!(both("-G1 -c4"), None, "a step would find both, which contradict each other");
}
