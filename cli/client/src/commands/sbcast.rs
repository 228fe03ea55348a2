//! Copies a file to all nodes of a job.
//!
//! SOURCE is a file here. DEST is its name on each node; a name that does not begin with '/' is below the working directory,
//! and behind a '/' at the end stands the name of SOURCE. It is written with your rights as a step of the job, into what a step sees that says
//! nothing of a container: the node's files, or the job's container, there in /tmp or in what is mounted. With --jobid=JOB.STEP it
//! is written into the container of that step. On each node the file is there whole or not at all; it has the mode of SOURCE, without set-id
//! bits. What stands under the name is replaced with --force alone, and a link is replaced itself.

use crate::bcast::{self, Source, Target};
use crate::error::{Failure, Outcome};
use crate::getopt::{Arg, Parsed, Refused, Spec, opt};
use crate::{Command, Invocation, block_on, enter, out, variables};
use berth_model::spec::JobSelector;
use berth_model::{ByteStr, StepId, hostlist};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

crate::doc::about!("sbcast.rs");

/// The command.
pub const COMMAND: Command = Command { name: "sbcast", run, submits: false, help: || SPEC.help() };

const fn refused(long: &'static str, short: Option<char>, instead: &'static str) -> Refused {
    Refused { long, short, instead }
}

const LIBRARIES: &str = "copy them as well, one by one, or send an image that has them";

/// Options.
pub const SPEC: Spec = Spec {
    name: "sbcast",
    usage: "[OPTION]... SOURCE DEST",
    about: ABOUT,
    options: &[
        opt("compress", Some('C'), Arg::Optional("none"), "Only none: files go as they are"),
        opt("force", Some('f'), Arg::None, "Replace what stands under the name (SBCAST_FORCE)"),
        opt(
            "jobid",
            Some('j'),
            Arg::Required("JOB[.STEP]"),
            "This job, or the container of this step (SLURM_JOB_ID)",
        ),
        opt("preserve", Some('p'), Arg::None, "Keep the times of access and modification (SBCAST_PRESERVE)"),
        opt("verbose", Some('v'), Arg::None, "Tell what is copied where"),
    ],
    refused: &[
        refused("exclude", None, LIBRARIES),
        refused("fanout", Some('F'), "each node has a connection of its own; leave it out"),
        refused("no-allocation", Some('Z'), "files are copied to nodes of jobs: get some with salloc"),
        refused(
            "nodelist",
            Some('w'),
            "the file goes to all nodes of the job; name a step of some of them with --jobid=JOB.STEP",
        ),
        refused("send-libs", None, LIBRARIES),
        refused("size", Some('s'), "the size of pieces is fixed; leave it out"),
        refused("timeout", Some('t'), "bound it with timeout(1): timeout 60 sbcast ..."),
        refused("treewidth", None, "each node has a connection of its own; leave it out"),
    ],
};

fn run(call: &Invocation<'_>) -> Outcome {
    let parsed = variables::read(&SPEC, &call.args)?;
    let [source, dest] = parsed.words.as_slice() else {
        return Err(Failure::user(
            "Need two file names, have ".to_string() + &format!("{}: sbcast SOURCE DEST", parsed.words.len()),
        ));
    };
    let compress = match parsed.has("compress") {
        true => Some(parsed.text("compress").unwrap_or_else(|| "lz4".to_string())),
        false => std::env::var("SBCAST_COMPRESS").ok().filter(|text| !text.is_empty()),
    };
    if let Some(how) = compress.filter(|how| how != "none") {
        return Err(Failure::user(format!(
            "--compress={how} is not supported: files go as they are; compress it beforehand where the network is slow"
        )));
    }
    let asked = |option: &str, variable: &str| parsed.has(option) || std::env::var_os(variable).is_some();
    let (force, preserve) = (asked("force", "SBCAST_FORCE"), asked("preserve", "SBCAST_PRESERVE"));
    let (job, step) = job(&parsed)?;
    let source_path = Path::new(source);
    let cwd = std::env::current_dir().map_err(|e| Failure::user(format!("no working directory: {e}")))?;
    let path = destination(&cwd, source_path, dest)?;
    let file = Source::open(source_path, preserve)?;
    let site = call.site()?;
    block_on(async {
        let client = site.connect_patiently("sbcast").await?;
        let job = enter::job(&client, &job).await?;
        if parsed.has("verbose") {
            let names: Vec<&str> = job.layout.nodes.iter().map(|n| n.0.as_str()).collect();
            out::complain(&format!(
                "sbcast: {} ({} bytes) to {} on {}{}",
                source_path.display(),
                file.size(),
                path.display(),
                hostlist::compress(&names),
                step.map_or(String::new(), |step| format!(", in the container of step {}.{step}", job.id))
            ));
        }
        let path = ByteStr::from(path.as_os_str());
        let to = Target { job: &job, step, nodes: Vec::new(), container: None, login: None, path, force };
        bcast::send(&site, &client, file, to).await
    })
}

/// The job, and the step whose container it is to be.
fn job(parsed: &Parsed) -> Result<(JobSelector, Option<StepId>), Failure> {
    let named = parsed.text("jobid");
    let Some(text) = named.or_else(|| std::env::var("SLURM_JOB_ID").ok().filter(|id| !id.is_empty())) else {
        return Err(Failure::user(
            "Command only valid from within SLURM job\nrun it in a batch script or within salloc, or name a job with --jobid",
        ));
    };
    berth_model::jobid::with_step(&text).map_err(|e| Failure::user(e.to_string()))
}

/// The name on the nodes.
fn destination(cwd: &Path, source: &Path, dest: &OsStr) -> Result<PathBuf, Failure> {
    if dest.is_empty() {
        return Err(Failure::user("the name of the copy is empty: sbcast SOURCE DEST"));
    }
    let mut path = cwd.join(dest);
    if dest.as_bytes().ends_with(b"/") {
        let name = source.file_name().ok_or_else(|| {
            Failure::user(format!("{}: names no file: name that of the copy as well", source.display()))
        })?;
        path.push(name);
    }
    // Read as the kernel does: 'x/..' is a directory, whatever x is.
    match path.file_name() {
        Some(_) if !path.as_os_str().as_bytes().ends_with(b"/.") => Ok(path),
        _ => Err(Failure::user(format!(
            "{}: names a directory: write '/' behind it, or the name of the copy",
            OsString::from(dest).display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_nodes() {
        let to = |source: &str, dest: &str| {
            let path = destination(Path::new("/here"), Path::new(source), OsStr::new(dest));
            path.map(|path| path.display().to_string()).map_err(|e| e.text)
        };
        assert_eq!(to("a/b", "/tmp/c").unwrap(), "/tmp/c");
        assert_eq!(to("a/b", "c").unwrap(), "/here/c");
        assert_eq!(to("a/b", "/tmp/").unwrap(), "/tmp/b");
        assert_eq!(to("a/b", "../c").unwrap(), "/here/../c");
        for (source, dest) in [("a", ""), ("a", "/"), ("a", ".."), ("a", "/tmp/."), ("..", "/tmp/")] {
            let named = to(source, dest);
            assert!(named.is_err() || named.as_deref() == Ok("/a"), "{source} {dest}: {named:?}");
        }
    }
}
