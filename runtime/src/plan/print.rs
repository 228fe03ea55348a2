//! A plan as text, for `--explain`.

use super::{IdMap, Mode, MountKind, Ns, Origin, Plan, RootPlan};
use crate::request::WritableLayer;
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "mode: {}", if self.mode == Mode::User { "user" } else { "system" })?;
        self.root(f)?;
        let id = &self.identity;
        writeln!(f, "user: {}:{} on the node, {}:{} inside", id.uid, id.gid, id.inside_uid, id.inside_gid)?;
        let ns = self.namespaces;
        let own = |on| if on { Ns::Own } else { Ns::Node };
        let names = [
            (ns.user, "user"),
            (own(ns.mount), "mount"),
            (ns.pid, "pid"),
            (ns.ipc, "ipc"),
            (own(ns.cgroup), "cgroup"),
            (own(ns.uts), "uts"),
            (own(ns.net), "net"),
        ];
        let list = |whose| {
            let found: Vec<&str> = names.iter().filter(|(ns, _)| *ns == whose).map(|(_, n)| *n).collect();
            if found.is_empty() { "none".to_string() } else { found.join(", ") }
        };
        writeln!(f, "namespaces: {}", list(Ns::Own))?;
        if ns.in_job() {
            writeln!(f, "the job's namespaces: {}", list(Ns::Job))?;
        }
        for m in &self.mounts {
            self.mount(f, m)?;
        }
        if let Some(needs) = &self.glibc {
            writeln!(f, "C library: glibc {} or newer, for {}", needs.version, needs.of)?;
        }
        for v in &self.env {
            writeln!(f, "env: {}={} ({})", v.name.display(), v.value.display(), origin(v.origin))?;
        }
        writeln!(f, "workdir: {} ({})", self.workdir.path.display(), self.workdir.origin)?;
        let argv: Vec<_> = self.argv.iter().map(|a| a.display()).collect();
        writeln!(f, "command: {}", argv.join(" "))?;
        self.ids(f)?;
        self.limits(f)?;
        let c = self.confinement;
        writeln!(
            f,
            "confinement: no_new_privs {}, seccomp deny-list {}, pretended id changes {}",
            on(c.no_new_privs),
            on(c.seccomp),
            on(c.fake_ids)
        )?;
        if self.export {
            writeln!(
                f,
                "export: the root's files, without what is mounted in it, when the tasks have ended"
            )?;
        }
        for (kind, hook) in self
            .hooks
            .iter()
            .flat_map(|h| h.hooks.kinds())
            .flat_map(|(kind, hooks)| hooks.iter().map(move |hook| (kind, hook)))
        {
            let file = hook.file.as_deref().unwrap_or_default();
            let args: String = hook.args.iter().skip(1).map(|arg| format!(" {arg}")).collect();
            writeln!(f, "hook: {kind} {}{args} ({file})", hook.path.display())?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

fn on(flag: bool) -> &'static str {
    if flag { "on" } else { "off" }
}

fn mapped(m: &IdMap) -> String {
    match m.count {
        1 => format!("{} is {} on the node", m.inside, m.outside),
        n => {
            let last = |first: u32| first.saturating_add(n - 1);
            format!("{}-{} are {}-{} on the node", m.inside, last(m.inside), m.outside, last(m.outside))
        }
    }
}

/// Where a variable comes from, in the words of `docs/containers.md`.
fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Submitter => "submitter",
        Origin::Image => "image",
        Origin::Berth => "Berth",
        Origin::Job => "job",
        Origin::ContainerEnv => "--container-env",
    }
}

impl Plan {
    fn ids(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.root == RootPlan::Host {
            return writeln!(f, "id maps: none, ids are the node's");
        }
        for (what, map) in [("uid", &self.uid_map), ("gid", &self.gid_map)] {
            let lines: Vec<String> = map.iter().map(mapped).collect();
            writeln!(f, "{what} map: {}", lines.join(", "))?;
        }
        Ok(())
    }

    fn limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (resource, value) in &self.limits.soft {
            let must = if self.limits.required.contains(resource) { ", or the start fails" } else { "" };
            writeln!(f, "limit: {} {value}{must}", crate::limits::name(*resource))?;
        }
        Ok(())
    }

    fn root(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.root {
            RootPlan::Host => writeln!(f, "root: the node's own filesystem"),
            RootPlan::Joined => {
                writeln!(f, "root: that of the running container, with what is mounted there")
            }
            RootPlan::InPlace(dir) => writeln!(f, "root: {}, written in place", dir.display()),
            RootPlan::Overlay { layers, upper, size, read_only, owner, .. } => {
                let to = match upper {
                    _ if *read_only => "read-only".into(),
                    WritableLayer::Tmpfs => "writes go to memory and are lost at the end".into(),
                    WritableLayer::Dir(d) => format!("writes go to {}", d.display()),
                    WritableLayer::Image(file) => {
                        format!("writes go to a filesystem in {} and are lost at the end", file.display())
                    }
                };
                let to = match size {
                    Some(bytes) => format!("{to}, at most {bytes} bytes"),
                    None => to,
                };
                writeln!(f, "root: overlay of {} layers, {to}", layers.len())?;
                for layer in layers {
                    writeln!(f, "layer: {}", layer.display())?;
                }
                match owner {
                    Some(o) => writeln!(f, "layers of {}:{} appear as the user's", o.uid, o.gid),
                    None => Ok(()),
                }
            }
        }
    }

    fn mount(&self, f: &mut fmt::Formatter<'_>, m: &super::PlannedMount) -> fmt::Result {
        let what = match &m.kind {
            MountKind::Proc => "new proc".into(),
            MountKind::Bind { source, recursive, slave } => {
                let kind = if *recursive { "rbind" } else { "bind" };
                let later = if *slave { ", with what is mounted there later" } else { "" };
                format!("{kind} {}{later}", source.display())
            }
            MountKind::Tmpfs { size, mode } => match size {
                Some(n) => format!("tmpfs of {n} bytes, mode {mode:o}"),
                None => format!("tmpfs, mode {mode:o}"),
            },
            MountKind::JobShm => "the job's memory, shared by its steps".into(),
            MountKind::Dev { devices } => {
                let extra: Vec<_> = devices.iter().map(|d| d.display()).collect();
                format!("own dev with the standard devices {}", extra.join(" "))
            }
            MountKind::Devpts => "own devpts".into(),
            MountKind::Mqueue => "own mqueue".into(),
            MountKind::Umount => "unmount".into(),
            MountKind::ReadOnly => "read-only".into(),
            MountKind::Mask => "mask".into(),
        };
        let a = m.attrs;
        let flags = [
            (a.read_only, "ro"),
            (a.nosuid, "nosuid"),
            (a.nodev, "nodev"),
            (a.noexec, "noexec"),
            (!m.required, "nofail"),
        ];
        let flags: Vec<&str> = flags.iter().filter(|(on, _)| *on).map(|(_, n)| *n).collect();
        writeln!(f, "mount: {} <- {what} [{}] ({})", m.target.display(), flags.join(","), m.origin)
    }
}
