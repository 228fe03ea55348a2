//! Errors that the driver writes into the kernel's log (`Xid`), of those after which a GPU cannot be used until it is reset.
//!
//! Users write into that log, too: the kernel names the program and the file when a process crashes, and both names are the user's to choose. So a
//! record counts by how it begins, and by its whole form up to the code: nothing that a user can have written comes before that.

use crate::kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// By the addresses of GPUs, the code of the last fatal error of each that has one.
pub type Fatal = BTreeMap<String, u32>;

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
/// The driver has changed its mind about what the GPU needs. Of a reset itself it says nothing.
const RECOVERY: u32 = 154;

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
    /// The GPU at an address was reset.
    Reset(String),
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
    match code {
        RECOVERY => is_over(rest).then_some(Said::Reset(bus)),
        _ => FATAL.iter().any(|(fatal, _)| *fatal == code).then_some(Said::Fatal(bus, code)),
    }
}

/// Whether nothing has to be done any more for a GPU for which something had. A process that the driver may name before it has no word in that.
fn is_over(text: &str) -> bool {
    let change = text.rsplit_once("GPU recovery action changed from ").map(|(_, change)| change.trim_end());
    let ends = change.and_then(|change| change.strip_suffix(" to 0x0 (None)"));
    ends.is_some_and(|from| !from.contains("Unknown"))
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

/// What the kernel's log has said of GPUs, for as long as that is so: its ring forgets it earlier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heard {
    /// Of which boot.
    boot: String,
    /// Of which load of the driver.
    load: Option<u64>,
    /// Number of the first record that was not read yet: none counts twice, whatever was lifted since.
    next: u64,
    fatal: Fatal,
}

impl Heard {
    /// Reads on in the log, records of `/dev/kmsg`. `boot`: the boot's id; `load`: what tells one load of the driver from another.
    pub fn hear(&mut self, boot: &str, load: Option<u64>, log: &str) {
        if self.boot != boot {
            *self = Heard { boot: boot.to_string(), load, ..Heard::default() };
        }
        if self.load != load {
            // Where the driver said so is gone from the log, perhaps.
            self.fatal.clear();
            self.load = load;
        }
        for (number, text) in log.lines().filter_map(record) {
            if number < self.next {
                continue;
            }
            self.next = number.saturating_add(1);
            match said(text) {
                Some(Said::Loaded) => self.fatal.clear(),
                Some(Said::Fatal(bus, code)) => {
                    self.fatal.insert(bus, code);
                }
                Some(Said::Reset(bus)) => {
                    self.fatal.remove(&bus);
                }
                None => {}
            }
        }
    }

    /// The fatal errors that are not over.
    pub fn fatal(&self) -> &Fatal {
        &self.fatal
    }

    /// They are over: somebody who knows says it. Whether there were any.
    pub fn lift(&mut self) -> bool {
        !std::mem::take(&mut self.fatal).is_empty()
    }

    /// Whether both come to the same with the next record.
    pub fn is_like(&self, other: &Heard) -> bool {
        (&self.boot, self.load, &self.fatal) == (&other.boot, other.load, &other.fatal)
    }
}

/// The fatal errors in a log that nobody has read before.
pub fn fatal(log: &str) -> Fatal {
    let mut heard = Heard::default();
    heard.hear("", None, log);
    heard.fatal
}

/// In words.
pub fn reason(code: u32) -> String {
    let what = FATAL.iter().find(|(fatal, _)| *fatal == code).map_or("an error", |(_, what)| what);
    format!(
        "Xid {code}: {what}; reset the GPU (nvidia-smi --gpu-reset) and say that it is well (scontrol update NodeName=NODE State=RESUME), \
         or load the driver anew, or reboot the node"
    )
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

    fn xid(number: u64, code: u32) -> String {
        format!("4,{number},1,-;NVRM: Xid (PCI:0000:3b:00): {code}, pid=1")
    }

    #[test]
    fn what_the_log_said_holds_when_its_ring_has_lost_it() {
        let mut heard = Heard::default();
        heard.hear("a", Some(1), &xid(7, 119));
        heard.hear("a", Some(1), "6,900,1,-;eth0: link up");
        assert_eq!(heard.fatal().get("0000:3b:00.0"), Some(&119));
        // Another agent reads what this one wrote down.
        let mut heard: Heard = serde_json::from_str(&serde_json::to_string(&heard).unwrap()).unwrap();
        heard.hear("a", Some(1), "");
        assert_eq!(heard.fatal().len(), 1);
        // It is over with another load of the driver, whether the log still says so or not, and with another boot.
        for (boot, load, log) in [
            ("a", Some(2), ""),
            ("a", None, ""),
            ("b", Some(1), ""),
            ("a", Some(1), "4,901,1,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module"),
        ] {
            let mut heard = heard.clone();
            heard.hear(boot, load, log);
            assert!(heard.fatal().is_empty(), "{boot} {load:?} {log}");
        }
        // Numbers begin anew with the boot.
        heard.hear("b", Some(1), &xid(3, 95));
        assert_eq!(heard.fatal().get("0000:3b:00.0"), Some(&95));
    }

    #[test]
    fn what_was_lifted_does_not_come_back_from_the_same_records() {
        let mut heard = Heard::default();
        heard.hear("a", None, &xid(7, 119));
        let before = heard.clone();
        assert!(heard.lift() && !heard.lift() && !heard.is_like(&before));
        heard.hear("a", None, &xid(7, 119));
        assert!(heard.fatal().is_empty(), "it was read before");
        heard.hear("a", None, &format!("{}\n{}", xid(7, 119), xid(8, 79)));
        assert_eq!(heard.fatal().get("0000:3b:00.0"), Some(&79));
    }

    #[test]
    fn a_reset_of_which_the_driver_tells_ends_a_fence_and_no_name_of_a_process_does() {
        let after = |text: &str| {
            let line = format!("4,8,1,-;NVRM: Xid (PCI:0000:3b:00): 154, {text}");
            fatal(&format!("{}\n{line}", xid(7, 95))).is_empty()
        };
        let change = "GPU recovery action changed from";
        assert!(after(&format!("{change} 0x1 (GPU Reset Required) to 0x0 (None)")));
        assert!(after(&format!("pid=7, name=python, {change} 0x1 (PF FLR) to 0x0 (None)")));
        assert!(!after(&format!("{change} 0x0 (None) to 0x1 (GPU Reset Required)")));
        assert!(!after(&format!("name= to 0x0 (None), {change} 0x0 (None) to 0x2 (Node Reboot Required)")));
        assert!(
            !after(&format!("{change} 0xff (Unknown) to 0x0 (None)")),
            "a GPU that was only begun to be used"
        );
        // That of another one.
        let other = "4,8,1,-;NVRM: Xid (PCI:0000:3c:00): 154, GPU recovery action changed from 0x1 (PF FLR) to 0x0 (None)";
        assert_eq!(fatal(&format!("{}\n{other}", xid(7, 95))).len(), 1);
    }
}
