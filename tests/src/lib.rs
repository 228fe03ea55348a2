//! Harness of the integration tests: clusters of their own, a real registry, real images, and what must not be left behind.
#![forbid(unsafe_code)]

pub mod attacks;
pub mod bundle;
pub mod command;
pub mod disk;
pub mod hanging;
pub mod hosts;
pub mod images;
pub mod layout;
pub mod leftovers;
pub mod machine;
pub mod own_dev;
pub mod processes;
pub mod programs;
pub mod registry;
pub mod sandbox;
pub mod sif;
pub mod stolen;

pub use bundle::Bundle;
pub use command::{Cmd, Output, Running};
pub use hanging::Hanging;
pub use hosts::Hosts;
pub use machine::Who;
pub use registry::Registry;
pub use sandbox::Sandbox;

/// Makes of each function two tests, `NAME::as_root` and `NAME::as_user`. Root's fail where they are run without root;
/// `tests/run.sh` leaves them out by name there and lists them.
#[macro_export]
macro_rules! each_user {
    ($($(#[$meta:meta])* fn $name:ident($who:ident) $body:block)*) => { $(
        $(#[$meta])*
        mod $name {
            use super::*;

            fn body($who: $crate::Who) $body

            #[test]
            fn as_root() {
                body($crate::Who::root());
            }

            #[test]
            fn as_user() {
                body($crate::Who::user());
            }
        }
    )* };
}
