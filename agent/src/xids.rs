//! Fatal errors of GPUs that the kernel's log tells of (`Xid`), kept beyond what its ring holds: until a reset of which the driver tells,
//! another load of the driver, another boot, or the administrator's word.

use berth_gpus::xid::{Fatal, Heard, fatal};
use berth_gpus::{Tree, nvidia};
use berth_step::spool::{read_json, write_json};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What was heard, and where it is kept.
pub struct Xids {
    file: PathBuf,
    heard: Mutex<Heard>,
}

impl Xids {
    /// Goes on with what an earlier agent kept in a file.
    pub fn at(file: PathBuf) -> Xids {
        let heard = Mutex::new(read_json(&file).unwrap_or_default());
        Xids { file, heard }
    }

    /// The fatal errors that are not over.
    pub fn now(&self, tree: &Tree) -> Fatal {
        self.change(tree, |heard| heard.fatal().clone())
    }

    /// Those that there are by now are over. Whether there were any.
    pub fn lift(&self, tree: &Tree) -> bool {
        self.change(tree, Heard::lift)
    }

    fn change<T>(&self, tree: &Tree, then: impl FnOnce(&mut Heard) -> T) -> T {
        // Held while the log is read: nobody goes on with an older reading of it.
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let before = heard.clone();
        // Without a driver nothing is known, and nothing is to be kept.
        if nvidia::is_loaded(tree) || !heard.fatal().is_empty() {
            let boot = tree.text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            // A directory of a module is made when it is loaded.
            heard.hear(&boot, tree.mark("/sys/module/nvidia"), &kernel_log(tree));
        }
        let result = then(&mut heard);
        if !heard.is_like(&before)
            && let Err(e) = write_json(&self.file, &*heard)
        {
            tracing::error!("cannot keep which GPUs had fatal errors in {}: {e}", self.file.display());
        }
        result
    }
}

/// What the log says by itself, where nothing is kept.
pub fn logged(tree: &Tree) -> Fatal {
    fatal(&kernel_log(tree))
}

/// What the kernel has said, where the agent may read it and there is a driver to speak of.
fn kernel_log(tree: &Tree) -> String {
    const NONBLOCK: i32 = nix::libc::O_NONBLOCK;
    if !nvidia::is_loaded(tree) {
        return String::new();
    }
    if let Some(recorded) = tree.text("/kmsg") {
        return recorded;
    }
    let Ok(mut file) = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(tree.path("/dev/kmsg"))
    else {
        return String::new();
    };
    let mut text = String::new();
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => return text,
            Ok(n) => text.push_str(&String::from_utf8_lossy(&record[..n])),
            // Records were overwritten while we read: the next one that is there follows.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
            Err(_) => return text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A node whose kernel says this.
    fn says(dir: &Path, boot: &str, log: &str) -> Tree {
        let write = |path: &str, text: &str| {
            let file = dir.join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03");
        write("proc/sys/kernel/random/boot_id", boot);
        write("sys/module/nvidia/refcnt", "0");
        write("kmsg", log);
        Tree::at(dir)
    }

    #[test]
    fn a_fatal_error_is_known_to_the_next_agent_when_the_log_has_forgotten_it() {
        let dir = tempfile::tempdir().unwrap();
        let xid = "4,7,1,-;NVRM: Xid (PCI:0000:3b:00): 119, pid=1";
        let xids = || Xids::at(dir.path().join("kept.json"));
        assert_eq!(xids().now(&says(dir.path(), "a", xid)).get("0000:3b:00.0"), Some(&119));
        let forgotten = says(dir.path(), "a", "6,900,1,-;eth0: link up");
        assert_eq!(xids().now(&forgotten).len(), 1);
        // Of what the administrator has lifted nothing comes back, until it happens again.
        assert!(xids().lift(&forgotten));
        assert!(xids().now(&says(dir.path(), "a", xid)).is_empty());
        let again = xid.replace("4,7", "4,901");
        assert_eq!(xids().now(&says(dir.path(), "a", &again)).len(), 1);
        assert!(xids().now(&says(dir.path(), "b", "")).is_empty(), "the machine was rebooted");
    }

    #[test]
    fn what_is_lifted_is_what_was_there_by_then() {
        let dir = tempfile::tempdir().unwrap();
        let tree = says(dir.path(), "a", "4,7,1,-;NVRM: Xid (PCI:0000:3b:00): 119, pid=1");
        let xids = Xids::at(dir.path().join("kept.json"));
        // It was not looked at before.
        assert!(xids.lift(&tree));
        assert!(xids.now(&tree).is_empty());
        assert!(!xids.lift(&tree));
    }
}
