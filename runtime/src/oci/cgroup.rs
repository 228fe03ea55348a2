//! The container's control group in every hierarchy of the node: version 1, version 2 and both at once.

use super::error::{Naming, OciError, Result, invalid, unsupported};
use super::plan::resources::{Changes, Controllers};
use super::unit::{self, Unit};
use crate::cgroup::{DeviceAccess, access_program, facts, files, standard_devices, v1};
use crate::sys::{bpf, signals};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// The node's hierarchies.
#[derive(Clone, Debug, Default)]
pub struct Hierarchies {
    /// Version 1: mount points by controller; named hierarchies as `name=systemd`.
    v1: BTreeMap<String, PathBuf>,
    /// This process's own group in them.
    pub own: BTreeMap<String, PathBuf>,
    /// Version 2's mount point.
    v2: Option<PathBuf>,
    pub own_v2: Option<PathBuf>,
    /// Controllers of version 2.
    v2_controllers: Vec<String>,
}

/// Words of a v1 mount's options that are no controllers.
const NO_CONTROLLERS: [&str; 6] = ["rw", "ro", "noprefix", "clone_children", "xattr", "release_agent"];

impl Hierarchies {
    /// Looks at the mounts and at the caller's own groups.
    pub fn detect() -> Hierarchies {
        let mounts = facts::mounted();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::from_texts(&mounts, &own)
    }

    fn from_texts(mounts: &str, own: &str) -> Hierarchies {
        let mounts = facts::parse_mounts(mounts);
        let mut found = Hierarchies::default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
            if names.is_empty() {
                if let Some(m) = mounts.iter().find(|m| m.v2) {
                    let listed =
                        std::fs::read_to_string(m.point.join("cgroup.controllers")).unwrap_or_default();
                    found.v2_controllers = listed.split_whitespace().map(String::from).collect();
                    found.v2 = Some(m.point.clone());
                    found.own_v2 = facts::locate(m, path);
                }
                continue;
            }
            for name in names.split(',').filter(|n| !NO_CONTROLLERS.contains(n)) {
                if let Some(m) = mounts.iter().find(|m| !m.v2 && m.options.contains(&name)) {
                    found.v1.insert(name.into(), m.point.clone());
                    if let Some(dir) = facts::locate(m, path) {
                        found.own.insert(name.into(), dir);
                    }
                }
            }
        }
        found
    }

    /// Which controllers are where.
    pub fn controllers(&self) -> Controllers {
        let v1 = self.v1.keys().cloned().collect();
        Controllers { v1, v2: self.v2_controllers.iter().cloned().collect() }
    }

    /// Where groups without an absolute path are made in version 2. Where it has the controllers, they are beside
    /// the caller's own group: one that holds processes can give none to the groups below it.
    fn beside_own(&self) -> Option<PathBuf> {
        let own = self.own_v2.as_ref()?;
        let above = own.parent().filter(|_| self.pure_v2() && self.v2.as_ref() != Some(own));
        Some(above.unwrap_or(own).to_path_buf())
    }

    /// Whether version 2 holds every controller.
    pub fn pure_v2(&self) -> bool {
        self.v1.is_empty() && self.v2.is_some()
    }
}

/// A container's group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Directory by controller of version 1.
    pub v1: BTreeMap<String, PathBuf>,
    /// Directory in version 2.
    pub v2: Option<PathBuf>,
    /// The unit of systemd's that it is.
    #[serde(default)]
    pub unit: Option<String>,
}

/// A group's path: absolute ones count from each hierarchy's mount point, others from the caller's own group, or in
/// version 2 alone from the one above it.
fn clean(path: &Path) -> Result<(PathBuf, bool)> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => out.push(name),
            _ => {
                return Err(invalid(
                    format!("linux.cgroupsPath {} has a .. in it", path.display()),
                    "write it without",
                ));
            }
        }
    }
    if out.as_os_str().is_empty() {
        return Err(invalid("linux.cgroupsPath is the hierarchy's root", "name a group below it"));
    }
    Ok((out, path.is_absolute()))
}

impl Group {
    /// The group of a path, or of the container's id.
    pub fn of(h: &Hierarchies, path: Option<&Path>, id: &str) -> Result<Group> {
        let fallback = PathBuf::from(id);
        let (path, absolute) = clean(path.unwrap_or(&fallback))?;
        let bases = if absolute { &h.v1 } else { &h.own };
        let base_v2 = if absolute { h.v2.clone() } else { h.beside_own() };
        Ok(Group {
            v1: bases.iter().map(|(name, base)| (name.clone(), base.join(&path))).collect(),
            v2: base_v2.map(|base| base.join(&path)),
            unit: None,
        })
    }

    /// Has systemd make the group around a process.
    pub fn create_unit(&mut self, h: &Hierarchies, unit: &Unit, pid: i32, changes: &Changes) -> Result<()> {
        unit.start(pid, changes)?;
        // From here on it is the container's, and goes with it.
        self.unit = Some(unit.name.clone());
        let path = unit::wait(&unit.name, pid)?;
        self.v2 = h.v2.as_ref().map(|root| root.join(path));
        Ok(())
    }

    /// The unit whose manager moves processes in: an ordinary user may not move them from where the user logged in.
    fn moved_by(&self) -> Option<&str> {
        self.unit.as_deref().filter(|_| crate::systemd::user().is_some())
    }

    /// The groups below for a process that is added: `PATH` in every hierarchy, `CONTROLLER[,CONTROLLER]:PATH` in
    /// those of version 1.
    pub fn below(&self, wanted: &[String]) -> Result<Group> {
        let mut group = self.clone();
        for text in wanted {
            let (controllers, path) =
                text.split_once(':').map_or((None, text.as_str()), |(c, p)| (Some(c), p));
            let path = Path::new(path.trim_start_matches('/'));
            if !path.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(invalid(format!("--cgroup {text:?}"), "name a group below the container's"));
            }
            let mut dirs: Vec<&mut PathBuf> = Vec::new();
            match controllers {
                None => dirs.extend(group.v1.values_mut().chain(&mut group.v2)),
                Some(names) => {
                    let named = |c: &str| names.split(',').any(|n| c.strip_prefix("name=").unwrap_or(c) == n);
                    dirs.extend(group.v1.iter_mut().filter(|(c, _)| named(c)).map(|(_, dir)| dir));
                }
            }
            if dirs.is_empty() {
                let next = match controllers {
                    None => "leave it out: the container has no control group",
                    Some(_) => "leave the controllers out: the container has no group of version 1 with them",
                };
                return Err(invalid(format!("--cgroup {text:?}"), next));
            }
            for dir in dirs {
                dir.push(path);
                if !dir.is_dir() {
                    let what = format!("--cgroup {text:?}: there is no {}", dir.display());
                    return Err(invalid(what, "make it in the container first"));
                }
            }
        }
        Ok(group)
    }

    fn dirs(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = self.v1.values().chain(&self.v2).map(PathBuf::as_path).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether a process is in it.
    pub fn in_use(&self) -> bool {
        !self.processes().is_empty()
    }

    /// Makes the directories. Where the caller may make none, says so by `false` and leaves nothing.
    pub fn create(&mut self, h: &Hierarchies) -> Result<bool> {
        let mut made = Group::default();
        for (controller, dir) in &self.v1 {
            let root = h.v1.get(controller).map_or(dir.as_path(), PathBuf::as_path);
            let done = make_below(root, dir, |parent, dir| {
                if controller == "cpuset" { v1::inherit_cpuset(parent, dir) } else { Ok(()) }
            });
            match done {
                Ok(()) => drop(made.v1.insert(controller.clone(), dir.clone())),
                Err(e) if is_denied(e.errno) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if let (Some(dir), Some(root)) = (&self.v2, &h.v2) {
            match make_below(root, dir, |parent, _| enable(parent, h)) {
                Ok(()) => made.v2 = Some(dir.clone()),
                Err(e) if is_denied(e.errno) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let any = !made.v1.is_empty() || made.v2.is_some();
        *self = made;
        Ok(any)
    }

    /// Changes limits.
    pub fn apply(&self, changes: &Changes, fresh: bool) -> Result<()> {
        if let Some(limit) = changes.check_memory
            && self
                .number("memory", "memory.usage_in_bytes", "memory.current")
                .is_some_and(|used| used > limit)
        {
            return Err(invalid(
                format!("a memory limit of {limit} bytes is below what is in use"),
                "give more, or set checkBeforeUpdate to false",
            ));
        }
        if let Some(name) = self.unit.as_deref().filter(|_| !fresh) {
            unit::update(name, changes)?;
        }
        for w in &changes.writes {
            let dir = if w.v2 { self.v2.as_ref() } else { self.v1.get(&w.controller) };
            let Some(dir) = dir else {
                return Err(unsupported(
                    format!("the limit {}", w.file),
                    "this user may make no control group with that controller: leave it out, or have one delegated",
                ));
            };
            match files::write(dir, &w.file, &w.value) {
                Ok(()) => {}
                // The limit with swap may never be below the one without: the order depends on the direction.
                Err(e) if e.errno == libc::EINVAL && w.file == "memory.limit_in_bytes" => {
                    let swap = changes.writes.iter().find(|s| s.file == "memory.memsw.limit_in_bytes");
                    let Some(swap) = swap else { return Err(e.into()) };
                    files::write(dir, &swap.file, &swap.value)?;
                    files::write(dir, &w.file, &w.value)?;
                }
                Err(e) if e.errno == libc::ENOENT => {
                    return Err(unsupported(
                        format!("the limit {}", w.file),
                        "the control group has no such controller here: leave it out, or have it delegated",
                    ));
                }
                Err(e) => return Err(e.into()),
            }
        }
        match (&changes.devices, fresh) {
            (Some(rules), true) => self.devices(rules),
            _ => Ok(()),
        }
    }

    /// Refuses every device, then applies the rules in order, then allows what each container has.
    fn devices(&self, rules: &[DeviceAccess]) -> Result<()> {
        let mut all = rules.to_vec();
        all.extend(standard_devices().into_iter().map(DeviceAccess::from));
        if let Some(dir) = self.v1.get("devices") {
            files::write(dir, "devices.deny", "a")?;
            for rule in &all {
                let file = if rule.allow { "devices.allow" } else { "devices.deny" };
                files::write(dir, file, &rule.to_string())?;
            }
            return Ok(());
        }
        let Some(dir) = &self.v2 else {
            return Err(unsupported(
                "linux.resources.devices",
                "no devices controller can be used here: leave it out",
            ));
        };
        let program = bpf::load_device_program(&access_program(&all)).named("load a device program")?;
        let group =
            rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .named_at("open the group", dir)?;
        bpf::attach_device_program(group.as_fd(), program.as_fd()).named_at("attach a device program to", dir)
    }

    /// Moves a process in.
    pub fn join(&self, pid: i32) -> Result<()> {
        if let (Some(name), Some(dir)) = (self.moved_by(), &self.v2) {
            return unit::attach(name, dir, pid);
        }
        self.dirs().into_iter().try_for_each(|dir| Ok(files::write(dir, "cgroup.procs", &pid.to_string())?))
    }

    /// Everything in it.
    pub fn processes(&self) -> Vec<i32> {
        let mut all = Vec::new();
        for dir in self.dirs() {
            files::processes(dir, &mut all);
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Sends a signal to everything in it.
    pub fn signal(&self, signal: i32) -> Result<()> {
        for pid in self.processes() {
            match signals::kill(pid, signal) {
                Ok(()) | Err(crate::sys::Errno::SRCH) => {}
                Err(e) => return Err(e).named("signal the container's processes"),
            }
        }
        Ok(())
    }

    /// Kills what is in it and removes it.
    pub fn remove(&self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        if let Some(name) = &self.unit {
            let _ = self.freeze(false);
            self.signal(libc::SIGKILL)?;
            // It may have gone with its last process. What it leaves is removed here.
            let _ = crate::systemd::stop(name);
        }
        loop {
            // A frozen process of version 1 does not even die.
            let _ = self.freeze(false);
            self.signal(libc::SIGKILL)?;
            let gone = self.dirs().into_iter().try_for_each(files::remove);
            match gone {
                Err(e) if e.errno == libc::EBUSY && start.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => return Err(e.into()),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Freezes or thaws, and waits until it is done.
    pub fn freeze(&self, on: bool) -> Result<()> {
        let missing = || -> OciError {
            unsupported(
                "pausing this container",
                "no freezer can be used here: start it as root, or with delegated control groups",
            )
        };
        let (dir, file, value, seen, want) = match (self.v1.get("freezer"), &self.v2) {
            (Some(dir), _) => {
                let word = if on { "FROZEN" } else { "THAWED" };
                (dir, "freezer.state", word, "freezer.state", word)
            }
            (None, Some(dir)) => {
                let (value, line) = if on { ("1", "frozen 1") } else { ("0", "frozen 0") };
                (dir, "cgroup.freeze", value, "cgroup.events", line)
            }
            _ => return Err(missing()),
        };
        let start = Instant::now();
        loop {
            files::write(dir, file, value)?;
            if files::read(dir, seen).is_some_and(|t| t.lines().any(|l| l == want)) {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(10) {
                if on {
                    files::write(dir, file, if file == "cgroup.freeze" { "0" } else { "THAWED" })?;
                }
                return Err(invalid(
                    format!(
                        "the processes in {} do not {}",
                        dir.display(),
                        if on { "freeze" } else { "thaw" }
                    ),
                    "one of them waits in the kernel: look for state D in berth oci ps",
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether it is frozen.
    pub fn frozen(&self) -> bool {
        match (self.v1.get("freezer"), &self.v2) {
            (Some(dir), _) => files::read(dir, "freezer.state").is_some_and(|s| s != "THAWED"),
            (None, Some(dir)) => files::read(dir, "cgroup.freeze").is_some_and(|s| s == "1"),
            _ => false,
        }
    }

    /// A number from whichever version has the controller.
    pub fn number(&self, controller: &str, v1: &str, v2: &str) -> Option<u64> {
        match self.v1.get(controller) {
            Some(dir) => files::number(dir, v1),
            None => files::number(self.v2.as_ref()?, v2),
        }
    }

    /// A text from whichever version has the controller.
    pub fn text(&self, controller: &str, v1: &str, v2: &str) -> Option<String> {
        match self.v1.get(controller) {
            Some(dir) => files::read(dir, v1),
            None => files::read(self.v2.as_ref()?, v2),
        }
    }

    /// The v2 directory, to start a process in.
    pub fn v2_dir(&self) -> Option<OwnedFd> {
        if self.moved_by().is_some() {
            return None;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(self.v2.as_ref()?, flags, Mode::empty()).ok()
    }
}

fn is_denied(errno: i32) -> bool {
    [libc::EACCES, libc::EPERM, libc::EROFS].contains(&errno)
}

fn make_below(
    root: &Path,
    dir: &Path,
    mut prepare: impl FnMut(&Path, &Path) -> crate::cgroup::Result<()>,
) -> crate::cgroup::Result<()> {
    let mut at = root.to_path_buf();
    for part in dir.strip_prefix(root).unwrap_or(Path::new("")).components() {
        let parent = at.clone();
        at.push(part);
        if !at.is_dir() {
            // Version 2 gives controllers to the groups below before there are any.
            prepare(&parent, &at).or_else(|e| if at.exists() { Err(e) } else { Ok(()) })?;
            files::make_dir(&at)?;
        }
        prepare(&parent, &at)?;
    }
    Ok(())
}

/// Gives version 2's controllers to the groups below. What the parent does not have cannot be given.
fn enable(parent: &Path, h: &Hierarchies) -> crate::cgroup::Result<()> {
    let enabled = files::read(parent, "cgroup.subtree_control").unwrap_or_default();
    let available = files::read(parent, "cgroup.controllers").unwrap_or_default();
    for name in &h.v2_controllers {
        let has = |list: &str| list.split_whitespace().any(|n| n == name);
        if !has(&enabled) && has(&available) {
            match files::write(parent, "cgroup.subtree_control", &format!("+{name}")) {
                // The groups above are someone else's: what is there is what was delegated.
                Err(e) if is_denied(e.errno) => {}
                done => done?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_hierarchies() {
        let mounts = "30 23 0:26 / /c/memory rw - cgroup cgroup rw,memory\n\
                      31 23 0:27 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 23 0:28 / /c/systemd rw - cgroup cgroup rw,name=systemd\n\
                      33 23 0:29 / /c/unified rw - cgroup2 cgroup2 rw\n";
        let own = "3:memory:/me\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/me\n";
        let h = Hierarchies::from_texts(mounts, own);
        let group = |p: Option<&str>| Group::of(&h, p.map(Path::new), "id");
        let absolute = group(Some("/a/b")).unwrap();
        assert_eq!(absolute.v1["memory"], Path::new("/c/memory/a/b"));
        assert_eq!(absolute.v1["name=systemd"], Path::new("/c/systemd/a/b"));
        assert_eq!(absolute.v2.as_deref(), Some(Path::new("/c/unified/a/b")));
        assert_eq!(absolute.dirs().len(), 4, "cpu and cpuacct share one");
        let relative = group(None).unwrap();
        assert_eq!(relative.v1["memory"], Path::new("/c/memory/me/id"));
        let alone = "40 23 0:29 / /c rw - cgroup2 cgroup2 rw\n";
        let v2 = |own: &str, path: Option<&str>| {
            let h = Hierarchies::from_texts(alone, own);
            Group::of(&h, path.map(Path::new), "id").unwrap().v2.unwrap()
        };
        assert_eq!(v2("0::/user/session.scope\n", None), Path::new("/c/user/id"), "beside its own");
        assert_eq!(v2("0::/\n", None), Path::new("/c/id"));
        assert_eq!(v2("0::/user/session.scope\n", Some("/a")), Path::new("/c/a"));
        for bad in ["/a/../../x", "..", "/"] {
            assert!(group(Some(bad)).is_err(), "{bad}");
        }
    }
}
