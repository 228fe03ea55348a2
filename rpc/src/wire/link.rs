//! What controller and agents say to each other, on the wire.

use super::{Field, Malformed, enums, required, required_member, structs};
use crate::pb;
use berth_model::carry::{CarriedPart, Carry, Hand, Registration, StartPart};
use berth_model::config::Config;
use berth_model::direct::Admission;
use berth_model::launch::{StepPhase, Usage};
use berth_model::link::{
    EndCause, FromAgent, GpuFault, GpusBusy, Highest, SignalTarget, Start, ToAgent, Trouble,
};
use berth_model::login::Login;
use berth_model::request::Peer;
use berth_model::state::Cause;
use berth_model::time::Time;
use berth_model::{Attempt, JobId, StepKey};

enums! {
    EndCause { Cancelled, TimeLimit, JobEnded, Requeued, NodeFailed, OutOfTouch }
    Cause { Unkillable, HealthCheck, Reboot, Settings }
}

structs! {
    Start { term, launch, job_time_left, step_time_left, warn, lease, login }
    Trouble { cause, run, why }
    GpuFault { index, why }
    GpusBusy { job, attempt, percent }
    Highest { job, attempt, step, lost }
    Login { registry, secret }
    StartPart { node, node_index, share, job_share, lease }
    CarriedPart { part, to }
    Registration { session, asked, boot_id }
    Hand { address, key, part }
    Carry { opening, common, own, to }
}

required_member!(SignalTarget => pb::SignalTarget);

impl Field<pb::SignalTarget> for SignalTarget {
    fn put(&self) -> pb::SignalTarget {
        use pb::signal_target::Kind;
        pb::SignalTarget {
            kind: Some(match self {
                SignalTarget::Step(step) => Kind::Step(step.put()),
                SignalTarget::Steps => Kind::Steps(pb::AllSteps {}),
                SignalTarget::BatchShell => Kind::BatchShell(pb::BatchShell {}),
                SignalTarget::All => Kind::All(pb::Everything {}),
            }),
        }
    }
    fn get(wire: pb::SignalTarget) -> Result<Self, Malformed> {
        use pb::signal_target::Kind;
        match wire.kind {
            Some(Kind::Step(step)) => Ok(SignalTarget::Step(Field::get(step)?)),
            Some(Kind::Steps(pb::AllSteps {})) => Ok(SignalTarget::Steps),
            Some(Kind::BatchShell(pb::BatchShell {})) => Ok(SignalTarget::BatchShell),
            Some(Kind::All(pb::Everything {})) => Ok(SignalTarget::All),
            None => Err(Malformed::new("not a known target of a signal")),
        }
    }
}

impl Field<pb::Admission> for Admission {
    fn put(&self) -> pb::Admission {
        pb::Admission {
            grant: self.grant.clone(),
            key: self.key.clone(),
            uid: self.peer.uid.put(),
            gid: self.peer.gid.put(),
            job: self.peer.job.put(),
            step: self.step.put(),
            time: self.time.put(),
        }
    }
    fn get(wire: pb::Admission) -> Result<Self, Malformed> {
        let (uid, gid) = (Field::get(wire.uid)?, Field::get(wire.gid)?);
        Ok(Admission {
            grant: wire.grant,
            key: wire.key,
            peer: Peer { uid, gid, job: Field::get(wire.job)? },
            step: required(wire.step)?,
            time: Field::get(wire.time)?,
        })
    }
}

impl Field<pb::HeldStep> for (StepKey, StepPhase) {
    fn put(&self) -> pb::HeldStep {
        pb::HeldStep { key: self.0.put(), phase: self.1.put() }
    }
    fn get(wire: pb::HeldStep) -> Result<Self, Malformed> {
        Ok((required(wire.key)?, required(wire.phase)?))
    }
}

impl Field<pb::StepUse> for (StepKey, Usage) {
    fn put(&self) -> pb::StepUse {
        pb::StepUse { key: self.0.put(), usage: self.1.put() }
    }
    fn get(wire: pb::StepUse) -> Result<Self, Malformed> {
        Ok((required(wire.key)?, required(wire.usage)?))
    }
}

impl Field<pb::HeldJob> for (JobId, Attempt) {
    fn put(&self) -> pb::HeldJob {
        pb::HeldJob { job: self.0.put(), attempt: self.1.put() }
    }
    fn get(wire: pb::HeldJob) -> Result<Self, Malformed> {
        Ok((Field::get(wire.job)?, Field::get(wire.attempt)?))
    }
}

impl Field<pb::Renewed> for (JobId, Attempt, Time) {
    fn put(&self) -> pb::Renewed {
        pb::Renewed { job: self.0.put(), attempt: self.1.put(), until: self.2.put() }
    }
    fn get(wire: pb::Renewed) -> Result<Self, Malformed> {
        Ok((Field::get(wire.job)?, Field::get(wire.attempt)?, Field::get(wire.until)?))
    }
}

impl Field<pb::FromAgent> for FromAgent {
    fn put(&self) -> pb::FromAgent {
        use pb::from_agent::Kind;
        let kind = match self {
            FromAgent::Hello {
                node,
                boot_id,
                boot_time,
                agent_start,
                version,
                hardware,
                term,
                steps,
                jobs,
                asked,
                unknown,
                features,
                highest,
                host,
            } => Kind::Hello(pb::Hello {
                node: node.put(),
                boot_id: boot_id.clone(),
                boot_time: boot_time.put(),
                agent_start: agent_start.put(),
                version: version.clone(),
                hardware: hardware.put(),
                term: term.put(),
                steps: steps.put(),
                jobs: jobs.put(),
                asked: asked.put(),
                unknown: unknown.clone(),
                features: features.clone(),
                highest: highest.put(),
                host: host.clone(),
            }),
            FromAgent::Step { session, key, phase } => {
                Kind::Step(pb::StepReport { session: session.put(), key: key.put(), phase: phase.put() })
            }
            FromAgent::Pulled { session, key, pull } => {
                Kind::Pulled(pb::ImagePulled { session: session.put(), key: key.put(), pull: pull.put() })
            }
            FromAgent::JobGone { session, job, attempt, steps, epilog, faults } => {
                Kind::JobGone(pb::JobGone {
                    session: session.put(),
                    job: job.put(),
                    attempt: attempt.put(),
                    steps: steps.put(),
                    epilog: epilog.clone(),
                    faults: faults.put(),
                })
            }
            FromAgent::PrologFailed { session, job, attempt, why, faults } => {
                Kind::PrologFailed(pb::PrologFailed {
                    session: session.put(),
                    job: job.put(),
                    attempt: attempt.put(),
                    why: why.clone(),
                    faults: faults.put(),
                })
            }
            FromAgent::RebootFailed { session, since, why } => Kind::RebootFailed(pb::RebootFailed {
                session: session.put(),
                why: why.clone(),
                since: since.put(),
            }),
            FromAgent::ImagesHeld { session, ask, digests } => Kind::ImagesHeld(pb::ImagesHeld {
                session: session.put(),
                ask: *ask,
                digests: digests.clone(),
            }),
            FromAgent::Peers { session, said } => {
                Kind::Peers(pb::PeersSaid { session: session.put(), said: said.put() })
            }
            FromAgent::Signalled { session, job, attempt, number } => Kind::Signalled(pb::Signalled {
                session: session.put(),
                job: job.put(),
                attempt: attempt.put(),
                number: *number,
            }),
            FromAgent::NotEnded { session, ask, keys } => {
                Kind::NotEnded(pb::NotEnded { session: session.put(), ask: *ask, keys: keys.put() })
            }
            FromAgent::Heartbeat { session, load, free_memory, troubles, drift, asked, used, gpus } => {
                Kind::Heartbeat(pb::Heartbeat {
                    session: session.put(),
                    load: *load,
                    free_memory: *free_memory,
                    troubles: troubles.put(),
                    drift: drift.clone(),
                    asked: asked.put(),
                    used: used.put(),
                    gpus: gpus.put(),
                })
            }
        };
        pb::FromAgent { kind: Some(kind) }
    }

    fn get(wire: pb::FromAgent) -> Result<Self, Malformed> {
        use pb::from_agent::Kind;
        Ok(match wire.kind.ok_or(Malformed::new("not a known message of an agent"))? {
            Kind::Hello(pb::Hello {
                node,
                boot_id,
                boot_time,
                agent_start,
                version,
                hardware,
                term,
                steps,
                jobs,
                asked,
                unknown,
                features,
                highest,
                host,
            }) => FromAgent::Hello {
                node: Field::get(node)?,
                boot_id,
                boot_time: Field::get(boot_time)?,
                agent_start: Field::get(agent_start)?,
                version,
                hardware: required(hardware)?,
                term: Field::get(term)?,
                steps: Field::get(steps)?,
                jobs: Field::get(jobs)?,
                asked: Field::get(asked)?,
                unknown,
                features,
                highest: highest.map(<Highest as Field<pb::Highest>>::get).transpose()?.unwrap_or_default(),
                host,
            },
            Kind::Step(pb::StepReport { session, key, phase }) => FromAgent::Step {
                session: Field::get(session)?,
                key: required(key)?,
                phase: required(phase)?,
            },
            Kind::Pulled(pb::ImagePulled { session, key, pull }) => FromAgent::Pulled {
                session: Field::get(session)?,
                key: required(key)?,
                pull: required(pull)?,
            },
            Kind::JobGone(pb::JobGone { session, job, attempt, steps, epilog, faults }) => {
                FromAgent::JobGone {
                    session: Field::get(session)?,
                    job: Field::get(job)?,
                    attempt: Field::get(attempt)?,
                    steps: Field::get(steps)?,
                    epilog,
                    faults: Field::get(faults)?,
                }
            }
            Kind::PrologFailed(pb::PrologFailed { session, job, attempt, why, faults }) => {
                FromAgent::PrologFailed {
                    session: Field::get(session)?,
                    job: Field::get(job)?,
                    attempt: Field::get(attempt)?,
                    why,
                    faults: Field::get(faults)?,
                }
            }
            Kind::ImagesHeld(pb::ImagesHeld { session, ask, digests }) => {
                FromAgent::ImagesHeld { session: Field::get(session)?, ask, digests }
            }
            Kind::RebootFailed(pb::RebootFailed { session, why, since }) => {
                FromAgent::RebootFailed { session: Field::get(session)?, since: Field::get(since)?, why }
            }
            Kind::Peers(pb::PeersSaid { session, said }) => {
                FromAgent::Peers { session: Field::get(session)?, said: required(said)? }
            }
            Kind::Signalled(pb::Signalled { session, job, attempt, number }) => FromAgent::Signalled {
                session: Field::get(session)?,
                job: Field::get(job)?,
                attempt: Field::get(attempt)?,
                number,
            },
            Kind::NotEnded(pb::NotEnded { session, ask, keys }) => {
                FromAgent::NotEnded { session: Field::get(session)?, ask, keys: Field::get(keys)? }
            }
            Kind::Heartbeat(pb::Heartbeat {
                session,
                load,
                free_memory,
                troubles,
                drift,
                asked,
                used,
                gpus,
            }) => {
                let (session, troubles) = (Field::get(session)?, Field::get(troubles)?);
                let (asked, used, gpus) = (Field::get(asked)?, Field::get(used)?, Field::get(gpus)?);
                FromAgent::Heartbeat { session, load, free_memory, troubles, drift, asked, used, gpus }
            }
        })
    }
}

impl Field<pb::ToAgent> for ToAgent {
    fn put(&self) -> pb::ToAgent {
        use pb::to_agent::Kind;
        let kind = match self {
            ToAgent::Welcome { term, session, heartbeat } => Kind::Welcome(pb::Welcome {
                term: term.put(),
                session: session.put(),
                heartbeat: heartbeat.put(),
            }),
            ToAgent::Refused(why) => Kind::Refused(why.clone()),
            ToAgent::Start(start) => Kind::Start((**start).put()),
            ToAgent::Signal { term, job, attempt, target, signal, number } => Kind::Signal(pb::Signal {
                term: term.put(),
                job: job.put(),
                attempt: attempt.put(),
                target: target.put(),
                signal: *signal,
                number: *number,
            }),
            ToAgent::Terminate { term, key, kill_wait, cause } => Kind::Terminate(pb::Terminate {
                term: term.put(),
                key: key.put(),
                kill_wait: kill_wait.put(),
                cause: cause.put(),
            }),
            ToAgent::Reboot { term, since } => {
                Kind::Reboot(pb::RebootMachine { term: term.put(), since: since.put() })
            }
            ToAgent::EndJob { term, job, attempt, kill_wait, cause } => Kind::EndJob(pb::EndJob {
                term: term.put(),
                job: job.put(),
                attempt: attempt.put(),
                kill_wait: kill_wait.put(),
                cause: cause.put(),
            }),
            ToAgent::ImagesNeeded { ask, digests } => {
                Kind::ImagesNeeded(pb::ImagesNeeded { ask: *ask, digests: digests.clone() })
            }
            ToAgent::Fetch(start) => Kind::Fetch((**start).put()),
            ToAgent::Prefetch(start) => Kind::Prefetch((**start).put()),
            ToAgent::EndPrefetch { term, job, attempt } => Kind::EndPrefetch(pb::EndPrefetch {
                term: term.put(),
                job: job.put(),
                attempt: attempt.put(),
            }),
            ToAgent::Peers(said) => Kind::Peers(said.put()),
            ToAgent::Renew { term, runs } => Kind::Renew(pb::Renew { term: term.put(), runs: runs.put() }),
            // No field of it is asked for on the way, and agents of other versions make of it what they can.
            ToAgent::Configure(understood) => {
                Kind::Configure(understood.config.told().to_string().into_bytes())
            }
            ToAgent::Admit(admission) => Kind::Admit((**admission).put()),
            ToAgent::Carry(carry) => Kind::Carry((**carry).put()),
            ToAgent::Dial { number } => Kind::Dial(pb::Dial { number: *number }),
            ToAgent::Say { key, text } => Kind::Say(pb::Say { key: key.put(), text: text.clone() }),
            ToAgent::LookForEnds { ask, keys } => {
                Kind::LookForEnds(pb::LookForEnds { ask: *ask, keys: keys.put() })
            }
            ToAgent::Resumed { term } => Kind::Resumed(pb::Resumed { term: term.put() }),
            ToAgent::ExitRecorded { key } => Kind::ExitRecorded(pb::ExitRecorded { key: key.put() }),
        };
        pb::ToAgent { kind: Some(kind) }
    }

    fn get(wire: pb::ToAgent) -> Result<Self, Malformed> {
        use pb::to_agent::Kind;
        Ok(match wire.kind.ok_or(Malformed::new("not a known message of a controller"))? {
            Kind::Welcome(pb::Welcome { term, session, heartbeat }) => ToAgent::Welcome {
                term: Field::get(term)?,
                session: Field::get(session)?,
                heartbeat: Field::get(heartbeat)?,
            },
            Kind::Refused(why) => ToAgent::Refused(why),
            Kind::Start(start) => ToAgent::Start(Box::new(Field::get(start)?)),
            Kind::Signal(pb::Signal { term, job, attempt, target, signal, number }) => ToAgent::Signal {
                term: Field::get(term)?,
                job: Field::get(job)?,
                attempt: Field::get(attempt)?,
                target: required(target)?,
                signal,
                number,
            },
            Kind::Terminate(pb::Terminate { term, key, kill_wait, cause }) => ToAgent::Terminate {
                term: Field::get(term)?,
                key: required(key)?,
                kill_wait: Field::get(kill_wait)?,
                cause: Field::get(cause)?,
            },
            Kind::Reboot(pb::RebootMachine { term, since }) => {
                ToAgent::Reboot { term: Field::get(term)?, since: Field::get(since)? }
            }
            Kind::EndJob(pb::EndJob { term, job, attempt, kill_wait, cause }) => ToAgent::EndJob {
                term: Field::get(term)?,
                job: Field::get(job)?,
                attempt: Field::get(attempt)?,
                kill_wait: Field::get(kill_wait)?,
                cause: Field::get(cause)?,
            },
            Kind::ImagesNeeded(pb::ImagesNeeded { ask, digests }) => ToAgent::ImagesNeeded { ask, digests },
            Kind::Fetch(start) => ToAgent::Fetch(Box::new(Field::get(start)?)),
            Kind::Prefetch(start) => ToAgent::Prefetch(Box::new(Field::get(start)?)),
            Kind::EndPrefetch(pb::EndPrefetch { term, job, attempt }) => ToAgent::EndPrefetch {
                term: Field::get(term)?,
                job: Field::get(job)?,
                attempt: Field::get(attempt)?,
            },
            Kind::Peers(said) => ToAgent::Peers(Field::get(said)?),
            Kind::Renew(pb::Renew { term, runs }) => {
                ToAgent::Renew { term: Field::get(term)?, runs: Field::get(runs)? }
            }
            Kind::Configure(text) => {
                let understood = serde_json::from_slice(&text).and_then(Config::understand);
                let understood = understood.map_err(|_| Malformed::new("not a configuration"))?;
                ToAgent::Configure(Box::new(understood))
            }
            Kind::Admit(admission) => ToAgent::Admit(Box::new(Field::get(admission)?)),
            Kind::Carry(carry) => ToAgent::Carry(Box::new(Field::get(carry)?)),
            Kind::Dial(pb::Dial { number }) => ToAgent::Dial { number },
            Kind::Say(pb::Say { key, text }) => ToAgent::Say { key: required(key)?, text },
            Kind::LookForEnds(pb::LookForEnds { ask, keys }) => {
                ToAgent::LookForEnds { ask, keys: Field::get(keys)? }
            }
            Kind::Resumed(pb::Resumed { term }) => ToAgent::Resumed { term: Field::get(term)? },
            Kind::ExitRecorded(pb::ExitRecorded { key }) => ToAgent::ExitRecorded { key: required(key)? },
        })
    }
}
