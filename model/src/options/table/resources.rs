//! Options about how much of the cluster is asked for.

use crate::distribution::Levels;
use crate::options::resolve::{Bad, Given};
use crate::options::row::{Commands, OptionRow, row};
use crate::{hostlist, memory};

/// Nodes of `-w` and `-x`, in the order written, repeated ones included.
fn nodes(given: &Given<'_>) -> Result<Vec<crate::NodeName>, Bad> {
    let invalid = |why: String| Bad::Fatal(vec!["Invalid node list specified".to_string(), why]);
    let nodes = hostlist::expand(given.text()?).map_err(|e| invalid(e.to_string()))?;
    if nodes.is_empty() {
        return Err(invalid("it names no node".to_string()));
    }
    Ok(nodes.into_iter().map(crate::NodeName).collect())
}

pub(super) static ROWS: &[OptionRow] = &[
    row("cpus-per-task", Commands::ABR)
        .short(b'c')
        .takes("CPUS")
        .env(&["SRUN_CPUS_PER_TASK", "SLURM_CPUS_PER_TASK"])
        .help("CPUs (hardware threads) for each task; whole cores are given. By default 1.")
        .set(|o, g| {
            o.cpus_per_task = Some(g.count()?);
            Ok(())
        }),
    row("distribution", Commands::ABR)
        .short(b'm')
        .takes("block|cyclic|plane=SIZE|arbitrary[:block|cyclic|fcyclic]")
        .choices(&["block", "cyclic", "plane=", "arbitrary"])
        .env(&["SLURM_DISTRIBUTION", "SBATCH_DISTRIBUTION", "SALLOC_DISTRIBUTION"])
        .help("How tasks are laid out over nodes: block, one node after the other (the default); cyclic, one to each node in turn; plane=SIZE, SIZE at a time in turn; arbitrary, as --nodelist, --nodefile or the file that SLURM_HOSTFILE names has them, a node for each task. Behind a colon: how the tasks of a node are laid out over its sockets: cyclic, one here and the next on the next; block, a socket before the next; fcyclic, CPU by CPU. With it they are bound, to cores unless --cpu-bind says otherwise.")
        .set(|o, g| {
            let levels: Levels = g.text()?.parse().map_err(|e: crate::grammar::BadText| Bad::Spec(e.why))?;
            (o.distribution, o.sockets) = (Some(levels.nodes), levels.sockets);
            Ok(())
        }),
    row("overcommit", Commands::ABR)
        .short(b'O')
        .env(&["SLURM_OVERCOMMIT", "SBATCH_OVERCOMMIT", "SALLOC_OVERCOMMIT"])
        .help("Run more tasks than there are CPUs: on each node the job gets the CPUs of one task, and steps have all their tasks share what the job has.")
        .set(|o, _| {
            o.overcommit = true;
            Ok(())
        }),
    row("exclude", Commands::ABR)
        .short(b'x')
        .takes("NODES")
        .help("Nodes that must not be used, such as n[1-4],m7, or a file with them (with a slash in its name).")
        .set(|o, g| {
            match g.text()? {
                file if file.contains('/') => o.exclude_file = Some(crate::ByteStr::from(file)),
                _ => o.leave_out(nodes(g)?),
            }
            Ok(())
        }),
    row("fabric", Commands::ABR)
        .takes("auto|ib|efa|none")
        .env(&["BERTH_FABRIC"])
        .help("Fast networks that programs reach by device files. auto, the default: containers have those of InfiniBand, RoCE and EFA that their node has. ib, efa: only nodes with such a device whose port is up, and only those devices; a limit on locked memory (ulimit -l) below 1 MiB is refused. none: no such device. A step has its job's unless it says otherwise.")
        .set(|o, g| {
            o.fabric = Some(g.parse(str::parse)?);
            Ok(())
        }),
    row("exclusive", Commands::ABR)
        .may_take("yes")
        .env(&["SLURM_EXCLUSIVE", "SBATCH_EXCLUSIVE", "SALLOC_EXCLUSIVE"])
        .help("Of a job: give it whole nodes. Of a step: CPUs that no other step of the job uses, waiting for them.")
        .set(|o, g| match g.value {
            None | Some(b"yes" | b"1") => {
                o.exclusive = true;
                Ok(())
            }
            Some(b"user" | b"mcs" | b"topo") => Err(Bad::Spec(format!(
                "'{}' is not supported by this release; write --exclusive alone for whole nodes",
                g.text()?
            ))),
            Some(_) => Err(Bad::Spec("write --exclusive without a value".to_string())),
        }),
    row("mem", Commands::ABR)
        .takes("SIZE")
        .env(&["SLURM_MEM_PER_NODE", "SBATCH_MEM_PER_NODE", "SALLOC_MEM_PER_NODE"])
        .help("Memory on each node, in MiB or with K, M, G or T; 0 for all of it. The job is held to it.")
        .set(|o, g| {
            o.mem = Some(g.parse(memory::parse)?);
            Ok(())
        }),
    row("mem-per-cpu", Commands::ABR)
        .takes("SIZE")
        .env(&["SLURM_MEM_PER_CPU", "SBATCH_MEM_PER_CPU", "SALLOC_MEM_PER_CPU"])
        .help("Memory for each CPU given, in MiB or with K, M, G or T.")
        .set(|o, g| {
            o.mem_per_cpu = Some(g.parse(memory::parse)?);
            Ok(())
        }),
    row("nodelist", Commands::ABR)
        .short(b'w')
        .takes("NODES")
        .help("Nodes that the job or step must have, such as n[1-4],m7, or a file with them (with a slash in its name); it may get more if it needs them.")
        .set(|o, g| {
            match g.text()? {
                file if file.contains('/') => o.nodefile = Some(crate::ByteStr::from(file)),
                _ => {
                    // A list takes the place of a file that a lesser source, or an earlier --nodelist, had.
                    if o.source("nodefile").is_none() {
                        o.nodefile = None;
                    }
                    o.name_nodes(nodes(g)?);
                }
            }
            Ok(())
        }),
    row("nodefile", Commands::ABR)
        .short(b'F')
        .takes("FILE")
        .help("As --nodelist, with the nodes in a file: one or more on each line, 'n1*4' for four times n1, '#' before a comment.")
        .set(|o, g| {
            o.nodefile = Some(crate::ByteStr::from(g.text()?));
            Ok(())
        }),
    row("nodes", Commands::ABR)
        .short(b'N')
        .takes("MIN[-MAX]")
        .env(&["SLURM_JOB_NUM_NODES"])
        .help("Number of nodes. By default as few as the tasks need.")
        .set(|o, g| {
            let count = g.text()?.parse().map_err(|e: crate::grammar::BadText| {
                if e.why.starts_with("Maximum") {
                    return Bad::Own(vec![e.why]);
                }
                if e.text == "0" {
                    return Bad::Submission(format!("Node count specification invalid: {}", e.why));
                }
                Bad::Own(vec![format!("\"{}\" is not a valid node count", e.text), e.why])
            })?;
            o.nodes = Some(count);
            Ok(())
        }),
    row("ntasks", Commands::ABR)
        .short(b'n')
        .takes("TASKS")
        .env(&["SLURM_NTASKS", "SLURM_NPROCS"])
        .help("Number of tasks: what srun starts. By default one on each node.")
        .set(|o, g| {
            o.ntasks = Some(g.count()?);
            Ok(())
        }),
    row("ntasks-per-node", Commands::ABR)
        .alias(&["tasks-per-node"])
        .takes("TASKS")
        .env(&["SLURM_NTASKS_PER_NODE"])
        .help("Number of tasks on each node; with --ntasks the most on one node.")
        .set(|o, g| {
            o.ntasks_per_node = Some(g.count()?);
            Ok(())
        }),
];
