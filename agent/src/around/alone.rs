//! A program of the site of which one runs at a time, over those who end in the middle of it, and none beside one that was killed and does
//! not end.

use super::hanging::{self, Of};
use super::{Until, end_noted, in_words};
use berth_runtime::hooks::{HookPlan, HookRun, run};
use std::path::Path;

/// Runs the program. In `private` it is noted which process it is, as a file of this name, and what hangs.
///
/// # Errors
/// Program, exit and last line, and what of it does not end.
pub(super) fn run_alone(
    kind: &str,
    plan: &HookPlan,
    env: &[String],
    owner: u32,
    (private, note, of): (&Path, &str, Of<'_>),
) -> Result<(), String> {
    let (program, note) = (plan.path.display(), private.join(note));
    // Of one who ended before it: nobody hears what it says any more.
    end_noted(&note, private, of);
    if let Some(still) = hanging::named(private, of) {
        return Err(format!(
            "{program} is not run: the one before does not end although it was killed: {still}"
        ));
    }
    let how = HookRun {
        env,
        keep_stderr: true,
        keep_stdout: true,
        timeout: None,
        owner: Some(owner),
        at_root: true,
    };
    // Nobody stops it before its time is over.
    let (stop, _open) = std::io::pipe().map_err(|e| format!("{program} cannot be run: {e}"))?;
    let mut attend = Until::new(&stop, note);
    let result = run(kind, std::slice::from_ref(plan), "", how, &mut attend);
    let left = in_words(attend.left(&result, private, of).as_deref());
    result.map_err(|failure| format!("{}: {}{left}", failure.path, failure.why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn none_is_run_beside_one_that_does_not_end() {
        let private = tempfile::tempdir().unwrap();
        let at = private.path();
        let plan = HookPlan {
            path: "/bin/true".into(),
            args: vec!["/bin/true".into()],
            env: None,
            timeout: Some(60),
            file: None,
        };
        let owner = rustix::process::geteuid().as_raw();
        let reboot = || run_alone("reboot", &plan, &[], owner, (at, "reboot.json", Of::Reboot));
        assert_eq!(reboot(), Ok(()));
        assert!(!at.join("reboot.json").exists());
        // Nobody kills it: it is there, as one that hangs.
        let mut child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        hanging::keep(at, Of::Reboot, pid, vec![pid]).unwrap();
        let why = reboot().unwrap_err();
        assert!(
            why.starts_with("/bin/true is not run") && why.contains(&format!("pid {pid} (sleep)")),
            "{why}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(reboot(), Ok(()));
    }
}
