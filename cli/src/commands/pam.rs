//! `berth pam`: who may log in to a node, asked by PAM.

use crate::joined::{self, Joined};
use berth_agent::visit;
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::StateDir;
use berth_model::JobId;
use berth_model::config::Config;
use std::path::Path;

/// Admit logins to a node by users whose jobs run there; for pam_exec.so
///
/// As an account line it lets in whoever has a job on the node, root, the cluster's administrators and --exempt; as a session line it
/// puts the login into the job's control group: it has the job's memory, cores and devices, and ends with the job. That is the job that
/// came to the node last, or the one that SLURM_JOB_ID names in PAM's environment. In /etc/pam.d/sshd, behind all other lines of their
/// kind, pam_systemd.so among them:
///
///     account required pam_exec.so quiet stdout /usr/bin/berth pam
///
///     session required pam_exec.so quiet stdout /usr/bin/berth pam
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Users who are let in as root is, by name
    #[arg(long, value_name = "USER", value_delimiter = ',')]
    exempt: Vec<String>,
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = StateDir::named_or_own(state)?;
    let named = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.ok_or_else(|| {
            Failure::user(format!(
                "{name} is not set: this is for lines of pam_exec.so in /etc/pam.d; see 'berth pam --help'"
            ))
        })
    };
    let (user, kind) = (named("PAM_USER")?, named("PAM_TYPE")?);
    let session = match kind.as_str() {
        "account" => false,
        "open_session" => true,
        // What the job's group holds ends with the job, and by itself.
        "close_session" => return Ok(0),
        _ => {
            return Err(Failure::user(format!(
                "PAM_TYPE={kind}: only account and session lines are answered, and this proves nobody's identity"
            )));
        }
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::user("it reads the agent's records and moves processes, which is root's"));
    }
    let joined = Joined::read(&dir).ok().flatten();
    let config = match &joined {
        Some(_) => joined::last_settings(&dir),
        None => super::config::of(&dir, None).ok(),
    };
    let known = nix::unistd::User::from_name(&user).ok().flatten();
    let Some(uid) = known.map(|known| known.uid.as_raw()) else {
        return refuse(&format!("the name service of this node knows no user {user}"));
    };
    if uid == 0 || is_exempt(&user, args, config.as_ref()) {
        return Ok(0);
    }
    let node = joined.map_or_else(berth_agent::host_name, |joined| joined.name);
    let jobs = visit::jobs_of(&dir.0, &user, uid)
        .map_err(|e| Failure::new(Kind::Internal, format!("the jobs of this node cannot be read: {e}")))?;
    let chosen = std::env::var("SLURM_JOB_ID").ok().and_then(|id| id.parse::<u32>().ok()).map(JobId);
    let Some(host) = chosen.and_then(|id| jobs.iter().find(|job| job.job == id)).or_else(|| jobs.first())
    else {
        return refuse(&format!(
            "no job of {user} runs on {node}, and only those whose jobs run here may log in: start one ('salloc -w {node}'), or look at \
             'squeue --me' for the nodes of your jobs"
        ));
    };
    if !session {
        return Ok(0);
    }
    // Whoever called PAM: what the user gets is started by it.
    let caller = std::os::unix::process::parent_id();
    let entered = || {
        let pid = i32::try_from(caller).map_err(|e| e.to_string())?;
        visit::enter(&dir.0, host, pid)
    };
    match entered() {
        Ok(()) => Ok(0),
        Err(why) => refuse(&format!("the login cannot be put into job {} on {node}: {why}", host.job)),
    }
}

fn is_exempt(user: &str, args: &Args, config: Option<&Config>) -> bool {
    let administrators = config.iter().flat_map(|config| &config.administrators);
    args.exempt.iter().chain(administrators).any(|name| name == user)
}

/// Tells the user, by pam_exec's `stdout`, and PAM, by the exit status.
fn refuse(why: &str) -> Outcome {
    out::print(&format!("berth: {why}\n"))?;
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administrators_and_those_named_are_exempt() {
        let args = Args { exempt: vec!["backup".into()] };
        let config = Config { administrators: vec!["ann".into()], ..Config::default() };
        for (user, exempt) in [("ann", true), ("backup", true), ("bob", false), ("", false)] {
            assert_eq!(is_exempt(user, &args, Some(&config)), exempt, "{user}");
        }
        assert!(!is_exempt("ann", &args, None));
    }
}
