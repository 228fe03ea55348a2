//! Errors that the driver writes into the kernel's log (`Xid`), of those after which a GPU cannot be used until it is reset.

use crate::kind;
use std::collections::BTreeMap;

/// Codes of NVIDIA's table of Xid errors whose action is to reset the GPU or the node.
const FATAL: &[(u32, &str)] = &[
    (48, "a double bit error of its memory"),
    (64, "rows of its memory could not be remapped"),
    (74, "an error of its NVLink"),
    (79, "it fell off the bus"),
    (95, "an uncontained memory error"),
    (119, "its system processor does not answer"),
    (120, "an error of its system processor"),
    (140, "an unrecovered memory error"),
];

/// By address, the last fatal error since the driver was loaded.
pub fn fatal(log: &str) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for line in log.lines() {
        if line.contains("NVRM: loading NVIDIA") {
            found.clear();
        }
        let Some((_, rest)) = line.split_once("NVRM: Xid (PCI:") else { continue };
        let Some((bus, rest)) = rest.split_once("): ") else { continue };
        let code = rest.split([',', ' ']).next().and_then(|c| c.parse::<u32>().ok());
        if let Some(code) = code.filter(|c| FATAL.iter().any(|(fatal, _)| fatal == c)) {
            // The log leaves the function out.
            let bus = kind::bus(bus);
            found.insert(if bus.contains('.') { bus } else { format!("{bus}.0") }, code);
        }
    }
    found
}

/// In words.
pub fn reason(code: u32) -> String {
    let what = FATAL.iter().find(|(fatal, _)| *fatal == code).map_or("an error", |(_, what)| what);
    format!("Xid {code}: {what}; reset the GPU and load the driver anew, or reboot the node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fatal_errors_are_found_until_the_driver_is_loaded_anew() {
        let log = "\
[  12.1] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.54.03
[ 100.0] NVRM: Xid (PCI:0000:3b:00): 31, pid=9, name=python, Ch 00000008
[ 101.0] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.
[ 102.0] NVRM: Xid (PCI:0000:c3:00.0): 95, pid=1
[ 103.0] NVRM: Xid (PCI:nonsense";
        let found = fatal(log);
        assert_eq!(found.get("0000:3b:00.0"), Some(&79));
        assert_eq!((found.get("0000:c3:00.0"), found.len()), (Some(&95), 2));
        assert!(reason(79).starts_with("Xid 79: it fell off the bus"));
        let later = format!("{log}\n[200.0] NVRM: loading NVIDIA UNIX x86_64 Kernel Module");
        assert!(fatal(&later).is_empty());
    }
}
