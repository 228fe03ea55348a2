//! Programs that power nodes off, each in a thread of its own: one that hangs keeps nobody waiting.

use crate::{Fence, PowerOff};
use berth_model::{NodeName, Time};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

/// How one ended.
pub(crate) struct Fenced {
    pub(crate) node: NodeName,
    pub(crate) asked: Time,
    pub(crate) result: Result<(), String>,
    /// It was run at all.
    ran: bool,
}

/// Those that run.
pub(crate) struct Fences {
    power_off: PowerOff,
    private: PathBuf,
    running: BTreeSet<NodeName>,
    sender: Sender<Fenced>,
    ended: Receiver<Fenced>,
}

impl Fences {
    /// `private`: a directory that is the controller's alone, for programs' notes.
    pub(crate) fn new(power_off: PowerOff, private: PathBuf) -> Fences {
        let (sender, ended) = channel();
        Fences { power_off, private, running: BTreeSet::new(), sender, ended }
    }

    /// Where what runs and what does not end is noted.
    pub(crate) fn private(&self) -> PathBuf {
        self.private.clone()
    }

    /// Starts one, unless one still runs for that node, as it may when the core was built anew meanwhile.
    pub(crate) fn start(&mut self, fence: Fence, asked: Time) {
        let (node, sender, power_off) = (fence.node.clone(), self.sender.clone(), self.power_off);
        // Nobody hears it when the controller ends.
        let tell = move |sender: &Sender<Fenced>, node: NodeName, result, ran| {
            let _ = sender.send(Fenced { node, asked, result, ran });
        };
        if self.running.contains(&node) {
            let why = "the program that was started for it before still runs".to_string();
            return tell(&sender, node, Err(why), false);
        }
        tracing::warn!("nothing is heard of {node}: {} is to power it off", fence.program.display());
        let started = std::thread::Builder::new().name("fence".to_string()).spawn(move || {
            let result = power_off(&fence);
            tell(&sender, fence.node, result, true);
        });
        match started {
            Ok(_) => {
                self.running.insert(node);
            }
            Err(e) => {
                let why = format!("no thread can be started for its program: {e}");
                tell(&self.sender, node, Err(why), false);
            }
        }
    }

    /// None is started for a node.
    pub(crate) fn refuse(&self, node: NodeName, asked: Time, why: &str) {
        // Nobody hears it when the controller ends.
        let _ = self.sender.send(Fenced { node, asked, result: Err(why.to_string()), ran: false });
    }

    /// Whether any runs: then its end is looked for often.
    pub(crate) fn any(&self) -> bool {
        !self.running.is_empty()
    }

    /// The next one that has ended.
    pub(crate) fn ended(&mut self) -> Option<Fenced> {
        let ended = self.ended.try_recv().ok()?;
        if ended.ran {
            self.running.remove(&ended.node);
        }
        Some(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn next(fences: &mut Fences) -> Fenced {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if let Some(ended) = fences.ended() {
                return ended;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("none has ended");
    }

    #[test]
    fn one_runs_for_each_node_and_none_is_waited_for() {
        let power_off: PowerOff = |fence| {
            std::thread::sleep(Duration::from_secs(2));
            if fence.node.0 == "n1" { Ok(()) } else { Err("no such outlet".to_string()) }
        };
        let mut fences = Fences::new(power_off, "/nowhere".into());
        let fence = |node: &str| Fence {
            program: "/fence".into(),
            seconds: 60,
            cluster: "berth".into(),
            node: NodeName::from(node),
            private: "/nowhere".into(),
        };
        let begun = Instant::now();
        for (node, asked) in [("n1", 1), ("n2", 2), ("n1", 3)] {
            fences.start(fence(node), Time(asked));
        }
        let second = next(&mut fences);
        assert!(second.asked == Time(3) && second.result.unwrap_err().contains("still runs"));
        assert!(fences.any() && begun.elapsed() < Duration::from_secs(2));
        let mut ended = [next(&mut fences), next(&mut fences)];
        ended.sort_by_key(|fenced| fenced.asked);
        let [first, other] = ended;
        assert_eq!((first.node.0.as_str(), first.result), ("n1", Ok(())));
        assert_eq!((other.node.0.as_str(), other.result), ("n2", Err("no such outlet".to_string())));
        assert!(!fences.any());
    }
}
