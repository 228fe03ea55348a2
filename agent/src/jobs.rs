//! A job's parts on the node: its directory, its listener, its private temporary space. Made before its
//! first step, gone after its last.

use crate::paths::Paths;
use berth_gpus::imex::Imex;
use berth_model::hardware::GresDevice;
use berth_model::ids::{Attempt, Gid, JobId, Uid};
use berth_model::launch::{Layout, StepLaunch};
use berth_model::mpirun;
use berth_runtime::JobNamespaces;
use berth_runtime::cgroup::Cgroup;
use berth_step::spool::{SCRIPT_FD, read_json, write_json};
use berth_step::tree;
use nix::unistd::chown;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;

/// `job.json`: whose a job's directory is, and what the job has besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job.
    pub job: JobId,
    /// Which run of it.
    pub attempt: Attempt,
    /// Its user.
    pub uid: Uid,
    /// The user's group.
    pub gid: Gid,
    /// The user's name; empty in records of earlier agents.
    #[serde(default)]
    pub user: String,
    /// Device files that were given to it.
    #[serde(default)]
    pub devices: Vec<String>,
    /// GPUs that were given to it; empty in records of earlier agents.
    #[serde(default)]
    pub gpus: Vec<GresDevice>,
    /// The boot in which it was made.
    pub boot_id: String,
    /// The job's cgroup, where there is one.
    #[serde(default)]
    pub cgroup: Option<Cgroup>,
    /// The namespaces that its containers share.
    #[serde(default)]
    pub namespaces: Option<JobNamespaces>,
    /// What prolog and epilog are told of it.
    #[serde(default)]
    pub programs_env: Vec<String>,
    /// The prolog ran to a good end.
    #[serde(default)]
    pub prolog_done: bool,
    /// No process of it is left: the epilog is next.
    #[serde(default)]
    pub over: bool,
    /// The epilog ended.
    #[serde(default)]
    pub epilog_done: bool,
    /// What it failed of.
    #[serde(default)]
    pub epilog_failure: Option<String>,
}

/// Device files that a job has on the node.
pub(crate) fn devices(launch: &StepLaunch) -> Vec<String> {
    let given = launch.job.share.gres.iter().flat_map(|g| &g.files).map(|f| f.display().into_owned());
    given.chain(launch.job.imex_channel.map(Imex::file)).collect()
}

/// How long the kernel may take until a killed job's processes are gone before that is worth a word.
pub const REMOVAL: Duration = Duration::from_secs(10);

/// The program that this process runs, which is `berth`.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Removes what users wrote, and with it what their containers wrote as other ids.
pub fn remove_written(path: &Path) -> io::Result<()> {
    tree::remove_written(path, Path::new(OWN_PROGRAM))
}

/// Makes a job's directory. What an earlier run left is removed first.
pub fn make(paths: &Paths, record: &JobRecord) -> io::Result<()> {
    let dir = paths.job(record.job);
    if let Ok(earlier) = read_json::<JobRecord>(&dir.join("job.json")) {
        end(&earlier);
    }
    remove(paths, record.job)?;
    mkdir(&dir, 0o711)?;
    // Written first: a half-made directory is recognised, and removed with its job.
    rewrite(paths, record)?;
    let client = paths.client_dir(record.job);
    mkdir(&client, 0o755)?;
    mkdir(&client.join("bin"), 0o755)?;
    std::os::unix::fs::symlink(format!("/proc/self/fd/{SCRIPT_FD}"), client.join("slurm_script"))?;
    let scratch = paths.scratch(record.job);
    mkdir(&scratch, 0o700)?;
    mkdir(&scratch.join("tmp"), 0o1777)?;
    if nix::unistd::geteuid().is_root() {
        let (uid, gid) = (nix::unistd::Uid::from_raw(record.uid.0), nix::unistd::Gid::from_raw(record.gid.0));
        chown(&scratch.join("tmp"), Some(uid), Some(gid))?;
        chown(&scratch, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Writes for an MPI that knows no Slurm which nodes the job has, before its first step; of a job that an agent of an earlier version made,
/// before its next one.
pub fn note_hosts(paths: &Paths, job: JobId, layout: &Layout) -> io::Result<()> {
    let file = paths.client_dir(job).join(mpirun::HOSTS);
    if file.exists() {
        return Ok(());
    }
    fs::write(&file, mpirun::hosts(layout))?;
    fs::set_permissions(&file, Permissions::from_mode(0o644))
}

/// Writes a job's record again.
pub fn rewrite(paths: &Paths, record: &JobRecord) -> io::Result<()> {
    write_json(&paths.job(record.job).join("job.json"), record)
}

/// Ends what is left of a job's processes, those in its namespaces at once. Waits until they are gone; what
/// does not go (a process in state D) stays behind with a word about it. Whether it is certain that no process of the
/// job is left.
pub fn end(record: &JobRecord) -> bool {
    if let Some(namespaces) = &record.namespaces
        && !namespaces.end(REMOVAL)
    {
        tracing::error!("job {}: processes of it do not end although they were killed", record.job);
        return false;
    }
    record.cgroup.as_ref().is_some_and(|group| !group.is_populated())
}

/// Processes of a job that are there: of its control groups, and in its namespaces the children of the process that holds them,
/// which last for as long as one of them does.
pub fn processes(record: &JobRecord) -> Vec<i32> {
    let grouped = record.cgroup.as_ref().map(Cgroup::processes).unwrap_or_default();
    let held = record.namespaces.as_ref().filter(|namespaces| namespaces.are_held());
    let mut all: Vec<i32> = held.map(JobNamespaces::processes).unwrap_or_default();
    all.extend(grouped);
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether a process is one of a job that the node has: in its namespaces, or in its control groups, as who came by a login is.
pub fn has(paths: &Paths, job: JobId, pid: i32) -> bool {
    let Ok(record) = read_json::<JobRecord>(&paths.job(job).join("job.json")) else { return false };
    record.namespaces.is_some_and(|namespaces| namespaces.have(pid))
        || record.cgroup.is_some_and(|group| group.has(pid))
}

/// Opens the job's listener, in place of one that an earlier agent had.
pub fn listen(paths: &Paths, job: JobId) -> io::Result<UnixListener> {
    listen_at(&paths.job_socket(job), 0o666)
}

/// Listens on a path of any length; who may connect is decided by who connects. What an earlier agent left there is replaced at once: whoever
/// looks finds a socket, and may connect to it.
pub fn listen_at(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's path has no name"));
    };
    let mut fresh = name.to_os_string();
    fresh.push(".new");
    let made = dir.join(&fresh);
    match fs::remove_file(&made) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let hold: OwnedFd =
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(hold.as_raw_fd().to_string()).join(&fresh);
    let listener = UnixListener::bind(short)?;
    fs::set_permissions(&made, Permissions::from_mode(mode))?;
    fs::rename(&made, path)?;
    Ok(listener)
}

/// Removes a job's directories; what is gone already is no error. What it wrote may be much and goes last: without a
/// record it is nobody's.
pub fn remove(paths: &Paths, job: JobId) -> io::Result<()> {
    remove_written(&paths.job(job))?;
    remove_written(&paths.scratch(job))
}

/// Removes what jobs wrote on the disk that have no record: those of an earlier boot, and what an earlier agent did not
/// come to remove.
pub fn sweep_scratch(paths: &Paths, known: &[JobRecord]) -> io::Result<()> {
    for (job, path) in all_scratch(paths)? {
        if known.iter().any(|record| record.job == job) {
            continue;
        }
        let removed = fs::symlink_metadata(&path).and_then(|meta| match meta.is_dir() {
            true => remove_written(&path),
            false => fs::remove_file(&path),
        });
        // No reason for a node to stay away.
        if let Err(e) = removed {
            tracing::warn!("{}, which an earlier job wrote, is left there: {e}", path.display());
        }
    }
    Ok(())
}

/// What jobs have on the disk. A writable layer with a size has its job's number and more, until it is mounted.
pub fn all_scratch(paths: &Paths) -> io::Result<Vec<(JobId, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(paths.all_scratch())? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(job) = name.to_str().and_then(|n| n.split('.').next()?.parse::<u32>().ok()) {
            found.push((JobId(job), entry.path()));
        }
    }
    Ok(found)
}

/// Jobs that have a directory. One without a readable record is of no job any more, and is removed.
pub fn scan(paths: &Paths) -> io::Result<Vec<JobRecord>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(paths.jobs())? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_none_or(|n| n.parse::<u32>().is_err()) {
            continue;
        }
        match read_json::<JobRecord>(&entry.path().join("job.json")) {
            Ok(record) => found.push(record),
            Err(e) => {
                tracing::warn!("{}: {e}: removing what is left of it", entry.path().display());
                remove_written(&entry.path())?;
            }
        }
    }
    found.sort_by_key(|r| r.job);
    Ok(found)
}

fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    // The umask has no say here.
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> JobRecord {
        let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
        JobRecord {
            job: JobId(7),
            attempt: Attempt(1),
            uid: Uid(uid.as_raw()),
            gid: Gid(gid.as_raw()),
            user: "ann".into(),
            devices: Vec::new(),
            gpus: Vec::new(),
            boot_id: "boot".into(),
            cgroup: None,
            namespaces: None,
            programs_env: Vec::new(),
            prolog_done: false,
            over: false,
            epilog_done: false,
            epilog_failure: None,
        }
    }

    fn place(state: &Path) -> Paths {
        let paths = Paths::new(state);
        fs::create_dir(paths.jobs()).unwrap();
        fs::create_dir(paths.all_scratch()).unwrap();
        paths
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn what_is_made_is_found_and_removed_without_a_trace() {
        let state = tempfile::tempdir().unwrap();
        let paths = place(state.path());
        make(&paths, &record()).unwrap();
        assert_eq!(scan(&paths).unwrap(), [record()]);
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&paths.job(JobId(7))), 0o711);
        assert_eq!(mode(&paths.scratch(JobId(7)).join("tmp")), 0o1777);
        let closed = paths.scratch(JobId(7)).join("tmp/work");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0o0)).unwrap();
        remove(&paths, JobId(7)).unwrap();
        remove(&paths, JobId(7)).unwrap();
        assert!(names(&paths.jobs()).is_empty());
    }

    #[test]
    fn which_nodes_a_job_has_is_noted_once_for_all_to_read() {
        let state = tempfile::tempdir().unwrap();
        let paths = place(state.path());
        make(&paths, &record()).unwrap();
        let of = |node: &str| Layout { nodes: vec![node.into()], tasks: vec![vec![0, 1]], cpus: vec![2] };
        for node in ["n1", "n2"] {
            note_hosts(&paths, JobId(7), &of(node)).unwrap();
        }
        let file = paths.client_dir(JobId(7)).join("mpi-hosts");
        assert_eq!(fs::read_to_string(&file).unwrap(), "n1 slots=2\n");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_second_run_finds_nothing_of_the_first() {
        let state = tempfile::tempdir().unwrap();
        let paths = place(state.path());
        make(&paths, &record()).unwrap();
        fs::write(paths.scratch(JobId(7)).join("tmp/left"), b"x").unwrap();
        make(&paths, &JobRecord { attempt: Attempt(2), ..record() }).unwrap();
        assert!(names(&paths.scratch(JobId(7)).join("tmp")).is_empty());
    }

    #[test]
    fn what_a_job_of_an_earlier_boot_wrote_is_swept_and_nothing_else() {
        let state = tempfile::tempdir().unwrap();
        let paths = place(state.path());
        make(&paths, &record()).unwrap();
        let kept = ["7", "7.layer-0", "lost+found"];
        for gone in ["8/tmp", "12/layer-0/work"] {
            fs::create_dir_all(paths.all_scratch().join(gone)).unwrap();
        }
        fs::write(paths.all_scratch().join("8.layer-0"), b"x").unwrap();
        fs::write(paths.all_scratch().join("7.layer-0"), b"x").unwrap();
        fs::create_dir(paths.all_scratch().join("lost+found")).unwrap();
        sweep_scratch(&paths, &scan(&paths).unwrap()).unwrap();
        assert_eq!(names(&paths.all_scratch()), kept);
    }

    #[test]
    fn a_half_made_directory_is_cleared_away() {
        let state = tempfile::tempdir().unwrap();
        let paths = Paths::new(state.path());
        fs::create_dir_all(paths.job(JobId(9))).unwrap();
        assert!(scan(&paths).unwrap().is_empty());
        assert!(names(&paths.jobs()).is_empty());
    }

    #[tokio::test]
    async fn a_listener_works_however_long_its_path_is() {
        let state = tempfile::tempdir().unwrap();
        let deep = state.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let _first = listen_at(&deep.join("job.sock"), 0o666).unwrap();
        let _second = listen_at(&deep.join("job.sock"), 0o666).unwrap();
        assert_eq!(names(&deep), ["job.sock"]);
    }
}
