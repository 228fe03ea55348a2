//! Logins to a node by those whose jobs run there: who is let in, and their place in the job's control group. Read from the agent's own
//! records, so that it also works while there is no agent.

use crate::cgroups::Cgroups;
use crate::jobs::JobRecord;
use crate::paths::Paths;
use berth_model::ids::JobId;
use berth_step::deadlines::{Deadline, boot_clock};
use berth_step::spool::{boot_id, read_json};
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// A job that runs on this node, and is not past its time out of touch.
#[derive(Clone, Debug)]
pub struct Host {
    /// Which.
    pub job: JobId,
    /// When it came to the node.
    since: SystemTime,
    /// Device files that it has.
    devices: Vec<String>,
}

/// Jobs of a user on this node, the one that came last first. The user is who this node's name service says: both the name and the number
/// have to be the job's.
///
/// # Errors
/// The records cannot be read, but for there being none.
pub fn jobs_of(state: &Path, user: &str, uid: u32) -> io::Result<Vec<Host>> {
    let paths = Paths::new(state);
    let boot = boot_id()?;
    let entries = match std::fs::read_dir(paths.jobs()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        // One that is half made, or goes at this moment, takes nobody in.
        let Ok(record) = read_json::<JobRecord>(&entry.path().join("job.json")) else { continue };
        let theirs = record.uid.0 == uid && record.user == user && !user.is_empty();
        if !theirs || record.boot_id != boot || record.over || record.cgroup.is_none() {
            continue;
        }
        if Deadline::of(&entry.path())?.is_some_and(|deadline| deadline.is_over(boot_clock())) {
            continue;
        }
        // Made once, with the job.
        let made = std::fs::symlink_metadata(paths.client_dir(record.job).join("slurm_script"));
        let Ok(since) = made.and_then(|meta| meta.modified()) else { continue };
        found.push(Host { job: record.job, since, devices: record.devices });
    }
    found.sort_by_key(|host| std::cmp::Reverse((host.since, host.job)));
    Ok(found)
}

/// Puts a process, and with it all that it starts from now on, into the job's control group: it has the job's memory, cores and devices,
/// and ends with the job.
///
/// # Errors
/// Says what the kernel refused, or that the job has just ended.
pub fn enter(state: &Path, host: &Host, pid: i32) -> Result<(), String> {
    let paths = Paths::new(state);
    let cgroups = Cgroups::recorded(state, &paths.cgroups())
        .ok_or("the agent left no record of its control groups: is it of an earlier version?")?;
    if !cgroups.knows_devices() {
        return Err(
            "the agent did not write down which devices others have: it is of an earlier version; restart it"
                .into(),
        );
    }
    // One after the other: the second finds the group as the first made it.
    let lock = paths.private().join("visitors.lock");
    let lock = std::fs::File::create(&lock).map_err(|e| format!("{}: {e}", lock.display()))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(|e| e.to_string())?;
    let group = cgroups.visitors(host.job, &host.devices).map_err(|e| e.to_string())?;
    // A group that is made for a job which ends meanwhile would be without the job's limits, and nobody would remove it.
    let there =
        || read_json::<JobRecord>(&paths.job(host.job).join("job.json")).is_ok_and(|record| !record.over);
    let joined = if there() { group.join(pid).map_err(|e| e.to_string()) } else { Ok(()) };
    if !there() {
        cgroups.drop_visitors(host.job);
        return Err(format!("job {} has just ended", host.job));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::{Attempt, Gid, Uid};
    use berth_model::time::Span;
    use berth_runtime::cgroup::{Cgroup, CgroupFacts};

    /// Writes a record of a job that came at a second of its own.
    fn put(state: &Path, second: i64, record: &JobRecord) {
        use nix::sys::{stat, time::TimeSpec};
        let client = Paths::new(state).client_dir(record.job);
        std::fs::create_dir_all(&client).unwrap();
        let script = client.join("slurm_script");
        std::os::unix::fs::symlink("x", &script).unwrap();
        let (at, link) = (TimeSpec::new(second, 0), stat::UtimensatFlags::NoFollowSymlink);
        stat::utimensat(nix::fcntl::AT_FDCWD, &script, &at, &at, link).unwrap();
        crate::jobs::rewrite(&Paths::new(state), record).unwrap();
    }

    #[test]
    fn only_a_running_job_of_that_name_and_number_counts() {
        let state = tempfile::tempdir().unwrap();
        assert!(jobs_of(state.path(), "ann", 1000).unwrap().is_empty());
        let record = JobRecord {
            job: JobId(7),
            attempt: Attempt(0),
            uid: Uid(1000),
            gid: Gid(100),
            user: "ann".into(),
            devices: vec!["/dev/x".into()],
            gpus: Vec::new(),
            boot_id: boot_id().unwrap(),
            cgroup: Some(Cgroup::named(&CgroupFacts::default(), "job_7")),
            namespaces: None,
            programs_env: Vec::new(),
            prolog_done: true,
            over: false,
            epilog_done: false,
            epilog_failure: None,
        };
        let found = |user: &str, uid| {
            let jobs = jobs_of(state.path(), user, uid).unwrap();
            jobs.iter().map(|host| host.job.0).collect::<Vec<_>>()
        };
        put(state.path(), 1, &record);
        put(state.path(), 2, &JobRecord { job: JobId(3), ..record.clone() });
        put(state.path(), 3, &JobRecord { job: JobId(8), over: true, ..record.clone() });
        put(state.path(), 4, &JobRecord { job: JobId(9), boot_id: "earlier".into(), ..record.clone() });
        put(state.path(), 5, &JobRecord { job: JobId(10), cgroup: None, ..record.clone() });
        put(state.path(), 6, &JobRecord { job: JobId(11), user: String::new(), ..record.clone() });
        std::fs::create_dir(Paths::new(state.path()).job(JobId(12))).unwrap();
        // Out of touch for too long, and not yet; nobody need have ended the first.
        for (job, until) in [(13, boot_clock()), (14, boot_clock() + Span::from_secs(60))] {
            put(state.path(), i64::from(job), &JobRecord { job: JobId(job), ..record.clone() });
            let group = Cgroup::named(&CgroupFacts::default(), "job");
            let deadline = Deadline { boot_id: record.boot_id.clone(), until, group };
            deadline.keep(&Paths::new(state.path()).job(JobId(job))).unwrap();
        }
        // The one that came last first, whatever its number.
        assert_eq!(found("ann", 1000), [14, 3, 7]);
        // A node that gives the number to somebody else, or the name another number.
        assert!(found("bob", 1000).is_empty() && found("ann", 2000).is_empty() && found("", 1000).is_empty());
    }
}
