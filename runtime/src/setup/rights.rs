//! Root's rights over files, for as long as one action takes.
//!
//! In system mode a container is made by root acting as its user: file access has the user's ids and no capability,
//! because targets and sources are the user's choice. What is the node's own affair borrows root's rights by name.

use super::{Doing, Setup, SetupFailure};
use crate::plan::{Mode, Plan};
use crate::sys::{Errno, identity};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

/// In system mode: what belongs to the user is opened with the user's rights, and what is made for the user belongs to
/// the user. The change of file ids takes root's capabilities over files away.
pub(super) fn act_as_user(plan: &Plan) -> Setup<()> {
    if plan.mode == Mode::User {
        return Ok(());
    }
    let id = &plan.identity;
    super::enter::set_groups(&id.groups)?;
    identity::set_fs_ids(id.uid, id.gid).doing("act as the user")
}

/// The reverse of [`act_as_user`].
pub(super) fn act_as_root(plan: &Plan) -> Setup<()> {
    if plan.mode == Mode::User {
        return Ok(());
    }
    identity::set_fs_ids(0, 0).doing("act as root again")?;
    let caps = capabilities(None).doing("read capabilities")?;
    let full = CapabilitySets { effective: caps.permitted, ..caps };
    set_capabilities(None, full).doing("regain capabilities")
}

/// Does something with root's capabilities over files, and the user's ids. In user mode these are the capabilities over
/// the user's own namespace, which are there all the time.
pub(super) fn with_roots<T>(action: impl FnOnce() -> T) -> Result<T, Errno> {
    let before = capabilities(None)?;
    if before.effective == before.permitted {
        return Ok(action());
    }
    set_capabilities(None, CapabilitySets { effective: before.permitted, ..before })?;
    let result = action();
    set_capabilities(None, before)?;
    Ok(result)
}

/// As [`with_roots`], for what is refused in the setup's words.
pub(super) fn lend<T>(action: impl FnOnce() -> Setup<T>) -> Setup<T> {
    with_roots(action).map_err(|e| SetupFailure::new("borrow root's rights", e))?
}
