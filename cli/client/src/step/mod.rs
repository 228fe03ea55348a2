//! Following a step from its start to its end: streams, signals, exits.

pub mod around;
pub mod dismiss;
pub mod display;
pub mod exchange;
pub mod exits;
pub mod follow;
mod hung;
pub mod interrupt;
pub mod labels;
pub mod making;
pub mod nodes;
mod queue;
pub mod reach;
pub mod signals;
pub mod sinks;
pub mod stream;
pub mod terminal;
pub mod watch;
