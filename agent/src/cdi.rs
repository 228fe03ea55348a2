//! Devices by the names that the administrator's CDI files give them (`vendor.com/class=name`): looked up, judged, and turned into what a
//! container gets.

use berth_gpus::cdi::hooks::{Effect, effect};
use berth_gpus::cdi::{DeviceNode, Edits, Spec};
use berth_model::hardware::GresDevice;
use berth_model::spec::Identity;
use berth_model::{ByteStr, elf};
use berth_runtime::ExtraMount;
use berth_runtime::cgroup::device_of;
use berth_runtime::hooks::unchangeable;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the files are; what is in the later one stands over the earlier.
const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What a container with a device gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Device files.
    pub devices: Vec<ByteStr>,
    /// Mounts.
    pub mounts: Vec<ExtraMount>,
    /// Libraries, by their paths in the container, that its loader finds by their names.
    pub libraries: Vec<ByteStr>,
    /// `NAME=value`.
    pub env: Vec<ByteStr>,
    /// Groups that its processes are in.
    pub groups: Vec<u32>,
}

/// What is to be had by a name.
///
/// # Errors
/// No file has it, or it needs what is not done.
pub fn given(name: &str) -> Result<Given, String> {
    Given::of(&find(&DIRECTORIES.map(PathBuf::from), name)?)
}

/// What the files say of a device.
fn find(directories: &[PathBuf], name: &str) -> Result<Edits, String> {
    let (kind, device) = name.split_once('=').ok_or("it is not of the form vendor.com/class=name")?;
    let mut wrong = Vec::new();
    for dir in directories.iter().rev() {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            match read(&file) {
                Ok(Some(spec)) if spec.kind == kind && spec.devices.iter().any(|d| d.name == device) => {
                    return spec.edits_for(&[device]);
                }
                Ok(_) => {}
                Err(why) => wrong.push(format!("{}: {why}", file.display())),
            }
        }
    }
    let aside = if wrong.is_empty() { String::new() } else { format!(" (left aside: {})", wrong.join("; ")) };
    Err(format!("no file in /etc/cdi or /var/run/cdi has such a device{aside}"))
}

/// A file that nobody but root can change. `None`: it is no CDI file.
fn read(file: &Path) -> Result<Option<Spec>, String> {
    match file.extension().and_then(|e| e.to_str()) {
        Some("json" | "yaml" | "yml") => {}
        _ => return Ok(None),
    }
    let is_json = file.extension().is_some_and(|e| e == "json");
    let file = unchangeable(file, 0)?;
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    if is_json { Spec::parse(&text) } else { Spec::parse_yaml(&text) }.map(Some)
}

impl Given {
    /// Takes it over, or says what of it is not done: half of a device is worse than none.
    fn of(edits: &Edits) -> Result<Given, String> {
        let Effect { mounts, libraries } = effect(edits, &soname).map_err(|why| {
            format!("its file wants programs of others to be run: {why}; NVIDIA's GPUs need no CDI file here")
        })?;
        if edits.intel_rdt.is_some() || !edits.net_devices.is_empty() {
            return Err("its file asks for intelRdt or netDevices, which are not done here".into());
        }
        if edits.additional_gids.contains(&u32::MAX) {
            return Err(format!("its file asks for group {}, in which no process can be", u32::MAX));
        }
        let text = |text: &String| ByteStr::from(text.as_str());
        let mut given = Given {
            libraries: libraries.iter().map(text).collect(),
            env: edits.env.iter().map(text).collect(),
            // The specification has zeros ignored.
            groups: edits.additional_gids.iter().copied().filter(|gid| *gid != 0).collect(),
            ..Given::default()
        };
        for node in &edits.device_nodes {
            judge(node)?;
            let path = text(&node.path);
            if !given.devices.contains(&path) {
                given.devices.push(path);
            }
        }
        for mount in edits.mounts.iter().chain(&mounts) {
            let known = |o: &String| {
                matches!(
                    o.as_str(),
                    "ro" | "rw" | "bind" | "rbind" | "nosuid" | "nodev" | "noexec" | "private" | "rprivate"
                )
            };
            if let Some(odd) = mount.options.iter().find(|o| !known(o)) {
                return Err(format!(
                    "its file mounts {} with '{odd}', which is not done here",
                    mount.host_path
                ));
            }
            if mount.kind.as_deref().is_some_and(|kind| !matches!(kind, "bind" | "none" | "")) {
                return Err(format!("its file mounts {} as no bind mount", mount.container_path));
            }
            given.mounts.push(ExtraMount {
                source: text(&mount.host_path),
                target: text(&mount.container_path),
                read_only: !mount.options.iter().any(|o| o == "rw"),
            });
        }
        Ok(given)
    }

    /// The groups that this user's processes get with it: those of its file that the user is not in. `root`: it is root who starts them.
    ///
    /// # Errors
    /// There are some, and nobody but root can give them.
    pub fn groups_for(&self, own: &Identity, root: bool) -> Result<Vec<u32>, String> {
        let is_in = |gid: u32| own.gid.0 == gid || own.groups.iter().any(|group| group.0 == gid);
        let beyond: Vec<u32> = self.groups.iter().copied().filter(|gid| !is_in(*gid)).collect();
        match beyond.first() {
            Some(gid) if !root => Err(format!(
                "its file asks for group {gid}, which {0} is not in and an ordinary user's container cannot be given: have the \
                 administrator add {0} to it, or use a cluster of root's",
                own.user
            )),
            _ => Ok(beyond),
        }
    }
}

/// Device files are the node's, under their own paths and with their own rights: a file that says otherwise is not followed by half.
fn judge(node: &DeviceNode) -> Result<(), String> {
    let path = &node.path;
    if node.host_path.as_ref().is_some_and(|host| host != path) {
        return Err(format!("its file shows {path} under another path, which is not done here"));
    }
    let meta = std::fs::metadata(path).map_err(|e| format!("its file names {path}: {e}"))?;
    let kind = match (meta.file_type().is_char_device(), meta.file_type().is_block_device()) {
        (true, _) => &["c", "u"][..],
        (_, true) => &["b"][..],
        _ => return Err(format!("its file names {path}, which is no device file")),
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let same = |said: Option<i64>, is: u32| said.is_none_or(|said| said == i64::from(is));
    // Zeros are what generators write where they say nothing.
    let unsaid = node.major.unwrap_or(0) == 0 && node.minor.unwrap_or(0) == 0;
    let numbers = unsaid || (same(node.major, major) && same(node.minor, minor));
    if node.kind.as_ref().is_some_and(|said| !kind.contains(&said.as_str())) || !numbers {
        return Err(format!("its file says that {path} is another device than {major}:{minor}, which it is"));
    }
    if node.permissions.as_ref().is_some_and(|all| !(all.contains('r') && all.contains('w'))) {
        return Err(format!("its file lets {path} be read or written alone, which is not done here"));
    }
    let differs = |said: Option<u32>, is: u32| said.is_some_and(|said| said != is);
    if node.file_mode.is_some_and(|mode| mode & 0o777 != meta.mode() & 0o777)
        || differs(node.uid, meta.uid())
        || differs(node.gid, meta.gid())
    {
        return Err(format!(
            "its file gives {path} another owner or mode than the node does, which is not done here: change the node's own (udev)"
        ));
    }
    Ok(())
}

/// The devices of the configuration that are named in CDI files, with their device files, and what containers get with each by its name.
/// One that cannot be given as it is named is fenced. `found`: those that the node finds by itself; `by_file`: those of the configuration's
/// `files`.
pub(crate) fn look(
    named: &[GresDevice],
    found: &[GresDevice],
    by_file: &[GresDevice],
) -> (Vec<GresDevice>, BTreeMap<String, Given>) {
    let mut devices = named.to_vec();
    let mut all = BTreeMap::new();
    for device in &mut devices {
        let already = found.iter().filter(|d| d.name == device.name).count();
        device.index = device.index.saturating_add(u32::try_from(already).unwrap_or(u32::MAX));
        let Some(name) = device.cdi.clone() else { continue };
        let directories = DIRECTORIES.map(PathBuf::from);
        match find(&directories, &name).map(|edits| (Given::of(&edits), edits)) {
            Ok((Ok(given), _)) => {
                device.files.clone_from(&given.devices);
                all.insert(name, given);
            }
            Ok((Err(why), edits)) => {
                // What is given to nobody is kept from all.
                let nodes = edits.device_nodes.iter().map(|node| ByteStr::from(node.path.as_str()));
                device.files = nodes.filter(|file| device_of(Path::new(file.as_os())).is_ok()).collect();
                device.fault = Some(why);
            }
            Err(why) => device.fault = Some(why),
        }
    }
    // By what they are: a link, and another file with the same numbers, is the same device.
    let own =
        |device: &GresDevice| GresDevice { files: device.files.iter().map(real).collect(), ..device.clone() };
    let own = |all: &[GresDevice]| -> Vec<GresDevice> { all.iter().map(own).collect() };
    let (all_own, others, files) = (own(&devices), own(found), own(by_file));
    let files: Vec<(&GresDevice, &GresDevice)> = by_file.iter().zip(&files).collect();
    let faults: Vec<Option<String>> =
        all_own.iter().map(|device| shared(device, &all_own, &others, &files)).collect();
    for (device, fault) in devices.iter_mut().zip(faults) {
        device.fault = device.fault.take().or(fault);
    }
    (devices, all)
}

/// What a device file is, by its kind and numbers; its own name where it is none.
fn real(file: &ByteStr) -> ByteStr {
    match device_of(Path::new(file.as_os())) {
        Ok(rule) => ByteStr::from(rule.to_string()),
        Err(_) => std::fs::canonicalize(file.as_os())
            .map_or_else(|_| file.clone(), |path| ByteStr::from(path.as_os_str())),
    }
}

/// Why a device cannot be kept apart from another one. `by_file`: those of the configuration's `files` as it names them, and by what
/// these files are.
fn shared(
    device: &GresDevice,
    named: &[GresDevice],
    found: &[GresDevice],
    by_file: &[(&GresDevice, &GresDevice)],
) -> Option<String> {
    let has = |other: &GresDevice| other.files.iter().any(|file| device.files.contains(file));
    if let Some(other) = found.iter().find(|other| has(other)) {
        return Some(format!(
            "its device files are those of {} {}, which the node finds by itself: leave 'cdi' out for it",
            other.name, other.index
        ));
    }
    if let Some((other, _)) = by_file.iter().find(|(_, own)| has(own)) {
        let file = other.files.first().map(|file| file.display().into_owned()).unwrap_or_default();
        return Some(format!(
            "one of its device files is {file}, which 'files' gives as {}: leave one of the two out",
            other.name
        ));
    }
    // What all of a kind have, such as a device of their driver's, is in one file beside what is each one's own.
    let others = || named.iter().filter(|other| (&other.name, other.index) != (&device.name, device.index));
    let is_shared = |file: &ByteStr| others().any(|other| other.files.contains(file));
    let whole = !device.files.is_empty() && device.files.iter().all(is_shared);
    let other = others().find(|other| has(other))?.cdi.clone().unwrap_or_default();
    whole.then(|| {
        format!(
            "all of its device files are other devices' too ({other}), from which it cannot be kept apart"
        )
    })
}

/// The name by which programs ask for a library of this machine.
fn soname(path: &str) -> Option<String> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).ok()?;
    elf::soname(&|at, length| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(text: &str) -> Edits {
        let spec = format!(
            r#"{{"cdiVersion":"0.6.0","kind":"vendor.com/x","devices":[{{"name":"a","containerEdits":{text}}}]}}"#
        );
        Spec::parse(&spec).unwrap().edits_for(&["a"]).unwrap()
    }

    #[test]
    fn a_device_is_taken_over_whole_or_refused_by_what_is_not_done() {
        let whole = r#"{"deviceNodes":[{"path":"/dev/null","type":"c","major":1,"minor":3,"permissions":"rw"}],"env":["A=1"],
            "mounts":[{"hostPath":"/etc","containerPath":"/y","options":["ro","bind"]}]}"#;
        let taken = Given::of(&edits(whole)).unwrap();
        assert_eq!((taken.devices, taken.env), (vec!["/dev/null".into()], vec!["A=1".into()]));
        assert!(taken.mounts[0].read_only && taken.mounts[0].target.0 == b"/y");
        for (text, said) in [
            (
                r#"{"hooks":[{"hookName":"createContainer","path":"/bin/evil"}]}"#,
                "/bin/evil (createContainer) is no hook",
            ),
            (r#"{"intelRdt":{}}"#, "intelRdt"),
            (r#"{"deviceNodes":[{"path":"/dev/a","hostPath":"/dev/b"}]}"#, "another path"),
            (r#"{"deviceNodes":[{"path":"/no/such/device"}]}"#, "/no/such/device"),
            (r#"{"deviceNodes":[{"path":"/etc/passwd"}]}"#, "no device file"),
            (r#"{"deviceNodes":[{"path":"/dev/null","major":1,"minor":5}]}"#, "another device than 1:3"),
            (r#"{"deviceNodes":[{"path":"/dev/null","type":"b"}]}"#, "another device than 1:3"),
            (r#"{"deviceNodes":[{"path":"/dev/null","permissions":"r"}]}"#, "read or written alone"),
            (r#"{"deviceNodes":[{"path":"/dev/null","gid":4242}]}"#, "another owner or mode"),
            (r#"{"deviceNodes":[{"path":"/dev/null","fileMode":384}]}"#, "another owner or mode"),
            (r#"{"mounts":[{"hostPath":"/x","containerPath":"/y","options":["suid"]}]}"#, "'suid'"),
            (r#"{"mounts":[{"hostPath":"x","containerPath":"/y","type":"tmpfs"}]}"#, "no bind mount"),
        ] {
            let wrong = Given::of(&edits(text)).unwrap_err();
            assert!(wrong.contains(said), "{said}: {wrong}");
        }
    }

    #[test]
    fn a_group_that_the_user_is_not_in_is_roots_to_give() {
        let given = Given::of(&edits(r#"{"additionalGids":[0,4242]}"#)).unwrap();
        let own = |groups: &[u32]| Identity {
            groups: groups.iter().map(|gid| berth_model::Gid(*gid)).collect(),
            ..berth_samples::identity(1000)
        };
        assert!(given.groups_for(&own(&[]), false).unwrap_err().contains("group 4242"));
        assert_eq!(given.groups_for(&own(&[]), true), Ok(vec![4242]));
        assert_eq!(given.groups_for(&own(&[1, 4242]), false), Ok(vec![]));
        let nobody = Given::of(&edits(r#"{"additionalGids":[4294967295]}"#)).unwrap_err();
        assert!(nobody.contains("4294967295"), "{nobody}");
    }

    #[test]
    fn files_of_others_and_those_that_are_wrong_are_left_aside_and_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "x: 1").unwrap();
        std::fs::write(dir.path().join("b.json"), "{").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "").unwrap();
        let wrong = find(&[dir.path().to_path_buf()], "vendor.com/x=a").unwrap_err();
        assert!(
            wrong.contains("a.yaml: ") && wrong.contains("b.json: ") && !wrong.contains("notes"),
            "{wrong}"
        );
        assert!(read(Path::new("/no/such.json")).is_err());
    }

    #[test]
    fn devices_that_cannot_be_kept_apart_are_fenced() {
        let device = |index: u32, name: &str, files: &[&str]| GresDevice {
            name: "x".into(),
            index,
            cdi: Some(name.into()),
            files: files.iter().map(|file| (*file).into()).collect(),
            ..GresDevice::default()
        };
        let why = |of: &GresDevice, all: &[GresDevice], found: &[GresDevice]| shared(of, all, found, &[]);
        let two = [device(0, "a", &["/dev/a", "/dev/ctl"]), device(1, "b", &["/dev/b", "/dev/ctl"])];
        assert_eq!((why(&two[0], &two, &[]), why(&two[1], &two, &[])), (None, None));
        let all = [device(0, "a", &["/dev/a"]), device(1, "all", &["/dev/a", "/dev/b"]), device(2, "c", &[])];
        assert!(why(&all[0], &all, &[]).unwrap().contains("(all)"));
        assert_eq!((why(&all[1], &all, &[]), why(&all[2], &all, &[])), (None, None));
        let found = GresDevice {
            name: "gpu".into(),
            index: 3,
            files: vec!["/dev/b".into()],
            ..GresDevice::default()
        };
        assert!(why(&two[1], &two, &[found]).unwrap().contains("gpu 3"));
        // Of a device that `files` gives, whatever it is called there, another job has it.
        let link = GresDevice { name: "y".into(), files: vec!["/dev/link".into()], ..GresDevice::default() };
        let own = GresDevice { files: vec!["/dev/ctl".into()], ..link.clone() };
        let by_file = [(&link, &own)];
        assert!(
            shared(&two[0], &two, &[], &by_file).unwrap().contains("/dev/link, which 'files' gives as y")
        );
        let is = |file: &str| real(&file.into()).display().into_owned();
        assert_eq!(is("/dev/null"), "c 1:3 rwm");
        assert_eq!(is("/no/such/file"), "/no/such/file");
    }

    #[test]
    fn a_device_of_no_file_is_there_and_fenced() {
        let named = GresDevice { name: "x".into(), cdi: Some("no.such/x=a".into()), ..GresDevice::default() };
        let found = GresDevice { name: "x".into(), ..GresDevice::default() };
        let (devices, given) = look(&[named], &[found], &[]);
        assert_eq!((devices[0].index, given.len()), (1, 0));
        assert!(devices[0].fault.as_ref().unwrap().contains("no file in /etc/cdi"));
    }
}
