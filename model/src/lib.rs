//! Words and grammars of Berth: ids, job specifications, resources, states, hostlists; pure.
#![forbid(unsafe_code)]
