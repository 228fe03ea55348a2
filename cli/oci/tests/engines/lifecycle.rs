//! Operations, states and hooks: runtime.md, and "POSIX-platform Hooks" of config.md.

use crate::{call, cases, compare, hook, run, sleeping, status, until};
use berth_tests::{Bundle, Who};
use serde_json::{Value, json};

cases! {
    both {
        create_runs_nothing_and_start_runs_the_program(b) = "created false running true" {
            b.script("echo ran > /tmp/mark; exec sleep 1000");
            b.oci(&["create", "c"]).ok();
            let mark = b.path("rootfs/tmp/mark");
            let before = (status(b), mark.exists());
            b.oci(&["start", "c"]).ok();
            b.sandbox.wait_file("rootfs/tmp/mark", "ran", 20);
            format!("{} {} {} {}", before.0, before.1, status(b), mark.exists())
        }

        an_id_in_use_makes_no_container(b) = "error created" {
            b.oci(&["create", "c"]).ok();
            format!("{} {}", call(b, &["create", "c"]), status(b))
        }

        an_invalid_id_makes_no_container(b) = "error error" {
            format!("{} {}", call(b, &["create", "a/b"]), call(b, &["create", ".."]))
        }

        a_running_container_is_not_started(b) = "error running" {
            sleeping(b);
            format!("{} {}", call(b, &["start", "c"]), status(b))
        }

        a_stopped_container_is_neither_started_nor_killed(b) = "error error stopped" {
            sleeping(b);
            b.oci(&["kill", "c", "KILL"]).ok();
            until(b, "stopped");
            format!("{} {} {}", call(b, &["start", "c"]), call(b, &["kill", "c", "TERM"]), status(b))
        }

        // The specification wants an error; both follow runc and crun, because nothing of the program is lost.
        a_created_container_is_deleted(b) = "ok gone" {
            b.oci(&["create", "c"]).ok();
            format!("{} {}", call(b, &["delete", "c"]), status(b))
        }

        a_running_container_is_not_deleted(b) = "error running" {
            sleeping(b);
            format!("{} {}", call(b, &["delete", "c"]), status(b))
        }

        a_container_that_is_not_there(b) = "error error error error" {
            let words = [&["state", "c"][..], &["start", "c"], &["kill", "c", "TERM"], &["delete", "c"]];
            words.map(|w| call(b, w)).join(" ")
        }

        a_signal_that_is_ignored_leaves_the_container_running(b) = "running" {
            sleeping(b);
            b.oci(&["kill", "c", "URG"]).ok();
            status(b)
        }

        a_signal_leaves_a_created_container_created(b) = "created ok" {
            b.oci(&["create", "c"]).ok();
            b.oci(&["kill", "c", "CONT"]).ok();
            format!("{} {}", status(b), call(b, &["start", "c"]))
        }

        the_signal_is_the_one_that_was_asked_for(b) = "usr1" {
            b.script("trap 'echo usr1 > /tmp/got; exit' USR1; echo ready > /tmp/ready; while :; do sleep 0.1; done");
            b.oci(&["run", "--detach", "c"]).ok();
            b.sandbox.wait_file("rootfs/tmp/ready", "ready", 20);
            b.oci(&["kill", "c", "USR1"]).ok();
            until(b, "stopped");
            b.sandbox.read("rootfs/tmp/got").trim().into()
        }

        a_real_time_signal(b) = "ok got 36" {
            b.script("trap 'echo got 36 > /tmp/got; exit' 36; echo ready > /tmp/ready; while :; do sleep 0.1; done");
            b.oci(&["run", "--detach", "c"]).ok();
            b.sandbox.wait_file("rootfs/tmp/ready", "ready", 20);
            let said = call(b, &["kill", "c", "RTMIN+2"]);
            if said != "ok" {
                return said;
            }
            until(b, "stopped");
            format!("{said} {}", b.sandbox.read("rootfs/tmp/got").trim())
        }

        an_id_is_free_after_delete(b) = "ok gone ok" {
            sleeping(b);
            b.oci(&["kill", "c", "KILL"]).ok();
            until(b, "stopped");
            format!("{} {} {}", call(b, &["delete", "c"]), status(b), call(b, &["create", "c"]))
        }

        a_change_of_the_configuration_after_create_has_no_effect(b) = "old" {
            b.script("echo old > /tmp/out").oci(&["create", "c"]).ok();
            b.script("echo new > /tmp/out").oci(&["start", "c"]).ok();
            until(b, "stopped");
            b.sandbox.read("rootfs/tmp/out").trim().into()
        }

        a_program_that_is_missing_makes_no_container(b) = "error gone" {
            b.set(|c| c["process"]["args"] = json!(["/nothing"]));
            format!("{} {}", call(b, &["create", "c"]), status(b))
        }

        without_a_process_create_succeeds_and_start_fails(b) = "ok created error" {
            b.set(|c| {
                c.as_object_mut().unwrap().remove("process");
            });
            format!("{} {} {}", call(b, &["create", "c"]), status(b), call(b, &["start", "c"]))
        }

        the_exit_code_is_the_programs(b) = "exit 7" {
            b.script("exit 7");
            run(b)
        }

        the_state_has_what_is_required(b) = "true c created true true value" {
            b.set(|c| c["annotations"] = json!({"org.example.key": "value"}));
            b.oci(&["create", "c"]).ok();
            let state: Value = serde_json::from_str(&b.oci(&["state", "c"]).ok().text()).unwrap();
            let pid = state["pid"].as_i64().unwrap_or_default();
            format!(
                "{} {} {} {} {} {}",
                state["ociVersion"].is_string(),
                state["id"].as_str().unwrap_or_default(),
                state["status"].as_str().unwrap_or_default(),
                std::path::Path::new(&format!("/proc/{pid}")).exists(),
                state["bundle"] == json!(b.sandbox.work()),
                state["annotations"]["org.example.key"].as_str().unwrap_or_default(),
            )
        }

        hooks_run_in_order_and_get_the_state(b) =
            "prestart:created createRuntime:created createContainer:created startContainer:created poststart:running poststop:stopped"
        {
            let log = b.path("log");
            let note = |name: &str, file: &str| {
                format!("s=$(cat | tr -d ' '); echo {name}:$(echo \"$s\" | grep -o '\"status\":\"[a-z]*\"' | grep -o '[a-z]*\"$' | tr -d '\"') >> {file}")
            };
            let mut hooks = json!({});
            for name in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
                hooks[name] = hook(&note(name, &log.display().to_string()));
            }
            hooks["startContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", note("startContainer", "/tmp/log")], "env": ["PATH=/bin"]}]);
            b.script("cat /tmp/log; sleep 0.5").set(|c| c["hooks"] = hooks);
            let inside = run(b);
            let mut lines: Vec<String> = b.sandbox.read("log").lines().map(String::from).collect();
            lines.insert(3.min(lines.len()), inside);
            lines.join(" ")
        }

        a_create_runtime_hook_that_fails_ends_the_container(b) = "error gone" {
            b.set(|c| c["hooks"] = json!({"createRuntime": hook("exit 3")}));
            format!("{} {}", call(b, &["create", "c"]), status(b))
        }

        a_hook_that_takes_longer_than_its_timeout_ends_the_container(b) = "error gone" {
            let slow = json!([{"path": "/bin/sh", "args": ["sh", "-c", "exec sleep 1000"], "timeout": 1}]);
            b.set(|c| c["hooks"] = json!({"createRuntime": slow}));
            format!("{} {}", call(b, &["create", "c"]), status(b))
        }

        after_a_start_container_hook_that_fails_the_other_hooks_run(b) = "error stopped poststart:stopped poststop:stopped" {
            let log = b.path("log");
            let note = |name: &str| hook(&format!("s=$(cat | tr -d ' '); echo {name}:$(echo \"$s\" | sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') >> {}", log.display()));
            let mut hooks = json!({"poststart": note("poststart"), "poststop": note("poststop")});
            hooks["startContainer"] = hook("exit 3");
            b.script("exec sleep 1000").set(|c| c["hooks"] = hooks);
            b.oci(&["create", "c"]).ok();
            let started = call(b, &["start", "c"]);
            until(b, "stopped");
            let ended = status(b);
            b.oci(&["delete", "c"]).ok();
            let lines: Vec<String> = b.sandbox.read("log").lines().map(String::from).collect();
            format!("{started} {ended} {}", lines.join(" "))
        }

        a_poststart_hook_that_fails_ends_the_container(b) = "error stopped" {
            b.script("exec sleep 1000").set(|c| c["hooks"] = json!({"poststart": hook("exit 3")}));
            b.oci(&["create", "c"]).ok();
            format!("{} {}", call(b, &["start", "c"]), status(b))
        }

        a_poststop_hook_that_fails_is_a_warning(b) = "ok gone" {
            b.script("exec sleep 1000").set(|c| c["hooks"] = json!({"poststop": hook("exit 3")}));
            b.oci(&["run", "--detach", "c"]).ok();
            b.oci(&["kill", "c", "KILL"]).ok();
            until(b, "stopped");
            format!("{} {}", call(b, &["delete", "c"]), status(b))
        }

        a_hook_has_the_variables_of_the_configuration_alone(b) = "A=b" {
            let log = b.path("log");
            let script = format!("/usr/bin/env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= | /usr/bin/sort > {}", log.display());
            let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"]}]);
            b.script("true").set(|c| c["hooks"] = json!({"createRuntime": hook}));
            run(b);
            b.sandbox.read("log").trim().into()
        }

        another_process_joins_a_running_container(b) = "in exit 5" {
            sleeping(b);
            let said = call(b, &["exec", "c", "sh", "-c", "test -d /proc/1 && grep -q 'sleep.1000' /proc/1/cmdline && echo in"]);
            format!("{said} {}", call(b, &["exec", "c", "sh", "-c", "exit 5"]))
        }
    }

    as_root {
        a_paused_container_goes_on_when_it_is_resumed(b) = "ok paused ok running" {
            sleeping(b);
            let paused = (call(b, &["pause", "c"]), status(b));
            format!("{} {} {} {}", paused.0, paused.1, call(b, &["resume", "c"]), status(b))
        }
    }
}
