//! What salloc's command is told for an MPI that knows no Slurm: the program that stands for ssh, beside srun, and the nodes.

use berth_model::launch::Layout;
use berth_model::{ByteStr, mpirun};
use rustix::fs::{MemfdFlags, memfd_create};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The nodes of the allocation, in a file that is there for as long as this is.
pub(super) struct File(OwnedFd);

impl File {
    /// Nothing where there is no memory for it: who knows Slurm does without.
    pub(super) fn of(layout: &Layout) -> Option<File> {
        let file = memfd_create(mpirun::HOSTS, MemfdFlags::CLOEXEC).ok()?;
        let mut all = mpirun::hosts(layout).into_bytes();
        while !all.is_empty() {
            let written = rustix::io::write(&file, &all).ok()?;
            all.drain(..written);
        }
        Some(File(file))
    }

    fn path(&self) -> ByteStr {
        ByteStr::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }
}

/// Tells both, where the program is found as srun is: in PATH.
pub(super) fn tell(env: &mut Vec<ByteStr>, nodes: Option<&File>) {
    let path = env.iter().find_map(|text| text.0.strip_prefix(b"PATH=")).unwrap_or_default().to_vec();
    let shell = shell_in(OsStr::from_bytes(&path)).map(|file| ByteStr::from(file.as_path()));
    let hosts = nodes.filter(|_| shell.is_some()).map(File::path);
    mpirun::tell(env, shell.as_ref(), hosts.as_ref());
}

fn shell_in(path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|dir| dir.join(mpirun::PROGRAM))
        .find(|file| file.is_absolute() && file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_finds_program_and_nodes_where_srun_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = format!("PATH=/nonexistent:{}", dir.path().display());
        let layout = Layout {
            nodes: vec!["n1".into(), "n2".into()],
            tasks: vec![vec![0, 1], vec![2]],
            cpus: vec![2, 1],
        };
        let nodes = File::of(&layout).unwrap();
        let told = |nodes: &File| {
            let mut env = vec![ByteStr::from(path.as_str())];
            tell(&mut env, Some(nodes));
            env.iter().map(|text| text.display().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(told(&nodes), [path.as_str()], "there is no such program");
        let program = dir.path().join("berth-rsh");
        std::fs::write(&program, "").unwrap();
        let env = told(&nodes);
        assert!(env.contains(&format!("OMPI_MCA_plm_rsh_agent={}", program.display())), "{env:?}");
        let file = env.iter().find_map(|text| text.strip_prefix("OMPI_MCA_orte_default_hostfile=")).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "n1 slots=2\nn2 slots=1\n");
    }
}
