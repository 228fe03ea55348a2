//! Who may ask for what: the one table of all requests, and whose job it is that one is about.

use super::Cluster;
use super::select::unknown;
use crate::job::Job;
use berth_model::ids::JobId;
use berth_model::request::{Actor, Refusal, RefusalCode, Request};
use berth_model::rights::Rank;
use std::sync::Arc;

/// What somebody has to be for a request.
enum Needs {
    /// Nothing: everybody decides of their own jobs and images.
    Nothing,
    /// To have a say over the jobs that it is about, as [`Cluster::managed`] has it.
    Managing,
    /// To drive the jobs that it is about, as [`Cluster::driven`] has it.
    Driving,
    /// This, for what is said of it in words.
    Rank(Rank, &'static str),
    /// The server's shell, which has proof of who asks: no client may ask for these.
    Shell,
}

/// The table. A request without a row does not compile.
fn needs(request: &Request) -> Needs {
    match request {
        Request::Submit { .. } | Request::SubmitHet { .. } | Request::PullImage { .. } => Needs::Nothing,
        Request::Cancel(_) | Request::Hold(_) | Request::Release(_) | Request::Requeue(_) => Needs::Managing,
        Request::CreateStep { .. }
        | Request::CreateHetStep { .. }
        | Request::EndAllocation { .. }
        | Request::ClientLost { .. } => Needs::Driving,
        Request::UpdateNode { .. } => Needs::Rank(Rank::Operator, "changes the state of nodes"),
        Request::RebootNodes { .. } => Needs::Rank(Rank::Operator, "reboots nodes"),
        Request::CreateToken { .. } => {
            Needs::Rank(Rank::Administrator, "makes tokens with which machines join")
        }
        Request::RevokeToken { .. } => Needs::Rank(Rank::Administrator, "revokes tokens"),
        Request::ApproveMember { .. } => Needs::Rank(Rank::Administrator, "approves machines"),
        Request::RemoveMember { .. } => Needs::Rank(Rank::Administrator, "removes machines"),
        Request::Shutdown => Needs::Rank(Rank::Administrator, "stops the controller"),
        Request::Enrol { .. } | Request::Renew { .. } | Request::Leave { .. } | Request::BackedUp { .. } => {
            Needs::Shell
        }
    }
}

fn denied(text: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::Denied, text)
}

/// Refuses whoever is less than that.
pub(super) fn at_least(actor: &Actor, rank: Rank, what: &str) -> Result<(), Refusal> {
    if actor.rank >= rank {
        return Ok(());
    }
    let who = match rank {
        Rank::User | Rank::Operator => "an operator or an administrator",
        Rank::Administrator => "an administrator",
    };
    Err(denied(format!("Access/permission denied: only {who} {what}")))
}

/// Refuses whom the table refuses. Of which jobs a request is, is judged where they are found.
pub(super) fn check(actor: &Actor, request: &Request) -> Result<(), Refusal> {
    match needs(request) {
        Needs::Nothing | Needs::Managing | Needs::Driving => Ok(()),
        Needs::Rank(rank, what) => at_least(actor, rank, what),
        Needs::Shell if actor.is_administrator() && actor.inside.is_none() => Ok(()),
        Needs::Shell => {
            let text = "machines join and leave over the network, with 'berth join' and 'berth leave' there";
            Err(denied(format!("Access/permission denied: {text}")))
        }
    }
}

impl Cluster {
    /// Whether the caller coordinates the account of the job: of one in several components, of all of them, since they end
    /// together.
    fn coordinated(&self, actor: &Actor, id: JobId) -> bool {
        let of = |id: JobId| {
            self.job(id)
                .is_some_and(|job| actor.coordinates(job.spec.identity.uid, job.spec.spec.account.as_deref()))
        };
        !actor.accounts.is_empty() && self.whole(id).into_iter().all(of)
    }

    /// Refuses a job under an account that is for others: what rules say of an account holds for its users, and whoever they are not
    /// has none of it. Whoever has a say over everybody's jobs may name any.
    pub(super) fn check_account(&self, actor: &Actor, account: Option<&str>) -> Result<(), Refusal> {
        let Some(named) = account else { return Ok(()) };
        let said = self.config.accounts.iter().find(|said| said.name.eq_ignore_ascii_case(named));
        if actor.is_operator() || said.is_none_or(|said| said.takes(&actor.identity.user)) {
            return Ok(());
        }
        Err(denied(format!(
            "Invalid account or account/partition combination specified: account {named} is for the users that its [[account]] in \
             berth.toml names, and {} is none of them: submit under another one (--account), or ask an administrator of the cluster",
            actor.identity.user
        )))
    }

    /// The job, if the caller has a say over it: its owner, its account's coordinators, operators and administrators.
    pub(super) fn managed(&self, actor: &Actor, id: JobId) -> Result<&Arc<Job>, Refusal> {
        let job = self.jobs.get(&id).ok_or_else(|| unknown(&id.to_string()))?;
        let own = job.spec.identity.uid == actor.identity.uid;
        if own || actor.is_operator() || self.coordinated(actor, id) {
            return Ok(job);
        }
        let coordinator = match job.spec.spec.account.as_deref() {
            Some(account) => format!("a coordinator of account {account}, "),
            None => String::new(),
        };
        Err(denied(format!(
            "Access/permission denied: job {id} belongs to {}: only its user, {coordinator}an operator or an \
             administrator may do that",
            job.spec.identity.user
        )))
    }

    /// The job, if the caller may do in it what its owner does: its owner and administrators. What runs in it runs as its owner,
    /// whoever asked.
    pub(super) fn driven(&self, actor: &Actor, id: JobId) -> Result<&Arc<Job>, Refusal> {
        let job = self.jobs.get(&id).ok_or_else(|| unknown(&id.to_string()))?;
        if actor.is_administrator() || job.spec.identity.uid == actor.identity.uid {
            return Ok(job);
        }
        Err(denied(format!(
            "Access/permission denied: job {id} belongs to {}: only its user or an administrator may do that",
            job.spec.identity.user
        )))
    }
}
