//! Whole configurations: what is planned, and what is refused by name.

use super::*;
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"]},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"}]},
    })
}

fn planned(change: impl FnOnce(&mut Value)) -> Result<ContainerPlan> {
    let mut config = base();
    change(&mut config);
    let facts = Facts { bundle: "/bundle".into(), privileged: true, selinux: true, apparmor: false };
    plan(&serde_json::from_value(config).unwrap(), &facts)
}

#[test]
fn a_plain_container() {
    let p = planned(|_| {}).unwrap();
    assert_eq!(p.root, Path::new("/bundle/rootfs"));
    assert_eq!(p.new, libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC);
    assert!(p.standard_devices && p.process.unwrap().args == ["sh"]);
    let p = planned(|c| {
        c["linux"]["sysctl"] = json!({"kernel.shmmax": "1", "fs/mqueue/msg_max": "2"});
        c["mounts"] = json!([{"destination": "/dev", "source": "/dev", "options": ["bind"]}]);
    })
    .unwrap();
    assert_eq!(p.sysctl, [("fs/mqueue/msg_max".into(), "2".into()), ("kernel/shmmax".into(), "1".into())]);
    assert!(!p.standard_devices);
}

/// A change of the configuration.
type Change = Box<dyn FnOnce(&mut Value)>;

#[test]
fn refused_by_name() {
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|c| c["ociVersion"] = json!("2.0.0")), "ociVersion"),
        (Box::new(|c| drop(c.as_object_mut().unwrap().remove("root"))), "root"),
        (
            Box::new(|c| {
                c["linux"]["namespaces"] = json!([{"type": "user"}]);
                for maps in ["uidMappings", "gidMappings"] {
                    c["linux"][maps] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
                }
            }),
            "mount namespace",
        ),
        (
            Box::new(|c| c["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "mount"}])),
            "mount twice",
        ),
        (Box::new(|c| c["linux"]["namespaces"][0]["path"] = json!("x")), "not absolute"),
        (
            Box::new(|c| c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}])),
            "user namespace",
        ),
        (Box::new(|c| c["linux"]["namespaces"][3] = json!({"type": "user"})), "uidMappings"),
        (Box::new(|c| c["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/x"})), "core_pattern"),
        (Box::new(|c| c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"})), "network namespace"),
        (Box::new(|c| c["linux"]["sysctl"] = json!({"kernel.shm/../../core_pattern": "1"})), "linux.sysctl"),
        (Box::new(|c| c["linux"]["sysctl"] = json!({"net/../kernel/core_pattern": "1"})), "linux.sysctl"),
        (Box::new(|c| c["linux"]["rootfsPropagation"] = json!("open")), "rootfsPropagation"),
        (Box::new(|c| c["linux"]["maskedPaths"] = json!(["../kcore"])), ".."),
        (Box::new(|c| c["linux"]["readonlyPaths"] = json!(["/proc/../../x"])), ".."),
        (Box::new(|c| c["linux"]["mountLabel"] = json!("x")), "mountLabel"),
        (Box::new(|c| c["linux"]["intelRdt"] = json!({})), "intelRdt"),
        (Box::new(|c| c["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}})), "timeOffsets"),
        (
            Box::new(|c| {
                c["linux"]["devices"] = json!([{"path": "/d", "type": "c", "major": -1, "minor": 0}])
            }),
            "/d",
        ),
        (Box::new(|c| c["hooks"] = json!({"poststop": [{"path": "x"}]})), "hook"),
        (Box::new(|c| c["hooks"] = json!({"poststop": [{"path": "/x", "timeout": 0}]})), "timeout"),
        (
            Box::new(|c| {
                c["linux"]["namespaces"] = json!([{"type": "mount"}]);
                c["hostname"] = json!("x");
            }),
            "hostname",
        ),
    ];
    for (change, word) in cases {
        let error = planned(change).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn an_ordinary_user_needs_a_user_namespace() {
    let facts = Facts { bundle: "/b".into(), privileged: false, ..Facts::default() };
    let error = plan(&serde_json::from_value(base()).unwrap(), &facts).unwrap_err().to_string();
    assert!(error.contains("user namespace"), "{error}");
}

#[test]
fn ids_must_be_mapped() {
    let error = planned(|c| {
        c["linux"]["namespaces"][3] = json!({"type": "user"});
        for maps in ["uidMappings", "gidMappings"] {
            c["linux"][maps] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        }
        c["process"]["user"]["uid"] = json!(5);
    });
    assert!(error.unwrap_err().to_string().contains("process.user.uid 5"));
}
