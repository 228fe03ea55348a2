//! The site's program that powers a node off, for the controller: one for a node at a time, over controllers that end in the middle, and
//! none beside one that was killed and does not end.

use super::SEARCH;
use super::alone::run_alone;
use super::hanging::Of;
use berth_runtime::hooks::HookPlan;
use std::path::Path;

/// Powers a node off by the site's program: `program` with the node's name, which must be one that nobody can change but root and
/// `owner`. In `private`, which is the controller's alone, it is noted what runs and what hangs.
///
/// # Errors
/// Program, exit and last line, and what of it does not end: then nobody knows whether the node is off.
pub fn fence(
    program: &Path,
    seconds: u32,
    (cluster, node): (&str, &str),
    owner: u32,
    private: &Path,
) -> Result<(), String> {
    let plan = HookPlan {
        path: program.to_path_buf(),
        args: vec![program.to_string_lossy().into_owned(), node.to_string()],
        env: None,
        timeout: Some(seconds),
        file: None,
    };
    let env = [
        format!("PATH={SEARCH}"),
        format!("SLURM_CLUSTER_NAME={cluster}"),
        format!("SLURMD_NODENAME={node}"),
        "SLURM_SCRIPT_CONTEXT=fence".to_string(),
    ];
    let note = format!("fence.{node}.json");
    run_alone("fence", &plan, &env, owner, (private, &note, Of::Fence(node)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::around::{Noted, hanging};
    use berth_runtime::JobNamespaces;
    use berth_step::spool::{boot_id, write_json};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command};

    /// A process that stays, as one that does not end: nobody kills it.
    fn stays() -> (Child, i32) {
        let child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    fn fenced(node: &str, private: &Path) -> Result<(), String> {
        let owner = rustix::process::geteuid().as_raw();
        fence(Path::new("/bin/true"), 60, ("c", node), owner, private)
    }

    #[test]
    fn none_is_started_beside_one_of_the_same_node_that_does_not_end() {
        let private = tempfile::tempdir().unwrap();
        let at = private.path();
        assert_eq!(fenced("n1", at), Ok(()));
        let (mut child, pid) = stays();
        hanging::keep(at, Of::Fence("n1"), pid, vec![pid]).unwrap();
        let why = fenced("n1", at).unwrap_err();
        assert!(why.contains("/bin/true is not run") && why.contains(&format!("pid {pid} (sleep)")), "{why}");
        // Others are other nodes', whatever their names begin with.
        for other in ["n", "n10", "n1.example.org", "n2"] {
            assert_eq!(fenced(other, at), Ok(()), "{other}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(fenced("n1", at), Ok(()));
    }

    #[test]
    fn one_that_a_controller_left_behind_is_ended_before_the_next_begins() {
        let private = tempfile::tempdir().unwrap();
        let (mut child, pid) = stays();
        let process = JobNamespaces::of(pid).unwrap();
        let noted = Noted { process, boot_id: boot_id().unwrap() };
        write_json(&private.path().join("fence.n1.json"), &noted).unwrap();
        assert_eq!(fenced("n2", private.path()), Ok(()));
        assert_eq!(child.try_wait().unwrap(), None, "it is another node's");
        assert_eq!(fenced("n1", private.path()), Ok(()));
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(!private.path().join("fence.n1.json").exists());
    }
}
