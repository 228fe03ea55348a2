//! Conversion between model types and generated ones, both ways, at the crate's border.
//!
//! [`Field`] is the conversion of one field; the macros build it for structs and enums from their members'
//! names, so that the compiler notices a member that was forgotten on either side.

mod exchange;
mod layout;
mod link;
mod member;
mod query;
mod record;
mod request;
mod spec;
#[cfg(test)]
pub(crate) mod tests;

use berth_model::{
    Attempt, ByteStr, Gid, JobId, NodeName, Session, Sluid, Span, SubmissionId, Term, Time, Uid,
};
use std::fmt;

/// A message that decodes as protobuf and yet makes no sense: names the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Malformed {
    path: Vec<&'static str>,
    why: &'static str,
}

impl Malformed {
    pub(crate) fn new(why: &'static str) -> Malformed {
        Malformed { path: Vec::new(), why }
    }

    pub(crate) fn within(mut self, field: &'static str) -> Malformed {
        self.path.push(field);
        self
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: Vec<&str> = self.path.iter().rev().copied().collect();
        write!(f, "malformed message: {}: {}", path.join("."), self.why)
    }
}

/// A model type that travels as the field type `P`.
pub(crate) trait Field<P>: Sized {
    fn put(&self) -> P;
    fn get(wire: P) -> Result<Self, Malformed>;
}

macro_rules! plain {
    ($($t:ty),+) => { $(
        impl Field<$t> for $t {
            fn put(&self) -> $t { self.clone() }
            fn get(wire: $t) -> Result<Self, Malformed> { Ok(wire) }
        }
    )+ };
}
plain!(bool, u32, u64, i32, i64, String);

macro_rules! newtype {
    ($($t:ident($p:ty)),+ $(,)?) => { $(
        impl Field<$p> for $t {
            fn put(&self) -> $p { self.0.clone() }
            fn get(wire: $p) -> Result<Self, Malformed> { Ok($t(wire)) }
        }
    )+ };
}
newtype!(
    JobId(u32),
    Uid(u32),
    Gid(u32),
    Term(u64),
    Attempt(u32),
    Session(u64),
    Sluid(u64),
    Time(i64),
    NodeName(String),
    SubmissionId(String),
    ByteStr(Vec<u8>),
);

impl Field<i64> for Span {
    fn put(&self) -> i64 {
        self.0
    }
    fn get(wire: i64) -> Result<Self, Malformed> {
        if wire < 0 { Err(Malformed::new("a span of time cannot be negative")) } else { Ok(Span(wire)) }
    }
}

macro_rules! narrow {
    ($($t:ty),+) => { $(
        impl Field<u32> for $t {
            fn put(&self) -> u32 { u32::from(*self) }
            fn get(wire: u32) -> Result<Self, Malformed> {
                <$t>::try_from(wire).map_err(|_| Malformed::new("number too large"))
            }
        }
    )+ };
}
narrow!(u8, u16);

impl<T: Field<P>, P> Field<Option<P>> for Option<T> {
    fn put(&self) -> Option<P> {
        self.as_ref().map(Field::put)
    }
    fn get(wire: Option<P>) -> Result<Self, Malformed> {
        wire.map(Field::get).transpose()
    }
}

impl<T: Field<P>, P> Field<Vec<P>> for Vec<T> {
    fn put(&self) -> Vec<P> {
        self.iter().map(Field::put).collect()
    }
    fn get(wire: Vec<P>) -> Result<Self, Malformed> {
        wire.into_iter().map(Field::get).collect()
    }
}

impl<T: Field<Option<P>>, P> Field<Option<P>> for Box<T> {
    fn put(&self) -> Option<P> {
        (**self).put()
    }
    fn get(wire: Option<P>) -> Result<Self, Malformed> {
        T::get(wire).map(Box::new)
    }
}

/// A member that must be there although protobuf cannot say so.
pub(crate) fn required<P, T: Field<P>>(wire: Option<P>) -> Result<T, Malformed> {
    wire.ok_or(Malformed::new("missing")).and_then(T::get)
}

/// Makes a message type usable as a required member, too.
macro_rules! required_member {
    ($($t:ty => $p:ty),+ $(,)?) => { $(
        impl $crate::wire::Field<Option<$p>> for $t {
            fn put(&self) -> Option<$p> { Some($crate::wire::Field::put(self)) }
            fn get(wire: Option<$p>) -> Result<Self, $crate::wire::Malformed> { $crate::wire::required(wire) }
        }
    )+ };
}

/// Structs whose members have the same names on both sides.
macro_rules! structs {
    ($($t:ident { $($field:ident),* $(,)? })+) => { $(
        impl $crate::wire::Field<$crate::pb::$t> for $t {
            fn put(&self) -> $crate::pb::$t {
                let $t { $($field),* } = self;
                $crate::pb::$t { $($field: $crate::wire::Field::put($field)),* }
            }
            fn get(wire: $crate::pb::$t) -> Result<Self, $crate::wire::Malformed> {
                let $crate::pb::$t { $($field),* } = wire;
                Ok($t { $($field: $crate::wire::Field::get($field)
                    .map_err(|e: $crate::wire::Malformed| e.within(stringify!($field)))?),* })
            }
        }
        $crate::wire::required_member!($t => $crate::pb::$t);
        #[cfg(test)]
        impl $crate::wire::tests::Arbitrary for $t {
            fn arbitrary(r: &mut $crate::wire::tests::Source) -> Self {
                $t { $($field: $crate::wire::tests::Arbitrary::arbitrary(r)),* }
            }
        }
    )+ };
}

/// Enums without data whose variants have the same names on both sides.
macro_rules! enums {
    ($($t:ident { $($variant:ident),+ $(,)? })+) => { $(
        impl $crate::wire::Field<i32> for $t {
            fn put(&self) -> i32 {
                match self { $($t::$variant => $crate::pb::$t::$variant as i32),+ }
            }
            fn get(wire: i32) -> Result<Self, $crate::wire::Malformed> {
                match $crate::pb::$t::try_from(wire) {
                    $(Ok($crate::pb::$t::$variant) => Ok($t::$variant),)+
                    _ => Err($crate::wire::Malformed::new(concat!("not a known ", stringify!($t)))),
                }
            }
        }
        #[cfg(test)]
        impl $crate::wire::tests::Arbitrary for $t {
            fn arbitrary(r: &mut $crate::wire::tests::Source) -> Self {
                r.pick(&[$($t::$variant),+])
            }
        }
    )+ };
}

/// Runs `check` on messages of every kind that can arrive.
#[cfg(any(test, fuzzing))]
macro_rules! for_each_message {
    ($check:ident, $r:expr) => {
        $check::<JobSpec, pb::JobSpec>($r)?;
        $check::<StepSpec, pb::StepSpec>($r)?;
        $check::<Payload, pb::Payload>($r)?;
        $check::<CancelRequest, pb::CancelRequest>($r)?;
        $check::<Response, pb::Response>($r)?;
        $check::<Refusal, pb::Refusal>($r)?;
        $check::<StepLaunch, pb::StepLaunch>($r)?;
        $check::<FromAgent, pb::FromAgent>($r)?;
        $check::<ToAgent, pb::ToAgent>($r)?;
        $check::<CarriedPart, pb::CarriedPart>($r)?;
        $check::<JobInfo, pb::JobInfo>($r)?;
        $check::<NodeInfo, pb::NodeInfo>($r)?;
        $check::<PartitionInfo, pb::PartitionInfo>($r)?;
        $check::<PartitionConfig, pb::PartitionConfig>($r)?;
        $check::<Config, pb::Config>($r)?;
        $check::<JobQuery, pb::JobQuery>($r)?;
        $check::<AccountingQuery, pb::AccountingQuery>($r)?;
        $check::<AgentStatus, pb::AgentStatus>($r)?;
        $check::<Status, pb::StatusReply>($r)?;
        $check::<JobList, pb::JobList>($r)?;
        $check::<MemberInfo, pb::MemberInfo>($r)?;
        $check::<NewToken, pb::NewToken>($r)?;
        $check::<TokenInfo, pb::TokenInfo>($r)?;
        $check::<AuditInfo, pb::AuditInfo>($r)?;
    };
}

#[cfg(any(test, fuzzing))]
pub(crate) use for_each_message;
pub(crate) use {enums, required_member, structs};
