//! Agents that come to a step: what they ask of it, and what they are told of its phase.

use super::Step;
use crate::control::{FromSupervisor, ToSupervisor, receive, send};
use crate::spool::write_json;
use crate::supervisor::resuming::Arrival;
use berth_model::launch::StepPhase;
use rustix::fd::AsFd;
use std::io;

impl Step {
    pub(super) fn welcome_agent(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let Ok(agent) = rustix::net::accept_with(&self.listener, flags) else { return };
        // The spool is closed to all but us and root; the socket says so once more.
        let own = rustix::process::geteuid();
        let peer = rustix::net::sockopt::socket_peercred(&agent);
        if !peer.is_ok_and(|p| p.uid == own || p.uid.is_root()) {
            return;
        }
        if send(agent.as_fd(), &self.phase(), &[]).is_ok() {
            self.agents.push(agent);
        }
    }

    fn phase(&self) -> FromSupervisor {
        match self.state.phase {
            StepPhase::Exited(_) => FromSupervisor::Exited,
            StepPhase::Running => FromSupervisor::Running,
            StepPhase::Starting | StepPhase::Preparing(_) => FromSupervisor::Starting,
        }
    }

    pub(super) fn hear_agent(&mut self, i: usize) -> io::Result<()> {
        let Some(agent) = self.agents.get(i) else { return Ok(()) };
        let (packet, fds) = match receive::<ToSupervisor>(agent.as_fd()) {
            Ok(Some(received)) => received,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // Gone, or speaking in tongues: steps do without agents.
            Ok(None) | Err(_) => {
                drop(self.agents.swap_remove(i));
                return Ok(());
            }
        };
        let arrival = Arrival::of(&packet);
        match packet {
            ToSupervisor::Attach | ToSupervisor::AttachRemote | ToSupervisor::AttachResuming(_) => {
                if let (Some(fd), Some(how)) = (fds.into_iter().next(), arrival) {
                    self.attach(fd, how);
                }
            }
            ToSupervisor::Watch { stdout, stderr, terminal, resume } => {
                if let Some(fd) = fds.into_iter().next() {
                    self.watch(fd, (stdout, stderr), terminal, resume);
                }
            }
            // An agent that was restarted hears again what it may have passed on before.
            ToSupervisor::Signal { number: Some(number), .. } if number <= self.heard => {}
            ToSupervisor::Signal { signal, leaders_only, number } => {
                self.heard = self.heard.max(number.unwrap_or_default());
                self.signal(signal, leaders_only);
                let events = self.processes.as_mut().map(|p| p.signalled_while_saving(signal));
                self.act_on(events.unwrap_or_default())?;
            }
            ToSupervisor::Renew { until } => {
                if let Some(lease) = &mut self.lease {
                    lease.renew(until)?;
                }
            }
            ToSupervisor::Kill => self.kill()?,
            ToSupervisor::Note(text) => self.say(&text),
        }
        Ok(())
    }

    /// How far the step is: for who looks later, and for agents that are here.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        write_json(&self.dir.state(), &self.state)?;
        let phase = self.phase();
        self.agents.retain(|agent| send(agent.as_fd(), &phase, &[]).is_ok());
        Ok(())
    }
}
