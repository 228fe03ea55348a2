//! What hooks of NVIDIA's container tools do in a container, done without running them: their effect is one of mounts.

use super::{Edits, Hook, Mount};
use crate::tree::joined;

/// What a container gets instead of its hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Further names of libraries and programs that are mounted.
    pub mounts: Vec<Mount>,
    /// Libraries, by their path in the container, that its loader finds by their names.
    pub libraries: Vec<String>,
}

/// Takes the hooks' part. `soname`: the name by which a library of the node is asked for, as its file says.
///
/// # Errors
/// A hook that nobody knows, or one that asks for something else than what it is known for.
pub fn effect(edits: &Edits, soname: &dyn Fn(&str) -> Option<String>) -> Result<Effect, String> {
    let mut effect = Effect::default();
    // Links may lead to the names that the loader's cache brings.
    let is_cache = |hook: &&Hook| name(hook) == Some("update-ldcache");
    for hook in edits.hooks.iter().filter(is_cache).chain(edits.hooks.iter().filter(|hook| !is_cache(hook))) {
        let unknown = || {
            let words = hook.args.get(1..).unwrap_or_default().join(" ");
            format!("{} {words} ({})", hook.path, hook.hook_name).replace("  ", " ")
        };
        match (hook.hook_name.as_str(), name(hook)) {
            ("createContainer", Some("update-ldcache")) => {
                for folder in values(hook, "folder").map_err(|why| format!("{}: {why}", unknown()))? {
                    libraries(edits, folder, soname, &mut effect);
                }
            }
            ("createContainer", Some("create-symlinks")) => {
                for link in values(hook, "link").map_err(|why| format!("{}: {why}", unknown()))? {
                    if is_of_device(edits, link) {
                        continue;
                    }
                    let mount = linked(edits, &effect, link).ok_or_else(|| {
                        format!("{}: '{link}' links to what the file does not mount", unknown())
                    })?;
                    effect.mounts.push(mount);
                }
            }
            ("createContainer", Some("chmod")) => {
                let modes = values(hook, "mode").map_err(|why| format!("{}: {why}", unknown()))?;
                let paths = values(hook, "path").map_err(|why| format!("{}: {why}", unknown()))?;
                // Directories of device files have that mode in any case.
                let as_it_is = modes.iter().all(|mode| mode.trim_start_matches('0') == "755")
                    && paths.iter().all(|path| path.starts_with("/dev/"));
                if !as_it_is {
                    return Err(format!(
                        "{}: only directories in /dev have a mode, and it is 755",
                        unknown()
                    ));
                }
            }
            // The newer libraries of an image come first where the image itself asks for it, and device files are made by nobody.
            ("createContainer", Some("enable-cuda-compat" | "disable-device-node-modification")) => {}
            _ => return Err(format!("{} is no hook that is known here", unknown())),
        }
    }
    Ok(effect)
}

/// The hook's own name: of `nvidia-ctk hook NAME`, `nvidia-cdi-hook NAME` and their like.
fn name(hook: &Hook) -> Option<&str> {
    let program = hook.path.rsplit('/').next()?;
    let words: Vec<&str> = hook.args.iter().map(String::as_str).collect();
    match (program, words.get(1..)?) {
        ("nvidia-ctk", ["hook", name, ..]) | ("nvidia-cdi-hook", [name, ..]) => Some(name),
        _ => None,
    }
}

/// The values of `--option value` and `--option=value`.
fn values<'a>(hook: &'a Hook, option: &str) -> Result<Vec<&'a str>, String> {
    let known = ["--folder", "--link", "--mode", "--path"];
    let own = format!("--{option}");
    let after = hook.args.iter().position(|word| Some(word.as_str()) == name(hook)).map_or(1, |at| at + 1);
    let mut words = hook.args.get(after..).unwrap_or_default().iter();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, value),
            None => (word.as_str(), words.next().ok_or_else(|| format!("'{word}' has no value"))?.as_str()),
        };
        if !known.contains(&key) {
            return Err(format!("'{key}' is no option that is known here"));
        }
        if key == own {
            found.push(value);
        }
    }
    Ok(found)
}

/// What is mounted in a folder, under the names by which programs ask for it.
fn libraries(edits: &Edits, folder: &str, soname: &dyn Fn(&str) -> Option<String>, effect: &mut Effect) {
    for mount in &edits.mounts {
        let Some((dir, file)) = mount.container_path.rsplit_once('/') else { continue };
        if dir != folder.trim_end_matches('/') || !file.contains(".so") {
            continue;
        }
        effect.libraries.push(mount.container_path.clone());
        let Some(name) = soname(&mount.host_path).filter(|name| name != file && !name.contains('/')) else {
            continue;
        };
        let path = format!("{dir}/{name}");
        if !effect.libraries.contains(&path) && !edits.mounts.iter().any(|m| m.container_path == path) {
            effect.libraries.push(path.clone());
            effect.mounts.push(Mount { container_path: path, ..mount.clone() });
        }
    }
}

/// `TARGET::LINK`: where it leads, and where it is.
fn link_of(link: &str) -> Option<(String, &str)> {
    let (target, path) = link.split_once("::")?;
    let target = match target.starts_with('/') {
        true => target.to_string(),
        false => joined("/", &format!("{}/{target}", path.rsplit_once('/')?.0)),
    };
    Some((target, path))
}

/// Whether it is another name of a device file that the file brings, in `/dev`: by its place on the bus, most often.
fn is_of_device(edits: &Edits, link: &str) -> bool {
    link_of(link).is_some_and(|(target, path)| {
        path.starts_with("/dev/") && edits.device_nodes.iter().any(|node| node.path == target)
    })
}

/// What is mounted as a link's target, as the link.
fn linked(edits: &Edits, effect: &Effect, link: &str) -> Option<Mount> {
    let (target, path) = link_of(link)?;
    let mut there = edits.mounts.iter().chain(&effect.mounts);
    let mount = there.find(|mount| mount.container_path == target)?;
    Some(Mount { container_path: path.to_string(), ..mount.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdi::DeviceNode;

    fn hook(words: &str) -> Hook {
        let args: Vec<String> = words.split(' ').map(String::from).collect();
        Hook {
            hook_name: "createContainer".into(),
            path: format!("/usr/bin/{}", args[0]),
            args,
            ..Hook::default()
        }
    }

    fn edits(hooks: &[&str]) -> Edits {
        let mount =
            |path: &str| Mount { host_path: path.into(), container_path: path.into(), ..Mount::default() };
        Edits {
            mounts: vec![
                mount("/usr/lib/libcuda.so.535.1"),
                mount("/usr/lib/libnvidia-ml.so.1"),
                mount("/usr/bin/nvidia-smi"),
            ],
            hooks: hooks.iter().map(|words| hook(words)).collect(),
            ..Edits::default()
        }
    }

    fn of(hooks: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
        let soname = |path: &str| path.contains("libcuda").then(|| "libcuda.so.1".to_string());
        let Effect { mounts, libraries } = effect(&edits(hooks), &soname)?;
        let mounts = mounts.into_iter().map(|m| format!("{} {}", m.host_path, m.container_path));
        Ok((mounts.collect(), libraries))
    }

    #[test]
    fn known_hooks_are_done_by_mounts() {
        let (mounts, libraries) = of(&[
            "nvidia-ctk hook create-symlinks --link libcuda.so.1::/usr/lib/libcuda.so --link=../lib/libnvidia-ml.so.1::/usr/lib/x.so",
            "nvidia-ctk hook update-ldcache --folder /usr/lib",
            "nvidia-cdi-hook chmod --mode 755 --path /dev/dri",
            "nvidia-cdi-hook enable-cuda-compat --host-driver-version=535.1",
        ])
        .unwrap();
        assert_eq!(
            libraries,
            ["/usr/lib/libcuda.so.535.1", "/usr/lib/libcuda.so.1", "/usr/lib/libnvidia-ml.so.1"]
        );
        assert_eq!(
            mounts,
            [
                "/usr/lib/libcuda.so.535.1 /usr/lib/libcuda.so.1",
                "/usr/lib/libcuda.so.535.1 /usr/lib/libcuda.so",
                "/usr/lib/libnvidia-ml.so.1 /usr/lib/x.so",
            ]
        );
    }

    #[test]
    fn other_names_of_device_files_are_left_out() {
        let hooks =
            ["nvidia-ctk hook create-symlinks --link ../card0::/dev/dri/by-path/pci-0000:00:04.0-card"];
        let node = |path: &str| DeviceNode { path: path.into(), ..DeviceNode::default() };
        let with = |path: &str| {
            let edits = Edits { device_nodes: vec![node(path)], ..edits(&hooks) };
            effect(&edits, &|_| None).map(|effect| effect.mounts.len())
        };
        assert_eq!(with("/dev/dri/card0"), Ok(0));
        assert!(
            with("/dev/dri/card1").unwrap_err().contains("links to what"),
            "it is no device of the file's"
        );
    }

    #[test]
    fn other_hooks_are_refused_by_name() {
        for (words, said) in [
            ("evil --x y", "/usr/bin/evil --x y (createContainer) is no hook"),
            ("nvidia-ctk hook new-thing", "new-thing (createContainer) is no hook"),
            ("nvidia-ctk hook update-ldcache --odd x", "'--odd' is no option"),
            ("nvidia-ctk hook update-ldcache --folder", "'--folder' has no value"),
            ("nvidia-ctk hook create-symlinks --link /x::/y", "'/x::/y' links to what"),
            ("nvidia-ctk hook create-symlinks --link odd", "'odd' links to what"),
            ("nvidia-ctk hook chmod --mode 777 --path /dev/dri", "it is 755"),
        ] {
            let wrong = of(&[words]).unwrap_err();
            assert!(wrong.contains(said), "{wrong}");
        }
        let mut late = edits(&["nvidia-ctk hook update-ldcache --folder /usr/lib"]);
        late.hooks[0].hook_name = "poststop".into();
        assert!(effect(&late, &|_| None).unwrap_err().contains("(poststop) is no hook"));
    }
}
