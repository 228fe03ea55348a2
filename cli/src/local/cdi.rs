//! Devices by the names that administrators' CDI files give them: `--device vendor.com/class=name`.

use berth_agent::cdi::{Given, given};
use berth_client::error::Failure;
use berth_runtime::ContainerRequest;

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
        let root = rustix::process::geteuid().is_root();
        let had = given(name).and_then(|given| Ok((given.groups_for(&request.identity, root)?, given)));
        let (groups, given) = had.map_err(|why| Failure::user(format!("--device {name}: {why}")))?;
        request.device_groups.extend(groups);
        add(request, given);
    }
    Ok(())
}

fn add(request: &mut ContainerRequest, given: Given) {
    for device in given.devices {
        if !request.devices.contains(&device) {
            request.devices.push(device);
        }
    }
    request.libraries.extend(given.libraries);
    request.extra_mounts.extend(given.mounts);
    request.image.env.extend(given.env);
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_runtime::Rootfs;

    #[test]
    fn names_are_told_from_paths() {
        assert!(is_name("vendor.com/class=gpu0") && is_name("nvidia.com/gpu=all"));
        assert!(
            !is_name("/dev/fuse") && !is_name("/dev/odd=name/x=y") && !is_name("x=y") && !is_name("fuse")
        );
    }

    #[test]
    fn a_device_that_two_names_bring_is_there_once() {
        let identity = berth_client::users::own_identity().unwrap();
        let mut request = ContainerRequest::new(Rootfs::Dir("/x".into()), identity, "/".into());
        let given = |env: &str| Given {
            devices: vec!["/dev/null".into()],
            env: vec![env.into()],
            ..Given::default()
        };
        add(&mut request, given("A=1"));
        add(&mut request, given("B=1"));
        assert_eq!((request.devices.len(), request.image.env.len()), (1, 2));
    }
}
