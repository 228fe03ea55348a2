//! Groups that are not ours, such as the one of login sessions, and devices that are kept from all below them.
//!
//! On v2 a device program of our name is attached beside those of the service manager, which lets go of its own alone; it goes with the
//! group. On v1 the kernel has one list for each group (`security/device_cgroup.c`): of what a group may not use, or, where its service
//! manager began with nothing (`DevicePolicy=`), of what it may. To the first the devices are added, in the groups below, too, and taken
//! off again; from the second they are taken, and nobody knows afterwards which of them it had.

use super::facts::{mounted, parse_mounts};
use super::{CgroupError, DeviceKind, DevicePolicy, DeviceRule, Result, devices, files, v2};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The list of a v1 group that may use what is not on it.
const ALL: &str = "a *:* rwm";

/// A group that somebody else made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    dir: PathBuf,
    v1: bool,
}

impl Foreign {
    /// The group of that name, which begins at the top of the hierarchy in which this node limits devices, whether it is there or not.
    /// `None`: the node has none.
    pub fn named(name: &str) -> Option<Foreign> {
        find(&mounted(), name)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it is a group of v1: there root's processes are no exception, and devices are released one by one.
    pub fn is_v1(&self) -> bool {
        self.v1
    }

    /// Tells it from another one that is made in its place; `None` while there is none.
    pub fn made(&self) -> Option<u64> {
        let meta = std::fs::symlink_metadata(&self.dir).ok().filter(std::fs::Metadata::is_dir)?;
        Some(meta.ino())
    }

    /// Keeps these devices from its processes, and lets go of what `owner` kept from them before: on v2 but for root's processes, on v1
    /// from all. What v1 kept before is to be released by [`Foreign::release`]. `owner`: letters, digits and `_`, 15 at most.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn keep(&self, denied: &[DeviceRule], owner: &str) -> Result<()> {
        let policy = DevicePolicy::DenyOnly(denied.to_vec());
        if self.v1 {
            super::v1::devices(&self.dir, &policy)?;
            return match files::read(&self.dir, "devices.list") {
                Some(list) if opens(&list, denied) => Err(CgroupError {
                    action: "take the devices of jobs off the list of",
                    path: self.dir.clone(),
                    errno: libc::ENOTSUP,
                    hint: "its devices.list opens them together with others: have its unit's DeviceAllow= name each by itself",
                }),
                _ => Ok(()),
            };
        }
        v2::replace_program(&self.dir, &devices::program_but_for_root(&policy), owner)
    }

    /// Undoes [`Foreign::keep`]; a group that is gone has nothing of it. On v1 what was taken off a list of what a group may use comes back
    /// when its service manager writes that list anew.
    ///
    /// # Errors
    /// As there.
    pub fn release(&self, denied: &[DeviceRule], owner: &str) -> Result<()> {
        if self.made().is_none() {
            return Ok(());
        }
        if self.v1 {
            return allow(&self.dir, denied);
        }
        v2::detach(&self.dir, &v2::programs(&self.dir, owner)?)
    }
}

/// Takes devices off the lists of what a group, and those below it, may not use. To one of what it may use nothing is added: that would
/// open devices to it that it never had.
fn allow(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    if files::read(dir, "devices.list").is_some_and(|list| list == ALL) {
        let gone = |e: &CgroupError| matches!(e.errno, libc::ENOENT | libc::ENODEV);
        match files::write_each(dir, "devices.allow", rules.iter().map(ToString::to_string)) {
            Err(e) if !gone(&e) => return Err(e),
            _ => {}
        }
    }
    files::children(dir).iter().try_for_each(|child| allow(child, rules))
}

/// Whether a list of what a v1 group may use has an entry by which one of these devices can be read or written. Each is taken off by its
/// very numbers; what stands for several stays.
fn opens(list: &str, rules: &[DeviceRule]) -> bool {
    if list.trim() == ALL {
        return false;
    }
    let meets = |said: &str, number: Option<u32>| match number {
        Some(number) => said == "*" || said == number.to_string(),
        None => true,
    };
    list.lines().any(|line| {
        let mut words = line.split_whitespace();
        let (Some(kind), Some(numbers), Some(access)) = (words.next(), words.next(), words.next()) else {
            return false;
        };
        let Some((major, minor)) = numbers.split_once(':') else { return false };
        let is_kind = |rule: &DeviceRule| kind == "a" || (kind == "c") == (rule.kind == DeviceKind::Char);
        access.contains(['r', 'w'])
            && rules.iter().any(|rule| is_kind(rule) && meets(major, rule.major) && meets(minor, rule.minor))
    })
}

fn find(mountinfo: &str, name: &str) -> Option<Foreign> {
    let mounts = parse_mounts(mountinfo);
    let v1 = mounts.iter().find(|mount| !mount.v2 && mount.options.contains(&"devices"));
    let mount = v1.or_else(|| mounts.iter().find(|mount| mount.v2))?;
    Some(Foreign { dir: mount.point.join(name.trim_matches('/')), v1: !mount.v2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_opens_a_device_together_with_others_is_told() {
        let rule = |minor| DeviceRule { kind: DeviceKind::Char, major: Some(195), minor, make_only: false };
        let denied = [rule(Some(0)), rule(Some(255))];
        for (list, open) in [
            ("a *:* rwm", false),
            ("", false),
            ("c *:* m\nb *:* m\nc 1:3 rwm\nc 136:* rwm", false),
            ("c 1:3 rwm\nc 195:* rw", true),
            ("c *:* rwm", true),
            ("a 195:255 r", true),
            ("b 195:* rwm", false),
            ("odd", false),
        ] {
            assert_eq!(opens(list, &denied), open, "{list}");
        }
        assert!(opens("c 195:7 w", &[rule(None)]), "one of those that are denied together");
    }

    #[test]
    fn the_hierarchy_is_the_one_that_limits_devices() {
        let unified = "40 23 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = find(unified, "user.slice").unwrap();
        assert_eq!((found.dir.as_path(), found.v1), (Path::new("/sys/fs/cgroup/user.slice"), false));
        let hybrid = "32 23 0:28 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
            33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = find(hybrid, "user.slice/user-1.slice").unwrap();
        let dir = Path::new("/sys/fs/cgroup/devices/user.slice/user-1.slice");
        assert_eq!((found.dir.as_path(), found.v1), (dir, true));
        assert_eq!(find("1 0 8:1 / / rw - ext4 /dev/a rw\n", "user.slice"), None);
        let nowhere = Foreign { dir: "/no/such/group".into(), v1: true };
        assert!(nowhere.made().is_none() && nowhere.release(&[], "berth_x").is_ok());
    }
}
