//! The audit log: who changed what of the cluster, or of other people's jobs. An entry is durable with what it is about.

use super::Cluster;
use crate::rows::{AuditRow, ROW_VERSION};
use crate::store::Write;
use berth_model::ids::JobId;
use berth_model::request::{Actor, Refusal, RefusalCode, Response};

/// Most characters of an entry.
const LONGEST: usize = 2000;
/// Most things that one entry names.
const NAMED: usize = 20;

/// Refuses whoever is no administrator.
pub(super) fn administrators_only(actor: &Actor, what: &str) -> Result<(), Refusal> {
    if actor.administrator {
        return Ok(());
    }
    let text = format!("Access/permission denied: only an administrator {what}");
    Err(Refusal::new(RefusalCode::Denied, text))
}

impl Cluster {
    /// Enters what was just done.
    pub(super) fn note(&mut self, actor: &Actor, what: String) {
        let user = actor.identity.user.clone();
        self.note_as(actor, user, what);
    }

    /// Enters what was just done on the word of somebody who has no uid here.
    pub(super) fn note_as(&mut self, actor: &Actor, user: String, mut what: String) {
        if let Some((cut, _)) = what.char_indices().nth(LONGEST) {
            what.truncate(cut);
            what.push_str(" ...");
        }
        self.out.last.push(Write::AddAudit(Box::new(AuditRow {
            version: ROW_VERSION,
            number: self.next_audit,
            at: self.clock,
            uid: actor.identity.uid,
            user,
            inside: actor.inside,
            what,
        })));
        self.next_audit += 1;
        self.out.meta = true;
    }

    /// Whose job it is, when an administrator acts on somebody else's.
    pub(super) fn foreign(&self, actor: &Actor, job: JobId) -> Option<String> {
        let owner = &self.job(job)?.spec.identity;
        (actor.administrator && owner.uid != actor.identity.uid).then(|| owner.user.clone())
    }

    /// Enters what an administrator did to one job, if it is somebody else's.
    pub(super) fn note_job(&mut self, actor: &Actor, verb: &str, job: JobId) {
        if let Some(owner) = self.foreign(actor, job) {
            self.note(actor, format!("{verb} job {job} of {owner}"));
        }
    }

    /// Enters what an administrator did to other people's jobs: `12 of alice`, `13_4 of bob`.
    pub(super) fn note_jobs(&mut self, actor: &Actor, verb: &str, mut jobs: Vec<String>) {
        jobs.dedup();
        if jobs.is_empty() {
            return;
        }
        let more = jobs.len().saturating_sub(NAMED);
        jobs.truncate(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        self.note(actor, format!("{verb} job {}{more}", jobs.join(", ")));
    }

    pub(super) fn note_shutdown(&mut self, actor: &Actor) -> Result<Response, Refusal> {
        administrators_only(actor, "stops the controller")?;
        self.note(actor, "stopped the controller".to_string());
        Ok(Response::Done)
    }
}
