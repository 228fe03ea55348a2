//! `berth doctor`: says what this machine lacks, and what to do.

use crate::images;
use crate::scope::{self, Place};
use berth_agent::StoreMemory;
use berth_client::error::Outcome;
use berth_client::out;
use berth_client::site::StateDir;
use berth_images::{LayerForm, settled_form, unfit_filesystem};
use berth_model::config::LayerForm as Wanted;
use berth_runtime::cgroup::{CgroupFacts, Controller};
use berth_runtime::doctor;
use serde::Serialize;
use std::path::Path;

/// Look whether this machine has what Berth needs, and say what to do where it has not
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Limited,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    found: String,
    /// What to do; empty where there is nothing.
    todo: String,
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what: what.into(), verdict: Verdict::Good, found: found.into(), todo: String::new() }
}

fn finding(
    what: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    todo: impl Into<String>,
) -> Finding {
    Finding { what: what.into(), verdict, found: found.into(), todo: todo.into() }
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let findings = look(state);
    let bad = findings.iter().any(|f| f.verdict == Verdict::Bad);
    if args.json {
        let text = serde_json::to_string_pretty(&findings).unwrap_or_default();
        out::print(&(text + "\n"))?;
        return Ok(u8::from(bad));
    }
    let mut text = String::new();
    for f in &findings {
        let mark = match f.verdict {
            Verdict::Good => "good   ",
            Verdict::Limited => "limited",
            Verdict::Bad => "BAD    ",
        };
        text.push_str(&format!("{mark}  {:<20} {}\n", f.what, f.found));
        if !f.todo.is_empty() {
            text.push_str(&format!("{:31}-> {}\n", "", f.todo));
        }
    }
    out::print(&text)?;
    Ok(u8::from(bad))
}

fn look(state: Option<&Path>) -> Vec<Finding> {
    let root = nix::unistd::geteuid().is_root();
    let mut all = vec![mode(root), kernel(root), user_namespaces(root)];
    all.extend(apparmor(root));
    all.push(ranges(root));
    all.push(programs());
    all.push(cgroups(root));
    all.extend(doctor::limits().into_iter().map(|found| Finding {
        what: found.name,
        verdict: match found.verdict {
            doctor::Verdict::Good => Verdict::Good,
            doctor::Verdict::Less => Verdict::Limited,
            doctor::Verdict::Bad => Verdict::Bad,
        },
        found: found.found,
        todo: found.advice.unwrap_or_default(),
    }));
    all.extend(gpus());
    all.push(state_dir(state));
    all.extend(image_store(state));
    if root {
        all.extend(layer_images(state));
    }
    all
}

/// GPUs, where there are any, and what keeps them from being used.
fn gpus() -> Vec<Finding> {
    let program = crate::own_path().ok();
    let found = berth_gpus::look(&berth_gpus::Tree::host(), &berth_gpus::xid::Fatal::new(), || {
        let program = program.ok_or("the program's own path is not known")?;
        let deadline = std::time::Duration::from_secs(20);
        berth_gpus::nvml::helper::Helper::new(program, vec!["internal-gpus".into()], deadline).ask()
    });
    let mut all = Vec::new();
    let sound: Vec<&str> = found
        .devices
        .iter()
        .filter(|d| d.fault.is_none())
        .map(|d| d.kind.as_deref().unwrap_or("of unknown type"))
        .collect();
    if !sound.is_empty() {
        let mut kinds = sound.clone();
        kinds.sort_unstable();
        kinds.dedup();
        let count = |kind: &str| sound.iter().filter(|k| **k == kind).count();
        let kinds: Vec<String> = kinds.into_iter().map(|kind| format!("{} {kind}", count(kind))).collect();
        let driver = found
            .driver
            .as_ref()
            .map(|d| format!("; driver {} with {} libraries for containers", d.version, d.libraries.len()));
        all.push(good("GPUs", format!("{}{}", kinds.join(", "), driver.unwrap_or_default())));
    }
    all.extend(found.mismatch.map(|why| {
        finding(
            "GPUs",
            Verdict::Bad,
            format!("this machine takes no new work as a node: {why}"),
            "until then serve_mismatched = true in [gpus] of berth.toml has it work for jobs without GPUs",
        )
    }));
    // Only root hears what the kernel said of them: the agent's log has that.
    all.extend(found.wrong.into_iter().map(|wrong| {
        finding(
            "GPUs",
            Verdict::Bad,
            wrong,
            "put that right: what is fenced is given to no job; the rest of the node works",
        )
    }));
    all
}

/// Where the state directory is, or will be: the nearest directory that exists.
fn nearest(dir: &Path) -> Option<&Path> {
    dir.ancestors().find(|d| d.is_dir())
}

/// How layers of images are kept, which is root's to choose.
fn layer_images(state: Option<&Path>) -> Option<Finding> {
    let what = "layers of images";
    let dir = StateDir::named_or_own(state).ok()?;
    let store = images::place(&dir).unwrap_or_else(|_| dir.0.clone());
    let place = nearest(&store).and_then(|there| std::fs::File::open(there).ok())?;
    let todo = "nothing has to be done: directories do, and take longer to make. EROFS images need Linux 6.12, or loop \
                devices, and a state directory on a disk";
    // What runs was settled when it started; what does not run yet will be as its configuration says.
    let settled = settled_form(&store);
    if settled.is_none() && super::config::of(&dir, None).is_ok_and(|c| !c.images.memory.is_empty()) {
        // A filesystem that is not there yet.
        return None;
    }
    let wanted = match (super::config::of(&dir, None), settled) {
        (Ok(config), _) => config.images.layer_form,
        (Err(_), Some(_)) => Wanted::Auto,
        (Err(_), None) => {
            return Some(finding(
                what,
                Verdict::Bad,
                format!("not known: the configuration in {} is not good", dir.0.display()),
                "'berth config check' says what is wrong with it",
            ));
        }
    };
    let tried = berth_images::try_image(&place, &berth_runtime::try_image);
    Some(match (tried, settled, wanted) {
        (Ok((way, _)), Some(LayerForm::Directory), _) | (Ok((way, _)), None, Wanted::Directory) => {
            let text = "kept as directories (layer_form in berth.toml); an EROFS image could be mounted";
            good(what, format!("{text} {way}"))
        }
        (Ok((way, most)), _, _) => {
            let most = most.map_or_else(String::new, |most| {
                format!("; of an image, {most} layers at most, and the smaller ones as directories")
            });
            good(what, format!("kept as EROFS images: a trial one was mounted {way}{most}"))
        }
        (Err(why), _, Wanted::Erofs) if why.kind() == std::io::ErrorKind::Unsupported => finding(
            what,
            Verdict::Bad,
            format!("layer_form = \"erofs\" in berth.toml cannot be had: {why}"),
            "write layer_form = \"auto\" or \"directory\" in [images] of berth.toml",
        ),
        (Err(why), _, _) if why.kind() == std::io::ErrorKind::Unsupported => {
            finding(what, Verdict::Limited, format!("kept as directories: {why}"), todo)
        }
        (Err(why), _, _) => {
            let text = format!("it cannot be tried whether EROFS images can be mounted: {why}");
            finding(what, Verdict::Bad, text, "put that right, and look again")
        }
    })
}

fn mode(root: bool) -> Finding {
    if !root {
        return good("mode", "ordinary user: a cluster of your own, nothing privileged");
    }
    if berth_runtime::facts::is_privileged() {
        return good("mode", "root: a cluster for all users of the machine");
    }
    finding(
        "mode",
        Verdict::Bad,
        "root without the right to mount (a container or a user namespace)",
        "start the container with CAP_SYS_ADMIN, or use an ordinary user",
    )
}

fn kernel(root: bool) -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (5, 12) {
        return finding(
            "kernel",
            Verdict::Bad,
            release,
            "Berth needs Linux 5.12 or newer: Debian 12, Ubuntu 22.04, RHEL 9",
        );
    }
    // In system mode the layers are the store's, shown as the user's.
    if root && version < (5, 19) {
        return finding(
            "kernel",
            Verdict::Limited,
            format!("{release} (no overlays over idmapped mounts, unless its maker added them)"),
            "images in a cluster of the machine need Linux 5.19 or newer; a cluster of an ordinary user does not",
        );
    }
    good("kernel", format!("{release} (overlay in user namespaces, idmapped mounts)"))
}

fn setting(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn user_namespaces(root: bool) -> Finding {
    let most = setting("/proc/sys/user/max_user_namespaces");
    if most == Some(0) {
        return finding(
            "user namespaces",
            Verdict::Bad,
            "switched off",
            "as root: sysctl -w user.max_user_namespaces=15000, and write it to /etc/sysctl.d/berth.conf",
        );
    }
    if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) && !root {
        return finding(
            "user namespaces",
            Verdict::Bad,
            "forbidden to ordinary users",
            "as root: sysctl -w kernel.unprivileged_userns_clone=1, and write it to /etc/sysctl.d/berth.conf",
        );
    }
    if most.is_none() {
        return finding(
            "user namespaces",
            Verdict::Bad,
            "not in this kernel",
            "use a kernel with CONFIG_USER_NS",
        );
    }
    good("user namespaces", "allowed")
}

/// Ubuntu's rule, where the kernel has it.
fn apparmor(root: bool) -> Option<Finding> {
    let rule = setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")?;
    if rule == 0 || root {
        return Some(good("AppArmor", "does not restrict user namespaces for this user"));
    }
    Some(finding(
        "AppArmor",
        Verdict::Bad,
        "ordinary users get no rights in their user namespaces",
        "as root: give berth and berth-step a profile with 'userns,' in /etc/apparmor.d, or sysctl -w \
         kernel.apparmor_restrict_unprivileged_userns=0",
    ))
}

/// What `--container-subids` needs.
fn ranges(root: bool) -> Finding {
    let what = "ranges of ids";
    if root {
        let todo = "for --container-subids give users ranges that nobody else has: usermod --add-subuids 100000-165535 \
                    --add-subgids 100000-165535 NAME";
        return match berth_runtime::subids::users() {
            0 => finding(what, Verdict::Limited, "/etc/subuid gives none to any user", todo),
            n => good(what, format!("/etc/subuid has ranges for {n} users (--container-subids)")),
        };
    }
    let tried = berth_client::users::own_identity()
        .map_err(|e| e.text)
        .and_then(|own| berth_runtime::subids::available(&own));
    match tried {
        Ok(()) => good(what, "a trial user namespace has 65536 ids (--container-subids)"),
        Err(why) => {
            let (found, todo) = why.split_once(": ").unwrap_or((&why, "have root look at /etc/subuid"));
            finding(what, Verdict::Limited, format!("no --container-subids: {found}"), todo)
        }
    }
}

fn programs() -> Finding {
    match crate::daemon::step_program() {
        Ok(path) => good("programs", format!("berth {} and {}", berth_client::VERSION, path.display())),
        Err(e) => finding("programs", Verdict::Bad, e.text, "install berth-step beside berth"),
    }
}

/// The limits that jobs get.
const NEEDED: &[Controller] =
    &[Controller::Memory, Controller::Cpu, Controller::Cpuset, Controller::Pids, Controller::Devices];

fn missing() -> Vec<&'static str> {
    let facts = CgroupFacts::detect();
    NEEDED.iter().filter(|c| !facts.has(**c)).map(|c| c.name()).collect()
}

/// What a cluster started from here would not have, and why it has no more.
fn missing_after_start(root: bool) -> (Vec<&'static str>, String) {
    match scope::find() {
        Place::Here => (missing(), String::new()),
        Place::Refused(why) => (missing(), why),
        Place::Scope(controllers) => {
            // Its program needs no controller, but root.
            let has = |c: &Controller| controllers.contains(c) || (*c == Controller::Devices && root);
            (NEEDED.iter().filter(|c| !has(c)).map(|c| c.name()).collect(), String::new())
        }
    }
}

fn cgroups(root: bool) -> Finding {
    let (missing, why) = missing_after_start(root);
    if missing.is_empty() {
        return good("control groups", "memory, cpu, cpuset, pids and devices are enforced");
    }
    let list = missing.join(", ");
    let because = if why.is_empty() { why } else { format!(": {why}") };
    if root {
        finding(
            "control groups",
            Verdict::Bad,
            format!("not usable: {list}{because}"),
            "mount the hierarchies (systemd does), or start Berth in a group that has these controllers",
        )
    } else {
        finding(
            "control groups",
            Verdict::Limited,
            format!("not enforced for your jobs: {list}{because}"),
            todo_as_user(&missing),
        )
    }
}

/// Devices are root's alone; all else can be delegated.
fn todo_as_user(missing: &[&str]) -> &'static str {
    if missing == ["devices"] {
        return "devices are enforced only in a cluster of the machine ('berth up' as root)";
    }
    "ask root to delegate the controllers (systemctl edit user@.service: [Service] Delegate=cpu cpuset io memory pids), \
     or for a cluster of the machine ('berth up' as root)"
}

/// What jobs of a cluster started now would not be held to, in words.
pub fn not_enforced() -> Vec<String> {
    let missing = missing();
    if missing.is_empty() {
        return Vec::new();
    }
    let why = if rustix::process::geteuid().is_root() {
        "no control group here has these controllers"
    } else {
        "not delegated to this user"
    };
    vec![format!("limits on {} are not enforced here: {why} ('berth doctor' says more)", missing.join(", "))]
}

fn state_dir(state: Option<&Path>) -> Finding {
    let dir = match StateDir::named_or_own(state) {
        Ok(dir) => dir.0,
        Err(e) => {
            return finding("state directory", Verdict::Bad, e.text, "name one with --state or BERTH_STATE");
        }
    };
    if dir.exists() && !dir.is_dir() {
        let found = format!("{} is not a directory", dir.display());
        return finding("state directory", Verdict::Bad, found, "name another with --state or BERTH_STATE");
    }
    // The nearest directory that exists tells the file system.
    let Some(there) = nearest(&dir) else {
        return finding(
            "state directory",
            Verdict::Bad,
            dir.display().to_string(),
            "name another with --state",
        );
    };
    match unfit_filesystem(there) {
        Ok(None) => {}
        Ok(Some(why)) => {
            return finding(
                "state directory",
                Verdict::Bad,
                format!("{} is on {why}", dir.display()),
                "name a directory on a local disk with --state or BERTH_STATE",
            );
        }
        Err(e) => {
            let found = format!("{}: {e}", there.display());
            return finding(
                "state directory",
                Verdict::Bad,
                found,
                "name another with --state or BERTH_STATE",
            );
        }
    }
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok();
    if !writable {
        return finding(
            "state directory",
            Verdict::Bad,
            format!("{} is not writable", there.display()),
            "name another with --state or BERTH_STATE",
        );
    }
    good("state directory", dir.display().to_string())
}

/// Where images are, or will be kept.
fn image_store(state: Option<&Path>) -> Option<Finding> {
    let what = "image store";
    let todo = "name a directory on a local disk: images.path in berth.toml";
    let dir = StateDir::named_or_own(state).ok()?;
    let memory = super::config::of(&dir, None).map(|config| config.images.memory).unwrap_or_default();
    if !memory.is_empty() {
        return Some(if nix::unistd::geteuid().is_root() {
            good(what, format!("in memory while the cluster runs, {memory} at most (images.memory)"))
        } else {
            let todo = "leave images.memory out of berth.toml";
            finding(what, Verdict::Bad, "in memory, which root alone can give it (images.memory)", todo)
        });
    }
    Some(match images::place(&dir) {
        Err(e) => {
            finding(what, Verdict::Bad, e.text, "'berth config check' says what is wrong with berth.toml")
        }
        Ok(place) => match unfit_filesystem(&place) {
            Ok(None) => match super::config::of(&dir, None)
                .ok()
                .and_then(|config| berth_agent::store_memory(&config.images, &place))
            {
                None => good(what, place.display().to_string()),
                Some(StoreMemory { kind, mib }) => {
                    let most =
                        mib.map_or_else(|| "without a bound".to_owned(), |mib| format!("{mib} MiB at most"));
                    let found = format!("{} is in memory ({kind}), {most}", place.display());
                    let todo = if nix::unistd::geteuid().is_root() {
                        "jobs do not get that much of the node's memory: write images.memory or images.max_size with what images may \
                         have, or name a disk (images.path)"
                    } else {
                        "programs have that much less: name a disk (images.path), or bound it (images.max_size)"
                    };
                    finding(what, Verdict::Limited, found, todo)
                }
            },
            Ok(Some(why)) => finding(what, Verdict::Bad, format!("{} is on {why}", place.display()), todo),
            Err(e) => finding(what, Verdict::Bad, format!("{}: {e}", place.display()), todo),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trouble_has_a_next_step() {
        for f in look(Some(Path::new("/tmp/berth-doctor-test"))) {
            assert_eq!(f.todo.is_empty(), f.verdict == Verdict::Good, "{f:?}");
        }
    }
}
