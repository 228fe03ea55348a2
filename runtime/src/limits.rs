//! Resource limits of the submitter, applied where the tasks run.

use crate::sys::limits::{Pair, get, set};
use berth_model::limits::{LimitValue, Limits, Resource};

/// A limit named in an explicit `--propagate` that this node cannot give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "give the limit {name} of {wanted} that --propagate asks for: this node allows {allowed}; ask for less, \
     or leave {name} out of --propagate"
)]
pub struct LimitRefused {
    /// Name as in `ulimit -a`'s kernel spelling.
    pub name: String,
    /// What was asked for.
    pub wanted: String,
    /// What the node gives.
    pub allowed: String,
}

/// The kernel's number and name of a resource (`asm-generic/resource.h`; the same on x86 and arm).
fn number(resource: Resource) -> (u32, &'static str) {
    match resource {
        Resource::Cpu => (0, "cpu"),
        Resource::Fsize => (1, "fsize"),
        Resource::Data => (2, "data"),
        Resource::Stack => (3, "stack"),
        Resource::Core => (4, "core"),
        Resource::Rss => (5, "rss"),
        Resource::Nproc => (6, "nproc"),
        Resource::Nofile => (7, "nofile"),
        Resource::Memlock => (8, "memlock"),
        Resource::As => (9, "as"),
        Resource::Locks => (10, "locks"),
        Resource::Sigpending => (11, "sigpending"),
        Resource::Msgqueue => (12, "msgqueue"),
        Resource::Nice => (13, "nice"),
        Resource::Rtprio => (14, "rtprio"),
        Resource::Rttime => (15, "rttime"),
    }
}

/// A resource's name in the kernel's spelling.
pub fn name(resource: Resource) -> &'static str {
    number(resource).1
}

const UNLIMITED: u64 = u64::MAX;

fn show(value: u64) -> String {
    if value == UNLIMITED { "unlimited".into() } else { value.to_string() }
}

/// Applies soft limits to the calling process. What exceeds the hard limit raises it where the process
/// may; else it is clamped with a note, or refused where it was explicitly asked for.
///
/// # Errors
/// [`LimitRefused`] with both figures.
pub fn apply(limits: &Limits, notes: &mut Vec<String>) -> Result<(), LimitRefused> {
    for (resource, value) in &limits.soft {
        let wanted = match value {
            LimitValue::At(n) => *n,
            LimitValue::Unlimited => UNLIMITED,
        };
        let (number, name) = number(*resource);
        let Ok(now) = get(number) else { continue };
        if now.soft == wanted {
            continue;
        }
        if wanted <= now.hard && set(number, Pair { soft: wanted, hard: now.hard }).is_ok() {
            continue;
        }
        if wanted > now.hard && set(number, Pair { soft: wanted, hard: wanted }).is_ok() {
            continue;
        }
        if limits.required.contains(resource) {
            return Err(LimitRefused { name: name.into(), wanted: show(wanted), allowed: show(now.hard) });
        }
        // Raising the soft limit to the hard one needs no privilege.
        if set(number, Pair { soft: now.hard, hard: now.hard }).is_ok() {
            notes.push(format!("limit {name}: {} asked for, {} given", show(wanted), show(now.hard)));
        }
    }
    Ok(())
}

/// What [`apply`] will give of a resource; `None` where the kernel does not say.
pub fn granted(limits: &Limits, resource: Resource) -> Option<LimitValue> {
    let now = get(number(resource).0).ok()?;
    let may_raise = || {
        rustix::thread::capabilities(None)
            .is_ok_and(|own| own.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE))
    };
    let given = match limits.soft.get(&resource) {
        None => now.soft,
        Some(LimitValue::At(wanted)) if *wanted <= now.hard || may_raise() => *wanted,
        Some(LimitValue::Unlimited) if now.hard == UNLIMITED || may_raise() => UNLIMITED,
        Some(_) => now.hard,
    };
    Some(if given == UNLIMITED { LimitValue::Unlimited } else { LimitValue::At(given) })
}

/// The calling process's soft limits, as they travel with a job.
pub fn current() -> Limits {
    use Resource::*;
    let all = [
        As, Core, Cpu, Data, Fsize, Locks, Memlock, Msgqueue, Nice, Nofile, Nproc, Rss, Rtprio, Rttime,
        Sigpending, Stack,
    ];
    let mut limits = Limits::default();
    for resource in all {
        if let Ok(pair) = get(number(resource).0) {
            let value =
                if pair.soft == UNLIMITED { LimitValue::Unlimited } else { LimitValue::At(pair.soft) };
            limits.soft.insert(resource, value);
        }
    }
    limits
}
