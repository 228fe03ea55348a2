//! What stands behind the OCI command line: the operations of the runtime specification, as a trait.

use super::{CreateOptions, Created, ExecOptions, OciError, Result, Started, Store};
use serde_json::Value;

/// The operations of the OCI runtime specification (runtime.md, "Operations"), and the three that every engine expects of
/// a runtime beside them.
pub trait Engine {
    /// Makes a container completely; its program waits for [`Engine::start`].
    ///
    /// # Errors
    /// What is wrong or cannot be had; nothing is left of the container then. What is to be warned of is in `warnings` all the
    /// same.
    fn create(&self, options: &CreateOptions, warnings: &mut Vec<String>) -> Result<Created>;

    /// Runs the program of a created container.
    ///
    /// # Errors
    /// The container is in another state, or the program cannot be run.
    fn start(&self, id: &str) -> Result<()>;

    /// The state as the specification has it.
    ///
    /// # Errors
    /// No such container.
    fn state(&self, id: &str) -> Result<Value>;

    /// Sends a signal to the first process, or to all.
    ///
    /// # Errors
    /// The container is in no state to get one.
    fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()>;

    /// Removes a stopped container; by force any, or none. What comes back is to be warned of.
    ///
    /// # Errors
    /// The container is in another state.
    fn delete(&self, id: &str, force: bool) -> Result<Vec<OciError>>;

    /// Runs another process in a container.
    ///
    /// # Errors
    /// What is wrong or cannot be had.
    fn exec(&self, id: &str, options: &ExecOptions) -> Result<Started>;

    /// Freezes all processes.
    ///
    /// # Errors
    /// The container is in another state, or there is no freezer for it.
    fn pause(&self, id: &str) -> Result<()>;

    /// Thaws them.
    ///
    /// # Errors
    /// The container is not paused.
    fn resume(&self, id: &str) -> Result<()>;
}

/// Berth's own engine: what it remembers is in the store, and nothing else of it lives between calls.
impl Engine for Store {
    fn create(&self, options: &CreateOptions, warnings: &mut Vec<String>) -> Result<Created> {
        super::create(self, options, warnings)
    }

    fn start(&self, id: &str) -> Result<()> {
        super::start(self, id)
    }

    fn state(&self, id: &str) -> Result<Value> {
        super::state(self, id)
    }

    fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        super::kill(self, id, signal, all)
    }

    fn delete(&self, id: &str, force: bool) -> Result<Vec<OciError>> {
        super::delete(self, id, force)
    }

    fn exec(&self, id: &str, options: &ExecOptions) -> Result<Started> {
        super::exec(self, id, options)
    }

    fn pause(&self, id: &str) -> Result<()> {
        super::pause(self, id)
    }

    fn resume(&self, id: &str) -> Result<()> {
        super::resume(self, id)
    }
}
