//! The programs around each task: the site's, and those that the user gave to `srun`.

use super::environment::is_host;
use super::script::sealed;
use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_runtime::TaskProgram;
use berth_runtime::hooks::unchangeable;
use rustix::fd::OwnedFd;
use std::fs::File;
use std::io::{self, Read};

/// Largest program of the site's that is carried into containers.
const MOST: u64 = 64 << 20;

/// Programs around the tasks of a step, in order.
#[derive(Default)]
pub struct Around {
    before: Vec<TaskProgram>,
    after: Vec<TaskProgram>,
}

impl Around {
    /// Those of a step. The site's are looked at by the supervisor, and reach a container as sealed files in memory: its user's
    /// image has no say in what they are. The user's are what the task finds under their names. A command that enters a step
    /// which runs has none.
    pub fn of(file: &LaunchFile) -> Result<Around, LaunchFailure> {
        let (launch, site) = (&file.launch, &file.node.task_programs);
        let mut around = Around::default();
        if launch.enter.is_some() {
            return Ok(around);
        }
        let host = is_host(launch);
        let own = |name: &str, path: &ByteStr, seconds| TaskProgram {
            name: name.into(),
            path: path.clone(),
            file: None,
            seconds,
        };
        let of_site = |name: &str, path: &ByteStr, seconds| -> Result<TaskProgram, LaunchFailure> {
            let wrong = |why: String| LaunchFailure::new(format!("the site's {name}: {why}"));
            let found = unchangeable(path.as_path(), site.owner).map_err(wrong)?;
            // On the node's own filesystem it is where it is, and finds what lies beside it.
            let file = match host {
                true => None,
                false => Some(carried(&found).map_err(|e| wrong(format!("{}: {e}", path.display())))?),
            };
            Ok(TaskProgram { file, ..own(name, path, seconds) })
        };
        if !site.prolog.is_empty() {
            around.before.push(of_site("task prolog", &site.prolog, site.prolog_seconds)?);
        }
        if !launch.task_prolog.is_empty() {
            around.before.push(own("task prolog", &launch.task_prolog, site.prolog_seconds));
        }
        if !launch.task_epilog.is_empty() {
            around.after.push(own("task epilog", &launch.task_epilog, site.epilog_seconds));
        }
        if !site.epilog.is_empty() {
            around.after.push(of_site("task epilog", &site.epilog, site.epilog_seconds)?);
        }
        Ok(around)
    }

    /// Those of one task.
    pub fn of_task(&self) -> Result<(Vec<TaskProgram>, Vec<TaskProgram>), LaunchFailure> {
        let copies = |programs: &[TaskProgram]| programs.iter().map(copy).collect::<io::Result<Vec<_>>>();
        let both = copies(&self.before).and_then(|before| Ok((before, copies(&self.after)?)));
        both.map_err(|e| LaunchFailure::new(format!("cannot pass the programs around tasks on: {e}")))
    }
}

fn copy(program: &TaskProgram) -> io::Result<TaskProgram> {
    let TaskProgram { name, path, file, seconds } = program;
    let file = file.as_ref().map(OwnedFd::try_clone).transpose()?;
    Ok(TaskProgram { name: name.clone(), path: path.clone(), file, seconds: *seconds })
}

/// The program as a file in memory that nobody can change.
fn carried(path: &std::path::Path) -> io::Result<OwnedFd> {
    let mut program = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut program)?;
    if program.len() as u64 > MOST {
        return Err(io::Error::other(format!("it is larger than {} MiB", MOST >> 20)));
    }
    sealed(&program)
}
