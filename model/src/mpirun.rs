//! What an MPI that knows no Slurm is told of a job: by what its `mpirun` starts processes on other nodes, and which nodes there are.
//! Open MPI before version 5 reads variables of its own, and since then those of PRRTE.

use crate::bytes::ByteStr;
use crate::ids::NodeName;
use crate::launch::Layout;

/// What stands for ssh: our own client, by this name.
pub const PROGRAM: &str = "berth-rsh";
/// The file with the job's nodes, beside the job's socket.
pub const HOSTS: &str = "mpi-hosts";

const SHELLS: [&str; 2] = ["OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent"];
const FILES: [&str; 2] = ["OMPI_MCA_orte_default_hostfile", "PRTE_MCA_prte_default_hostfile"];

/// The nodes, each with how many tasks of the job it has, as such an `mpirun` reads them.
pub fn hosts(layout: &Layout) -> String {
    let slots = layout.tasks.iter().map(Vec::len).chain(std::iter::repeat(0));
    let line = |(node, slots): (&NodeName, usize)| format!("{node} slots={}\n", slots.max(1));
    layout.nodes.iter().zip(slots).map(line).collect::<Vec<_>>().concat()
}

/// Puts into an environment where program and file are, for who has not chosen others. What was put in elsewhere goes: another node's paths,
/// and those of a container, say nothing here.
pub fn tell(env: &mut Vec<ByteStr>, shell: Option<&ByteStr>, hosts: Option<&ByteStr>) {
    let ours = |value: &[u8]| {
        let of =
            |name: &str| value.strip_suffix(name.as_bytes()).is_some_and(|before| before.ends_with(b"/"));
        // A file that salloc has open.
        of(PROGRAM) || of(HOSTS) || value.starts_with(b"/proc/")
    };
    let told = SHELLS.iter().map(|name| (*name, shell)).chain(FILES.iter().map(|name| (*name, hosts)));
    for (name, path) in told {
        let is_it =
            |text: &ByteStr| text.0.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
        env.retain(|text| !is_it(text) || !ours(text.0.get(name.len() + 1..).unwrap_or_default()));
        if let Some(path) = path
            && !env.iter().any(is_it)
        {
            env.push(ByteStr([name.as_bytes(), b"=", &path.0].concat()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(env: &[&str], shell: Option<&str>, hosts: Option<&str>) -> Vec<String> {
        let mut env: Vec<ByteStr> = env.iter().map(|text| (*text).into()).collect();
        let [shell, hosts] = [shell, hosts].map(|path| path.map(ByteStr::from));
        tell(&mut env, shell.as_ref(), hosts.as_ref());
        env.iter().map(|text| text.display().into_owned()).collect()
    }

    #[test]
    fn program_and_file_are_told_unless_somebody_chose_others() {
        let here = (Some("/run/berth/bin/berth-rsh"), Some("/run/berth/mpi-hosts"));
        let shells = SHELLS.map(|name| format!("{name}=/run/berth/bin/berth-rsh"));
        let files = FILES.map(|name| format!("{name}=/run/berth/mpi-hosts"));
        let all: Vec<&str> = shells.iter().chain(&files).map(String::as_str).collect();
        assert_eq!(told(&["A=b"], here.0, here.1), [&["A=b"][..], &all[..]].concat());
        let chosen = "OMPI_MCA_plm_rsh_agent=ssh";
        assert_eq!(told(&[chosen, "OMPI_MCA_plm_rsh_agents=x"], here.0, None).len(), 3);
        assert_eq!(told(&[chosen], here.0, None), [chosen, &shells[1]]);
        // From a script in a container, from another node and from salloc.
        let elsewhere = ["A=b", "OMPI_MCA_orte_default_hostfile=/proc/12/fd/9", all[0], all[1], all[3]];
        assert_eq!(told(&elsewhere, None, None), ["A=b"]);
        let other = "OMPI_MCA_plm_rsh_agent=/var/lib/berth/client-bin/berth-rsh";
        assert_eq!(told(&[other], here.0, here.1), all);
        assert_eq!(told(&[chosen], None, None), [chosen]);
        // One that only ends so.
        let own = "OMPI_MCA_plm_rsh_agent=/opt/my-berth-rsh";
        assert_eq!(told(&[own], None, None), [own]);
    }

    #[test]
    fn nodes_have_as_many_slots_as_tasks() {
        let layout = Layout {
            nodes: vec!["n1".into(), "n2".into(), "n3".into()],
            tasks: vec![vec![0, 1], vec![2]],
            cpus: vec![2, 1, 1],
        };
        assert_eq!(hosts(&layout), "n1 slots=2\nn2 slots=1\nn3 slots=1\n");
    }
}
