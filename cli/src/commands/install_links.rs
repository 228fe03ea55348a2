//! `berth install-links`: makes the commands' names as links.

use berth_client::error::{Failure, Outcome};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// Put srun, sbatch, squeue and the other names into a directory, as links to this program
///
/// With --front-doors also the names of other container tools. A directory before theirs in PATH then takes their calls.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Put apptainer, singularity, docker and enroot there, too: they do what scripts say to those tools, with
    /// Berth's own engine
    #[arg(long)]
    front_doors: bool,
    /// Directory for the links; made if it is not there
    dir: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let program = crate::own_path()?;
    let dir = &args.dir;
    let failed = |what: &std::path::Path, e: std::io::Error| {
        Failure::user(format!("{}: {e}; choose a directory that you may write", what.display()))
    };
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    let doors = crate::doors::DOORS.iter().map(|d| OsStr::new(d.name)).filter(|_| args.front_doors);
    for name in crate::link_names().chain([OsStr::new("berth")]).chain(doors) {
        let link = dir.join(name);
        match std::fs::symlink_metadata(&link) {
            Ok(meta) if meta.is_symlink() => std::fs::remove_file(&link).map_err(|e| failed(&link, e))?,
            // The program itself may lie in the directory.
            Ok(_) if name == "berth" => continue,
            Ok(_) => {
                return Err(Failure::user(format!(
                    "{} exists and is no link; move it away, or choose another directory",
                    link.display()
                )));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(failed(&link, e)),
        }
        symlink(&program, &link).map_err(|e| failed(&link, e))?;
    }
    berth_client::out::print(&format!(
        "Links to {} are in {1}. Put it into PATH: export PATH={1}:$PATH\n",
        program.display(),
        std::path::absolute(dir).unwrap_or_else(|_| dir.clone()).display()
    ))?;
    Ok(0)
}
