//! A node whose name service knows a user otherwise than the controller's.

use berth_tests::Hosts;
use berth_tests::sandbox::wait;

#[test]
fn a_node_with_other_numbers_is_named_and_jobs_run_as_the_controller_says_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    let user = hosts.user().clone();
    hosts.up("head", "node_timeout_seconds = 6\n");
    let token = hosts.token("head", &[]);
    // The node's own passwd: the user has other numbers and another home there, and the number is somebody else's.
    let own = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = own.lines().find(|l| l.starts_with(&format!("{}:", user.name))).unwrap().to_string();
    let mut fields: Vec<&str> = line.split(':').collect();
    let (other, group) = (format!("{}", user.uid + 7000), format!("{}", user.gid + 7000));
    (fields[2], fields[3], fields[5]) = (&other, &group, "/elsewhere");
    let moved = format!("{}\nsomebody:x:{}:{}::/:/bin/sh", fields.join(":"), user.uid, user.gid);
    let passwd = hosts.state("n1").join("passwd");
    std::fs::write(&passwd, own.replace(&line, &moved)).unwrap();
    // And a group more.
    let groups = hosts.state("n1").join("group");
    let more = format!(
        "{}\nextra:x:{}:{}\n",
        std::fs::read_to_string("/etc/group").unwrap().trim_end(),
        47_000,
        user.name
    );
    std::fs::write(&groups, more).unwrap();
    let join = format!(
        "mount --bind {} /etc/passwd && mount --bind {} /etc/group && exec berth join 10.77.0.1 {token} --detach",
        passwd.display(),
        groups.display()
    );
    hosts.root("n1", "unshare").args(["--mount", "sh", "-c", &join]).ok();
    hosts.wait_node("n1", "idle", 60);
    let shown = || hosts.root("head", "scontrol").args(["show", "node", "n1"]).ok().text();
    assert!(!shown().contains("IdentityDrift"), "nobody was there yet: {}", shown());

    // The job runs as the controller says, in the home that it says, and its user is told.
    let told = hosts.cmd("head", "srun").args(["-w", "n1", "sh", "-c", "id -u; id -g; echo $HOME"]).ok();
    let expected = [user.uid.to_string(), user.gid.to_string(), user.home.display().to_string()];
    assert_eq!(told.text().lines().collect::<Vec<_>>(), expected, "{told}");
    let note = told.err();
    for part in [
        "knows you otherwise",
        &format!("uid {other} here and {} at the controller", user.uid),
        &format!("primary group {group} here and {}", user.gid),
        &format!("home /elsewhere here and {}", user.home.display()),
        &format!("uid {} is 'somebody' here", user.uid),
        "group 47000 only here",
    ] {
        assert!(note.contains(part), "'{part}' is not in: {note}");
    }
    std::fs::remove_file(hosts.work().join("made")).ok();
    hosts.cmd("head", "srun").args(["-w", "n1", "touch", "made"]).ok();
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(hosts.work().join("made")).unwrap());
    assert_eq!(owner, user.uid);
    // The administrator sees it in the node's record and log, once.
    let seen = wait(30, || shown().contains("IdentityDrift=user").then_some(()));
    assert!(seen.is_some(), "{}", shown());
    let listed = hosts.root("head", "berth").args(["node", "ls"]).ok();
    assert!(listed.err().contains("n1 differs") && listed.err().contains("'somebody'"), "{listed}");
    let json: serde_json::Value =
        serde_json::from_slice(&hosts.root("head", "berth").args(["node", "ls", "--json"]).ok().stdout)
            .unwrap();
    let of = |name: &str| {
        let all = json.as_array().unwrap().iter();
        all.filter(|m| m["name"] == name).map(|m| m["drift"].as_array().unwrap().len()).sum::<usize>()
    };
    assert_eq!((of("head"), of("n1")), (0, 1), "{json}");
    let log = std::fs::read_to_string(hosts.state("n1").join("log/agent.log")).unwrap();
    assert_eq!(log.matches("differs from the controller's").count(), 1, "{log}");
    // A node that knows the user as the controller does says nothing.
    let told = hosts.cmd("head", "srun").args(["-w", "head", "true"]).ok();
    assert!(!told.err().contains("otherwise"), "{told}");
}
