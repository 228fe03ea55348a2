//! The audit log: who changed what of the cluster, or of other people's jobs, and as what. An entry is durable with what it is about.

use super::Cluster;
use super::said::plain;
use crate::rows::{AuditRow, ROW_VERSION};
use crate::store::Write;
use berth_model::exchange::RemovedImage;
use berth_model::ids::{JobId, NodeName, Uid};
use berth_model::request::{Actor, Refusal, Response};
use berth_model::rights::{Rank, Role};
use berth_model::time::{Span, Time};
use std::collections::BTreeMap;

/// Most characters of an entry.
const LONGEST: usize = 2000;
/// Most things that one entry names.
const NAMED: usize = 20;
/// Most characters of a word that an agent says for an entry.
const LONGEST_WORD: usize = 100;
/// Most entries that one node's agent makes, or is the reason of, within [`A_WHILE`]: what is beyond is in its own log alone.
const MOST_REMOVALS: u32 = 60;
const A_WHILE: Span = Span::from_secs(3600);

/// How many entries of removed images nodes have made, and since when.
pub(super) type Removals = BTreeMap<NodeName, (Time, u32)>;

/// As what somebody acts on what is not theirs: who is nothing in the whole cluster coordinates an account.
fn role(actor: &Actor) -> Role {
    match actor.rank {
        Rank::User => Role::Coordinator,
        Rank::Operator => Role::Operator,
        Rank::Administrator => Role::Administrator,
    }
}

/// Who did something, as what, and from where.
struct By {
    uid: Uid,
    user: String,
    role: Option<Role>,
    inside: Option<JobId>,
    via: Option<NodeName>,
}

impl By {
    /// A part of the cluster itself.
    fn the_cluster(user: String) -> By {
        By { uid: Uid(0), user, role: None, inside: None, via: None }
    }
}

impl Cluster {
    /// Enters what was just done.
    pub(super) fn note(&mut self, actor: &Actor, what: String) {
        let by = By {
            uid: actor.identity.uid,
            user: actor.identity.user.clone(),
            role: Some(role(actor)),
            inside: actor.inside,
            via: actor.via.clone(),
        };
        self.enter_in_log(by, what);
    }

    /// Enters what was just done on the word of somebody who has no uid here.
    pub(super) fn note_as(&mut self, actor: &Actor, user: String, what: String) {
        let via = actor.via.clone();
        self.enter_in_log(By { uid: actor.identity.uid, user, role: None, inside: actor.inside, via }, what);
    }

    /// Enters what the cluster did by itself, as an administrator told it to.
    pub(super) fn note_own(&mut self, what: String) {
        self.enter_in_log(By::the_cluster("berth".to_string()), what);
    }

    fn enter_in_log(&mut self, by: By, mut what: String) {
        let By { uid, user, role, inside, via } = by;
        if let Some((cut, _)) = what.char_indices().nth(LONGEST) {
            what.truncate(cut);
            what.push_str(" ...");
        }
        self.out.last.push(Write::AddAudit(Box::new(AuditRow {
            version: ROW_VERSION,
            number: self.next_audit,
            at: self.clock,
            uid,
            user,
            role,
            inside,
            via,
            what,
        })));
        self.next_audit += 1;
        self.out.meta = true;
    }

    /// Whose job it is, when somebody with a role acts on somebody else's.
    pub(super) fn foreign(&self, actor: &Actor, job: JobId) -> Option<String> {
        let owner = &self.job(job)?.spec.identity;
        (owner.uid != actor.identity.uid).then(|| owner.user.clone())
    }

    /// Enters what was done to one job, if it is somebody else's.
    pub(super) fn note_job(&mut self, actor: &Actor, verb: &str, job: JobId) {
        if let Some(owner) = self.foreign(actor, job) {
            self.note(actor, format!("{verb} job {job} of {owner}"));
        }
    }

    /// Enters what was done to other people's jobs: `12 of alice`, `13_4 of bob`.
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

    /// Enters that images of others were removed on a node. It is the node's word, and nobody else's: whoever has its key says what they like.
    pub(super) fn note_removed(&mut self, node: &NodeName, by: Uid, user: &str, images: &[RemovedImage]) {
        let word = |text: &str| plain(text, LONGEST_WORD);
        let image = |image: &RemovedImage| {
            let owners: Vec<String> = image.owners.iter().take(NAMED).map(|owner| word(owner)).collect();
            let name =
                if image.name.is_empty() { String::new() } else { format!(" ({})", word(&image.name)) };
            format!("{}{name} of {}", word(&image.digest), owners.join(", "))
        };
        let all: Vec<String> = images.iter().take(RemovedImage::MOST).map(image).collect();
        if all.is_empty() {
            return;
        }
        let made = self.count_entry(node);
        let what = if made <= MOST_REMOVALS {
            format!("says that {} (uid {by}) removed there: image {}", word(user), all.join("; "))
        } else if made == MOST_REMOVALS + 1 {
            "says that more images were removed there within an hour: more removals are in that agent's own log".to_string()
        } else {
            return;
        };
        self.enter_in_log(By::the_cluster(format!("node {node}")), what);
    }

    /// How many entries a node's agent has made within [`A_WHILE`], with one more.
    fn count_entry(&mut self, node: &NodeName) -> u32 {
        let now = self.clock;
        let (since, made) = self.removals.entry(node.clone()).or_insert((now, 0));
        if *since + A_WHILE <= now {
            (*since, *made) = (now, 0);
        }
        *made = made.saturating_add(1);
        *made
    }

    /// Enters an alarm: nodes say that they made different things of one layer. `node` said the last word.
    pub(super) fn note_disputed(&mut self, node: &NodeName, dispute: &str) {
        let made = self.count_entry(node);
        let why =
            "one of them is damaged, or was broken into; until they agree no node takes it from another";
        let what = if made <= MOST_REMOVALS {
            format!(
                "ALARM: {dispute}: {why} ('berth image verify' on each says whether it has what it wrote)"
            )
        } else if made == MOST_REMOVALS + 1 {
            format!(
                "ALARM: what {node} makes of layers differs from what others make more often than is entered here"
            )
        } else {
            return;
        };
        self.note_own(what);
    }

    /// Enters what became of a run by the word of its node.
    pub(super) fn note_lost_by(&mut self, node: &NodeName, what: String) {
        let made = self.count_entry(node);
        if made <= MOST_REMOVALS {
            self.note_own(what);
        } else if made == MOST_REMOVALS + 1 {
            self.note_own(format!("{node} knows more runs as over within an hour than are entered here"));
        }
    }

    /// Whoever has the file can be the cluster's controller and any of its machines.
    pub(super) fn note_backup(
        &mut self,
        actor: &Actor,
        by: String,
        file: &str,
        ago: Span,
    ) -> Result<Response, Refusal> {
        let ago = match ago.0 / 60_000_000 {
            ..=0 => String::new(),
            minutes => format!(", {minutes} min before this entry"),
        };
        self.note_as(actor, by, format!("saved all records and keys of the cluster in {file}{ago}"));
        Ok(Response::Done)
    }

    pub(super) fn note_shutdown(&mut self, actor: &Actor) -> Result<Response, Refusal> {
        self.note(actor, "stopped the controller".to_string());
        Ok(Response::Done)
    }
}
