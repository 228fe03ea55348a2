//! Devices by the names that administrators' CDI files give them: `--device vendor.com/class=name`.

use berth_client::error::Failure;
use berth_gpus::cdi::hooks::{Effect, effect};
use berth_gpus::cdi::{Edits, Spec};
use berth_model::{ByteStr, elf};
use berth_runtime::hooks::unchangeable;
use berth_runtime::{ContainerRequest, ExtraMount};
use std::path::{Path, PathBuf};

/// Where the files are; what is in the later one stands over the earlier.
const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Whether a word is such a name and no path.
pub fn is_name(word: &str) -> bool {
    !word.starts_with('/') && word.split_once('=').is_some_and(|(kind, _)| kind.contains('/'))
}

/// Adds what the devices of these names need.
///
/// # Errors
/// No file has it, or it needs what is not done.
pub fn inject(request: &mut ContainerRequest, names: &[String]) -> Result<(), Failure> {
    for name in names {
        let edits = find(&DIRECTORIES.map(PathBuf::from), name)
            .map_err(|why| Failure::user(format!("--device {name}: {why}")))?;
        add(request, edits).map_err(|why| Failure::user(format!("--device {name}: {why}")))?;
    }
    Ok(())
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

/// Takes it over, or says what of it is not done: half of a device is worse than none.
fn add(request: &mut ContainerRequest, edits: Edits) -> Result<(), String> {
    let Effect { mounts, libraries } = effect(&edits, &soname).map_err(|why| {
        format!("its file wants programs of others to be run: {why}; for NVIDIA's GPUs use --gpus, which needs none")
    })?;
    if edits.intel_rdt.is_some() || !edits.net_devices.is_empty() {
        return Err("its file asks for intelRdt or netDevices, which are not done here".into());
    }
    if let Some(gid) = edits.additional_gids.iter().find(|gid| {
        let own = &request.identity;
        own.gid.0 != **gid && !own.groups.iter().any(|group| group.0 == **gid)
    }) {
        return Err(format!("its file asks for group {gid}, which you are not in"));
    }
    for node in &edits.device_nodes {
        if node.host_path.as_ref().is_some_and(|host| *host != node.path) {
            return Err(format!("its file shows {} under another path, which is not done here", node.path));
        }
        let path = ByteStr::from(node.path.as_str());
        if !request.devices.contains(&path) {
            request.devices.push(path);
        }
    }
    request.libraries.extend(libraries.iter().map(|path| ByteStr::from(path.as_str())));
    for mount in edits.mounts.iter().chain(&mounts) {
        let known = |o: &String| {
            matches!(
                o.as_str(),
                "ro" | "rw" | "bind" | "rbind" | "nosuid" | "nodev" | "noexec" | "private" | "rprivate"
            )
        };
        if let Some(odd) = mount.options.iter().find(|o| !known(o)) {
            return Err(format!("its file mounts {} with '{odd}', which is not done here", mount.host_path));
        }
        if mount.kind.as_deref().is_some_and(|kind| !matches!(kind, "bind" | "none" | "")) {
            return Err(format!("its file mounts {} as no bind mount", mount.container_path));
        }
        request.extra_mounts.push(ExtraMount {
            source: ByteStr::from(mount.host_path.as_str()),
            target: ByteStr::from(mount.container_path.as_str()),
            read_only: !mount.options.iter().any(|o| o == "rw"),
        });
    }
    request.image.env.extend(edits.env.iter().map(|pair| ByteStr::from(pair.as_str())));
    Ok(())
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
    use berth_runtime::Rootfs;

    fn request() -> ContainerRequest {
        let identity = berth_client::users::own_identity().unwrap();
        ContainerRequest::new(Rootfs::Dir("/x".into()), identity, "/".into())
    }

    fn spec(edits: &str) -> String {
        format!(
            r#"{{"cdiVersion":"0.6.0","kind":"vendor.com/x","devices":[{{"name":"a","containerEdits":{edits}}}]}}"#
        )
    }

    #[test]
    fn names_are_told_from_paths() {
        assert!(is_name("vendor.com/class=gpu0") && is_name("nvidia.com/gpu=all"));
        assert!(
            !is_name("/dev/fuse") && !is_name("/dev/odd=name/x=y") && !is_name("x=y") && !is_name("fuse")
        );
    }

    #[test]
    fn a_device_is_taken_over_whole_or_refused_by_what_is_not_done() {
        let edits = |text: &str| Spec::parse(&spec(text)).unwrap().edits_for(&["a"]).unwrap();
        let mut taken = request();
        let whole = r#"{"deviceNodes":[{"path":"/dev/null"}],"env":["A=1"],
            "mounts":[{"hostPath":"/etc","containerPath":"/y","options":["ro","bind"]}]}"#;
        add(&mut taken, edits(whole)).unwrap();
        assert_eq!((taken.devices, taken.image.env), (vec!["/dev/null".into()], vec!["A=1".into()]));
        assert!(taken.extra_mounts[0].read_only && taken.extra_mounts[0].target.0 == b"/y");
        for (text, said) in [
            (
                r#"{"hooks":[{"hookName":"createContainer","path":"/bin/evil"}]}"#,
                "/bin/evil (createContainer) is no hook",
            ),
            (r#"{"intelRdt":{}}"#, "intelRdt"),
            (r#"{"additionalGids":[4242424]}"#, "group 4242424"),
            (r#"{"deviceNodes":[{"path":"/dev/a","hostPath":"/dev/b"}]}"#, "another path"),
            (r#"{"mounts":[{"hostPath":"/x","containerPath":"/y","options":["suid"]}]}"#, "'suid'"),
            (r#"{"mounts":[{"hostPath":"x","containerPath":"/y","type":"tmpfs"}]}"#, "no bind mount"),
        ] {
            let wrong = add(&mut request(), edits(text)).unwrap_err();
            assert!(wrong.contains(said), "{wrong}");
        }
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
}
