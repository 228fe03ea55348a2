//! `berth node`: lists the machines of the cluster, lets them in and removes them.

use crate::joined::{self, Joined};
use berth_client::error::{Failure, Outcome};
use berth_client::fmt::time;
use berth_client::out;
use berth_client::site::{Site, StateDir};
use berth_model::member::MemberInfo;
use berth_model::query::AgentStatus;
use berth_model::{NodeName, Time};
use serde::Serialize;
use std::path::Path;

/// List the machines of the cluster, let them in and remove them
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// List them: who joined, from where, with which key
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let machines in that joined with a token made with --approval, or that a restored backup does not have
    Approve {
        /// Their names, as 'berth node ls' shows them; compare the keys first
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove machines: their keys are good for nothing from then on
    Remove {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Also while jobs have something on them: these are ended first, as NODE_FAIL, which is waited for
        #[arg(long)]
        force: bool,
    },
    /// Exchange this machine's key for a new one, on a machine that joined: the old one is refused from then on
    RotateKey,
}

/// A machine, as it is listed.
#[derive(Debug, Serialize)]
struct Machine {
    name: NodeName,
    role: String,
    state: String,
    joined: Option<i64>,
    from: Option<String>,
    key: Option<String>,
    renewed: Option<i64>,
    /// When its certificate ends, as far as the controller knows.
    certificate_ends: Option<i64>,
    token: Option<String>,
    administrators: bool,
    /// Its full name, as its name service says it.
    host_name: Option<String>,
    /// Of login nodes nothing is known.
    connected: Option<bool>,
    /// Users whom its name service knows otherwise than the controller's, a line each.
    drift: Vec<String>,
    /// Keys of the configuration that its agent does not know.
    unknown_settings: Vec<String>,
    /// What it has less of than it was registered with, a line each.
    hardware_drift: Vec<String>,
}

impl Machine {
    fn member(member: MemberInfo, agent: Option<&AgentStatus>) -> Machine {
        Machine {
            name: member.name,
            role: member.role.to_string(),
            state: member.state.to_string(),
            joined: Some(member.joined.secs()),
            from: Some(member.from),
            key: Some(member.key.0),
            renewed: Some(member.renewed.secs()),
            certificate_ends: member.ends.map(Time::secs),
            token: Some(member.token),
            host_name: None,
            administrators: member.administrators,
            connected: match member.role {
                berth_model::member::MemberRole::Compute => Some(agent.is_some_and(|a| a.connected)),
                berth_model::member::MemberRole::Login => None,
            },
            drift: Vec::new(),
            unknown_settings: Vec::new(),
            hardware_drift: Vec::new(),
        }
    }

    /// The controller's own, whose agent needs no key: the kernel says who it is.
    fn own(agent: &AgentStatus) -> Machine {
        Machine {
            name: agent.node.clone(),
            role: "compute".to_string(),
            state: "own".to_string(),
            joined: None,
            from: None,
            key: None,
            renewed: None,
            certificate_ends: None,
            token: None,
            host_name: None,
            administrators: false,
            connected: Some(agent.connected),
            drift: Vec::new(),
            unknown_settings: Vec::new(),
            hardware_drift: Vec::new(),
        }
    }
}

/// Everybody, by name.
fn machines(members: Vec<MemberInfo>, agents: &[AgentStatus]) -> Vec<Machine> {
    let own = agents.iter().filter(|a| members.iter().all(|m| m.name != a.node)).map(Machine::own);
    let mut all: Vec<Machine> = own.collect();
    for member in members {
        let agent = agents.iter().find(|a| a.node == member.name);
        all.push(Machine::member(member, agent));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn table(all: &[Machine]) -> String {
    let dash = || "-".to_string();
    let mut rows = vec![
        ["NAME", "ROLE", "STATE", "JOINED", "FROM", "KEY", "CERTIFICATE_ENDS", "HOST", "CONNECTED"]
            .map(str::to_string),
    ];
    for m in all {
        rows.push([
            m.name.to_string(),
            m.role.clone(),
            m.state.clone(),
            m.joined.map_or_else(dash, |at| time::iso(Time::from_secs(at))),
            m.from.clone().unwrap_or_else(dash),
            m.key.as_ref().map_or_else(dash, |key| key.chars().take(16).collect()),
            m.certificate_ends.map_or_else(dash, |at| time::iso(Time::from_secs(at))),
            m.host_name.clone().unwrap_or_else(dash),
            m.connected.map_or_else(dash, |yes| if yes { "yes" } else { "no" }.to_string()),
        ]);
    }
    super::image::table(&rows)
}

pub fn run(args: Args, state: Option<&Path>) -> Outcome {
    if let Args::RotateKey = args {
        return rotate(state);
    }
    let site = Site::find(state)?;
    match args {
        Args::RotateKey => Ok(0),
        Args::Ls { json } => {
            let (members, status, nodes) = berth_client::block_on(async {
                let client = site.connect().await?;
                Ok::<_, Failure>((client.members().await?, client.status().await?, client.nodes().await?))
            })?;
            let mut all = machines(members, &status.agents);
            for node in nodes {
                if let Some(machine) = all.iter_mut().find(|m| m.name == node.name) {
                    machine.host_name = node.host_name;
                    machine.drift = node.drift;
                    machine.unknown_settings = node.unknown_settings;
                    machine.hardware_drift = node.hardware_drift;
                }
            }
            if json {
                return out::print(&crate::explain::json(&all)?).map(|()| 0);
            }
            out::print(&table(&all))?;
            for machine in &all {
                for line in &machine.drift {
                    out::complain(&format!(
                        "berth: warning: {} differs from the controller: {line}",
                        machine.name
                    ));
                }
                for line in &machine.hardware_drift {
                    out::complain(&format!(
                        "berth: warning: {} has come back with less: {line}",
                        machine.name
                    ));
                }
                if !machine.unknown_settings.is_empty() {
                    out::complain(&format!(
                        "berth: warning: {} has an older agent, which does not know {}: upgrade it",
                        machine.name,
                        machine.unknown_settings.join(", ")
                    ));
                }
            }
            Ok(0)
        }
        Args::Approve { names } => each(&site, names, "approved", None),
        Args::Remove { names, force } => each(&site, names, "removed", Some(force)),
    }
}

/// Exchanges the key of this machine.
fn rotate(state: Option<&Path>) -> Outcome {
    let dir = StateDir::named_or_own(state)?;
    let Some(joined) = Joined::read(&dir)? else {
        return Err(Failure::user(format!(
            "{} joined no cluster: run this on the machine whose key is to be exchanged",
            dir.0.display()
        )));
    };
    let now = berth_client::block_on(async { joined::rotating::rotate(&dir, &joined).await })?;
    let key = joined::beginning(&now.key);
    out::print(&format!("{} has the key {key} now; the old one is refused.\n", now.name)).map(|()| 0)
}

/// Approves each machine, or removes it (`force`: in any case). What can be done is done.
fn each(site: &Site, names: Vec<String>, done: &str, remove: Option<bool>) -> Outcome {
    let mut failed = 0;
    for name in names {
        let node = NodeName(name);
        let asked = berth_client::block_on(async {
            let client = site.connect().await?;
            match remove {
                Some(force) => client.remove_member(&node, force).await?,
                None => client.approve_member(&node).await?,
            };
            Ok::<_, Failure>(())
        });
        match asked {
            Ok(()) => out::print(&format!("{done} {node}\n"))?,
            Err(failure) => {
                out::complain(failure.report("berth").trim_end());
                failed = failure.exit_code(false);
            }
        }
    }
    Ok(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::member::{KeyId, MemberRole, MemberState};

    #[test]
    fn members_and_the_own_node_are_listed_by_name() {
        let member = |name: &str, role| MemberInfo {
            name: name.into(),
            role,
            state: MemberState::Approved,
            key: KeyId::of_digest([0xab; 32]),
            joined: Time(0),
            token: "aaaaaaaa".into(),
            from: "10.0.0.7".into(),
            renewed: Time(0),
            ends: Some(Time::from_secs(86_400)).filter(|_| name != "n3"),
            administrators: false,
        };
        let agent = |node: &str| AgentStatus {
            node: node.into(),
            version: "1".into(),
            connected: true,
            started: None,
        };
        let members = vec![
            member("login", MemberRole::Login),
            member("n2", MemberRole::Compute),
            member("n3", MemberRole::Compute),
        ];
        let text = table(&machines(members, &[agent("head"), agent("n2")]));
        let shown: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            shown[0],
            ["NAME", "ROLE", "STATE", "JOINED", "FROM", "KEY", "CERTIFICATE_ENDS", "HOST", "CONNECTED"]
        );
        assert_eq!(shown[1], ["head", "compute", "own", "-", "-", "-", "-", "-", "yes"]);
        assert_eq!((shown[2][0], shown[2][1], shown[2][8]), ("login", "login", "-"));
        assert_eq!((shown[3][4], shown[3][5], shown[3][8]), ("10.0.0.7", "abababababababab", "yes"));
        assert_eq!((shown[4][0], shown[4][6], shown[4][8]), ("n3", "-", "no"));
        assert!(shown[3][6].starts_with("1970-01-0"), "{text}");
    }
}
