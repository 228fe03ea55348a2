//! Errors that the driver writes into the kernel's log (`Xid`), of those after which a GPU cannot be used until it is reset.
//!
//! Users write into that log, too: the kernel names the program and the file when a process crashes, and both names are the user's to choose. So a
//! record counts by how it begins, and by its whole form up to the code: nothing that a user can have written comes before that.

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

/// What a record of the kernel's own says, and its number; nothing of other writers' records, and of lines that belong to the record before.
///
/// The form is that of `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg of the kernel): `PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT`, then lines
/// that begin with a space. What is not printable in the text is escaped there, a line's end above all.
fn record(line: &str) -> Option<(u64, &str)> {
    let (head, text) = line.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let number = fields.next()?.parse().ok()?;
    fields.next()?;
    // What goes on with a record that another one came between may begin with anything.
    let whole = fields.next()? == "-";
    (priority >> 3 == 0 && whole).then_some((number, text))
}

/// What the driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    /// It was loaded.
    Loaded,
    /// An error of the GPU at an address after which it cannot be used.
    Fatal(String, u32),
}

fn said(text: &str) -> Option<Said> {
    let text = text.strip_prefix("NVRM: ")?;
    if text.starts_with("loading NVIDIA ") {
        return Some(Said::Loaded);
    }
    let (place, rest) = text.strip_prefix("Xid (PCI:")?.split_once("): ")?;
    // With parts of a GPU it says in which one: `0000:3b:00 GPU-I:05`.
    let bus = address(place.split_once(" GPU-I:").map_or(place, |(bus, _)| bus))?;
    let code: u32 = rest.split([',', ' ']).next()?.parse().ok()?;
    FATAL.iter().any(|(fatal, _)| *fatal == code).then_some(Said::Fatal(bus, code))
}

/// An address as the kernel writes it: the log leaves the function out.
fn address(text: &str) -> Option<String> {
    let hex = |part: &str, most: usize| {
        (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let (place, function) = text.split_once('.').unwrap_or((text, "0"));
    let [domain, bus, device] = place.split(':').collect::<Vec<_>>()[..] else { return None };
    let is_one = hex(domain, 8) && hex(bus, 2) && hex(device, 2) && hex(function, 1);
    is_one.then(|| kind::bus(&format!("{place}.{function}")))
}

/// By address, the last fatal error since the driver was loaded. `log`: records of `/dev/kmsg`.
pub fn fatal(log: &str) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for (_, text) in log.lines().filter_map(record) {
        match said(text) {
            Some(Said::Loaded) => found.clear(),
            Some(Said::Fatal(bus, code)) => {
                found.insert(bus, code);
            }
            None => {}
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
4,700,12100000,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.54.03
4,701,100000000,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=9, name=python, Ch 00000008
4,702,101000000,-,caller=T12;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.
 SUBSYSTEM=pci
 DEVICE=+pci:0000:3b:00.0
4,703,102000000,-;NVRM: Xid (PCI:0000:c3:00.0): 95, pid=1
4,704,102000000,-;NVRM: Xid (PCI:0000:d3:00 GPU-I:05): 95, pid=1
4,705,103000000,-;NVRM: Xid (PCI:nonsense";
        let found = fatal(log);
        assert_eq!(found.get("0000:3b:00.0"), Some(&79));
        assert_eq!(
            (found.get("0000:c3:00.0"), found.get("0000:d3:00.0"), found.len()),
            (Some(&95), Some(&95), 3)
        );
        assert!(reason(79).starts_with("Xid 79: it fell off the bus"));
        let later = format!("{log}\n5,706,200000000,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module");
        assert!(fatal(&later).is_empty());
    }

    #[test]
    fn nobody_but_the_driver_fences_a_gpu_or_ends_its_fence() {
        let fenced = "4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.";
        let xid = "NVRM: Xid (PCI:0000:c3:00): 79, pid=1";
        let loading = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.54.03";
        let kept = fatal(fenced);
        assert_eq!(kept.len(), 1);
        for said in [xid, loading] {
            for hostile in [
                // A program's file, or the program itself, is called so.
                format!("6,2,1,-;a.out[77]: segfault at 0 ip 0 sp 0 error 4 in {said}[400000+1000]"),
                format!("6,2,1,-;a[77]: segfault in ; {said}"),
                format!("6,2,1,-;a.out[77]: segfault in a\\x0a{said}"),
                // Lines that belong to a record.
                format!("6,2,1,-;usb 1-1: new device\n {said}\n DEVICE=;{said}"),
                // Somebody who writes to /dev/kmsg, or to a log that is not the kernel's.
                format!("12,2,1,-;{said}"),
                format!("30,2,1,-;{said}"),
                // The rest of what another record came between.
                format!("4,2,1,c;{said}"),
                format!("4,2,1,+;{said}"),
                // No record at all.
                said.to_string(),
                format!("[ 12.1] {said}"),
                format!("4,2,1;{said}"),
                format!("x,2,1,-;{said}"),
            ] {
                assert_eq!(fatal(&format!("{fenced}\n{hostile}\n")), kept, "{hostile}");
            }
        }
        // A name of a process is at most 15 bytes long, and what follows it is the kernel's, but for the file's name.
        for hostile in [
            "6,2,1,-;NVRM: Xid (PCI:[77]: segfault at 0 ip 0 sp 0 error 4 in 0000:c3:00): 79, [400000+1000]",
            "6,2,1,-;NVRM: loading N[77]: segfault at 0 ip 0 sp 0 error 4 in NVRM: loading NVIDIA [400000+1000]",
        ] {
            assert_eq!(fatal(&format!("{fenced}\n{hostile}\n")), kept, "{hostile}");
        }
    }
}
