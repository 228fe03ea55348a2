//! A door for the fuzz target in `rpc/fuzz` to the decoders of messages. Built for tests, and for cargo-fuzz, which sets
//! `fuzzing`.

use std::convert::Infallible;

use berth_model::carry::CarriedPart;
use berth_model::config::{Config, PartitionConfig};
use berth_model::launch::StepLaunch;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::listing::JobList;
use berth_model::member::{AuditInfo, MemberInfo, NewToken, TokenInfo};
use berth_model::query::{AccountingQuery, AgentStatus, JobQuery, Status};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{CancelRequest, Payload, Refusal, Response};
use berth_model::spec::{JobSpec, StepSpec};
use prost::Message;

use crate::pb;
use crate::wire::{Field, for_each_message};

/// Which kind is wanted, which one comes next, and the bytes.
struct Input<'a> {
    wanted: u8,
    next: u8,
    bytes: &'a [u8],
}

/// Reads `bytes` as the message kind of this number. What can be read of it can be written and read again.
pub fn message(kind: u8, bytes: &[u8]) {
    let mut kinds = 0;
    let count_all = |kinds: &mut u8| -> Result<(), Infallible> {
        for_each_message!(count, kinds);
        Ok(())
    };
    let Ok(()) = count_all(&mut kinds);
    let input = &mut Input { wanted: kind % kinds, next: 0, bytes };
    let read_all = |input: &mut Input<'_>| -> Result<(), Infallible> {
        for_each_message!(read, input);
        Ok(())
    };
    let Ok(()) = read_all(input);
}

fn count<T: Field<P>, P>(kinds: &mut u8) -> Result<(), Infallible> {
    *kinds += 1;
    Ok(())
}

fn read<T, P>(input: &mut Input<'_>) -> Result<(), Infallible>
where
    T: Field<P>,
    P: Message + Default,
{
    let wanted = input.next == input.wanted;
    input.next += 1;
    if wanted
        && let Ok(wire) = P::decode(input.bytes)
        && let Ok(value) = T::get(wire)
    {
        let again = P::decode(value.put().encode_to_vec().as_slice());
        assert!(
            again.is_ok_and(|wire| T::get(wire).is_ok()),
            "what was read cannot be written and read again"
        );
    }
    Ok(())
}
