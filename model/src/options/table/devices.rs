//! Options about GPUs and other generic resources.

use crate::bind::gpu;
use crate::devices::{Nearness, parse_per_task};
use crate::options::resolve::Bad;
use crate::options::row::{Commands, OptionRow, row};
use crate::{gres, memory};

pub(super) static ROWS: &[OptionRow] = &[
    row("cpus-per-gpu", Commands::ABR)
        .takes("CPUS")
        .env(&["SLURM_CPUS_PER_GPU", "SBATCH_CPUS_PER_GPU", "SALLOC_CPUS_PER_GPU"])
        .help("CPUs (hardware threads) that come with each GPU; whole cores are given. Without it and without --cpus-per-task a GPU brings its share of the node's cores, or what the partition says.")
        .set(|o, g| {
            o.devices.cpus_per_gpu = Some(g.count()?);
            Ok(())
        }),
    row("gpu-bind", Commands::ABR)
        .takes("[verbose,]HOW")
        .choices(&["closest", "none", "single:", "per_task:", "map:", "mask:", "verbose,"])
        .env(&["SLURM_GPU_BIND", "SBATCH_GPU_BIND", "SALLOC_GPU_BIND"])
        .help("Which of the step's GPUs each task is told of (CUDA_VISIBLE_DEVICES and its like): closest, those near its CPUs; single:N, one each, the same for N tasks; per_task:N, N each of its own; map:0,1 or mask:0x1,0x3 (map_gpu and mask_gpu are the same), by a list for the node's tasks, which counts the step's GPUs from 0; none, all of them (the default). 'verbose,' before it has each task say what it got. The device files of the step's other GPUs do not open for a task that has its own; in a cluster that limits no devices (berth up without root) the variables alone tell tasks apart.")
        .set(|o, g| {
            let text = g.text()?;
            let bind = text.parse::<gpu::GpuBind>().map_err(|e| {
                Bad::Own(vec![format!("Invalid --gpu-bind argument: {text}"), e.to_string()])
            })?;
            o.devices.bind = Some(bind);
            Ok(())
        }),
    row("gpus", Commands::ABR)
        .short(b'G')
        .takes("[TYPE:]COUNT")
        .env(&["SLURM_GPUS", "SBATCH_GPUS", "SALLOC_GPUS"])
        .help("GPUs of the whole job, over all of its nodes, with one at least on each. By default on as few nodes as have them.")
        .set(|o, g| {
            o.gpus = Some(g.resources(gres::parse_gpus)?);
            Ok(())
        }),
    row("gpus-per-node", Commands::ABR)
        .takes("[TYPE:]COUNT")
        .env(&["SLURM_GPUS_PER_NODE", "SBATCH_GPUS_PER_NODE", "SALLOC_GPUS_PER_NODE"])
        .help("GPUs on each node.")
        .set(|o, g| {
            o.gpus_per_node = Some(g.resources(gres::parse_gpus)?);
            Ok(())
        }),
    row("gpus-per-socket", Commands::ABR)
        .takes("[TYPE:]COUNT")
        .env(&["SLURM_GPUS_PER_SOCKET", "SBATCH_GPUS_PER_SOCKET", "SALLOC_GPUS_PER_SOCKET"])
        .help("GPUs for each socket of which the job has cores, near that socket.")
        .set(|o, g| {
            o.devices.gpus_per_socket = Some(g.resources(gres::parse_gpus)?);
            Ok(())
        }),
    row("gpus-per-task", Commands::ABR)
        .takes("[TYPE:]COUNT")
        .env(&["SLURM_GPUS_PER_TASK", "SBATCH_GPUS_PER_TASK", "SALLOC_GPUS_PER_TASK"])
        .help("GPUs for each task, of which it alone is told: --gpu-bind=per_task:COUNT, unless that says otherwise. Needs --ntasks, or --gpus or a single number of --nodes for the number of tasks to follow from.")
        .set(|o, g| {
            o.devices.gpus_per_task = Some(g.resources(gres::parse_gpus)?);
            Ok(())
        }),
    row("gres", Commands::ABR)
        .takes("NAME[:TYPE][:COUNT],...")
        .env(&["SLURM_GRES", "SBATCH_GRES", "SALLOC_GRES"])
        .help("Generic resources on each node, such as gpu:2, gpu:a100:4, gpu:1g.5gb:1 for a part of a divided GPU, or shard:2 for two shares of one; none for a step without any. A type is a device's own, as 'scontrol show node' has it, or words of it: a100 is nvidia_a100-sxm4-40gb, too. A job has no device that it did not ask for.")
        .set(|o, g| {
            if g.text()?.eq_ignore_ascii_case("help") {
                return Err(Bad::Spec("'scontrol show node' lists the generic resources of each node".to_string()));
            }
            o.gres = Some(g.resources(gres::parse)?);
            Ok(())
        }),
    row("gres-flags", Commands::ABR)
        .takes("FLAGS")
        .choices(&["enforce-binding", "disable-binding"])
        .env(&["SLURM_GRES_FLAGS", "SBATCH_GRES_FLAGS", "SALLOC_GRES_FLAGS"])
        .help("enforce-binding: only GPUs near the job's cores, and it waits for them; disable-binding: it does not matter how far they are. By default near ones where possible.")
        .set(|o, g| {
            o.devices.nearness = match g.text()? {
                "enforce-binding" => Nearness::Enforced,
                "disable-binding" => Nearness::Ignored,
                "allow-task-sharing" => {
                    return Err(Bad::Spec("tasks share all of their step's GPUs with --gpu-bind=none: write that".to_string()));
                }
                "one-task-per-sharing" | "multiple-tasks-per-sharing" => {
                    return Err(Bad::Spec(
                        "a job has shares (shard, mps) of one GPU, for all of its tasks together: leave it out".to_string(),
                    ));
                }
                other => {
                    return Err(Bad::Own(vec![
                        format!("Invalid --gres-flags specification: {other}"),
                        "write enforce-binding or disable-binding".to_string(),
                    ]));
                }
            };
            Ok(())
        }),
    row("mem-per-gpu", Commands::ABR)
        .takes("SIZE")
        .env(&["SLURM_MEM_PER_GPU", "SBATCH_MEM_PER_GPU", "SALLOC_MEM_PER_GPU"])
        .help("Memory for each GPU given, in MiB or with K, M, G or T.")
        .set(|o, g| {
            o.devices.mem_per_gpu = Some(g.parse(memory::parse)?);
            Ok(())
        }),
    row("ntasks-per-gpu", Commands::ABR)
        .takes("TASKS")
        .env(&["SLURM_NTASKS_PER_GPU"])
        .help("Tasks for each GPU: with --ntasks it says how many GPUs there are, without it how many tasks. Each task is told of one GPU: --gpu-bind=single:TASKS, unless that says otherwise.")
        .set(|o, g| {
            o.devices.tasks_per_gpu = Some(g.count()?);
            Ok(())
        }),
    row("tres-bind", Commands::ABR)
        .takes("gres/gpu:HOW")
        .env(&["SBATCH_TRES_BIND", "SALLOC_TRES_BIND"])
        .help("As --gpu-bind=HOW.")
        .set(|o, g| {
            o.devices.bind = Some(g.parse(gpu::of_tres)?);
            Ok(())
        }),
    row("tres-per-task", Commands::ABR)
        .takes("LIST")
        .env(&["SLURM_TRES_PER_TASK", "SBATCH_TRES_PER_TASK", "SALLOC_TRES_PER_TASK"])
        .help("What each task has, such as cpu=4,gres/gpu=1: --cpus-per-task and --gpus-per-task in one, and generic resources of other names.")
        .set(|o, g| {
            let (cpus, wanted) = parse_per_task(g.text()?).map_err(|e| {
                Bad::Submission(format!("Invalid Trackable RESource (TRES) specification: --tres-per-task: {e}"))
            })?;
            o.devices.cpus_by_tres = cpus;
            o.devices.tres_per_task = wanted;
            Ok(())
        }),
];
