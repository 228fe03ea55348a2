//! The rows, by heading.

mod container;
mod devices;
mod job;
mod refused;
mod resources;
mod step;
mod streams;

use super::row::Section;

/// All rows, by heading, in the order of the help. The last heading holds what this release refuses.
pub static SECTIONS: &[Section] = &[
    Section { title: "Job", rows: job::ROWS },
    Section { title: "Resources", rows: resources::ROWS },
    Section { title: "Devices", rows: devices::ROWS },
    Section { title: "Container", rows: container::ROWS },
    Section { title: "Files and streams", rows: streams::ROWS },
    Section { title: "Step and command", rows: step::ROWS },
    Section { title: "Not in this release", rows: refused::ROWS },
];
