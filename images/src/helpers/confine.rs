//! Where a fetcher runs, which is its user's process and starts what that user's settings name, and where an unpacker does.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// Makes places for fetchers or unpackers, each when one is about to be started: an image that is there needs none.
pub trait Confine: std::fmt::Debug + Send + Sync {
    /// A place for one of them, and for what it starts.
    ///
    /// # Errors
    /// There can be none: nothing is fetched then.
    fn place(&self) -> Result<Box<dyn Confined>>;
}

/// A place of a fetcher or an unpacker. When it is dropped, what is left there ends.
pub trait Confined: Send {
    /// Lists of processes of the control groups, one in each hierarchy (`cgroup.procs`): the process writes itself into them before it
    /// becomes somebody else.
    fn lists(&self) -> Vec<PathBuf>;

    /// Bytes of memory that the process may have for itself, as `RLIMIT_DATA` of `getrlimit(2)` counts them: where the files that it writes
    /// are memory, too, which a control group does not tell apart.
    fn own_memory(&self) -> Option<u64> {
        None
    }

    /// Whether something there was ended because it took more memory than there is for it.
    fn ran_out(&self) -> bool {
        false
    }
}

/// Has no more memory than this for itself from here on, and goes into these control groups.
///
/// # Errors
/// The kernel refuses: nothing is to run outside of them.
pub(super) fn join(lists: &[PathBuf], own_memory: Option<u64>) -> Result<()> {
    if let Some(bytes) = own_memory {
        // What the agent itself was given may be less.
        let most = getrlimit(Resource::Data).maximum.map_or(bytes, |most| most.min(bytes));
        setrlimit(Resource::Data, Rlimit { current: Some(most), maximum: Some(most) }).map_err(|e| {
            Error::io("memory of what brings an image", e).next("look at the agent's own limits")
        })?;
    }
    lists.iter().try_for_each(|list| {
        let written = OpenOptions::new().write(true).open(list).and_then(|mut file| file.write_all(b"0"));
        written
            .map_err(|e| Error::io(format!("control group of what brings an image: {}", list.display()), e))
    })
}
