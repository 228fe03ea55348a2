//! Options about files, streams, the working directory and the environment.

use crate::bytes::ByteStr;
use crate::export::ExportSpec;
use crate::limits::Resource;
use crate::options::resolve::{Bad, Given};
use crate::options::row::{Commands, OptionRow, row};
use crate::options::submit::Propagate;
use crate::spec::OpenMode;

/// A file name or pattern.
fn name(given: &Given<'_>) -> Result<Option<ByteStr>, Bad> {
    let bytes = given.bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(Bad::Spec("a file name is needed".to_string()));
    }
    Ok(Some(ByteStr::from(bytes)))
}

pub(super) static ROWS: &[OptionRow] = &[
    row("chdir", Commands::ABR)
        .short(b'D')
        .takes("DIRECTORY")
        .env(&["SLURM_WORKING_DIR", "SLURM_REMOTE_CWD"])
        .help("Working directory. By default the one of the submission. If it is missing on the node, the job fails and says so.")
        .set(|o, g| {
            if g.bytes().is_empty() || g.bytes().contains(&0) {
                return Err(Bad::Spec("a directory is needed".to_string()));
            }
            o.chdir = Some(ByteStr::from(g.bytes()));
            Ok(())
        }),
    row("error", Commands::BR)
        .short(b'e')
        .takes("FILE")
        .env(&["SRUN_ERROR", "SLURM_STDERRMODE", "SBATCH_ERROR"])
        .help("File for standard error, a pattern as of --output. By default it goes where standard output goes.")
        .set(|o, g| {
            o.error = name(g)?;
            Ok(())
        }),
    row("export", Commands::BR)
        .takes("ALL|NONE|NIL|[ALL,]NAME[=VALUE],...")
        .choices(&["ALL", "NONE", "NIL"])
        .env(&["SRUN_EXPORT_ENV", "SLURM_EXPORT_ENV", "SBATCH_EXPORT"])
        .help(
            "Which environment variables the job gets: ALL (the default), NONE, or only those named; NAME=VALUE \
             sets one, ALL,NAME=VALUE adds to all. With NONE and with names, sbatch starts from the user's login \
             environment; NIL starts from nothing. SLURM_* variables always go along.",
        )
        .set(|o, g| {
            o.export = ExportSpec::parse(g.bytes()).map_err(|e| Bad::Spec(e.to_string()))?;
            Ok(())
        }),
    row("get-user-env", Commands::AB)
        .env(&["SBATCH_GET_USER_ENV", "SALLOC_GET_USER_ENV"])
        .help(
            "Start from the environment that the user gets at login on the node; the command of salloc, from that on the machine \
             where it runs. What is submitted stands over it.",
        )
        .set(|o, _| {
            o.get_user_env = true;
            Ok(())
        }),
    row("input", Commands::BR)
        .short(b'i')
        .takes("FILE")
        .env(&["SRUN_INPUT", "SLURM_STDINMODE", "SBATCH_INPUT"])
        .help("File for standard input, a pattern as of --output. By default /dev/null for sbatch; srun passes its own to all tasks ('all'), to one (its number) or to none ('none').")
        .set(|o, g| {
            o.input = name(g)?;
            Ok(())
        }),
    row("open-mode", Commands::BR)
        .takes("append|truncate")
        .choices(&["append", "truncate"])
        .env(&["SLURM_OPEN_MODE", "SBATCH_OPEN_MODE"])
        .help("What happens to an output file that exists. By default it is emptied, and a requeued job appends.")
        .set(|o, g| {
            o.open_mode = Some(match g.text()? {
                "append" | "a" => OpenMode::Append,
                "truncate" | "t" => OpenMode::Truncate,
                other => return Err(Bad::Spec(format!("'{other}' is neither append nor truncate"))),
            });
            Ok(())
        }),
    row("output", Commands::BR)
        .short(b'o')
        .takes("FILE")
        .env(&["SRUN_OUTPUT", "SLURM_STDOUTMODE", "SBATCH_OUTPUT"])
        .help(
            "File for standard output. %j is the job's id, %A the array's, %a the array task's index, %b its last \
             digit, %s the step's, %J job.step, %x the job's name, %u the user, %N the node, %n its index, %t the \
             task's number, %r the restarts, %S the SLUID; %5j pads with zeros; a backslash anywhere switches this off. By \
             default slurm-%j.out, slurm-%A_%a.out for arrays, and srun's own output ('all'; 'none', or the number \
             of one task).",
        )
        .set(|o, g| {
            o.output = name(g)?;
            Ok(())
        }),
    row("propagate", Commands::ABR)
        .may_take("ALL|NONE|LIMIT,...")
        .choices(&["ALL", "NONE"])
        .env(&[Propagate::CARRIED])
        .help(
            "Soft resource limits (ulimit) that go with the job: ALL (also without a value), NONE, or names such as \
             NOFILE,STACK. What is asked for by this option a node must be able to give. Without the option limits \
             are lowered where a node allows less, and AS, CPU, MEMLOCK, NOFILE and RSS of a login shell stay behind; \
             inside a job all of its limits go with its steps. Of salloc it says what goes with the steps that srun starts in the \
             allocation.",
        )
        .set(|o, g| {
            o.propagate = match g.value {
                None => Propagate::All,
                Some(_) => propagate(g.text()?)?,
            };
            Ok(())
        }),
    row("unbuffered", Commands::R)
        .short(b'u')
        .env(&["SLURM_UNBUFFEREDIO"])
        .help(
            "With --label, pass on what has no line feed yet as well: the label once, and the rest as it comes. Without \
             --label that is always so. What a program itself holds back it holds back with and without this option \
             (stdbuf -o0 PROGRAM; --pty).",
        )
        .set(|o, _| {
            o.unbuffered = true;
            Ok(())
        }),
];

fn propagate(text: &str) -> Result<Propagate, Bad> {
    match text.to_ascii_uppercase().as_str() {
        "ALL" => return Ok(Propagate::All),
        "NONE" => return Ok(Propagate::None),
        _ => {}
    }
    let mut only = Vec::new();
    for name in text.split(',') {
        let bare = name.to_ascii_uppercase();
        let bare = bare.strip_prefix("RLIMIT_").unwrap_or(&bare).to_string();
        let resource = Resource::ALL.iter().find(|r| r.name() == bare).ok_or_else(|| {
            let names: Vec<&str> = Resource::ALL.iter().map(|r| r.name()).collect();
            Bad::Spec(format!(
                "'{name}' is not a resource limit; write ALL, NONE, or some of {}",
                names.join(",")
            ))
        })?;
        if !only.contains(resource) {
            only.push(*resource);
        }
    }
    Ok(Propagate::Only(only))
}
