//! What somebody can try on a process of the node, from outside of its container: each attack says itself whether it worked.

use crate::{Cmd, Who};

/// At the head of a script that attacks from inside of a container: without its tools it would show nothing.
pub const TOOLS: &str = "for tool in mount umount unshare find readlink stat; do \
     command -v $tool > /dev/null || echo \"MISSING $tool\"; done\n";

/// The attacks, lines of shell, that worked for someone.
pub fn worked(who: &Who, attacks: impl IntoIterator<Item = String>) -> Vec<String> {
    let worked = |line: &String| {
        Cmd::new("sh").args(["-c", &format!("({line}) > /dev/null 2>&1")]).who(who).dir("/").run().rc == 0
    };
    attacks.into_iter().filter(worked).collect()
}

/// Traces a process. Judged by strace's first line: what strace itself ends with is the signal that ends it.
pub fn trace(pid: i32) -> String {
    format!(
        "said=$(mktemp); strace -f -o /dev/null -p {pid} 2> $said & \
         until [ -s $said ] || ! kill -0 $!; do sleep 0.01; done; \
         kill $!; wait $!; grep attached $said; worked=$?; rm $said; exit $worked"
    )
}

/// Opens a process's memory; nothing is there to be read at its beginning.
pub fn open_memory(pid: i32) -> String {
    format!(": < /proc/{pid}/mem")
}

/// What someone outside of a container can try on one of its processes: those that worked.
pub fn break_in(who: &Who, pid: i32) -> Vec<String> {
    let mut attacks = vec![
        format!("cat /proc/{pid}/environ"),
        format!("ls /proc/{pid}/root/"),
        // Their numbers may be listed, which opens none of them.
        format!("readlink /proc/{pid}/fd/0"),
        open_memory(pid),
        trace(pid),
    ];
    // Whoever enters the user namespace first has every capability in the others.
    attacks.extend(
        ["-U", "-U -p", "-U -i", "-U -m", "-p", "-i", "-m"]
            .map(|flags| format!("nsenter --preserve-credentials -t {pid} {flags} /bin/true")),
    );
    worked(who, attacks)
}
