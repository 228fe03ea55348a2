//! Who may say which machines belong to the cluster: tokens, machines and the audit log, by the commands.

use berth_tests::{Sandbox, Who, each_user};
use serde_json::Value;

/// Tests side by side must not want the same port.
const ANY_PORT: &str = "listen = \"127.0.0.1:0\"\n";

fn json(sandbox: &Sandbox, words: &[&str]) -> Value {
    serde_json::from_str(&sandbox.cmd("berth").args(words).arg("--json").ok().text()).unwrap()
}

each_user! {
    fn tokens_are_made_listed_and_revoked_and_it_is_on_record(who) {
        let sandbox = Sandbox::with_config(who.clone(), ANY_PORT);
        let made = sandbox.cmd("berth").args(["token", "create", "--uses", "3", "--ttl", "2h", "--approval"]).ok();
        let text = made.text();
        let tokens = json(&sandbox, &["token", "ls"]);
        let id = tokens[0]["id"].as_str().unwrap();
        let secret = text.split('.').skip_while(|part| *part != id).nth(1).unwrap_or_else(|| panic!("{made}"));
        assert!(secret.len() > 40, "{made}");
        assert!(made.err().contains(id) && made.err().contains("3 machines"), "{made}");
        assert!(!made.err().contains(secret), "the secret is in what people paste into tickets\n{made}");
        assert_eq!(tokens.as_array().unwrap().len(), 1, "{tokens}");
        let token = &tokens[0];
        assert_eq!((&token["id"], &token["role"], &token["uses_left"]), (&id.into(), &"compute".into(), &3.into()));
        assert_eq!((&token["by"], &token["approval"]), (&who.name.as_str().into(), &true.into()));
        let life = token["expires"].as_i64().unwrap() - token["created"].as_i64().unwrap();
        assert_eq!(life, 7200);
        let shown = sandbox.cmd("berth").args(["token", "ls"]).ok().text();
        assert!(shown.contains(id) && shown.contains("approval") && !shown.contains(secret), "{shown}");

        // The secret is nowhere in the state, nor in the controller's log.
        let found = sandbox.cmd("grep").args(["-rlaF", secret]).arg(sandbox.state()).run();
        assert_eq!(found.text(), "", "the secret of a token was written down");

        // All of the token may be given; a second time there is none.
        sandbox.cmd("berth").args(["token", "revoke", &text]).ok();
        sandbox.cmd("berth").args(["token", "revoke", id]).fails().says(&["there is no token", id]);
        assert_eq!(json(&sandbox, &["token", "ls"]), Value::Array(vec![]));

        for (words, says) in [
            (&["--ttl", "31d"][..], "30 days"),
            (&["--ttl", "1s"], "1 minute"),
            (&["--uses", "0"], "--uses"),
            (&["--administrators"], "--role login"),
        ] {
            sandbox.cmd("berth").args(["token", "create"]).args(words).fails().says(&[says]);
        }

        // The controller's own machine is listed, and stays while its agent is there.
        let node = sandbox.node();
        let nodes = json(&sandbox, &["node", "ls"]);
        assert_eq!((&nodes[0]["name"], &nodes[0]["state"]), (&node.as_str().into(), &"own".into()), "{nodes}");
        sandbox.cmd("berth").args(["node", "remove", "--force", &node]).fails().says(&["agent is connected"]);
        sandbox.cmd("berth").args(["node", "approve", "nobody"]).fails().says(&["no machine nobody"]);

        let name = format!("NodeName={node}");
        sandbox.cmd("scontrol").args(["update", &name, "State=DRAIN", "Reason=the fan"]).ok();
        let log = json(&sandbox, &["audit"]);
        let what: Vec<&str> = log.as_array().unwrap().iter().map(|e| e["what"].as_str().unwrap()).collect();
        let expected = [
            format!("made token {id} for 3 compute nodes, to be approved"),
            format!("revoked token {id}"),
            format!("set {node} to DRAIN: the fan"),
        ];
        assert_eq!(what, expected, "{log}");
        assert!(log.as_array().unwrap().iter().all(|e| e["user"] == who.name.as_str()), "{log}");
        let last = sandbox.cmd("berth").args(["audit", "-n", "1"]).ok().text();
        assert!(last.contains("the fan") && !last.contains("revoked"), "{last}");
    }

    fn tokens_and_the_log_outlive_the_controller(who) {
        let mut sandbox = Sandbox::with_config(who, ANY_PORT);
        sandbox.cmd("berth").args(["token", "create"]).ok();
        sandbox.down();
        sandbox.up();
        let log = json(&sandbox, &["audit"]);
        assert!(log[0]["what"].as_str().unwrap().starts_with("made token"), "{log}");
        sandbox.cmd("berth").args(["token", "create", "--role", "login"]).ok();
        let log = json(&sandbox, &["audit"]);
        let numbers: Vec<u64> = log.as_array().unwrap().iter().map(|e| e["number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [1, 2], "{log}");
        assert_eq!(json(&sandbox, &["token", "ls"]).as_array().unwrap().len(), 2);
    }
}

#[test]
fn others_say_nothing_about_machines_and_read_no_log_as_root() {
    let sandbox = Sandbox::with_config(Who::root(), ANY_PORT);
    sandbox.cmd("berth").args(["token", "create"]).ok();
    let tokens = json(&sandbox, &["token", "ls"]);
    let id = tokens[0]["id"].as_str().unwrap();
    let user = Who::user();
    let node = sandbox.node();
    for words in [
        &["token", "create"][..],
        &["token", "ls"],
        &["token", "revoke", id],
        &["node", "approve", &node],
        &["node", "remove", &node],
        &["audit"],
    ] {
        let refused = sandbox.cmd_as(&user, "berth").dir("/").args(words).fails();
        refused.says(&["only for administrators"]);
    }
    // Who belongs to the cluster is no secret.
    let nodes = sandbox.cmd_as(&user, "berth").dir("/").args(["node", "ls"]).ok().text();
    assert!(nodes.contains(&node), "{nodes}");

    // What root does to a user's job is on record; what users do to theirs is not.
    let submit = || {
        let held = sandbox.cmd_as(&user, "sbatch").dir("/").args([
            "--parsable",
            "--hold",
            "-o",
            "/dev/null",
            "--wrap",
            ":",
        ]);
        held.ok().text()
    };
    let (first, second) = (submit(), submit());
    sandbox.cmd_as(&user, "scancel").dir("/").arg(&second).ok();
    sandbox.cmd("scancel").arg(&first).ok();
    let log = json(&sandbox, &["audit"]);
    let entries = log.as_array().unwrap();
    assert_eq!(entries.len(), 2, "{log}");
    assert_eq!(entries[1]["what"], format!("cancelled job {first} of {}", user.name), "{log}");
    assert_eq!((&entries[1]["user"], &entries[1]["uid"]), (&"root".into(), &0.into()), "{log}");
}

#[test]
fn config_show_says_what_is_in_force_without_a_value_as_root() {
    let sandbox = Sandbox::with_config(Who::root(), ANY_PORT);
    let shown = sandbox.cmd("berth").args(["config", "show"]).ok().text();
    assert!(shown.contains("# root_jobs is not set"), "{shown}");
    // It can be given back as it is.
    let file = sandbox.write("shown.toml", shown);
    sandbox.cmd("berth").args(["config", "check"]).arg(&file).ok();
    let set = Sandbox::with_config(Who::root(), "root_jobs = false\n");
    assert!(set.cmd("berth").args(["config", "show"]).ok().text().contains("root_jobs = false"));
    set.srun(["true"]).fails().says(&["root_jobs = false"]);
}
