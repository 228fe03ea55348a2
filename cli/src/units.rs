//! Units of systemd for the daemons: what they say, where they are, and how they are started and stopped.

use crate::daemon::Part;
use berth_client::error::{Failure, Kind};
use berth_client::site::StateDir;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where an administrator's own units are.
pub const OWN: &str = "/etc/systemd/system";
/// Where units are looked for: an administrator's own, and those of packages.
const PLACES: [&str; 4] =
    [OWN, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// First line of a file that we may replace and remove.
const MARK: &str = "# Written by 'berth install-units'";

/// Name of a daemon's unit.
pub fn name(part: Part) -> &'static str {
    match part {
        Part::Controller => "berth-controller.service",
        Part::Agent => "berth-agent.service",
    }
}

/// Whether systemd runs this machine, and would run units of ours.
pub fn usable() -> bool {
    nix::unistd::geteuid().is_root() && Path::new("/run/systemd/system").exists()
}

/// What a unit says.
///
/// # Errors
/// A path that has characters which mean something to systemd.
pub fn text(part: Part, program: &Path, dir: &StateDir) -> Result<String, Failure> {
    let program = plain(program)?;
    let state = plain(&dir.0)?;
    let named = if is_default(dir) { String::new() } else { format!(" --state {state}") };
    let head = format!(
        "{MARK}; changes belong into a file beside it: systemctl edit {}\n[Unit]\n",
        name(part).trim_end_matches(".service")
    );
    Ok(match part {
        Part::Controller => format!(
            "{head}\
Description=Berth controller
Documentation=man:berth-controller(1)
Wants=network-online.target
After=network-online.target remote-fs.target nss-user-lookup.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program}{named} controller
ExecReload={program}{named} scontrol reconfigure
Restart=on-failure
RestartSec=2
TimeoutStartSec=infinity
OOMScoreAdjust=-900
LimitNOFILE=1048576
TasksMax=infinity
# It starts no job and needs no more of the machine than its state directory, its port and the name service.
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=read-only
ReadWritePaths={state}
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"
        ),
        Part::Agent => format!(
            "{head}\
Description=Berth node agent
Documentation=man:berth-agent(1)
Wants=network-online.target
After=network-online.target remote-fs.target nss-user-lookup.target time-sync.target berth-controller.service
# Devices that are there when it looks are kept from the jobs that are not given them from the first.
After=systemd-modules-load.service nvidia-persistenced.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program}{named} agent --service
Restart=on-failure
RestartSec=2
TimeoutStartSec=infinity
TimeoutStopSec=30
# Steps outlive it: where control groups are v2 alone they are in a scope of their own, elsewhere below this unit's group.
KillMode=process
Delegate=yes
OOMScoreAdjust=-900
TasksMax=infinity
# What jobs get where neither they nor the submitter say otherwise; the agent itself takes as many files as it may.
LimitNOFILE=131072:524288
LimitMEMLOCK=infinity
LimitSTACK=infinity
# Nothing here that gives it a mount namespace or takes privileges away (ProtectSystem=, PrivateTmp=, NoNewPrivileges=,
# CapabilityBoundingSet=, SystemCallFilter=): it mounts for jobs, and they have what it has. Each container is confined by itself.

[Install]
WantedBy=multi-user.target
"
        ),
    })
}

fn is_default(dir: &StateDir) -> bool {
    dir.0 == Path::new("/var/lib/berth")
}

/// The path as systemd takes it as it is.
fn plain(path: &Path) -> Result<&str, Failure> {
    let fits = |text: &&str| {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b)) && text.starts_with('/')
    };
    path.to_str().filter(fits).ok_or_else(|| {
        Failure::user(format!(
            "{}: a unit can name paths of letters, digits and '/._-+' alone: move it to such a place",
            path.display()
        ))
    })
}

/// Whether there is a unit for a daemon of this state directory, and systemd to run it.
pub fn installed(part: Part, dir: &StateDir) -> bool {
    usable()
        && PLACES.iter().any(|place| {
            let text = std::fs::read_to_string(Path::new(place).join(name(part))).unwrap_or_default();
            state_in(&text).is_some_and(|state| state == dir.0)
        })
}

/// The state directory of a unit's daemon.
fn state_in(text: &str) -> Option<PathBuf> {
    let line = text.lines().find_map(|line| line.strip_prefix("ExecStart="))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "--state");
    match words.nth(1) {
        Some(named) => Some(named.into()),
        None => Some("/var/lib/berth".into()),
    }
}

/// Writes a unit. One that a person or a package wrote stays as it is, and is named.
///
/// # Errors
/// Such a unit; a unit of another state directory; a directory that cannot be written.
pub fn write(part: Part, program: &Path, to: &Path, dir: &StateDir) -> Result<PathBuf, Failure> {
    let path = to.join(name(part));
    let text = text(part, program, dir)?;
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    if !before.is_empty() && !before.starts_with(MARK) {
        return Err(Failure::user(format!(
            "{} is not of berth's making: move it away, or keep it and change it by 'systemctl edit'",
            path.display()
        )));
    }
    if let Some(other) = state_in(&before).filter(|other| *other != dir.0) {
        return Err(Failure::user(format!(
            "{} is for the cluster in {}: a machine has one set of units; 'berth --state {} install-units --remove' removes them",
            path.display(),
            other.display(),
            other.display()
        )));
    }
    let fresh = to.join(format!(".{}.new", name(part)));
    std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)).map_err(|e| {
        Failure::user(format!(
            "{}: {e}; units are written by root, or into another directory with --dir",
            path.display()
        ))
    })?;
    Ok(path)
}

/// Removes a unit that [`write`] wrote for this state directory; whether there was one.
///
/// # Errors
/// It cannot be removed.
pub fn remove(part: Part, from: &Path, dir: &StateDir) -> Result<bool, Failure> {
    let path = from.join(name(part));
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    if !text.starts_with(MARK) || state_in(&text).is_none_or(|state| state != dir.0) {
        return Ok(false);
    }
    std::fs::remove_file(&path)
        .map(|()| true)
        .map_err(|e| Failure::user(format!("{}: {e}; it is root's", path.display())))
}

/// Has systemd do something.
///
/// # Errors
/// What it said.
pub fn systemctl(words: &[&str]) -> Result<(), Failure> {
    let failed = |why: String| Failure::new(Kind::Internal, format!("systemctl {}: {why}", words.join(" ")));
    let output = Command::new("systemctl")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_string()))
}

/// How a unit is, in systemd's word: `active`, `activating`, `failed`, ….
pub fn state(part: Part) -> String {
    let output = Command::new("systemctl").args(["is-active", name(part)]).stdin(Stdio::null()).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default()
}

/// The last lines that a unit's daemon logged, for a message.
pub fn tail(part: Part) -> String {
    let output = Command::new("journalctl")
        .args(["-u", name(part), "-n", "5", "-o", "cat", "--no-pager", "-q"])
        .stdin(Stdio::null())
        .output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim_end().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> StateDir {
        StateDir(path.into())
    }

    #[test]
    fn a_unit_names_its_state_directory_when_it_is_not_the_default() {
        for (dir, named) in [("/var/lib/berth", false), ("/srv/berth", true)] {
            for part in [Part::Controller, Part::Agent] {
                let text = text(part, Path::new("/usr/bin/berth"), &at(dir)).unwrap();
                assert_eq!(text.contains("--state /srv/berth"), named, "{text}");
                assert_eq!(state_in(&text), Some(dir.into()));
                assert!(text.starts_with(MARK));
            }
        }
        for odd in ["/srv/a b", "/srv/%h", "/srv/$x", "/srv/\"", "relative"] {
            assert!(text(Part::Agent, Path::new("/usr/bin/berth"), &at(odd)).is_err(), "{odd}");
        }
    }

    #[test]
    fn only_units_of_our_own_and_of_this_cluster_are_replaced_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let path = write(Part::Agent, Path::new("/usr/bin/berth"), place.path(), &at("/srv/one")).unwrap();
        write(Part::Agent, Path::new("/usr/bin/berth"), place.path(), &at("/srv/one")).unwrap();
        let other =
            write(Part::Agent, Path::new("/usr/bin/berth"), place.path(), &at("/srv/two")).unwrap_err().text;
        assert!(other.contains("/srv/one") && other.contains("--remove"), "{other}");
        assert!(!remove(Part::Agent, place.path(), &at("/srv/two")).unwrap());
        assert!(remove(Part::Agent, place.path(), &at("/srv/one")).unwrap() && !path.exists());
        std::fs::write(&path, "[Service]\nExecStart=/usr/bin/berth agent\n").unwrap();
        assert!(
            write(Part::Agent, Path::new("/usr/bin/berth"), place.path(), &at("/var/lib/berth"))
                .unwrap_err()
                .text
                .contains("systemctl edit")
        );
        assert!(!remove(Part::Agent, place.path(), &at("/var/lib/berth")).unwrap());
    }
}
