//! What is the same on every platform: process, root, mounts, versions and unknown properties (config.md).

use crate::{call, cases, compare, run};
use berth_tests::{Bundle, Who, machine};
use serde_json::json;
use std::os::unix::fs::symlink;

fn mount(b: &mut Bundle, mount: serde_json::Value) {
    b.set(|c| c["mounts"].as_array_mut().unwrap().push(mount));
}

cases! {
    both {
        the_environment_is_the_configurations(b) = "A=b PATH=/bin" {
            b.set(|c| {
                c["process"]["env"] = json!(["PATH=/bin", "A=b"]);
                c["process"]["args"] = json!(["env"]);
            });
            let mut lines: Vec<String> = run(b).lines().map(String::from).collect();
            lines.sort();
            lines.join(" ")
        }

        a_path_variable_is_not_required(b) = "A=b" {
            b.set(|c| {
                c["process"]["env"] = json!(["A=b"]);
                c["process"]["args"] = json!(["/bin/busybox", "env"]);
            });
            run(b)
        }

        user_groups_and_umask(b) = "as configured 0027" {
            let ids = if b.sandbox.who().is_root() { (5, 6, json!([7])) } else { (0, 0, json!([])) };
            b.script("echo $(id -u) $(id -g) $(grep Groups /proc/self/status | wc -w) $(umask)").set(|c| {
                c["process"]["user"] = json!({"uid": ids.0, "gid": ids.1, "umask": 0o27, "additionalGids": ids.2});
            });
            let said = run(b);
            match said.strip_prefix(&format!("{} {} ", ids.0, ids.1)) {
                Some(rest) if !b.sandbox.who().is_root() || rest.starts_with("2 ") => {
                    format!("as configured {}", rest.rsplit(' ').next().unwrap_or_default())
                }
                _ => said,
            }
        }

        the_working_directory(b) = "/tmp" {
            b.script("pwd").set(|c| c["process"]["cwd"] = json!("/tmp"));
            run(b)
        }

        a_working_directory_that_is_missing_is_made(b) = "/tmp/made/here" {
            b.script("pwd").set(|c| c["process"]["cwd"] = json!("/tmp/made/here"));
            run(b)
        }

        a_relative_working_directory_is_refused(b) = "error" {
            b.script("true").set(|c| c["process"]["cwd"] = json!("tmp"));
            run(b)
        }

        five_sets_of_capabilities(b) =
            "CapInh: 0000000000000020 CapPrm: 0000000000000420 CapEff: 0000000000000420 CapBnd: 0000000000000420 CapAmb: 0000000000000020"
        {
            let (all, kept) = (json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]), json!(["CAP_KILL"]));
            b.script("exec grep ^Cap /proc/self/status").set(|c| {
                c["process"]["capabilities"] = json!({"bounding": all, "permitted": all, "effective": all, "inheritable": kept, "ambient": kept});
            });
            run(b)
        }

        an_unknown_capability_is_a_warning(b) = "ok" {
            b.script("true").set(|c| c["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_NONE"]));
            run(b)
        }

        no_new_privileges(b) = "NoNewPrivs: 1" {
            b.script("grep NoNewPrivs /proc/self/status").set(|c| c["process"]["noNewPrivileges"] = json!(true));
            run(b)
        }

        resource_limits(b) = "100 200" {
            b.script("ulimit -Sn; ulimit -Hn")
                .set(|c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]));
            run(b)
        }

        a_resource_limit_twice_is_refused(b) = "error" {
            let one = json!({"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200});
            b.script("true").set(|c| c["process"]["rlimits"] = json!([one, one]));
            run(b)
        }

        an_unknown_resource_limit_is_refused(b) = "error" {
            b.script("true").set(|c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NONE", "soft": 1, "hard": 2}]));
            run(b)
        }

        the_score_for_running_out_of_memory(b) = "500" {
            b.script("cat /proc/self/oom_score_adj").set(|c| c["process"]["oomScoreAdj"] = json!(500));
            run(b)
        }

        a_terminal_needs_somebody_to_take_it(b) = "error" {
            b.script("true").set(|c| c["process"]["terminal"] = json!(true));
            call(b, &["create", "c"])
        }

        a_root_that_is_read_only(b) = "read-only" {
            b.script("touch /x 2>/dev/null && echo writable || echo read-only").set(|c| c["root"]["readonly"] = json!(true));
            run(b)
        }

        a_root_that_is_missing_is_refused(b) = "error" {
            b.script("true").set(|c| c["root"]["path"] = json!("none"));
            run(b)
        }

        a_bind_mount_from_the_bundle(b) = "content read-only" {
            std::fs::create_dir(b.path("source")).unwrap();
            std::fs::write(b.path("source/file"), "content\n").unwrap();
            machine::give(&b.path("source"), b.sandbox.who());
            b.script("cat /bound/file; touch /bound/x 2>/dev/null && echo writable || echo read-only");
            mount(b, json!({"destination": "/bound", "type": "bind", "source": "source", "options": ["bind", "ro"]}));
            run(b)
        }

        a_bind_mount_of_a_file(b) = "content" {
            std::fs::write(b.path("file"), "content").unwrap();
            b.script("cat /one/file.txt");
            let source = b.path("file");
            mount(b, json!({"destination": "/one/file.txt", "type": "bind", "source": source, "options": ["bind", "ro"]}));
            run(b)
        }

        a_bind_mount_by_its_option_alone(b) = "content" {
            std::fs::write(b.path("file"), "content").unwrap();
            b.script("cat /one/file.txt");
            let source = b.path("file");
            mount(b, json!({"destination": "/one/file.txt", "source": source, "options": ["bind"]}));
            run(b)
        }

        a_tmpfs_with_its_options(b) = "711 nodev nosuid noexec" {
            b.script(
                "stat -c %a /small; for o in nodev nosuid noexec; do grep ' /small ' /proc/self/mountinfo | grep -q $o && echo $o; done",
            );
            mount(b, json!({"destination": "/small", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec", "size=64k", "mode=711"]}));
            run(b)
        }

        mounts_are_made_in_the_order_of_the_list(b) = "second" {
            for name in ["first", "second"] {
                std::fs::create_dir(b.path(name)).unwrap();
                std::fs::write(b.path(name).join("name"), name).unwrap();
                let source = b.path(name);
                mount(b, json!({"destination": "/tmp", "type": "bind", "source": source, "options": ["bind"]}));
            }
            b.script("cat /tmp/name");
            run(b)
        }

        a_relative_destination_is_below_the_root(b) = "mounted" {
            b.script("grep -q ' /mnt/relative ' /proc/self/mountinfo && echo mounted");
            mount(b, json!({"destination": "mnt/relative", "type": "tmpfs", "source": "tmpfs"}));
            run(b)
        }

        a_mount_source_that_is_missing_is_refused(b) = "error" {
            b.script("true");
            mount(b, json!({"destination": "/x", "type": "bind", "source": "/nothing/here", "options": ["bind"]}));
            run(b)
        }

        an_option_that_the_file_system_does_not_know_is_refused(b) = "error" {
            b.script("true");
            mount(b, json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["nonsense"]}));
            run(b)
        }

        a_link_in_the_root_leads_no_mount_outside(b) = "0" {
            let outside = b.path("outside");
            std::fs::create_dir(&outside).unwrap();
            machine::give(&outside, b.sandbox.who());
            symlink(format!("../../../../../..{}", outside.display()), b.path("rootfs/out")).unwrap();
            b.script("true");
            mount(b, json!({"destination": "/out/made/here", "type": "tmpfs", "source": "tmpfs"}));
            run(b);
            std::fs::read_dir(outside).unwrap().count().to_string()
        }

        an_unknown_property_is_ignored(b) = "on" {
            b.script("echo on").set(|c| {
                c["org.example"] = json!({"x": 1});
                c["linux"]["example"] = json!("x");
                c["process"]["example"] = json!([]);
            });
            run(b)
        }

        a_version_that_does_not_exist_is_refused(b) = "error" {
            b.script("true").set(|c| c["ociVersion"] = json!("3.0.0"));
            run(b)
        }

        a_configuration_without_a_version_is_refused(b) = "error" {
            b.script("true").set(|c| {
                c.as_object_mut().unwrap().remove("ociVersion");
            });
            run(b)
        }

        an_invalid_value_is_refused(b) = "error" {
            b.script("true").set(|c| c["linux"]["rootfsPropagation"] = json!("nonsense"));
            run(b)
        }
    }

    as_root {}
}
