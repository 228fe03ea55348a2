//! Options of one command: srun's step, sbatch's submission, and what all commands have.

use crate::bind;
use crate::bytes::ByteStr;
use crate::count;
use crate::mpi::MpiType;
use crate::options::resolve::Bad;
use crate::options::row::{Commands, Info, OptionRow, row};
use crate::spec::JobSelector;
use crate::x11::X11Nodes;

pub(super) static ROWS: &[OptionRow] = &[
    row("exact", Commands::R)
        .env(&["SLURM_EXACT"])
        .help("Use only the CPUs that the step asks for and wait until they are free, so that several steps run side by side.")
        .set(|o, _| {
            o.exact = true;
            Ok(())
        }),
    row("jobid", Commands::R)
        .takes("JOB")
        .env(&["SLURM_JOB_ID", "SLURM_JOBID"])
        .help("Run the step in this job: 12, 12_3 for a task of an array, or a SLUID. Inside a job, that job is the default.")
        .set(|o, g| {
            let selector = g.text()?.parse::<JobSelector>().map_err(|e| {
                Bad::Fatal(vec![format!("Bad job/step specified: {}", e.text), e.why])
            })?;
            if matches!(selector, JobSelector::Tasks(..)) {
                return Err(Bad::Own(vec![format!(
                    "Bad job/step specified: {selector}: name one task of the array"
                )]));
            }
            o.jobid = Some(selector);
            Ok(())
        }),
    row("het-group", Commands::R)
        .alias(&["pack-group"])
        .takes("NUMBERS")
        .help("Of a step in a job of several components: which ones it is in, such as 0,2-4, counted from 0; one step, with one MPI_COMM_WORLD over all of them. Without it the step is in component 0, and parts of the command line that a ':' separates are in one component each, in order.")
        .set(|o, g| {
            o.het_group = g.parse(crate::het::groups)?;
            Ok(())
        }),
    row("pytorch", Commands::R)
        .env(&["BERTH_PYTORCH"])
        .help("Tell each task what torch.distributed asks for: MASTER_ADDR (the address of the step's first node), MASTER_PORT (15000 to 29999, by job and step; nobody reserves it), RANK, LOCAL_RANK, GROUP_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE.")
        .set(|o, g| {
            o.pytorch = g.is_on();
            Ok(())
        }),
    row("relative", Commands::R)
        .short(b'r')
        .takes("NODE")
        .help("Of a step in a job: the first of the job's nodes that it may have, counted from 0; the step has those that follow.")
        .set(|o, g| {
            o.relative = Some(count::number(g.text()?).map_err(|e| Bad::Number(e.why))?);
            Ok(())
        }),
    row("bcast", Commands::R)
        .may_take("PATH")
        .env(&["SLURM_BCAST"])
        .help(
            "Copy the program to the job's nodes first, as sbcast does, and run the copy. PATH is its name there, or with '/' \
             at its end a directory; without one it is slurm_bcast_JOB.PROGRAM in the working directory.",
        )
        .set(|o, g| {
            o.bcast = Some(ByteStr(g.bytes().to_vec()));
            Ok(())
        }),
    row("disable-status", Commands::R)
        .short(b'X')
        .env(&["SLURM_DISABLE_STATUS"])
        .help("A Ctrl-C is for the tasks at once, and a second one within a second ends the step; without this option the first one asks how they are.")
        .set(|o, _| {
            o.disable_status = true;
            Ok(())
        }),
    row("quit-on-interrupt", Commands::R)
        .help("A single Ctrl-C ends the step.")
        .set(|o, _| {
            o.quit_on_interrupt = true;
            Ok(())
        }),
    row("kill-on-bad-exit", Commands::R)
        .short(b'K')
        .may_take("0|1")
        .choices(&["0", "1"])
        .env(&["SLURM_KILL_BAD_EXIT"])
        .help("End the whole step as soon as one task fails (1, or no value); 0 lets the others go on.")
        .set(|o, g| {
            o.kill_on_bad_exit = match g.value {
                None | Some(b"1") => true,
                Some(b"0") => false,
                Some(_) => return Err(Bad::Spec("write 0 or 1".to_string())),
            };
            Ok(())
        }),
    row("label", Commands::R)
        .short(b'l')
        .env(&["SLURM_LABELIO"])
        .help(
            "Begin each line of output with the number of its task: '3: '. A line of 64 KiB and more (with -u any without \
             a line feed) goes out in pieces; where another task wrote in between, it goes on behind '3> '.",
        )
        .set(|o, _| {
            o.label = true;
            Ok(())
        }),
    row("mpi", Commands::R)
        .takes("TYPE")
        .choices(&["none", "pmi1", "pmi2", "pmix", "list"])
        .env(&["SLURM_MPI_TYPE"])
        .help(
            "How the tasks of an MPI program find one another: pmi2 (PMI-2 and PMI-1, for MPICH, MVAPICH, Intel MPI and their kin), \
             pmi1 (PMI-1 alone), pmix (PMIx by the nodes' own libpmix, for Open MPI), or none. Steps of several tasks have pmi2 \
             unasked, and all steps pmix where the node has libpmix. list prints what there is here.",
        )
        .set(|o, g| {
            match g.text()? {
                "list" => o.mpi_list = true,
                other => {
                    let mpi = other.parse::<MpiType>().map_err(|why| {
                        let what = format!("Invalid MPI type '{other}', --mpi=list for acceptable types");
                        Bad::Wrong(vec![what, why])
                    })?;
                    o.mpi = Some(mpi);
                }
            }
            Ok(())
        }),
    row("cpu-bind", Commands::R)
        .alias(&["cpu_bind"])
        .takes("[quiet|verbose,]TYPE")
        .choices(&["none", "rank", "threads", "cores", "sockets", "ldoms", "rank_ldom", "boards", "verbose", "quiet", "help"])
        .env(&["SLURM_CPU_BIND"])
        .help(
            "Bind each task to CPUs of the step: to threads, cores, sockets or ldoms (NUMA nodes), by rank, or by a list for the \
             node's tasks (map_cpu:0,2 or mask_cpu:0x3,0xc; map_ldom, mask_ldom). 'verbose,' before it has each task say what it is \
             bound to; 'help' says more. By default none: each task may use all CPUs of the step, and never others.",
        )
        .set(|o, g| {
            if g.text()?.eq_ignore_ascii_case("help") {
                return Err(Bad::Help(bind::CPU_HELP));
            }
            let bind = g.text()?.parse::<bind::CpuBind>().map_err(|e| {
                Bad::GivenUp(vec![
                    format!("unrecognized --cpu-bind argument \"{}\"", e.text),
                    "Failed to parse --cpu-bind= values.".to_string(),
                    e.why,
                ])
            })?;
            o.cpu_bind = Some(bind);
            Ok(())
        }),
    row("mem-bind", Commands::R)
        .takes("[quiet|verbose,]TYPE")
        .choices(&["none", "local", "rank", "prefer", "nosort", "verbose", "quiet", "help"])
        .env(&["SLURM_MEM_BIND"])
        .help(
            "Bind the memory of each task to NUMA nodes: local (those of its CPUs), rank, or a list for the node's tasks \
             (map_mem:0,1 or mask_mem:0x1,0x2). 'prefer,' before it allows others when one is full; 'verbose,' and 'help' as for \
             --cpu-bind. By default none.",
        )
        .set(|o, g| {
            if g.text()?.eq_ignore_ascii_case("help") {
                return Err(Bad::Help(bind::MEM_HELP));
            }
            o.mem_bind = Some(g.parse(str::parse)?);
            Ok(())
        }),
    row("multi-prog", Commands::R)
        .help(
            "The command is a file that says which task runs which program, a line each: tasks (0-3,7 or * for all others), \
             program, arguments. %t is the task's number, %o its place among those of the line. What follows the file goes to all.",
        )
        .set(|o, _| {
            o.multi_prog = true;
            Ok(())
        }),
    row("overlap", Commands::R)
        .env(&["SLURM_OVERLAP"])
        .help("Share the job's CPUs and memory with its other steps instead of waiting for them.")
        .set(|o, _| {
            o.overlap = true;
            Ok(())
        }),
    row("pty", Commands::R)
        .may_take("FD")
        .help(
            "Give task 0 a terminal of its own, connected to srun's: that of standard input, or the one on which srun has descriptor \
             FD open (3<>/dev/pts/7).",
        )
        .set(|o, g| {
            o.pty = true;
            o.pty_from = match g.value {
                None => None,
                Some(_) => Some(count::number(g.text()?).map_err(|e| Bad::Number(e.why))?),
            };
            Ok(())
        }),
    row("prolog", Commands::R)
        .takes("PROGRAM")
        .env(&["SLURM_PROLOG"])
        .help(
            "Run PROGRAM here, where srun is, before the step's tasks begin, in the place of the site's (srun_prolog): with the \
             command and its arguments as arguments, and the step's SLURM_ variables. A step whose prolog fails is not run. \
             'none' runs neither.",
        )
        .set(|o, g| {
            o.prolog = Some(g.bytes().into());
            Ok(())
        }),
    row("epilog", Commands::R)
        .takes("PROGRAM")
        .env(&["SLURM_EPILOG"])
        .help("Run PROGRAM here when the step has ended, in the place of the site's (srun_epilog), as --prolog before it. 'none' runs neither.")
        .set(|o, g| {
            o.epilog = Some(g.bytes().into());
            Ok(())
        }),
    row("task-prolog", Commands::R)
        .takes("PROGRAM")
        .env(&["SLURM_TASK_PROLOG"])
        .help(
            "Run PROGRAM before each task, after that of the site: where the task runs, with its environment. What it prints acts: \
             'export NAME=VALUE' and 'unset NAME' change the task's environment, 'print TEXT' writes to its output. A task whose \
             prolog fails is not started.",
        )
        .set(|o, g| {
            o.task_prolog = g.bytes().into();
            Ok(())
        }),
    row("task-epilog", Commands::R)
        .takes("PROGRAM")
        .env(&["SLURM_TASK_EPILOG"])
        .help("Run PROGRAM after each task, before that of the site: where the task ran, with its environment and output.")
        .set(|o, g| {
            o.task_epilog = g.bytes().into();
            Ok(())
        }),
    row("x11", Commands::AR)
        .may_take("NODES")
        .env(&[crate::x11::WANTED])
        .choices(&["all", "first", "last", "batch"])
        .help(
            "Let the tasks use the X server that DISPLAY names: on all nodes (the default), or on the first, the last or that of \
             the batch script. They get the display and a file of their own with its magic cookie (XAUTHORITY), which goes with the \
             step; on machines that do not reach it, a display that srun carries to them. With salloc, the steps that srun starts in \
             the allocation.",
        )
        .set(|o, g| {
            o.x11 = Some(match g.value {
                None => X11Nodes::All,
                Some(_) => g.text()?.parse().map_err(Bad::Spec)?,
            });
            Ok(())
        }),
    row("wait", Commands::R)
        .short(b'W')
        .key("wait-seconds")
        .takes("SECONDS")
        .env(&["SLURM_WAIT"])
        .help("End the step SECONDS after its first task ended; 0 (the default) waits for all of them.")
        .set(|o, g| {
            o.wait_seconds = Some(count::number(g.text()?).map_err(|e| Bad::Number(e.why))?);
            Ok(())
        }),
    row("ignore-pbs", Commands::B)
        .env(&["SBATCH_IGNORE_PBS"])
        .help("Say nothing about #PBS and #BSUB lines. They are never followed; without this option a warning names them.")
        .set(|o, _| {
            o.ignore_pbs = true;
            Ok(())
        }),
    row("bell", Commands::A)
        .env(&["SALLOC_BELL"])
        .help("Ring the terminal's bell when the allocation is there; without this option, when it took more than 10 seconds.")
        .set(|o, _| {
            o.bell = Some(true);
            Ok(())
        }),
    row("no-bell", Commands::A)
        .key("bell")
        .env(&["SALLOC_NO_BELL"])
        .help("Never ring it.")
        .set(|o, _| {
            o.bell = Some(false);
            Ok(())
        }),
    row("kill-command", Commands::A)
        .short(b'K')
        .may_take("SIGNAL")
        .env(&["SALLOC_KILL_CMD"])
        .help(
            "Send the command SIGNAL (SIGTERM, if there is no value) when the allocation is gone before it has ended; without this \
             option it is sent SIGHUP and SIGTERM.",
        )
        .set(|o, g| {
            o.kill_command = Some(match g.value {
                None | Some(b"") => 15,
                Some(_) => g.parse(crate::signal::parse)?,
            });
            Ok(())
        }),
    row("no-shell", Commands::A)
        .help(
            "Run no command, and leave the allocation behind: it goes on until its time limit or a scancel, and has steps by \
             srun --jobid.",
        )
        .set(|o, _| {
            o.no_shell = true;
            Ok(())
        }),
    row("parsable", Commands::B)
        .help("Print the job's id and nothing else.")
        .set(|o, _| {
            o.parsable = true;
            Ok(())
        }),
    row("wait", Commands::B)
        .short(b'W')
        .env(&["SBATCH_WAIT"])
        .help("Return when the job has ended, with its exit code; of an array, the highest.")
        .set(|o, _| {
            o.wait = true;
            Ok(())
        }),
    row("wrap", Commands::B)
        .takes("COMMAND")
        .help("Submit a script of this one shell command (#!/bin/sh).")
        .set(|o, g| {
            o.wrap = Some(ByteStr::from(g.bytes()));
            Ok(())
        }),
    row("quiet", Commands::ABR)
        .short(b'Q')
        .help("Print errors only.")
        .set(|o, _| {
            o.quiet = true;
            Ok(())
        }),
    row("verbose", Commands::ABR)
        .short(b'v')
        .env(&["SLURM_DEBUG", "SBATCH_DEBUG", "SALLOC_DEBUG"])
        .help("Say which cluster is asked.")
        .set(|o, _| {
            o.verbose = o.verbose.saturating_add(1);
            Ok(())
        }),
    row("help", Commands::ABR).short(b'h').help("Print this help.").info(Info::Help),
    row("usage", Commands::ABR).help("Print a short usage line.").info(Info::Usage),
    row("version", Commands::ABR).short(b'V').help("Print the version.").info(Info::Version),
];
