//! Queries and the controller's status on the wire.

use super::{Field, Malformed, structs};
use crate::pb;
use berth_model::query::{AccountingQuery, AgentStatus, JobQuery, Status};

structs! {
    JobQuery { ids, users, states, include_finished, brief, sluids }
    AccountingQuery { ids, users, states, from, until, names, partitions, accounts, sluids }
    AgentStatus { node, version, connected, started }
}

impl Field<pb::StatusReply> for Status {
    fn put(&self) -> pb::StatusReply {
        let Status { pid, version, state_dir, since, accepting, alarms, agents, login_key } = self;
        pb::StatusReply {
            pid: *pid,
            version: version.clone(),
            state_dir: state_dir.put(),
            since: since.put(),
            accepting: *accepting,
            alarms: alarms.clone(),
            agents: agents.put(),
            login_key: login_key.put(),
        }
    }
    fn get(wire: pb::StatusReply) -> Result<Self, Malformed> {
        let pb::StatusReply { pid, version, state_dir, since, accepting, alarms, agents, login_key } = wire;
        Ok(Status {
            pid,
            version,
            state_dir: Field::get(state_dir)?,
            since: Field::get(since)?,
            accepting,
            alarms,
            agents: Field::get(agents)?,
            login_key: Field::get(login_key)?,
        })
    }
}
