//! Which engine makes the containers: Berth's own, or another that was built in.

use berth_runtime::oci::{Engine, OciError, Result, Store};
use clap::ValueEnum;
use std::path::Path;

/// The engines that can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Berth's own, which is also used when none is named
    Own,
    /// youki's libcontainer
    Libcontainer,
}

/// Refuses a choice where there is none.
///
/// # Errors
/// The program was built with one engine.
#[cfg(not(feature = "libcontainer"))]
pub fn check(choice: Option<Choice>) -> Result<()> {
    match choice {
        None => Ok(()),
        Some(_) => Err(OciError::Unsupported {
            what: "--engine".into(),
            instead: "this program has Berth's own engine alone; another is in one that was built with `cargo build \
                      --package berth-oci --features libcontainer`"
                .into(),
        }),
    }
}

/// Refuses a choice where there is none.
///
/// # Errors
/// None: both are built in.
#[cfg(feature = "libcontainer")]
pub fn check(_choice: Option<Choice>) -> Result<()> {
    Ok(())
}

/// A command that only Berth's own engine has.
pub fn other(command: &str) -> OciError {
    OciError::Unsupported {
        what: format!("{command} with another engine"),
        instead: "it is a command of Berth's own: leave --engine out".into(),
    }
}

/// The engine in use.
pub enum Chosen {
    /// Berth's own.
    Own(Store),
    /// Another, and its name.
    #[cfg(feature = "libcontainer")]
    Other(berth_libcontainer::Libcontainer),
}

impl Chosen {
    /// Opens the engine's place for containers.
    ///
    /// # Errors
    /// There is no place for them.
    pub fn open(choice: Option<Choice>, root: Option<&Path>) -> Result<Chosen> {
        match choice {
            #[cfg(feature = "libcontainer")]
            Some(Choice::Libcontainer) => berth_libcontainer::Libcontainer::open(root).map(Chosen::Other),
            _ => Store::open(root).map(Chosen::Own),
        }
    }

    /// What acts on containers.
    pub fn engine(&self) -> &dyn Engine {
        match self {
            Chosen::Own(store) => store,
            #[cfg(feature = "libcontainer")]
            Chosen::Other(other) => other,
        }
    }

    /// The own engine's store, for a command that is not an operation of the specification.
    pub fn store(&self) -> Option<&Store> {
        match self {
            Chosen::Own(store) => Some(store),
            #[cfg(feature = "libcontainer")]
            Chosen::Other(_) => None,
        }
    }
}
