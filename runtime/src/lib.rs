//! Container planner and launcher: rootfs, mounts, cgroups, limits, devices, seccomp.
//!
//! A container is first planned, purely, then made. One process, init, is pid 1 of the container; it starts
//! any number of tasks in it, reaps them and reports. The same code serves ordinary users (one mapped uid)
//! and root acting for a user.
//!
//! ```no_run
//! use berth_model::{ByteStr, spec::Identity};
//! use berth_runtime::{
//!     ContainerRequest, Event, HostFacts, Rootfs, StartOptions, TaskSpec, plan, start_init,
//! };
//!
//! # fn identity() -> Identity { unimplemented!() }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let root = Rootfs::Overlay { layers: vec!["/store/layers/sha256-1".into()], owner: None };
//! let mut request = ContainerRequest::new(root, identity(), ByteStr::from("/home/ann"));
//! request.command = vec!["uname".into(), "-a".into()];
//! let facts = HostFacts::gather(&request);
//! let plan = plan(&request, &facts)?; // print it for --explain
//! let mut init = start_init(&plan, StartOptions::default())?; // needs a single-threaded process
//! init.spawn(TaskSpec::default())?; // no argv of its own: the plan's command
//! loop {
//!     match init.next_event(true)? {
//!         Some(Event::Exited { status, .. }) => std::process::exit(status.shell_code()),
//!         Some(Event::ExecFailed { error, .. }) => return Err(error.to_string().into()),
//!         _ => {}
//!     }
//! }
//! # }
//! ```
//!
//! On cgroups: [`StartOptions::cgroup`] starts init in a v2 group at no cost; for v1, [`Parked`] is forked
//! and moved beforehand. See [`cgroup`].

pub mod cgroup;
pub mod doctor;
pub mod facts;
pub mod hooks;
pub mod job;
pub mod join;
pub mod limits;
#[cfg(feature = "oci")]
pub mod oci;
pub mod plan;
pub mod request;
pub mod seccomp;
pub mod task;

mod around;
mod effective;
mod exec;
mod export;
mod group;
mod init;
mod launch;
mod layer;
mod park;
pub mod procfs;
mod protocol;
mod setup;
mod start;
pub mod subids;
pub mod sys;
pub mod systemd;

pub use around::TaskProgram;
pub use effective::effective;
pub use exec::ExecError;
pub use facts::HostFacts;
pub use job::{HolderLink, JobNamespaces, JobRequest, Prepared, fork_holder};
pub use join::{ContainerNamespaces, JoinedNamespaces};
pub use launch::{Event, InitHandle, LaunchError, StartOptions, start_attended, start_init};
pub use park::Parked;
pub use plan::{Plan, PlanError, plan};
pub use protocol::SignalTarget;
pub use request::{ContainerRequest, ExtraMount, ImageConfig, Rootfs, StoreOwner, Workdir, WritableLayer};
pub use setup::SetupFailure;
pub use setup::image::{MountedImages, mount_image, try_image};
pub use task::{TaskSpec, TaskStdio};
