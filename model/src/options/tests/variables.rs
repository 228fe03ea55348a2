//! Every variable that Slurm's srun, sbatch and salloc read stands for an option here, which is followed or refused by name, or
//! is excused in the list of differences.

use super::*;

/// As the reference lists them, with `SLURM_DEBUG`, and without what they begin with. Each command's own beginning is `SLURM_`, `SBATCH_` or `SALLOC_`.
const OF_SRUN: &str = "ACCOUNT ACCTG_FREQ BCAST BURST_BUFFER CLUSTERS CONSTRAINT CORE_SPEC CPU_BIND CPU_FREQ_REQ CPUS_PER_GPU \
    CPUS_PER_TASK DEBUG DELAY_BOOT DEPENDENCY DISABLE_STATUS DISTRIBUTION EPILOG EXACT EXCLUSIVE EXPORT_ENV GPUS GPU_BIND GPU_FREQ \
    GPUS_PER_NODE GPUS_PER_SOCKET GPUS_PER_TASK GRES GRES_FLAGS HINT JOB_ID JOB_NAME JOB_NODELIST JOB_NUM_NODES KILL_BAD_EXIT \
    LABELIO MEM_BIND MEM_PER_CPU MEM_PER_GPU MEM_PER_NODE MPI_TYPE NETWORK NO_KILL NTASKS NPROCS NTASKS_PER_CORE NTASKS_PER_NODE \
    NTASKS_PER_GPU OPEN_MODE OVERCOMMIT OVERLAP PARTITION PROFILE PROLOG QOS REMOTE_CWD REQ_SWITCH RESERVATION RESV_PORTS \
    SEND_LIBS SIGNAL SPREAD_JOB STDERRMODE STDINMODE STDOUTMODE TASK_EPILOG TASK_PROLOG THREADS THREADS_PER_CORE TIMELIMIT \
    TRES_PER_TASK UNBUFFEREDIO USE_MIN_NODES WAIT WAIT4SWITCH WCKEY WORKING_DIR";

/// Likewise those of `srun` that begin with `SRUN_`.
const OF_SRUN_ALONE: &str = "CONTAINER CONTAINER_ID ERROR INPUT OUTPUT EXPORT_ENV RUNTIME SEGMENT_SIZE";

const OF_SBATCH: &str = "ACCOUNT ACCTG_FREQ ARRAY_INX BATCH CLUSTERS CONSTRAINT CONTAINER CORE_SPEC CPUS_PER_GPU DEBUG DELAY_BOOT \
    DISTRIBUTION ERROR EXCLUSIVE EXPORT GET_USER_ENV GPUS GPUS_PER_NODE GPUS_PER_SOCKET GPUS_PER_TASK GPU_BIND GPU_FREQ GRES \
    GRES_FLAGS HINT IGNORE_PBS INPUT JOB_NAME MEM_BIND MEM_PER_CPU MEM_PER_GPU MEM_PER_NODE NETWORK NO_KILL NO_REQUEUE \
    OPEN_MODE OUTPUT OVERCOMMIT PARTITION PROFILE QOS REQUEUE REQ_SWITCH RESERVATION SIGNAL SPREAD_JOB THREAD_SPEC \
    THREADS_PER_CORE TIMELIMIT TRES_BIND TRES_PER_TASK USE_MIN_NODES WAIT WAIT_ALL_NODES WAIT4SWITCH WCKEY";

/// What `salloc` reads beyond those of the options that it shares with `sbatch`.
const OF_SALLOC_ALONE: &str = "BELL IMMEDIATE KILL_CMD NO_BELL";

/// What nothing here could follow; the list of differences says why.
const EXCUSED: &[&str] = &["SLURM_JOB_NODELIST"];

/// The option of the command that the variable stands for.
fn option_of(command: Command, variable: &str) -> Option<&'static OptionRow> {
    rows(command).find(|row| row.env_of(command).any(|name| name == variable))
}

#[test]
fn every_variable_that_slurms_commands_read_stands_for_an_option_or_is_excused() {
    let differences = include_str!("../../../../docs/slurm-differences.md");
    let there = |command: Command, variable: String| {
        let excused = EXCUSED.contains(&variable.as_str());
        assert!(option_of(command, &variable).is_some() != excused, "{} reads {variable}", command.name());
        assert!(!excused || differences.contains(&format!("`{variable}`")), "{variable} is not in the list");
    };
    for name in OF_SRUN.split_whitespace() {
        there(Command::Srun, format!("SLURM_{name}"));
    }
    for name in OF_SRUN_ALONE.split_whitespace() {
        there(Command::Srun, format!("SRUN_{name}"));
    }
    let mut shared = 0;
    for name in OF_SBATCH.split_whitespace() {
        there(Command::Sbatch, format!("SBATCH_{name}"));
        let option = option_of(Command::Sbatch, &format!("SBATCH_{name}")).unwrap();
        // What is no option of salloc's has no variable of its own there, in Slurm either.
        if rows(Command::Salloc).any(|row| row.long == option.long) {
            there(Command::Salloc, format!("SALLOC_{name}"));
            shared += 1;
        }
    }
    assert!(shared > 40, "{shared}");
    for name in OF_SALLOC_ALONE.split_whitespace() {
        there(Command::Salloc, format!("SALLOC_{name}"));
    }
}

#[test]
fn a_variable_asks_for_words_where_nothing_greater_asks_for_none() {
    let loud = all(Command::Sbatch, "", &[("SBATCH_DEBUG", "2")]).unwrap();
    assert_eq!((loud.verbose, loud.source("verbose")), (1, Some(Source::Environment("SBATCH_DEBUG"))));
    assert_eq!(all(Command::Salloc, "", &[("SALLOC_DEBUG", "0")]).unwrap().verbose, 0);
    let quiet = all(Command::Srun, "-Q true", &[("SLURM_DEBUG", "1")]).unwrap();
    assert!(quiet.quiet && quiet.source("quiet") > quiet.source("verbose"));
}
