//! Whatever the model can say survives the wire, and no bytes make the decoder panic.

use super::*;
use crate::pb;
use berth_model::bind::gpu::GpuBind;
use berth_model::bind::{CpuBind, MemBind};
use berth_model::carry::CarriedPart;
use berth_model::config::{Config, PartitionConfig, Understood};
use berth_model::devices::DeviceRequest;
use berth_model::direct::Admission;
use berth_model::distribution::Distribution;
use berth_model::exchange::{FromPeers, ImageWay, ToPeers};
use berth_model::launch::{Program, StepLaunch, StepPhase};
use berth_model::limits::LimitValue;
use berth_model::link::{FromAgent, SignalTarget, ToAgent};
use berth_model::listing::JobList;
use berth_model::member::{AuditInfo, KeyId, MemberInfo, NewToken, TokenInfo};
use berth_model::query::{AccountingQuery, AgentStatus, JobQuery, Status};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{CancelRequest, Payload, Peer, Refusal, Response};
use berth_model::spec::{JobSelector, JobSpec, MemoryRequest, ResolvedImage, StepSpec, TimeLimit};
use berth_model::state::Reason;
use berth_model::tres::GresKey;
use berth_model::{StepId, StepKey};
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;

/// A source of values that a seed decides.
pub(crate) struct Source(pub(crate) u64);

impl Source {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = self.below(9);
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Any value, edges included.
pub(crate) trait Arbitrary {
    fn arbitrary(r: &mut Source) -> Self;
}

macro_rules! numbers {
    ($($t:ty),+) => { $(
        impl Arbitrary for $t {
            fn arbitrary(r: &mut Source) -> Self {
                let raw = r.next().to_le_bytes();
                let any = <$t>::from_le_bytes(raw[..size_of::<$t>()].try_into().unwrap());
                r.pick(&[0, 1, <$t>::MAX, <$t>::MIN, any])
            }
        }
    )+ };
}
numbers!(u8, u16, u32, u64, i32, i64);

macro_rules! wrapped {
    ($($t:ident),+) => { $(
        impl Arbitrary for $t {
            fn arbitrary(r: &mut Source) -> Self { $t(Arbitrary::arbitrary(r)) }
        }
    )+ };
}
wrapped!(JobId, Uid, Gid, Term, Attempt, Session, Sluid, Time, NodeName, SubmissionId);

impl Arbitrary for bool {
    fn arbitrary(r: &mut Source) -> Self {
        r.next() & 1 == 1
    }
}
impl Arbitrary for String {
    fn arbitrary(r: &mut Source) -> Self {
        r.pick(&["", "a", "gpu:a100", "\u{1f6a2} Größe", "two\nlines"]).to_string()
    }
}
impl Arbitrary for ByteStr {
    fn arbitrary(r: &mut Source) -> Self {
        ByteStr(r.bytes())
    }
}
impl Arbitrary for CpuBind {
    fn arbitrary(r: &mut Source) -> Self {
        r.pick(&["none", "verbose,cores", "map_cpu:0*3,7", "mask_cpu:0x1,0xff", "rank_ldom"]).parse().unwrap()
    }
}

impl Arbitrary for GpuBind {
    fn arbitrary(r: &mut Source) -> Self {
        r.pick(&["none", "verbose,closest", "single:2", "per_task:1", "map_gpu:0*3,7", "mask_gpu:0x3"])
            .parse()
            .unwrap()
    }
}

impl Arbitrary for MemBind {
    fn arbitrary(r: &mut Source) -> Self {
        r.pick(&["none", "verbose,prefer,local", "map_mem:0,1", "mask_mem:0x3"]).parse().unwrap()
    }
}

impl Arbitrary for Span {
    fn arbitrary(r: &mut Source) -> Self {
        Span(i64::arbitrary(r) & i64::MAX)
    }
}
impl Arbitrary for KeyId {
    fn arbitrary(r: &mut Source) -> Self {
        KeyId::of_digest([r.next().to_le_bytes()[0]; 32])
    }
}
impl<T: Arbitrary> Arbitrary for std::sync::Arc<T> {
    fn arbitrary(r: &mut Source) -> Self {
        std::sync::Arc::new(T::arbitrary(r))
    }
}
impl Arbitrary for berth_model::launch::Layout {
    fn arbitrary(r: &mut Source) -> Self {
        let (nodes, tasks) = (Arbitrary::arbitrary(r), Arbitrary::arbitrary(r));
        berth_model::launch::Layout { nodes, tasks, cpus: Arbitrary::arbitrary(r) }
    }
}
impl<T: Arbitrary> Arbitrary for Box<T> {
    fn arbitrary(r: &mut Source) -> Self {
        Box::new(T::arbitrary(r))
    }
}

impl<T: Arbitrary> Arbitrary for Option<T> {
    fn arbitrary(r: &mut Source) -> Self {
        bool::arbitrary(r).then(|| T::arbitrary(r))
    }
}
impl<T: Arbitrary> Arbitrary for Vec<T> {
    fn arbitrary(r: &mut Source) -> Self {
        (0..r.below(4)).map(|_| T::arbitrary(r)).collect()
    }
}
impl<A: Arbitrary, B: Arbitrary> Arbitrary for (A, B) {
    fn arbitrary(r: &mut Source) -> Self {
        (A::arbitrary(r), B::arbitrary(r))
    }
}
impl<A: Arbitrary, B: Arbitrary, C: Arbitrary> Arbitrary for (A, B, C) {
    fn arbitrary(r: &mut Source) -> Self {
        (A::arbitrary(r), B::arbitrary(r), C::arbitrary(r))
    }
}
impl<K: Arbitrary + Ord, V: Arbitrary> Arbitrary for BTreeMap<K, V> {
    fn arbitrary(r: &mut Source) -> Self {
        Vec::arbitrary(r).into_iter().collect()
    }
}
impl Arbitrary for GresKey {
    fn arbitrary(r: &mut Source) -> Self {
        GresKey { name: Arbitrary::arbitrary(r), kind: Arbitrary::arbitrary(r) }
    }
}
impl Arbitrary for LimitValue {
    fn arbitrary(r: &mut Source) -> Self {
        let at = LimitValue::At(u64::arbitrary(r));
        r.pick(&[LimitValue::Unlimited, at])
    }
}
impl Arbitrary for StepId {
    fn arbitrary(r: &mut Source) -> Self {
        let number = StepId::Number(u32::arbitrary(r));
        r.pick(&[StepId::Batch, StepId::Interactive, number])
    }
}
impl Arbitrary for MemoryRequest {
    fn arbitrary(r: &mut Source) -> Self {
        let n = u64::arbitrary(r);
        r.pick(&[
            MemoryRequest::Default,
            MemoryRequest::PerNode(n),
            MemoryRequest::PerCpu(n),
            MemoryRequest::PerGpu(n),
        ])
    }
}
impl Arbitrary for DeviceRequest {
    fn arbitrary(r: &mut Source) -> Self {
        DeviceRequest {
            total: Arbitrary::arbitrary(r),
            per_task: Arbitrary::arbitrary(r),
            per_socket: Arbitrary::arbitrary(r),
            cpus_per_gpu: Arbitrary::arbitrary(r),
            tasks_per_gpu: Arbitrary::arbitrary(r),
            nearness: Arbitrary::arbitrary(r),
        }
    }
}
impl Arbitrary for Distribution {
    fn arbitrary(r: &mut Source) -> Self {
        match r.below(4) {
            0 => Distribution::Block,
            1 => Distribution::Cyclic,
            2 => Distribution::Plane(Arbitrary::arbitrary(r)),
            _ => Distribution::Arbitrary(Arbitrary::arbitrary(r)),
        }
    }
}
impl Arbitrary for TimeLimit {
    fn arbitrary(r: &mut Source) -> Self {
        let minutes = TimeLimit::Minutes(u32::arbitrary(r));
        r.pick(&[TimeLimit::Unlimited, minutes])
    }
}
impl Arbitrary for berth_model::pin::FilePin {
    fn arbitrary(r: &mut Source) -> Self {
        let (inode, size, modified) =
            (Arbitrary::arbitrary(r), Arbitrary::arbitrary(r), Arbitrary::arbitrary(r));
        berth_model::pin::FilePin { inode, size, modified }
    }
}
impl Arbitrary for ResolvedImage {
    fn arbitrary(r: &mut Source) -> Self {
        match r.below(4) {
            0 => ResolvedImage::Manifest {
                source: Arbitrary::arbitrary(r),
                digest: Arbitrary::arbitrary(r),
                insecure: Arbitrary::arbitrary(r),
                indexes: Arbitrary::arbitrary(r),
                pin: Arbitrary::arbitrary(r),
            },
            1 => ResolvedImage::RootDir { path: Arbitrary::arbitrary(r) },
            2 => ResolvedImage::Kept,
            _ => ResolvedImage::Host,
        }
    }
}
impl Arbitrary for JobSelector {
    fn arbitrary(r: &mut Source) -> Self {
        match r.below(5) {
            4 => JobSelector::Sluid(Arbitrary::arbitrary(r)),
            3 => JobSelector::Component(Arbitrary::arbitrary(r), Arbitrary::arbitrary(r)),
            0 => JobSelector::Job(Arbitrary::arbitrary(r)),
            1 => JobSelector::Task(Arbitrary::arbitrary(r), Arbitrary::arbitrary(r)),
            _ => JobSelector::Tasks(Arbitrary::arbitrary(r), Arbitrary::arbitrary(r)),
        }
    }
}
impl Arbitrary for Program {
    fn arbitrary(r: &mut Source) -> Self {
        match r.below(3) {
            0 => Program::Script { text: Arbitrary::arbitrary(r), args: Arbitrary::arbitrary(r) },
            1 => Program::Argv(Arbitrary::arbitrary(r)),
            _ => Program::LoginShell,
        }
    }
}
impl Arbitrary for StepPhase {
    fn arbitrary(r: &mut Source) -> Self {
        match r.below(4) {
            0 => StepPhase::Preparing(Arbitrary::arbitrary(r)),
            1 => StepPhase::Starting,
            2 => StepPhase::Running,
            _ => StepPhase::Exited(Arbitrary::arbitrary(r)),
        }
    }
}
impl Arbitrary for Reason {
    fn arbitrary(r: &mut Source) -> Self {
        let text = String::arbitrary(r);
        let percent = Option::arbitrary(r);
        let signal = i32::arbitrary(r);
        r.pick(&[
            Reason::None,
            Reason::Priority,
            Reason::Resources,
            Reason::BeginTime,
            Reason::JobHeldUser,
            Reason::JobHeldAdmin,
            Reason::JobArrayTaskLimit,
            Reason::PartitionDown,
            Reason::PartitionInactive,
            Reason::PartitionNodeLimit,
            Reason::PartitionTimeLimit,
            Reason::ReqNodeNotAvail(text.clone()),
            Reason::ImagePull(percent),
            Reason::LaunchFailed(text),
            Reason::NonZeroExitCode,
            Reason::RaisedSignal(signal),
            Reason::TimeLimit,
            Reason::OutOfMemory,
            Reason::NodeDown,
            Reason::DependencyNeverSatisfied,
            Reason::Dependency,
            Reason::Restored,
            Reason::GpusIdle,
        ])
    }
}
impl Arbitrary for SignalTarget {
    fn arbitrary(r: &mut Source) -> Self {
        let step = SignalTarget::Step(Arbitrary::arbitrary(r));
        r.pick(&[step, SignalTarget::Steps, SignalTarget::BatchShell, SignalTarget::All])
    }
}
impl Arbitrary for Status {
    fn arbitrary(r: &mut Source) -> Self {
        Status {
            pid: Arbitrary::arbitrary(r),
            version: Arbitrary::arbitrary(r),
            state_dir: Arbitrary::arbitrary(r),
            since: Arbitrary::arbitrary(r),
            accepting: Arbitrary::arbitrary(r),
            alarms: Arbitrary::arbitrary(r),
            agents: Arbitrary::arbitrary(r),
            login_key: Arbitrary::arbitrary(r),
        }
    }
}
impl Arbitrary for Response {
    fn arbitrary(r: &mut Source) -> Self {
        match r.below(8) {
            7 => Response::HetStepCreated {
                parts: Arbitrary::arbitrary(r),
                layout: Arbitrary::arbitrary(r),
                waited: Arbitrary::arbitrary(r),
            },
            0 => Response::Done,
            1 => Response::Submitted {
                job: Arbitrary::arbitrary(r),
                step: Arbitrary::arbitrary(r),
                notes: Arbitrary::arbitrary(r),
                started: Arbitrary::arbitrary(r),
            },
            2 => Response::WouldStart {
                job: Arbitrary::arbitrary(r),
                at: Arbitrary::arbitrary(r),
                cpus: Arbitrary::arbitrary(r),
                nodes: Arbitrary::arbitrary(r),
                partition: Arbitrary::arbitrary(r),
                shares: Arbitrary::arbitrary(r),
            },
            3 => Response::StepCreated {
                key: Arbitrary::arbitrary(r),
                layout: Arbitrary::arbitrary(r),
                waited: Arbitrary::arbitrary(r),
            },
            4 => Response::TokenCreated {
                id: Arbitrary::arbitrary(r),
                secret: Arbitrary::arbitrary(r),
                expires: Arbitrary::arbitrary(r),
                text: Arbitrary::arbitrary(r),
            },
            5 => Response::Enrolled { member: Arbitrary::arbitrary(r) },
            _ => Response::Acted {
                jobs: Arbitrary::arbitrary(r),
                refused: Arbitrary::arbitrary(r),
                later: Arbitrary::arbitrary(r),
            },
        }
    }
}
impl Arbitrary for FromAgent {
    fn arbitrary(r: &mut Source) -> Self {
        let session = Session::arbitrary(r);
        match r.below(11) {
            10 => FromAgent::Signalled {
                session,
                job: Arbitrary::arbitrary(r),
                attempt: Arbitrary::arbitrary(r),
                number: Arbitrary::arbitrary(r),
            },
            7 => FromAgent::Peers { session, said: Arbitrary::arbitrary(r) },
            8 => FromAgent::NotEnded { session, ask: Arbitrary::arbitrary(r), keys: Arbitrary::arbitrary(r) },
            0 => FromAgent::Hello {
                node: Arbitrary::arbitrary(r),
                boot_id: Arbitrary::arbitrary(r),
                boot_time: Arbitrary::arbitrary(r),
                agent_start: Arbitrary::arbitrary(r),
                version: Arbitrary::arbitrary(r),
                hardware: Arbitrary::arbitrary(r),
                term: Arbitrary::arbitrary(r),
                steps: Arbitrary::arbitrary(r),
                asked: Arbitrary::arbitrary(r),
                jobs: Arbitrary::arbitrary(r),
                unknown: Arbitrary::arbitrary(r),
                features: Arbitrary::arbitrary(r),
                highest: Arbitrary::arbitrary(r),
                host: Arbitrary::arbitrary(r),
            },
            1 => FromAgent::Step { session, key: Arbitrary::arbitrary(r), phase: Arbitrary::arbitrary(r) },
            2 => FromAgent::Pulled { session, key: Arbitrary::arbitrary(r), pull: Arbitrary::arbitrary(r) },
            3 => FromAgent::JobGone {
                session,
                job: Arbitrary::arbitrary(r),
                attempt: Arbitrary::arbitrary(r),
                steps: Arbitrary::arbitrary(r),
                epilog: Arbitrary::arbitrary(r),
                faults: Arbitrary::arbitrary(r),
            },
            4 => FromAgent::ImagesHeld {
                session,
                ask: Arbitrary::arbitrary(r),
                digests: Arbitrary::arbitrary(r),
            },
            6 => FromAgent::RebootFailed {
                session,
                since: Arbitrary::arbitrary(r),
                why: Arbitrary::arbitrary(r),
            },
            5 => FromAgent::PrologFailed {
                session,
                job: Arbitrary::arbitrary(r),
                attempt: Arbitrary::arbitrary(r),
                why: Arbitrary::arbitrary(r),
                faults: Arbitrary::arbitrary(r),
            },
            _ => FromAgent::Heartbeat {
                session,
                load: Arbitrary::arbitrary(r),
                free_memory: Arbitrary::arbitrary(r),
                drift: Arbitrary::arbitrary(r),
                troubles: Arbitrary::arbitrary(r),
                asked: Arbitrary::arbitrary(r),
                used: Arbitrary::arbitrary(r),
                gpus: Arbitrary::arbitrary(r),
            },
        }
    }
}
impl Arbitrary for FromPeers {
    fn arbitrary(r: &mut Source) -> Self {
        match r.below(9) {
            8 => FromPeers::Removed {
                ask: Arbitrary::arbitrary(r),
                by: Arbitrary::arbitrary(r),
                user: Arbitrary::arbitrary(r),
                images: Arbitrary::arbitrary(r),
            },
            7 => FromPeers::Name { ask: Arbitrary::arbitrary(r), key: Arbitrary::arbitrary(r) },
            6 => FromPeers::Named {
                key: Arbitrary::arbitrary(r),
                image: Arbitrary::arbitrary(r),
                why: Arbitrary::arbitrary(r),
                proof: Arbitrary::arbitrary(r),
            },
            5 => FromPeers::Asked {
                ask: Arbitrary::arbitrary(r),
                user: Arbitrary::arbitrary(r),
                digest: Arbitrary::arbitrary(r),
                bytes: Arbitrary::arbitrary(r),
                failed: Arbitrary::arbitrary(r),
            },
            4 => FromPeers::Found {
                ask: Arbitrary::arbitrary(r),
                key: Arbitrary::arbitrary(r),
                image: Arbitrary::arbitrary(r),
            },
            2 => FromPeers::Holds {
                all: Arbitrary::arbitrary(r),
                images: Arbitrary::arbitrary(r),
                gone: Arbitrary::arbitrary(r),
            },
            0 => FromPeers::Ready {
                address: Arbitrary::arbitrary(r),
                key: Arbitrary::arbitrary(r),
                streams: Arbitrary::arbitrary(r),
                connected: Arbitrary::arbitrary(r),
            },
            1 => FromPeers::Wanted {
                ask: Arbitrary::arbitrary(r),
                job: Arbitrary::arbitrary(r),
                attempt: Arbitrary::arbitrary(r),
                digest: Arbitrary::arbitrary(r),
                bytes: Arbitrary::arbitrary(r),
                failed: Arbitrary::arbitrary(r),
            },
            _ => FromPeers::Done {
                ask: Arbitrary::arbitrary(r),
                there: Arbitrary::arbitrary(r),
                why: Arbitrary::arbitrary(r),
            },
        }
    }
}
impl Arbitrary for ToPeers {
    fn arbitrary(r: &mut Source) -> Self {
        let key = String::arbitrary(r);
        match r.below(11) {
            10 => ToPeers::Unwanted { ask: Arbitrary::arbitrary(r) },
            5 => ToPeers::Noted { ask: Arbitrary::arbitrary(r) },
            8 => ToPeers::Login { ask: Arbitrary::arbitrary(r), login: Arbitrary::arbitrary(r) },
            7 => ToPeers::Fetch { user: Arbitrary::arbitrary(r), image: Arbitrary::arbitrary(r) },
            6 => ToPeers::Name {
                ask: Arbitrary::arbitrary(r),
                image: Arbitrary::arbitrary(r),
                note: Arbitrary::arbitrary(r),
                proof: Arbitrary::arbitrary(r),
            },
            4 => ToPeers::Pinned { ask: Arbitrary::arbitrary(r), image: Arbitrary::arbitrary(r) },
            0 => ToPeers::Way { ask: Arbitrary::arbitrary(r), way: ImageWay::Wait, note: String::new() },
            1 => ToPeers::Way {
                ask: Arbitrary::arbitrary(r),
                way: ImageWay::Source,
                note: Arbitrary::arbitrary(r),
            },
            2 => {
                let way = ImageWay::Peer {
                    node: Arbitrary::arbitrary(r),
                    address: Arbitrary::arbitrary(r),
                    key,
                    forms: Arbitrary::arbitrary(r),
                };
                ToPeers::Way { ask: Arbitrary::arbitrary(r), way, note: Arbitrary::arbitrary(r) }
            }
            3 => ToPeers::Serve {
                node: Arbitrary::arbitrary(r),
                key,
                digest: Arbitrary::arbitrary(r),
                source: Arbitrary::arbitrary(r),
                user: Arbitrary::arbitrary(r),
                time: Arbitrary::arbitrary(r),
            },
            _ => ToPeers::EndServe { key, digest: Arbitrary::arbitrary(r) },
        }
    }
}
impl Arbitrary for ToAgent {
    fn arbitrary(r: &mut Source) -> Self {
        let term = Term::arbitrary(r);
        let key = StepKey::arbitrary(r);
        let kill_wait = Span::arbitrary(r);
        let cause = Arbitrary::arbitrary(r);
        let StepKey { job, attempt, .. } = key;
        match r.below(20) {
            18 => ToAgent::Carry(Box::new(Arbitrary::arbitrary(r))),
            17 => ToAgent::Resumed { term },
            15 => ToAgent::Say { key, text: Arbitrary::arbitrary(r) },
            16 => ToAgent::LookForEnds { ask: Arbitrary::arbitrary(r), keys: Arbitrary::arbitrary(r) },
            12 => ToAgent::Peers(Arbitrary::arbitrary(r)),
            13 => ToAgent::Fetch(Box::new(Arbitrary::arbitrary(r))),
            0 => ToAgent::Welcome {
                term,
                session: Arbitrary::arbitrary(r),
                heartbeat: Arbitrary::arbitrary(r),
            },
            1 => ToAgent::Refused(Arbitrary::arbitrary(r)),
            2 => ToAgent::Start(Box::new(Arbitrary::arbitrary(r))),
            3 => ToAgent::Signal {
                term,
                job,
                attempt,
                target: Arbitrary::arbitrary(r),
                signal: Arbitrary::arbitrary(r),
                number: Arbitrary::arbitrary(r),
            },
            4 => ToAgent::Terminate { term, key, kill_wait, cause },
            5 => ToAgent::EndJob { term, job, attempt, kill_wait, cause },
            6 => ToAgent::ImagesNeeded { ask: Arbitrary::arbitrary(r), digests: Arbitrary::arbitrary(r) },
            7 => ToAgent::Prefetch(Box::new(Arbitrary::arbitrary(r))),
            8 => ToAgent::EndPrefetch { term, job, attempt },
            9 => {
                ToAgent::Configure(Box::new(Understood { config: Arbitrary::arbitrary(r), unknown: vec![] }))
            }
            10 => ToAgent::Reboot { term, since: Arbitrary::arbitrary(r) },
            11 => ToAgent::Renew { term, runs: vec![(job, attempt, Arbitrary::arbitrary(r))] },
            14 => ToAgent::Admit(Box::new(Admission {
                grant: Arbitrary::arbitrary(r),
                key: Arbitrary::arbitrary(r),
                peer: Peer {
                    uid: Arbitrary::arbitrary(r),
                    gid: Arbitrary::arbitrary(r),
                    job: Arbitrary::arbitrary(r),
                },
                step: key,
                time: kill_wait,
            })),
            _ => ToAgent::ExitRecorded { key },
        }
    }
}

fn survives<T, P>(r: &mut Source) -> Result<(), TestCaseError>
where
    T: Field<P> + Arbitrary + PartialEq + std::fmt::Debug,
    P: Message + Default,
{
    let before = T::arbitrary(r);
    let bytes = before.put().encode_to_vec();
    let after = T::get(P::decode(bytes.as_slice()).unwrap()).unwrap();
    prop_assert_eq!(after, before);
    Ok(())
}

/// Damages a valid message: what is read of it, if anything, can be written again.
fn garbled<T, P>(r: &mut Source) -> Result<(), TestCaseError>
where
    T: Field<P> + Arbitrary,
    P: Message + Default,
{
    let mut bytes = T::arbitrary(r).put().encode_to_vec();
    for _ in 0..=r.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = r.below(bytes.len());
        match r.below(3) {
            0 => bytes[at] = r.next().to_le_bytes()[0],
            1 => bytes.truncate(at),
            _ => bytes.insert(at, r.next().to_le_bytes()[0]),
        }
    }
    if let Ok(wire) = P::decode(bytes.as_slice())
        && let Ok(value) = T::get(wire)
    {
        prop_assert!(P::decode(value.put().encode_to_vec().as_slice()).is_ok());
    }
    Ok(())
}

fn noise<T, P>(r: &mut Source) -> Result<(), TestCaseError>
where
    T: Field<P>,
    P: Message + Default,
{
    let bytes: Vec<u8> = (0..r.below(64)).map(|_| r.next().to_le_bytes()[0]).collect();
    if let Ok(wire) = P::decode(bytes.as_slice()) {
        // Either is fine; a panic is not.
        let _ = T::get(wire);
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_value_survives_the_wire(seed in any::<u64>()) {
        let r = &mut Source(seed);
        for_each_message!(survives, r);
    }

    #[test]
    fn damaged_messages_do_not_panic(seed in any::<u64>()) {
        let r = &mut Source(seed);
        for_each_message!(garbled, r);
    }

    #[test]
    fn noise_does_not_panic(seed in any::<u64>()) {
        let r = &mut Source(seed);
        for_each_message!(noise, r);
    }
}

#[test]
fn an_empty_message_names_what_is_missing() {
    let error = <JobSpec as Field<pb::JobSpec>>::get(pb::JobSpec::default()).unwrap_err();
    assert_eq!(error.to_string(), "malformed message: kind: not a known JobKind");
    let mut spec: pb::JobSpec = JobSpec::arbitrary(&mut Source(7)).put();
    spec.container = Some(pb::ContainerSpec::default());
    let error = <JobSpec as Field<pb::JobSpec>>::get(spec).unwrap_err();
    assert_eq!(error.to_string(), "malformed message: container.image: missing");
}

/// What a controller that is newer says: an agent reads on.
#[test]
fn settings_of_another_version_are_no_reason_to_hang_up() {
    let told = br#"{"images":{"keep_days":3,"of_tomorrow":true},"new":{"x":1}}"#;
    let wire = pb::ToAgent { kind: Some(pb::to_agent::Kind::Configure(told.to_vec())) };
    let ToAgent::Configure(understood) = ToAgent::get(wire).unwrap() else { panic!("another message") };
    let mut expected = Config::default();
    expected.images.keep_days = 3;
    let unknown = vec!["images.of_tomorrow".to_string(), "new".to_string()];
    assert_eq!(*understood, Understood { config: expected, unknown });
}
