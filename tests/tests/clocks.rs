//! The wall clock of the controller's machine is wrong, or set: no job ends by it.

use berth_tests::{Cmd, Sandbox, each_user, sandbox::wait};
use nix::sys::signal::Signal;
use std::path::PathBuf;

/// A library by which a program believes that it is a day later. The clock since boot is as it was.
const AHEAD: &str = r"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, __func__);
    int result = real(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += 24 * 60 * 60;
    return result;
}
";

fn alarms(sandbox: &Sandbox) -> String {
    sandbox.status()["alarms"].to_string()
}

fn a_day_ahead(sandbox: &Sandbox) -> PathBuf {
    let (source, library) = (sandbox.write("ahead.c", AHEAD), sandbox.work().join("ahead.so"));
    Cmd::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").ok();
    library
}

each_user! {
    fn a_clock_that_goes_ahead_while_the_controller_is_away_ends_no_job(who) {
        let mut sandbox = Sandbox::start(who);
        let small = ["-c1", "--mem=64M"];
        let runs = sandbox.sbatch(
            &[&small[..], &["--time=10", "--output=runs"]].concat(),
            "#!/bin/sh\necho begun\nwhile [ ! -e go ]; do sleep 0.1; done\necho ended\n",
        );
        sandbox.wait_file("runs", "begun", 30);
        let library = a_day_ahead(&sandbox);
        let controller = sandbox.controller();
        sandbox.kill_9(controller);
        let alone = sandbox.cmd("berth").arg("controller").env("LD_PRELOAD", &library).limit(120).spawn();
        assert!(wait(30, || (sandbox.cmd("scontrol").arg("ping").run().rc == 0).then_some(())).is_some());
        // It goes by the other clock, and by that it has worked for a while.
        let told = "behind the clock of this machine";
        assert!(wait(30, || alarms(&sandbox).contains(told).then_some(())).is_some(), "{}", alarms(&sandbox));
        let next = sandbox.sbatch(&[&small[..], &["--output=/dev/null"]].concat(), "#!/bin/sh\nsleep 1\n");
        sandbox.wait_state(next, "COMPLETED", 60);
        assert_eq!(sandbox.job_state(runs), "RUNNING");
        alone.signal(Signal::SIGTERM);
        alone.finish();
        sandbox.up();
        assert!(wait(30, || (!alarms(&sandbox).contains(told)).then_some(())).is_some(), "{}", alarms(&sandbox));
        assert_eq!(sandbox.job_state(runs), "RUNNING");
        sandbox.write("go", "");
        sandbox.wait_state(runs, "COMPLETED", 60);
        assert_eq!(sandbox.read("runs"), "begun\nended\n");
    }
}
