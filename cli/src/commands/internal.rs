//! What agent and supervisors call: the fetcher, which speaks to registries as the user, the unpacker, which writes the
//! store as its own identity, the saver, which writes images as the user, and the PMIx server. They stand before any thread.

use berth_client::error::{Failure, Kind, Outcome};
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

/// Write a container's files as an image (called by a step's supervisor)
#[derive(Debug, clap::Args)]
pub struct Save {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Remove what containers with subordinate ids left (called by the agent and by supervisors of an ordinary user)
#[derive(Debug, clap::Args)]
pub struct Remove {
    #[arg(required = true)]
    path: std::path::PathBuf,
}

/// Ask NVIDIA's library for the GPUs (called by the agent, which must not hang when the driver does)
#[derive(Debug, clap::Args)]
pub struct Gpus {
    /// Answer each line with what they do at that moment
    #[arg(long)]
    watch: bool,
}

pub fn gpus(args: &Gpus) -> Outcome {
    // Nobody reads: the agent has given up.
    let _ = match args.watch {
        true => berth_agent::watch_gpus(std::io::stdin().lock(), std::io::stdout()),
        false => {
            let instance_of = berth_runtime::sys::nvml::instance_of;
            berth_gpus::nvml::ask::main(&berth_gpus::Tree::here(), instance_of, std::io::stdout())
        }
    };
    Ok(0)
}

/// Serve PMIx to the tasks of a step (called by a step's supervisor)
#[derive(Debug, clap::Args)]
pub struct Pmix {
    #[arg(long = "as")]
    identity: Option<String>,
    /// Say what the library tells tasks, and serve none
    #[arg(long)]
    pattern: bool,
}

pub fn pmix(args: &Pmix) -> Outcome {
    if args.pattern {
        let failed = |why: String| Failure::new(Kind::Internal, why);
        return berth_step::pmix_server::pattern(args.identity.as_deref()).map_err(failed).map(|()| 0);
    }
    done(berth_step::pmix_server::main(args.identity.as_deref()))
}

pub fn remove(args: &Remove) -> Outcome {
    let failed = |why: String| Failure::new(Kind::Internal, format!("{}: {why}", args.path.display()));
    berth_runtime::subids::enter(&berth_client::users::own_identity()?).map_err(failed)?;
    berth_step::tree::remove_tree(&args.path).map_err(|e| failed(e.to_string()))?;
    Ok(0)
}

pub fn save(args: Save) -> Outcome {
    done(berth_images::saver_main(args.words, std::io::stdin(), std::io::stderr()))
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
