//! Requests, responses and refusals on the wire.

use super::{Field, Malformed, enums, required, required_member, structs};
use crate::pb;
use berth_model::request::{CancelRequest, NodeStateChange, Payload, Refusal, RefusalCode, Response};
use berth_model::spec::{JobSelector, JobSpec, StepSpec};
use berth_model::{JobId, StepId, StepKey};

enums! {
    NodeStateChange { Down, Drain, Fail, Resume, Idle, Undrain, CancelReboot }
    RefusalCode { Invalid, NotFound, Denied, Impossible, WrongState, Busy, Unavailable, Internal }
}

structs! {
    Payload { script, env, login }
    CancelRequest { jobs, user, name, partition, account, states, nodes, signal, batch, full }
    Refusal { code, message }
}

impl Field<pb::CancelTarget> for (JobSelector, Option<StepId>) {
    fn put(&self) -> pb::CancelTarget {
        pb::CancelTarget { job: self.0.put(), step: self.1.put() }
    }
    fn get(wire: pb::CancelTarget) -> Result<Self, Malformed> {
        let step: Option<StepId> = wire.step.map(Field::get).transpose()?;
        Ok((required(wire.job)?, step))
    }
}

impl Field<pb::HetStepBegin> for (StepKey, u32) {
    fn put(&self) -> pb::HetStepBegin {
        pb::HetStepBegin { key: self.0.put(), first_node: self.1 }
    }
    fn get(wire: pb::HetStepBegin) -> Result<Self, Malformed> {
        Ok((required(wire.key)?, wire.first_node))
    }
}

impl Field<pb::HetComponent> for (JobSpec, Payload) {
    fn put(&self) -> pb::HetComponent {
        pb::HetComponent { spec: Some(self.0.put()), payload: Some(self.1.put()) }
    }
    fn get(wire: pb::HetComponent) -> Result<Self, Malformed> {
        Ok((required(wire.spec)?, required(wire.payload)?))
    }
}

impl Field<pb::HetStepPart> for (JobId, StepSpec) {
    fn put(&self) -> pb::HetStepPart {
        pb::HetStepPart { job: self.0.put(), spec: Some(self.1.put()) }
    }
    fn get(wire: pb::HetStepPart) -> Result<Self, Malformed> {
        Ok((Field::get(wire.job)?, required(wire.spec)?))
    }
}

impl Field<pb::RefusedSelector> for (String, Refusal) {
    fn put(&self) -> pb::RefusedSelector {
        pb::RefusedSelector { selector: self.0.clone(), refusal: self.1.put() }
    }
    fn get(wire: pb::RefusedSelector) -> Result<Self, Malformed> {
        Ok((wire.selector, required(wire.refusal)?))
    }
}

required_member!(Response => pb::Response);

impl Field<pb::Response> for Response {
    fn put(&self) -> pb::Response {
        use pb::response::Kind;
        let kind = match self {
            Response::Done => Kind::Done(pb::Nothing {}),
            Response::Submitted { job, step, notes, started } => Kind::Submitted(pb::Submitted {
                job: job.put(),
                step: step.put(),
                notes: notes.clone(),
                started: started.put(),
            }),
            Response::WouldStart { job, at, cpus, nodes, partition, shares } => {
                Kind::WouldStart(pb::WouldStart {
                    job: job.put(),
                    at: at.put(),
                    cpus: *cpus,
                    nodes: nodes.put(),
                    partition: partition.clone(),
                    shares: shares.put(),
                })
            }
            Response::StepCreated { key, layout, waited } => Kind::StepCreated(pb::StepCreated {
                key: key.put(),
                layout: layout.put(),
                waited: waited.put(),
            }),
            Response::HetStepCreated { parts, layout, waited } => Kind::HetStepCreated(pb::HetStepCreated {
                parts: parts.put(),
                layout: layout.put(),
                waited: waited.put(),
            }),
            Response::Acted { jobs, refused, later } => {
                Kind::Acted(pb::Acted { jobs: jobs.put(), refused: refused.put(), later: later.put() })
            }
            Response::TokenCreated { id, secret, expires, text } => Kind::TokenCreated(pb::TokenCreated {
                id: id.clone(),
                secret: secret.clone(),
                expires: expires.put(),
                text: text.clone(),
            }),
            Response::Enrolled { member } => Kind::Enrolled(pb::Enrolled { member: member.put() }),
        };
        pb::Response { kind: Some(kind) }
    }

    fn get(wire: pb::Response) -> Result<Self, Malformed> {
        use pb::response::Kind;
        Ok(match wire.kind.ok_or(Malformed::new("an answer without content"))? {
            Kind::Done(pb::Nothing {}) => Response::Done,
            Kind::Submitted(pb::Submitted { job, step, notes, started }) => Response::Submitted {
                job: Field::get(job)?,
                step: Field::get(step)?,
                notes,
                started: Field::get(started)?,
            },
            Kind::WouldStart(pb::WouldStart { job, at, cpus, nodes, partition, shares }) => {
                Response::WouldStart {
                    job: Field::get(job)?,
                    at: Field::get(at)?,
                    cpus,
                    nodes: Field::get(nodes)?,
                    partition,
                    shares: Field::get(shares)?,
                }
            }
            Kind::StepCreated(pb::StepCreated { key, layout, waited }) => Response::StepCreated {
                key: required(key)?,
                layout: required(layout)?,
                waited: Field::get(waited)?,
            },
            Kind::HetStepCreated(pb::HetStepCreated { parts, layout, waited }) => Response::HetStepCreated {
                parts: Field::get(parts)?,
                layout: required(layout)?,
                waited: Field::get(waited)?,
            },
            Kind::Acted(pb::Acted { jobs, refused, later }) => Response::Acted {
                jobs: Field::get(jobs)?,
                refused: Field::get(refused)?,
                later: Field::get(later)?,
            },
            Kind::TokenCreated(pb::TokenCreated { id, secret, expires, text }) => {
                Response::TokenCreated { id, secret, expires: Field::get(expires)?, text }
            }
            Kind::Enrolled(pb::Enrolled { member }) => Response::Enrolled { member: required(member)? },
        })
    }
}
