//! Roles by the commands: operators and coordinators do what is theirs and nothing more, and the log says as what they did it.

use berth_tests::{Cmd, Sandbox, Who, machine};
use serde_json::Value;

/// What somebody runs, in a directory where everybody may be.
fn by(sandbox: &Sandbox, who: &Who, program: &str, words: &[&str]) -> Cmd {
    sandbox.cmd_as(who, program).dir("/").args(words)
}

/// Submits a job of somebody's; its id.
fn submit(sandbox: &Sandbox, who: &Who, options: &[&str], command: &str) -> String {
    let words = ["--parsable", "-n1", "--mem=64M", "-o", "/dev/null"];
    by(sandbox, who, "sbatch", &words).args(options).args(["--wrap", command]).ok().text()
}

/// Has another `berth.toml` in force.
fn configure(sandbox: &Sandbox, text: &str) {
    let path = sandbox.state().join("berth.toml");
    std::fs::write(&path, text).unwrap();
    machine::give(&path, sandbox.who());
    sandbox.cmd("scontrol").arg("reconfigure").ok();
}

fn reason(sandbox: &Sandbox, job: &str) -> String {
    sandbox.cmd("squeue").args(["-h", "-j", job, "-o", "%r"]).ok().text().trim().to_string()
}

/// Who did what and as what, of the log's entries from this one on.
fn log(sandbox: &Sandbox, from: usize) -> Vec<(String, String, String)> {
    let all = sandbox.cmd("berth").args(["audit", "-n", "0", "--json"]).ok().text();
    let all: Vec<Value> = serde_json::from_str(&all).unwrap();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or("none").to_string();
    let entry = |entry: &Value| (text(entry, "user"), text(entry, "role"), text(entry, "what"));
    all.iter().skip(from).map(entry).collect()
}

#[test]
fn an_operator_minds_nodes_and_jobs_and_not_the_cluster_as_root() {
    let (owner, operator) = (Who::user(), Who::stranger());
    let sandbox = Sandbox::with_config(Who::root(), &format!("operators = [\"{}\"]\n", operator.name));
    let shown = sandbox.cmd("scontrol").args(["show", "config"]).ok().text();
    let operators = |line: &str| line.starts_with("operators ") && line.ends_with(&operator.name);
    assert!(shown.lines().any(operators), "{shown}");
    let node = sandbox.node();
    let name = format!("NodeName={node}");
    let drain = ["update", &name, "State=DRAIN", "Reason=the fan"];

    // A node: drained and back; a user does neither.
    by(&sandbox, &owner, "scontrol", &drain)
        .fails()
        .says(&["only for operators and administrators", "is none"]);
    by(&sandbox, &operator, "scontrol", &drain).ok();
    let shown = sandbox.cmd("scontrol").args(["show", "node", &node]).ok().text();
    assert!(shown.contains("DRAIN") && shown.contains("Reason=the fan"), "{shown}");
    by(&sandbox, &operator, "scontrol", &["update", &name, "State=RESUME"]).ok();

    // Others' jobs: held and let go, and what an operator holds no owner releases, also not by holding it.
    let waits = submit(&sandbox, &owner, &["--hold"], ":");
    by(&sandbox, &operator, "scontrol", &["hold", &waits]).ok();
    assert_eq!(reason(&sandbox, &waits), "JobHeldAdmin");
    by(&sandbox, &owner, "scontrol", &["hold", &waits]).ok();
    by(&sandbox, &owner, "scontrol", &["release", &waits]).fails().says(&["held by an operator"]);
    by(&sandbox, &operator, "scontrol", &["release", &waits]).ok();
    sandbox.wait_state(waits.parse().unwrap(), "COMPLETED", 60);

    // A job is ended, and not entered: what runs in it runs as its owner.
    let runs = submit(&sandbox, &owner, &[], "sleep 600");
    sandbox.wait_state(runs.parse().unwrap(), "RUNNING", 60);
    by(&sandbox, &operator, "berth", &["exec", &runs, "true"]).fails().says(&[
        "permission denied",
        &owner.name,
        "or an administrator",
    ]);
    by(&sandbox, &operator, "scancel", &[&runs]).ok();
    sandbox.wait_state(runs.parse().unwrap(), "CANCELLED", 60);

    // The cluster itself is the administrators'.
    let is = format!("{} is an operator", operator.name);
    for words in [&["token", "create"][..], &["token", "ls"], &["node", "remove", &node], &["audit"]] {
        by(&sandbox, &operator, "berth", words).fails().says(&["only for administrators", &is]);
    }
    by(&sandbox, &operator, "scontrol", &["reconfigure"]).fails().says(&["only for administrators", &is]);

    let as_operator = |what: String| (operator.name.clone(), "operator".to_string(), what);
    let expected = [
        as_operator(format!("set {node} to DRAIN: the fan")),
        as_operator(format!("set {node} to RESUME")),
        as_operator(format!("held job {waits} of {}", owner.name)),
        as_operator(format!("released job {waits} of {}", owner.name)),
        as_operator(format!("cancelled job {runs} of {}", owner.name)),
    ];
    assert_eq!(log(&sandbox, 0), expected);
    let table = sandbox.cmd("berth").arg("audit").ok().text();
    assert!(table.contains("ROLE") && table.contains("operator"), "{table}");
}

#[test]
fn a_coordinator_minds_the_jobs_of_an_account_for_as_long_as_it_is_said_as_root() {
    let (owner, coordinator) = (Who::user(), Who::stranger());
    let account = format!("[[account]]\nname = \"physics\"\ncoordinators = [\"{}\"]\n", coordinator.name);
    let sandbox = Sandbox::with_config(Who::root(), &account);
    let held = |options: &[&str]| submit(&sandbox, &owner, &[&["--hold"][..], options].concat(), ":");
    let (physics, second) = (held(&["-A", "physics"]), held(&["-A", "Physics"]));
    let (chem, none) = (held(&["-A", "chem"]), held(&[]));

    // What a coordinator holds the owner may release; what root holds the coordinator may not.
    by(&sandbox, &coordinator, "scontrol", &["hold", &physics]).ok();
    assert_eq!(reason(&sandbox, &physics), "JobHeldUser");
    sandbox.cmd("scontrol").args(["hold", &physics]).ok();
    by(&sandbox, &coordinator, "scontrol", &["release", &physics]).fails().says(&["held by an operator"]);
    sandbox.cmd("scontrol").args(["release", &physics]).ok();
    sandbox.wait_state(physics.parse().unwrap(), "COMPLETED", 60);
    by(&sandbox, &coordinator, "scontrol", &["release", &second]).ok();
    sandbox.wait_state(second.parse().unwrap(), "COMPLETED", 60);

    let runs = submit(&sandbox, &owner, &["-A", "physics"], "sleep 600");
    sandbox.wait_state(runs.parse().unwrap(), "RUNNING", 60);
    by(&sandbox, &coordinator, "berth", &["exec", &runs, "true"]).fails().says(&["permission denied"]);
    by(&sandbox, &coordinator, "scancel", &[&runs]).ok();
    sandbox.wait_state(runs.parse().unwrap(), "CANCELLED", 60);

    // Other accounts' jobs, those of none, nodes and the cluster are not theirs.
    let refused = by(&sandbox, &coordinator, "scancel", &[&chem, &none]).fails();
    refused.says(&[
        "a coordinator of account chem",
        &owner.name,
        "only its user, an operator or an administrator",
    ]);
    by(&sandbox, &coordinator, "scontrol", &["release", &chem]).fails().says(&["permission denied"]);
    by(&sandbox, &coordinator, "scancel", &["-u", &owner.name]).fails().says(&["permission denied"]);
    assert_eq!([reason(&sandbox, &chem), reason(&sandbox, &none)], ["JobHeldUser", "JobHeldUser"]);
    let name = format!("NodeName={}", sandbox.node());
    by(&sandbox, &coordinator, "scontrol", &["update", &name, "State=DRAIN", "Reason=x"])
        .fails()
        .says(&["only for operators and administrators"]);
    by(&sandbox, &coordinator, "scontrol", &["reconfigure"]).fails().says(&["only for administrators"]);

    // Slurm's command for that is not there, and what is instead is said.
    sandbox
        .cmd("berth")
        .args(["sacctmgr", "add", "coordinator", &coordinator.name, "account=physics"])
        .fails()
        .says(&["there is no sacctmgr", "[[account]] of berth.toml", "scontrol reconfigure"]);

    // The roles are what the configuration in force says.
    let last = held(&["-A", "physics"]);
    configure(&sandbox, "");
    by(&sandbox, &coordinator, "scancel", &[&last]).fails().says(&["permission denied"]);
    configure(&sandbox, &account);
    by(&sandbox, &coordinator, "scancel", &["-A", "physics"]).ok();
    sandbox.wait_state(last.parse().unwrap(), "CANCELLED", 60);
    by(&sandbox, &owner, "scancel", &[&chem, &none]).ok();

    let log = log(&sandbox, 0);
    let done: Vec<&str> = log
        .iter()
        .filter(|(user, role, _)| *user == coordinator.name && role == "coordinator")
        .map(|(_, _, what)| what.split(' ').next().unwrap())
        .collect();
    assert_eq!(done, ["held", "released", "cancelled", "cancelled"], "{log:?}");
    assert!(
        log.iter().filter(|(user, ..)| user == "root").all(|(_, role, _)| role == "administrator"),
        "{log:?}"
    );
}

#[test]
fn an_account_with_users_is_for_these_alone_as_root() {
    let (user, other) = (Who::user(), Who::stranger());
    let account = format!("[[account]]\nname = \"physics\"\nusers = [\"{}\"]\n", user.name);
    let sandbox = Sandbox::with_config(Who::root(), &account);
    by(&sandbox, &user, "srun", &["-A", "physics", "true"]).ok();
    let says = ["Invalid account", "account physics", &other.name, "[[account]]", "--account"];
    by(&sandbox, &other, "srun", &["-A", "physics", "true"]).fails().says(&says);
    by(&sandbox, &other, "sbatch", &["-A", "PHYSICS", "--wrap", "true"]).fails().says(&says[..1]);
    by(&sandbox, &other, "sbatch", &["--test-only", "-A", "physics", "--wrap", "true"])
        .fails()
        .says(&says[..1]);
    by(&sandbox, &other, "srun", &["-A", "chem", "true"]).ok();
    sandbox.cmd("srun").args(["-A", "physics", "true"]).ok();
    // From then on, and no longer, that the configuration in force says it.
    configure(&sandbox, "");
    by(&sandbox, &other, "srun", &["-A", "physics", "true"]).ok();
}

#[test]
fn roles_of_nobody_are_refused_before_use_as_root() {
    let sandbox = Sandbox::empty(Who::root());
    let check = |content: &str| {
        let path = sandbox.write("roles.toml", content);
        sandbox.cmd("berth").args(["config", "check"]).arg(path)
    };
    check("operators = [\"daemon\"]\n[[account]]\nname = \"physics\"\ncoordinators = [\"daemon\"]\n").ok();
    check("operators = [\"no-such-user\"]\n").fails().says(&["operators: there is no user 'no-such-user'"]);
    check("operators = [\"@wheel\"]\n").fails().says(&["operators: '@wheel' is not a user's name"]);
    check("[[account]]\nname = \"physics\"\n").fails().says(&["account[1].coordinators", "there is none"]);
    check("[[account]]\nname = \"a\"\ncoordinators = [\"no-such-user\"]\n")
        .fails()
        .says(&["account[1].coordinators: there is no user 'no-such-user'"]);
    check("[[account]]\nname = \"a\"\nusers = [\"no-such-user\"]\n")
        .fails()
        .says(&["account[1].users: there is no user 'no-such-user'"]);
}
