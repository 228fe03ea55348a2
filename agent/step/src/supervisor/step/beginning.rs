//! How a step begins: what its tasks are served by and when they may begin, the container, the processes.

use super::hooks::Hooks;
use super::{Step, duration};
use crate::spool::LaunchFile;
use crate::supervisor::files;
use crate::supervisor::pmi::Pmi;
use crate::supervisor::pmix::{self, Pmix};
use crate::supervisor::processes::{self, Processes};
use berth_model::mpi::MpiType;
use berth_model::state::ExitStatus;
use berth_runtime::hooks::ContainerHooks;
use std::rc::Rc;
use std::time::Instant;

impl Step {
    pub(super) fn start(&mut self) -> Result<Processes, LaunchFailure> {
        self.have_display_carried()?;
        let file = Rc::clone(&self.file);
        let (mut io, messages) = files::open(&file.launch, &mut self.streams)?;
        self.messages = messages;
        self.pmi = Pmi::of(&file.launch)
            .map_err(|e| LaunchFailure::new(format!("cannot make the tasks' PMI connections: {e}")))?;
        for (files, end) in io.iter_mut().zip(self.pmi.iter_mut().flat_map(Pmi::take_ends)) {
            files.pmi = Some(end);
        }
        self.start_pmix(&file, &mut io)?;
        self.let_pmix_come(&file, &mut io);
        // Behind what serves the tasks: other nodes may begin before this one, and speak to it.
        self.wait_for_word()?;
        let parked = (self.parked.take(), self.images.take());
        self.hooks = Hooks::Beginning { given_up: false };
        let started = processes::start(&file, io, parked, self);
        self.hooks = Hooks::Idle;
        let (processes, notes) = started?;
        // Told with the step's being under way.
        self.state.member = processes.member().cloned();
        for note in file.node.notes.iter().chain(&notes) {
            self.say_line(format!("slurmstepd: info: {note}"));
        }
        Ok(processes)
    }

    /// Waits until the client says that the tasks may begin, where it runs something before them (`srun --prolog`).
    fn wait_for_word(&mut self) -> Result<(), LaunchFailure> {
        let Some(within) = self.launch().told_within else { return Ok(()) };
        let until = Instant::now() + duration(within);
        self.hooks = Hooks::Beginning { given_up: false };
        let told = loop {
            // Both can come at once, where the client waited for this node.
            if self.hooks == (Hooks::Beginning { given_up: true }) {
                break Err("the step was ended before its tasks began".to_string());
            }
            if self.told {
                break Ok(());
            }
            if Instant::now() >= until {
                break Err(format!(
                    "srun did not say within {} s that its prolog has ended (srun_prolog_seconds): the step is given up",
                    duration(within).as_secs()
                ));
            }
            if let Err(e) = self.turn(&[], Some(until)) {
                break Err(e.to_string());
            }
        };
        self.hooks = Hooks::Idle;
        told.map_err(LaunchFailure::new)
    }

    /// Has the node's libpmix serve the step's tasks, where they are to have it, and waits until it does.
    fn start_pmix(&mut self, file: &LaunchFile, io: &mut [files::TaskFiles]) -> Result<(), LaunchFailure> {
        if file.launch.mpi_served() != MpiType::Pmix {
            return Ok(());
        }
        self.pmix = Some(Pmix::start(file)?);
        let until = Instant::now() + pmix::BEGINS;
        self.hooks = Hooks::Beginning { given_up: false };
        let begun = loop {
            if let Some(begun) = self.pmix.as_ref().and_then(Pmix::begun) {
                break begun;
            }
            if self.hooks == (Hooks::Beginning { given_up: true }) {
                break Err("the step was ended before it began".into());
            }
            if Instant::now() >= until {
                break Err(format!("libpmix did not begin within {} s", pmix::BEGINS.as_secs()));
            }
            if let Err(e) = self.turn(&[], Some(until)) {
                break Err(e.to_string());
            }
        };
        self.hooks = Hooks::Idle;
        begun.map_err(|why| LaunchFailure::new(format!("--mpi=pmix: node {}: {why}", file.launch.node)))?;
        for (task, files) in io.iter_mut().enumerate() {
            files.env = self.pmix.as_mut().map(|pmix| pmix.environment(task)).unwrap_or_default();
        }
        Ok(())
    }

    /// Lets the tasks of a step that did not say by what they find one another come to PMIx as well, where the node has it: what
    /// speaks it starts its server, and all else pays for an address.
    fn let_pmix_come(&mut self, file: &Rc<LaunchFile>, io: &mut [files::TaskFiles]) {
        if !file.launch.mpi_is_open() {
            return;
        }
        self.pmix = Pmix::lazily(file);
        for (task, files) in io.iter_mut().enumerate() {
            files.env = self.pmix.as_mut().map(|pmix| pmix.environment(task)).unwrap_or_default();
        }
    }

    /// A container that was made under a name for this step alone, which could not be started, is none.
    pub(super) fn undo_container(&self) {
        let Some(kept) = self.file.node.kept.as_ref().filter(|kept| kept.fresh) else { return };
        if let Err(e) = kept.undo() {
            crate::log::say(&format!("the container '{}' ({}): {e}", kept.name, kept.record.display()));
        }
    }
}

/// Why a step could not be started.
#[derive(Clone, Debug)]
pub struct LaunchFailure {
    /// What, why, and what to do.
    pub text: String,
    /// What counts as the exit of its tasks.
    pub status: ExitStatus,
    /// The container's hooks, where some may have run: what they began is ended by others of them.
    pub begun: Option<Box<ContainerHooks>>,
}

impl LaunchFailure {
    /// A failure before any task ran.
    pub fn new(text: impl Into<String>) -> LaunchFailure {
        LaunchFailure { text: text.into(), status: ExitStatus { code: 1, signal: 0 }, begun: None }
    }
}
