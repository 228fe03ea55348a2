//! Namespaces, devices, control groups and what else only Linux has (config-linux.md).

use crate::{call, cases, compare, run, sleeping};
use berth_tests::{Bundle, Cmd, Who};
use serde_json::{Value, json};

/// Asks for a namespace, unless it is there already.
fn namespace(c: &mut Value, kind: &str) {
    let list = c["linux"]["namespaces"].as_array_mut().unwrap();
    if list.iter().all(|n| n["type"] != kind) {
        list.push(json!({"type": kind}));
    }
}

/// Asks for no such namespace.
fn without(c: &mut Value, kind: &str) {
    c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
}

cases! {
    both {
        namespaces_are_new_where_they_are_asked_for(b) = "ipc:new mnt:new net:new pid:new uts:new" {
            b.script("for n in ipc mnt net pid uts; do echo $n $(readlink /proc/self/ns/$n); done").set(|c| namespace(c, "network"));
            let mut words = Vec::new();
            for line in run(b).lines() {
                let (kind, link) = line.split_once(' ').unwrap_or((line, ""));
                let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
                words.push(format!("{kind}:{}", if own == std::path::Path::new(link) { "inherited" } else { "new" }));
            }
            words.join(" ")
        }

        a_namespace_that_is_not_asked_for_is_inherited(b) = "true" {
            b.script("readlink /proc/self/ns/ipc").set(|c| {
                without(c, "ipc");
                c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "mqueue");
            });
            let said = run(b);
            (said == std::fs::read_link("/proc/self/ns/ipc").unwrap().display().to_string()).to_string()
        }

        a_namespace_twice_is_refused(b) = "error" {
            b.script("true").set(|c| c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"})));
            run(b)
        }

        host_and_domain_name(b) = "inside example.org" {
            b.script("hostname; cat /proc/sys/kernel/domainname").set(|c| {
                c["hostname"] = json!("inside");
                c["domainname"] = json!("example.org");
            });
            run(b)
        }

        devices_that_every_container_has(b) = "1:3 1:5 1:7 1:8 1:9 5:0" {
            b.script("stat -c %t:%T /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty");
            run(b)
        }

        links_in_dev_and_its_terminals(b) = "/proc/self/fd /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 5:2" {
            b.script("for l in fd stdin stdout stderr; do readlink /dev/$l; done; stat -L -c %t:%T /dev/ptmx");
            run(b)
        }

        masked_and_read_only_paths(b) = "0 read-only" {
            std::fs::create_dir_all(b.path("rootfs/secret")).unwrap();
            std::fs::write(b.path("rootfs/secret/a"), "hidden").unwrap();
            std::fs::write(b.path("rootfs/plain"), "hidden").unwrap();
            std::fs::create_dir(b.path("rootfs/fixed")).unwrap();
            berth_tests::bundle::give_all(&b.path("rootfs/fixed"), b.sandbox.who());
            b.script("echo $(ls /secret | wc -l)$(cat /plain); touch /fixed/x 2>/dev/null && echo writable || echo read-only").set(|c| {
                c["linux"]["maskedPaths"] = json!(["/secret", "/plain", "/missing/x"]);
                c["linux"]["readonlyPaths"] = json!(["/fixed", "/missing"]);
            });
            run(b)
        }

        a_kernel_parameter_of_a_namespace(b) = "77" {
            b.script("cat /proc/sys/net/ipv4/ip_default_ttl").set(|c| {
                namespace(c, "network");
                c["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "77"});
            });
            run(b)
        }

        a_kernel_parameter_of_the_node_is_refused(b) = "error" {
            b.script("true").set(|c| c["linux"]["sysctl"] = json!({"kernel.core_pattern": "core"}));
            run(b)
        }

        a_personality(b) = "i686" {
            b.script("uname -m").set(|c| c["linux"]["personality"] = json!({"domain": "LINUX32"}));
            run(b)
        }

        an_offset_of_the_clock(b) = "true" {
            b.script("cat /proc/uptime").set(|c| {
                namespace(c, "time");
                c["linux"]["timeOffsets"] = json!({"boottime": {"secs": 100_000_000, "nanosecs": 0}});
            });
            let said = run(b);
            match said.split('.').next().and_then(|n| n.parse::<u64>().ok()) {
                Some(seconds) => (seconds >= 100_000_000).to_string(),
                None => said,
            }
        }

        a_filter_of_system_calls(b) = "No space left on device" {
            b.script("mkdir /tmp/d 2>&1 | grep -o 'No space left on device'").set(|c| {
                c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]});
            });
            run(b)
        }
    }

    as_root {
        a_device_of_the_configuration(b) = "1:3 600 5:6" {
            b.script("stat -c '%t:%T %a %u:%g' /dev/mine").set(|c| {
                c["linux"]["devices"] = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5, "gid": 6}]);
            });
            run(b)
        }

        a_file_in_the_place_of_a_device_is_refused(b) = "error" {
            std::fs::write(b.path("rootfs/mine"), "x").unwrap();
            b.script("true").set(|c| c["linux"]["devices"] = json!([{"path": "/mine", "type": "c", "major": 1, "minor": 3}]));
            run(b)
        }

        a_root_that_propagates(b) = "shared" {
            b.script("grep ' / / ' /proc/self/mountinfo | grep -o shared; grep -E '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo | grep -o -m1 shared")
                .set(|c| c["linux"]["rootfsPropagation"] = json!("shared"));
            run(b).lines().next().unwrap_or_default().into()
        }

        a_namespace_is_joined_by_its_path(b) = "the other container's" {
            b.set(|c| c["hostname"] = json!("theirs"));
            sleeping(b);
            let state: Value = serde_json::from_str(&b.oci(&["state", "c"]).ok().text()).unwrap();
            let path = format!("/proc/{}/ns/uts", state["pid"]);
            b.script("hostname").set(|c| {
                c.as_object_mut().unwrap().remove("hostname");
                without(c, "uts");
                c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "uts", "path": path}));
                c["linux"]["cgroupsPath"] = json!(format!("{}-d", c["linux"]["cgroupsPath"].as_str().unwrap()));
            });
            let said = call(b, &["run", "d"]);
            if said == "theirs" { "the other container's".into() } else { said }
        }

        a_namespace_of_another_kind_is_refused(b) = "error" {
            b.script("true").set(|c| {
                without(c, "uts");
                c.as_object_mut().unwrap().remove("hostname");
                c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "uts", "path": "/proc/self/ns/ipc"}));
            });
            run(b)
        }

        a_user_namespace_with_its_mappings(b) = "0 100000 1000 0 0" {
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
            let owner = Cmd::new("chown").args(["-hR", "100000:100000"]).arg(b.path("rootfs")).ok();
            assert!(owner.err().is_empty(), "{owner}");
            b.script("echo $(cat /proc/self/uid_map) $(id -u) $(id -g)").set(|c| {
                namespace(c, "user");
                c["linux"]["uidMappings"] = map.clone();
                c["linux"]["gidMappings"] = map.clone();
            });
            run(b)
        }

        control_groups_and_their_limits(b) = "20 67108864 gone" {
            let path = b.config["linux"]["cgroupsPath"].as_str().unwrap().to_string();
            b.set(|c| c["linux"]["resources"] = json!({"pids": {"limit": 20}, "memory": {"limit": 67_108_864}}));
            sleeping(b);
            let read = |names: [&str; 2]| {
                let found = names.iter().find_map(|n| std::fs::read_to_string(format!("/sys/fs/cgroup/{}", n.replace('%', &path))).ok());
                found.unwrap_or_else(|| "absent".into()).trim().to_string()
            };
            let pids = read(["pids%/pids.max", "%/pids.max"]);
            let memory = read(["memory%/memory.limit_in_bytes", "%/memory.max"]);
            b.oci(&["delete", "--force", "c"]).ok();
            let left = Cmd::new("find").args(["/sys/fs/cgroup", "-maxdepth", "2", "-name", &path[1..]]).ok().text();
            format!("{pids} {memory} {}", if left.is_empty() { "gone" } else { &left })
        }
    }
}
