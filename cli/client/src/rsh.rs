//! `berth-rsh`, which jobs have where an MPI that knows no Slurm would go to other nodes by ssh: it is called as ssh is, and is
//! an `srun` in the job, so that what is started there is in the job's image and in its limits.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Options of ssh(1) that take a value. How ssh would connect does not matter here.
const WITH_VALUE: &[u8] = b"BbcDEeFIiJLlmOoPpQRSWw";

/// The `srun` that stands for a call with these words.
///
/// # Errors
/// What is missing, and what to type.
pub(crate) fn to_srun(words: Vec<OsString>, in_job: bool) -> Result<Vec<OsString>, String> {
    if !in_job {
        return Err("it starts processes on the nodes of a job, and this is outside of one".into());
    }
    let mut words = words.into_iter();
    let host = loop {
        let Some(word) = words.next() else {
            return Err("it is called as ssh, with a node of the job and a command".into());
        };
        let bytes = word.as_bytes();
        if !bytes.starts_with(b"-") {
            break word;
        }
        let takes = bytes[1..].iter().position(|letter| WITH_VALUE.contains(letter));
        if takes.is_some_and(|at| at + 2 == bytes.len()) {
            words.next();
        }
    };
    // Whose the processes are the job says.
    let node = host.as_bytes().rsplit(|byte| *byte == b'@').next().unwrap_or_default();
    let node = OsStr::from_bytes(node);
    let command: Vec<OsString> = words.collect();
    if command.is_empty() {
        let node = node.to_string_lossy();
        return Err(format!(
            "no command for {node}: a shell there is 'srun --overlap -N1 -w {node} --pty bash'"
        ));
    }
    // As ssh has it: the words are one line for a shell.
    let line: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
    let line = OsString::from_vec(line.join(&b' '));
    let mut all = Vec::from(["srun", "--overlap", "-N1", "-n1", "--mpi=none", "-w"].map(OsString::from));
    all.extend([node.to_owned(), "sh".into(), "-c".into(), line]);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(words: &[&str]) -> Result<String, String> {
        let all = to_srun(words.iter().map(OsString::from).collect(), true)?;
        Ok(all.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join("|"))
    }

    #[test]
    fn calls_of_ssh_are_steps_of_the_job() {
        let srun = |node: &str, line: &str| -> Result<String, String> {
            Ok(["srun|--overlap|-N1|-n1|--mpi=none|-w", node, "sh|-c", line].join("|"))
        };
        // Open MPI's, with what it has quoted for a shell, and hydra's.
        assert_eq!(made(&["n2", " orted", "-mca", "ess", "\"env\""]), srun("n2", " orted -mca ess \"env\""));
        assert_eq!(made(&["-x", "n2", "\"proxy\"", "-n"]), srun("n2", "\"proxy\" -n"));
        let many = ["-q", "-p", "22", "-oBatchMode=yes", "-o", "X=y", "-xl", "ann", "--", "ann@n3", "true"];
        assert_eq!(made(&many), srun("n3", "true"));
    }

    #[test]
    fn what_is_no_call_of_a_command_says_what_to_type() {
        assert!(made(&["n2"]).unwrap_err().contains("srun --overlap -N1 -w n2 --pty bash"));
        assert!(made(&["-p", "22"]).unwrap_err().contains("as ssh"));
        assert!(to_srun(vec!["n2".into(), "true".into()], false).unwrap_err().contains("outside"));
    }
}
