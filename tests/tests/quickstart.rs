//! The README's first command, run as a newcomer runs it, on programs that are already built.

use berth_tests::{Cmd, Who, leftovers, machine};
use std::path::PathBuf;

fn quickstart(who: &Who) {
    // A state directory of its own; the image is the script's to find or to make.
    let directory = tempfile::Builder::new().prefix("bt-qs-").tempdir_in("/tmp").unwrap();
    machine::give(directory.path(), who);
    let checkout = readable_examples(directory.path(), who);
    let state = directory.path().join("state");
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let run = Cmd::new(checkout.join("examples/quickstart.sh"))
        .who(who)
        .env("PATH", path)
        .env("BERTH_STATE", &state)
        .env("BERTH_QUICKSTART_BIN", machine::programs())
        .dir("/")
        .limit(240)
        .run();
    let stop = Cmd::new(state.join("bin/berth")).args(["down", "--state"]).arg(&state).who(who).run();
    assert_eq!(run.rc, 0, "{run}");
    let text = run.text();
    assert!(text.contains("ID=debian"), "{run}");
    for task in 1..=3 {
        assert!(text.contains(&format!("task {task} of job ")), "task {task}: {run}");
    }
    assert!(text.contains("in Debian GNU/Linux"), "{run}");
    assert!(text.contains("COMPLETED") && text.contains("JOBID"), "{run}");
    assert!(text.contains(&format!("berth down --state {}", state.display())), "{run}");
    assert_eq!(stop.rc, 0, "the line that stops it: {stop}");
    assert!(leftovers::processes(&state).is_empty(), "{:?}", leftovers::processes(&state));
    Cmd::new("chmod").args(["-R", "u+rwX"]).arg(directory.path()).run();
}

/// The checkout may lie where the user of the test cannot go.
fn readable_examples(directory: &std::path::Path, who: &Who) -> PathBuf {
    let copy = directory.join("checkout");
    Cmd::new("cp").arg("-r").arg(machine::workspace().join("examples")).arg(directory.join("examples")).ok();
    Cmd::new("mkdir").arg(&copy).ok();
    Cmd::new("mv").arg(directory.join("examples")).arg(copy.join("examples")).ok();
    Cmd::new("chown").arg("-R").arg(format!("{}:{}", who.uid, who.gid)).arg(&copy).ok();
    copy
}

berth_tests::each_user! {
    fn the_first_command(who) {
        quickstart(&who);
    }
}
