//! Containers that are kept under a name (`--container-name`): found or made for a step, claimed by a lock that the step's
//! supervisor keeps open, listed and removed for their users.
//!
//! What is known of a container lies where only the cluster writes; what was written to it lies in a directory of its
//! user's. One agent decides, one step at a time; a lock that is held says that something runs in the container.

use crate::jobs::remove_written;
use crate::paths::Paths;
use berth_model::ids::{JobId, Uid};
use berth_model::launch::StepLaunch;
use berth_model::spec::{ContainerSpec, ImageRef, NameFlag, NameScope, NamedSpec, ResolvedImage};
use berth_model::time::Time;
use berth_model::{ByteStr, is_container_name};
use berth_step::kept::{KeptPart, Member, forget, is_forgotten, members, members_dir};
use berth_step::spool::{read_json, write_json};
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
/// How long a step may hold its container after its user was told that it is over.
const LETS_GO: Duration = Duration::from_secs(1);

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
    /// What was written in it belongs to the user's subordinate ids.
    #[serde(default)]
    subids: bool,
}

impl Record {
    /// An option of a step that asks for other ids than the container was made with: why it cannot be, and what to do.
    fn other_ids(&self, asked: &ContainerSpec) -> Result<(), String> {
        let name = &self.name;
        let off = [
            (asked.subids == Some(false), "--no-container-subids"),
            (asked.remap_root == Some(false), "--no-container-remap-root"),
        ];
        match off.iter().find_map(|(given, option)| given.then_some(option)) {
            Some(option) if self.subids => Err(format!(
                "{option}: the container '{name}' was made with --container-subids, and its files belong to those ids: leave \
                 {option} out, or take another name"
            )),
            None if asked.subids == Some(true) && !self.subids => Err(format!(
                "--container-subids: the container '{name}' was made without it: leave it out (--no-container-subids in a job \
                 that has it), or take another name"
            )),
            _ => Ok(()),
        }
    }
}

/// A container that a step has claimed. The claim lasts until every copy of its descriptor is closed. A container that was
/// made for the step goes with the claim, until the step's supervisor has it.
pub struct Claim {
    /// For the supervisor.
    pub part: KeptPart,
    /// What the container was made of.
    pub image: ImageRef,
    lock: File,
    handed_over: bool,
}

impl Claim {
    /// The step's supervisor has a copy of the descriptor, and answers for the container.
    pub fn hand_over(mut self) {
        self.handed_over = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.part.fresh
            && !self.handed_over
            && let Err(e) = self.part.undo()
        {
            tracing::warn!("the container '{}' ({}): {e}", self.part.name, self.part.record.display());
        }
    }
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

    /// What is known of the container; nothing, where there is none.
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

    /// What claims are made with; none, where the container has just gone.
    fn lock(&self) -> Result<Option<File>, String> {
        match File::options().read(true).open(self.record.join("lock")) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.trouble(&e)),
        }
    }

    /// Whether nobody else has claimed it, until the lock is closed.
    fn is_idle(&self, lock: &File) -> Result<bool, String> {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(self.trouble(&e.into())),
        }
    }

    fn claim(self, lock: File, record: Record, fresh: bool, join: Option<Member>) -> Result<Claim, String> {
        flock(&lock, FlockOperation::NonBlockingLockShared).map_err(|e| self.trouble(&e.into()))?;
        let part = KeptPart {
            name: self.name,
            record: ByteStr::from(self.record.as_path()),
            written: ByteStr::from(self.written.as_path()),
            subids: record.subids,
            fresh,
            join,
        };
        Ok(Claim { part, image: record.image, lock, handed_over: false })
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
        let none = || if named.flag == NameFlag::Exec { Err(not_running(name)) } else { Ok(None) };
        loop {
            let turn = self.turn();
            let place = self.place(launch, named)?;
            let Some(record) = place.read()? else { return none() };
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
            record.other_ids(spec)?;
            let Some(lock) = place.lock()? else { return none() };
            if place.is_idle(&lock)? {
                // A step that could not start may have taken it away a moment ago.
                if named.flag == NameFlag::Exec || place.read()?.is_none() {
                    return none();
                }
                place.sweep().map_err(|e| place.trouble(&e))?;
                return place.claim(lock, record, false, None).map(Some);
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
                let member = member.clone();
                return place.claim(lock, record, false, Some(member)).map(Some);
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
            image,
            created: crate::driver::wall_clock(),
            subids: launch.container.as_ref().is_some_and(|c| c.subids == Some(true)),
        };
        self.write(&place, &record, launch).map_err(|e| place.trouble(&e))?;
        match place.lock()? {
            Some(lock) if place.is_idle(&lock)? => place.claim(lock, record, true, None).map(Some),
            _ => Err(format!("the container '{}' was taken by somebody else", named.name)),
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
        remove_written(&place.record)?;
        remove_written(&place.written)?;
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

    /// The images that the kept containers of a user, or of all users, are made of.
    pub fn images(&self, of: Option<Uid>) -> Vec<berth_images::Digest> {
        let all = self.all(of);
        all.iter().filter_map(|(_, record)| record.image.digest()?.parse().ok()).collect()
    }

    fn describe(place: &Place, record: &Record) -> Option<KeptContainer> {
        let lock = place.lock().ok()??;
        let state = match place.is_idle(&lock).ok()? {
            true => KeptState::Idle,
            false => match place.members().ok()?.first() {
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
            entries
                .filter_map(|e| e.file_name().into_string().ok())
                .filter(|n| is_container_name(n))
                .collect()
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
        let missing = || {
            format!(
                "there is no container '{name}' that is kept for you: 'berth container ls' shows those that there are"
            )
        };
        if !is_container_name(name) {
            return Err(missing());
        }
        let place = Place::of(&self.paths, NameScope::User, JobId(0), uid, name);
        let deadline = Instant::now() + LETS_GO;
        let taken = loop {
            let turn = self.turn();
            let lock = place.lock()?.ok_or_else(missing)?;
            if place.is_idle(&lock)? {
                // A step that could not start may have taken it away a moment ago.
                if place.read()?.is_none() {
                    return Err(missing());
                }
                break self.take_away(&place).map_err(|e| place.trouble(&e))?;
            }
            drop((lock, turn));
            if Instant::now() > deadline {
                return Err(format!(
                    "the container '{name}' is in use: 'berth container ls' shows the job; end it with scancel first"
                ));
            }
            std::thread::sleep(PAUSE);
        };
        remove_written(&taken).map_err(|e| place.trouble(&e))
    }

    /// Removes the containers that nothing was run in for this long; their names.
    pub fn prune(&self, of: Option<Uid>, unused: Duration) -> Vec<String> {
        let old = |place: &Place| place.used().elapsed().is_ok_and(|age| age >= unused);
        let mut removed = Vec::new();
        let mut all_taken = Vec::new();
        let deadline = Instant::now() + LETS_GO;
        for (place, record) in self.all(of) {
            if record.scope != NameScope::User || !old(&place) {
                continue;
            }
            // A step whose end its user has seen may hold it for a moment yet.
            let taken = loop {
                let turn = self.turn();
                let Ok(Some(lock)) = place.lock() else { break None };
                if place.is_idle(&lock).unwrap_or(false) {
                    break matches!(place.read(), Ok(Some(_))).then(|| self.take_away(&place));
                }
                drop((lock, turn));
                if Instant::now() > deadline {
                    break None;
                }
                std::thread::sleep(PAUSE);
            };
            match taken {
                Some(Ok(taken)) => {
                    removed.push(record.name);
                    all_taken.push((place, taken));
                }
                Some(Err(e)) => tracing::warn!("{}", place.trouble(&e)),
                None => {}
            }
        }
        for (place, taken) in all_taken {
            if let Err(e) = remove_written(&taken) {
                tracing::warn!("{}", place.trouble(&e));
            }
        }
        removed
    }

    /// Takes a container of a user's out of the way, whose lock is held alone: it is there no more, and its files lie
    /// where nobody looks, to be removed when others have had their turn.
    fn take_away(&self, place: &Place) -> io::Result<PathBuf> {
        let trash = self.paths.kept_trash();
        mkdir(&trash, 0o700)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let taken = trash.join(format!("{}-{}", place.name, since.as_nanos()));
        // Without this file it is none, whatever is left.
        fs::remove_file(place.record.join("container.json"))?;
        match fs::rename(&place.written, &taken) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        forget(&place.record)?;
        Ok(taken)
    }

    /// Has what an agent that ended had taken away, and not yet removed, removed beside everything else.
    pub fn sweep(&self) {
        let within = |dir: &Path| -> Vec<PathBuf> {
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let mut left = within(&self.paths.kept_trash());
        for of_user in within(&self.paths.kept_records()) {
            left.extend(within(&of_user).into_iter().filter(|path| is_forgotten(path)));
        }
        if left.is_empty() {
            return;
        }
        let begun = crate::threads::start("sweep", move || {
            for path in left {
                if let Err(e) = remove_written(&path) {
                    tracing::warn!("{}: {e}", path.display());
                }
            }
        });
        if let Err(e) = begun {
            tracing::warn!("what earlier agents had taken away is removed by the next one: {e}");
        }
    }
}

fn not_running(name: &str) -> String {
    format!(
        "\"exec\" flag was passed to --container-name but the container '{name}' is not running: start it with a step of \
         this job first, or leave the flag out"
    )
}

#[cfg(test)]
mod tests;
