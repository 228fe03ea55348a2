//! `berth oci`: hands over to the OCI runtime command line, which is a package of its own.

use berth_client::error::{Failure, Kind, Outcome};
use berth_oci::{Args, Stop};
use std::ffi::OsString;

pub fn run(args: Args, argv: Vec<OsString>) -> Outcome {
    berth_oci::run(args, argv).map_err(|stop| match stop {
        Stop::Failed(text) => Failure::new(Kind::User, text),
        Stop::ReaderGone => Failure::raw(Kind::ClosedPipe, ""),
    })
}
