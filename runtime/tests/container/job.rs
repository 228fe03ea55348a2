//! Containers of one job: they share processes, IPC, users and `/dev/shm`, and end each by itself.

use crate::Test;
use crate::helper::{As, Dir, Order, busybox, each, launch, request};

pub const TESTS: &[Test] = &[
    ("job::steps_see_trace_and_signal_each_other", steps_see_trace_and_signal_each_other),
    ("job::a_step_ends_without_the_others", a_step_ends_without_the_others),
    ("job::the_holder_cannot_be_harmed", the_holder_cannot_be_harmed),
    ("job::a_signal_stays_in_its_step", a_signal_stays_in_its_step),
    ("job::a_remapped_step_is_of_the_job", a_remapped_step_is_of_the_job),
];

/// Waits, in a step, for a file of the job's memory.
const AWAIT: &str = "await() { while [ ! -s /dev/shm/$1 ]; do sleep 0.02; done; cat /dev/shm/$1; }; ";

/// Runs these scripts as steps of one job, all at once, and gives what they wrote.
fn steps(mode: As, scripts: &[&str], remap: bool) -> String {
    let dir = Dir::new();
    let mut r = request(&busybox(&dir, mode), mode);
    (r.in_job, r.remap_root, r.shm_size) = (true, remap, Some(1 << 20));
    let mut order = Order::new(r, "");
    order.steps = scripts.iter().map(|s| format!("{AWAIT}{s}")).collect();
    let outcome = launch(&order, mode);
    assert_eq!(outcome.code, 0, "{mode:?} {outcome:?}");
    outcome.out
}

fn steps_see_trace_and_signal_each_other() {
    each(|mode| {
        let first = "sleep 1000 & echo $! > /dev/shm/pid; echo $$ > /dev/shm/shell; wait $!; echo ended $?";
        let second = "pid=$(await pid); await shell > /dev/null
            for ns in user pid ipc; do
                [ \"$(readlink /proc/$pid/ns/$ns)\" = \"$(readlink /proc/self/ns/$ns)\" ] && echo same $ns
            done
            [ \"$(readlink /proc/$pid/ns/mnt)\" = \"$(readlink /proc/self/ns/mnt)\" ] || echo own mnt
            ps -o pid,args | grep -q \"^ *$pid sleep 1000\" && echo listed
            tr '\\0' '\\n' < /proc/$pid/environ | grep -c ^HOME=
            df -k /dev/shm | tail -1 | awk '{print $2}'
            kill $pid";
        let out = steps(mode, &[first, second], false);
        assert_eq!(out, "same user\nsame pid\nsame ipc\nown mnt\nlisted\n1\n1024\nended 143\n", "{mode:?}");
    });
}

fn a_step_ends_without_the_others() {
    each(|mode| {
        // What the first leaves behind, in a session and as an orphan, ends with it and before it is reported.
        let first = "(setsid sh -c 'sleep 1000 & echo $! > /dev/shm/orphan; sleep 1000' &) ; await orphan > /dev/null";
        let second = "pid=$(await orphan); while kill -0 $pid 2>/dev/null; do sleep 0.02; done
            ps -o args | grep -c '^sleep 1000'; echo alive";
        assert_eq!(steps(mode, &[first, second], false), "0\nalive\n", "{mode:?}");
    });
}

fn the_holder_cannot_be_harmed() {
    each(|mode| {
        for remap in [false, true] {
            let attack = "kill -9 1; kill -STOP 1; kill -TERM 1; sleep 0.1
                readlink /proc/1/exe 2>/dev/null || echo hidden; readlink /proc/1/fd/0 2>/dev/null || echo hidden
                ls /proc/1/root/ 2>/dev/null || echo hidden; cat /proc/1/environ 2>/dev/null || echo hidden
                (: < /proc/1/mem) 2>/dev/null || echo hidden
                for ns in user mnt pid ipc; do nsenter --$ns=/proc/1/ns/$ns true 2>/dev/null && echo entered $ns; done
                unshare -Ur nsenter -t 1 -m true 2>/dev/null && echo entered
                echo alive";
            let out = steps(mode, &[attack], remap);
            assert_eq!(out, "hidden\nhidden\nhidden\nhidden\nhidden\nalive\n", "{mode:?} {remap}");
        }
    });
}

fn a_signal_stays_in_its_step() {
    each(|mode| {
        // The helper sends the second step's processes, and no others, SIGUSR1 when it says so.
        let first = "trap 'echo first hit' USR1; await over; echo first done";
        let second = "trap 'echo second hit; echo x > /dev/shm/over' USR1; sleep 1000 & wait";
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        r.in_job = true;
        let mut order = Order::new(r, "");
        order.steps = [first, second].map(|s| format!("{AWAIT}{s}")).to_vec();
        order.signal = Some((berth_runtime::SignalTarget::Everything, 10));
        let outcome = launch(&order, mode);
        assert_eq!(outcome.out, "second hit\nx\nfirst done\n", "{mode:?} {outcome:?}");
    });
}

fn a_remapped_step_is_of_the_job() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        (r.in_job, r.remap_root) = (true, true);
        let mut order = Order::new(r, "");
        order.steps = vec!["id -u; touch /f /dev/shm/f; stat -c %u /f /dev/shm/f; cat /proc/1/comm; test -d /proc/self && echo proc".into()];
        let outcome = launch(&order, mode);
        assert_eq!(outcome.out, "0\n0\n0\nberth-job\nproc\n", "{mode:?} {outcome:?}");
    });
}
