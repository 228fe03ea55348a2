//! What the agent calls: the fetcher, which speaks to registries as the user, and the unpacker, which writes the
//! store as its own identity. Both stand before any thread.

use berth_client::error::{Failure, Outcome};
use std::ffi::OsString;

/// Serve blobs of an image over the standard streams (called by the agent)
#[derive(Debug, clap::Args)]
pub struct Fetch {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Unpack an image into the store (called by the agent)
#[derive(Debug, clap::Args)]
pub struct Unpack {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

pub fn fetch(args: Fetch) -> Outcome {
    done(berth_images::fetcher_main(args.words, std::io::stdin(), std::io::stdout()))
}

pub fn unpack(args: Unpack) -> Outcome {
    done(berth_images::unpacker_main(args.words, std::io::stdin(), std::io::stdout(), std::io::stderr()))
}

/// They have said what there was to say in their own way.
fn done(code: u8) -> Outcome {
    if code == 0 { Ok(0) } else { Err(Failure::exit(code)) }
}
