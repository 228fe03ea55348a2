//! Containers that are kept under a name (`--container-name`): found or made for a step, claimed by a lock that the step's
//! supervisor keeps open, listed and removed for their users.
//!
//! What is known of a container lies where only the cluster writes; what was written to it lies in a directory of its
//! user's. One agent decides, one step at a time; a lock that is held says that something runs in the container.

use crate::paths::Paths;
use berth_model::ids::{JobId, Uid};
use berth_model::launch::StepLaunch;
use berth_model::spec::{ContainerSpec, ImageRef, NameFlag, NameScope, NamedSpec, ResolvedImage};
use berth_model::time::Time;
use berth_model::{ByteStr, is_container_name};
use berth_step::kept::{KeptPart, Member, members, members_dir};
use berth_step::spool::{read_json, write_json};
use berth_step::tree::remove_tree;
use berth_stream::{KeptContainer, KeptState};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How long a container may take to come up until a step that waits for it gives up.
const STARTING: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// `container.json`: what is known of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    name: String,
    scope: NameScope,
    uid: Uid,
    /// The job that made it.
    job: JobId,
    /// What it was made of.
    image: ImageRef,
    created: Time,
}

/// A container that a step has claimed. The claim lasts until every copy of its descriptor is closed.
pub struct Claim {
    /// For the supervisor.
    pub part: KeptPart,
    /// What the container was made of.
    pub image: ImageRef,
    lock: File,
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

/// The kept containers of a node.
pub struct KeptContainers {
    paths: Paths,
    /// Held while it is decided what a step gets.
    turn: Mutex<()>,
}

/// Where a container is.
struct Place {
    name: String,
    record: PathBuf,
    written: PathBuf,
}

impl Place {
    fn of(paths: &Paths, scope: NameScope, job: JobId, uid: Uid, name: &str) -> Place {
        let (record, written) = paths.kept(scope, job, uid, name);
        Place { name: name.to_string(), record, written }
    }

    fn read(&self) -> Result<Option<Record>, String> {
        match read_json(&self.record.join("container.json")) {
            Ok(record) => Ok(Some(record)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.trouble(&e)),
        }
    }

    fn trouble(&self, e: &io::Error) -> String {
        format!("the container '{}' ({}): {e}", self.name, self.record.display())
    }

    fn lock(&self) -> Result<File, String> {
        let file = File::options().read(true).open(self.record.join("lock"));
        file.map_err(|e| self.trouble(&e))
    }

    /// A lock that nobody else has, or none.
    fn idle(&self) -> Result<Option<File>, String> {
        let file = self.lock()?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(self.trouble(&e.into())),
        }
    }

    fn claim(self, lock: File, image: ImageRef, fresh: bool, join: Option<Member>) -> Result<Claim, String> {
        flock(&lock, FlockOperation::NonBlockingLockShared).map_err(|e| self.trouble(&e.into()))?;
        let part = KeptPart {
            name: self.name,
            record: ByteStr::from(self.record.as_path()),
            written: ByteStr::from(self.written.as_path()),
            fresh,
            join,
        };
        Ok(Claim { part, image, lock })
    }

    /// Forgets members that are no more, and notes the time of use.
    fn sweep(&self) -> io::Result<()> {
        let dir = members_dir(&self.record);
        for entry in fs::read_dir(&dir)? {
            fs::remove_file(entry?.path())?;
        }
        File::open(&dir)?.set_modified(SystemTime::now())
    }

    fn members(&self) -> Result<Vec<Member>, String> {
        members(&self.record).map_err(|e| self.trouble(&e))
    }

    /// When something last began or ended in it.
    fn used(&self) -> SystemTime {
        let times = fs::metadata(members_dir(&self.record)).and_then(|m| m.modified());
        times.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Removes it; its lock must be held alone.
    fn remove(&self) -> io::Result<()> {
        // Without this file it is none, whatever is left.
        fs::remove_file(self.record.join("container.json"))?;
        remove_tree(&self.written)?;
        remove_tree(&self.record)
    }
}

fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

impl KeptContainers {
    /// Those of this state directory.
    pub fn new(paths: Paths) -> KeptContainers {
        KeptContainers { paths, turn: Mutex::default() }
    }

    fn turn(&self) -> std::sync::MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, launch: &StepLaunch, named: &NamedSpec) -> Result<Place, String> {
        // The client checked it, and the client is not trusted.
        if !is_container_name(&named.name) {
            return Err(format!("--container-name: '{}' cannot be a container's name", named.name));
        }
        Ok(Place::of(&self.paths, named.scope, launch.key.job, launch.identity.uid, &named.name))
    }

    /// Claims the container that a step names, if it is there; waits for one that is starting.
    ///
    /// # Errors
    /// What is there is not what the step asks for: why, and what to do.
    pub fn find(
        &self,
        launch: &StepLaunch,
        spec: &ContainerSpec,
        named: &NamedSpec,
    ) -> Result<Option<Claim>, String> {
        let deadline = Instant::now() + STARTING;
        let name = &named.name;
        loop {
            let turn = self.turn();
            let place = self.place(launch, named)?;
            let Some(record) = place.read()? else {
                return if named.flag == NameFlag::Exec { Err(not_running(name)) } else { Ok(None) };
            };
            if named.flag == NameFlag::Create {
                return Err(format!(
                    "\"create\" flag was passed to --container-name but the container '{name}' already exists: leave the \
                     flag out to use it, or take another name"
                ));
            }
            if spec.image.resolved != Some(ResolvedImage::Kept) && spec.image.typed != record.image.typed {
                return Err(format!(
                    "the container '{name}' is there and was made of {}, not of {}: leave --container-image out to use \
                     it, or take another name",
                    record.image.typed, spec.image.typed
                ));
            }
            if let Some(lock) = place.idle()? {
                if named.flag == NameFlag::Exec {
                    return Err(not_running(name));
                }
                place.sweep().map_err(|e| place.trouble(&e))?;
                return place.claim(lock, record.image, false, None).map(Some);
            }
            if named.flag == NameFlag::NoExec {
                return Err(format!(
                    "the container '{name}' runs, and \"no_exec\" flag was passed to --container-name: wait until it \
                     ends, or leave the flag out to join it"
                ));
            }
            let members = place.members()?;
            if let Some(member) = members.iter().find(|m| m.job == launch.key.job) {
                if let Some(option) = member.started.contradicts(spec) {
                    return Err(format!(
                        "{option} cannot be fulfilled by the container '{name}', which runs and was started otherwise: \
                         leave it out to join the container, or take another name"
                    ));
                }
                let (lock, member) = (place.lock()?, member.clone());
                return place.claim(lock, record.image, false, Some(member)).map(Some);
            }
            if let Some(member) = members.first() {
                return Err(format!(
                    "the container '{name}' is in use by job {}, and two jobs cannot write to one: wait until it ends, \
                     or take another name",
                    member.job
                ));
            }
            drop(turn);
            if Instant::now() > deadline {
                return Err(format!(
                    "the container '{name}' is in use by another step, which nothing can join: wait until it ends, or \
                     take another name"
                ));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Makes and claims the container that a step names. `None`: there is one by now.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(
        &self,
        launch: &StepLaunch,
        named: &NamedSpec,
        image: ImageRef,
    ) -> Result<Option<Claim>, String> {
        let _turn = self.turn();
        let place = self.place(launch, named)?;
        if place.read()?.is_some() {
            return Ok(None);
        }
        let record = Record {
            name: named.name.clone(),
            scope: named.scope,
            uid: launch.identity.uid,
            job: launch.key.job,
            image: image.clone(),
            created: crate::driver::wall_clock(),
        };
        self.write(&place, &record, launch).map_err(|e| place.trouble(&e))?;
        match place.idle()? {
            Some(lock) => place.claim(lock, image, true, None).map(Some),
            None => Err(format!("the container '{}' was taken by somebody else", named.name)),
        }
    }

    fn write(&self, place: &Place, record: &Record, launch: &StepLaunch) -> io::Result<()> {
        if record.scope == NameScope::User {
            let (uid, gid) = (launch.identity.uid, launch.identity.gid);
            mkdir(&self.paths.kept_records(), 0o700)?;
            mkdir(&self.paths.kept_written(), 0o711)?;
            let own = self.paths.kept_written().join(uid.to_string());
            mkdir(&own, 0o700)?;
            if nix::unistd::geteuid().is_root() {
                let (uid, gid) = (nix::unistd::Uid::from_raw(uid.0), nix::unistd::Gid::from_raw(gid.0));
                nix::unistd::chown(&own, Some(uid), Some(gid))?;
            }
        }
        if let Some(parent) = place.record.parent() {
            mkdir(parent, 0o700)?;
        }
        // What a crash left half made or half removed.
        remove_tree(&place.record)?;
        remove_tree(&place.written)?;
        mkdir(&place.record, 0o700)?;
        mkdir(&members_dir(&place.record), 0o700)?;
        File::create(place.record.join("lock"))?;
        write_json(&place.record.join("container.json"), record)
    }

    /// Every container of a user, or of all users.
    pub fn list(&self, of: Option<Uid>) -> Vec<KeptContainer> {
        let _turn = self.turn();
        let mut found: Vec<KeptContainer> =
            self.all(of).iter().filter_map(|(place, record)| Self::describe(place, record)).collect();
        found.sort_by(|a, b| (a.uid, &a.name, a.job).cmp(&(b.uid, &b.name, b.job)));
        found
    }

    fn describe(place: &Place, record: &Record) -> Option<KeptContainer> {
        let state = match place.idle().ok()? {
            Some(_) => KeptState::Idle,
            None => match place.members().ok()?.first() {
                Some(member) => KeptState::Running(member.job),
                None => KeptState::Starting,
            },
        };
        let used = place.used().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Some(KeptContainer {
            name: record.name.clone(),
            uid: record.uid,
            job: (record.scope == NameScope::Job).then_some(record.job),
            image: record.image.typed.clone(),
            created: record.created,
            used: Time::from_secs(i64::try_from(used.as_secs()).unwrap_or(0)),
            state,
        })
    }

    fn all(&self, of: Option<Uid>) -> Vec<(Place, Record)> {
        let names = |dir: &Path| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter_map(|e| e.file_name().into_string().ok()).collect()
        };
        let mut places = Vec::new();
        for text in names(&self.paths.kept_records()) {
            let Ok(uid) = text.parse().map(Uid) else { continue };
            for name in names(&self.paths.kept_records().join(&text)) {
                places.push(Place::of(&self.paths, NameScope::User, JobId(0), uid, &name));
            }
        }
        for text in names(&self.paths.jobs()) {
            let Ok(job) = text.parse().map(JobId) else { continue };
            for name in names(&self.paths.job(job).join("kept")) {
                places.push(Place::of(&self.paths, NameScope::Job, job, Uid(0), &name));
            }
        }
        let read = |place: Place| place.read().ok().flatten().map(|record| (place, record));
        places.into_iter().filter_map(read).filter(|(_, r)| of.is_none_or(|uid| uid == r.uid)).collect()
    }

    /// Removes a container of a user's, with all that was written in it.
    ///
    /// # Errors
    /// There is none, or something runs in it.
    pub fn remove(&self, uid: Uid, name: &str) -> Result<(), String> {
        let _turn = self.turn();
        let missing = || {
            format!(
                "there is no container '{name}' that is kept for you: 'berth container ls' shows those that there are"
            )
        };
        if !is_container_name(name) {
            return Err(missing());
        }
        let place = Place::of(&self.paths, NameScope::User, JobId(0), uid, name);
        if place.read()?.is_none() {
            return Err(missing());
        }
        match place.idle()? {
            Some(_lock) => place.remove().map_err(|e| place.trouble(&e)),
            None => Err(format!(
                "the container '{name}' is in use: 'berth container ls' shows the job; end it with scancel first"
            )),
        }
    }

    /// Removes the containers that nothing was run in for this long; their names.
    pub fn prune(&self, of: Option<Uid>, unused: Duration) -> Vec<String> {
        let _turn = self.turn();
        let old = |place: &Place| place.used().elapsed().is_ok_and(|age| age >= unused);
        let mut removed = Vec::new();
        for (place, record) in self.all(of) {
            if record.scope != NameScope::User || !old(&place) {
                continue;
            }
            let Ok(Some(_lock)) = place.idle() else { continue };
            match place.remove() {
                Ok(()) => removed.push(record.name),
                Err(e) => tracing::warn!("{}", place.trouble(&e)),
            }
        }
        removed
    }
}

fn not_running(name: &str) -> String {
    format!(
        "\"exec\" flag was passed to --container-name but the container '{name}' is not running: start it with a step of \
         this job first, or leave the flag out"
    )
}
