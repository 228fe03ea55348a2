//! Options about the job as a whole.

use crate::options::resolve::Bad;
use crate::options::row::{Commands, OptionRow, row};
use crate::options::submit::Explain;
use crate::signal;
use crate::spec::{ArraySpec, TimeLimit};
use crate::when::{self, Sense};

pub(super) static ROWS: &[OptionRow] = &[
    row("account", Commands::ABR)
        .short(b'A')
        .takes("NAME")
        .env(&["SLURM_ACCOUNT", "SBATCH_ACCOUNT", "SALLOC_ACCOUNT"])
        .help("Account to record with the job. It is printed by squeue, scontrol and sacct, and its coordinators may act on the job.")
        .set(|o, g| {
            o.account = Some(g.text()?.to_string());
            Ok(())
        }),
    row("array", Commands::B)
        .short(b'a')
        .takes("INDICES[%N]")
        .env(&["SBATCH_ARRAY_INX"])
        .help(
            "Submit one job for each index, such as 0-15, 1,3,5-7 or 1-7:2; %N is the most that run at once. Each \
             task finds its index in SLURM_ARRAY_TASK_ID.",
        )
        .set(|o, g| {
            let invalid = |e| Bad::Submission(format!("Invalid job array specification: {e}"));
            o.array = Some(g.text()?.parse::<ArraySpec>().map_err(invalid)?);
            Ok(())
        }),
    row("begin", Commands::ABR)
        .short(b'b')
        .takes("TIME")
        .help(
            "Start no earlier than TIME: now+COUNT[seconds|minutes|hours|days|weeks], 16:00, tomorrow, noon, \
             MM/DD[/YY] or YYYY-MM-DD[THH:MM[:SS]], in local time.",
        )
        .set(|o, g| {
            let at = when::parse(g.text()?, g.context.now, &g.context.zone, Sense::Ahead).map_err(|e| {
                let place = format!("Invalid time specification (pos={}): {}", e.pos, e.text);
                Bad::Spec(format!("{place}: {}", e.why))
            })?;
            o.begin = Some(at);
            Ok(())
        }),
    row("comment", Commands::ABR)
        .takes("TEXT")
        .help("Text to record with the job; scontrol and sacct print it.")
        .set(|o, g| {
            o.comment = Some(g.text()?.to_string());
            Ok(())
        }),
    row("hold", Commands::ABR)
        .short(b'H')
        .help("Submit the job held: it waits until 'scontrol release'.")
        .set(|o, _| {
            o.hold = true;
            Ok(())
        }),
    row("immediate", Commands::AR)
        .short(b'I')
        .may_take("SECONDS")
        .env(&["SLURM_IMMEDIATE", "SALLOC_IMMEDIATE"])
        .help("Give up if the resources are not there within SECONDS (1 when no value is given).")
        .set(|o, g| {
            let seconds = match g.value {
                None => 1,
                Some(_) => g.parse(crate::count::number)?,
            };
            o.immediate = Some(crate::time::Span::from_secs(i64::from(seconds)));
            Ok(())
        }),
    row("job-name", Commands::ABR)
        .short(b'J')
        .takes("NAME")
        .env(&["SLURM_JOB_NAME", "SBATCH_JOB_NAME", "SALLOC_JOB_NAME"])
        .help(
            "Name of the job or step. By default the script's file name, 'sbatch' for a script from standard \
             input, 'wrap', 'interactive' for salloc, or the program's name for srun.",
        )
        .set(|o, g| {
            o.job_name = Some(g.text()?.to_string());
            Ok(())
        }),
    row("nice", Commands::ABR)
        .may_take("ADJUSTMENT")
        .help("Stand further back in the queue by ADJUSTMENT (100 when no value is given). A negative one needs an administrator.")
        .set(|o, g| {
            let Some(_) = g.value else {
                o.nice = 100;
                return Ok(());
            };
            const MOST: i64 = 2_147_483_645;
            let text = g.text()?;
            let wide = text.parse::<i64>().map_err(|_| {
                Bad::Own(vec![
                    "Invalid --nice value".to_string(),
                    format!("'{text}' is not a whole number; write --nice=ADJUSTMENT"),
                ])
            })?;
            o.nice = i32::try_from(wide).ok().filter(|n| i64::from(*n).abs() <= MOST).ok_or_else(|| {
                Bad::Own(vec![format!("Invalid --nice value, out of range (+/- {MOST})")])
            })?;
            Ok(())
        }),
    row("partition", Commands::ABR)
        .short(b'p')
        .takes("NAME")
        .env(&["SLURM_PARTITION", "SBATCH_PARTITION", "SALLOC_PARTITION"])
        .help("Partition to run in. By default the cluster's default partition.")
        .set(|o, g| {
            let text = g.text()?;
            if text.is_empty() || text.contains(',') {
                let why = "name one partition; a list of them is not supported by this release";
                return Err(Bad::Spec(format!("'{text}': {why}")));
            }
            o.partition = Some(text.to_string());
            Ok(())
        }),
    row("requeue", Commands::B)
        .env(&["SBATCH_REQUEUE"])
        .help("Let the job go back to the queue when its node is lost, or by 'scontrol requeue'.")
        .set(|o, _| {
            o.requeue = Some(true);
            Ok(())
        }),
    row("no-requeue", Commands::B)
        .key("requeue")
        .env(&["SBATCH_NO_REQUEUE"])
        .help("Never run the job a second time.")
        .set(|o, _| {
            o.requeue = Some(false);
            Ok(())
        }),
    row("lost-after", Commands::ABR)
        .takes("SECONDS")
        .env(&["BERTH_LOST_AFTER"])
        .help(
            "Let the job end by itself on a node that has been out of touch with the controller for SECONDS, so that it counts as \
             lost soon after and, as a batch job, runs again elsewhere. Without it silence alone ends a job only where the site \
             says so (lost_after_seconds), which is also the most; at least node_timeout_seconds.",
        )
        .set(|o, g| {
            let seconds = g.parse(crate::count::number)?;
            o.lost_after = Some(crate::time::Span::from_secs(i64::from(seconds)));
            Ok(())
        }),
    row("signal", Commands::ABR)
        .takes("[B:]SIGNAL[@SECONDS]")
        .env(&["SLURM_SIGNAL", "SBATCH_SIGNAL", "SALLOC_SIGNAL"])
        .help(
            "Send SIGNAL to the job's steps SECONDS (by default 60, at most 65535) before its time limit. With B: \
             it goes to the batch script's shell only.",
        )
        .set(|o, g| {
            o.signal = Some(g.parse(signal::parse_warning)?);
            Ok(())
        }),
    row("explain", Commands::ABR)
        .may_take("text|json")
        .choices(&["text", "json"])
        .help(
            "Print what would be made and submit nothing: the image as resolved, where it would run, mounts, every \
             variable of the environment with where it comes from, devices, limits, namespaces, filter and id maps. \
             As text, or as JSON.",
        )
        .set(|o, g| {
            o.explain = Some(match g.value {
                None | Some(b"text") => Explain::Text,
                Some(b"json") => Explain::Json,
                Some(_) => return Err(Bad::Spec("write --explain, --explain=text or --explain=json".to_string())),
            });
            Ok(())
        }),
    row("test-only", Commands::BR)
        .help("Check the request and print when and where it would start; submit nothing.")
        .set(|o, _| {
            o.test_only = true;
            Ok(())
        }),
    row("time", Commands::ABR)
        .short(b't')
        .takes("LIMIT")
        .env(&["SLURM_TIMELIMIT", "SBATCH_TIMELIMIT", "SALLOC_TIMELIMIT"])
        .help(
            "Time limit: MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS[:MINUTES[:SECONDS]] or \
             UNLIMITED; seconds are rounded up to minutes. By default the partition's. At the limit the job gets \
             SIGTERM, then SIGKILL.",
        )
        .set(|o, g| {
            o.time = Some(g.parse(|text| text.parse::<TimeLimit>())?);
            Ok(())
        }),
];
