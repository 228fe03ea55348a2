//! Answers to readers: from the published state, or from the store beside the writer; never through the core.

use crate::shared::Shared;
use crate::turns::Turn;
use berth_model::listing::{JobList, PAGE_BYTES, size};
use berth_model::member::{AuditInfo, KeyId, MemberInfo, TokenInfo};
use berth_model::query::{AccountingQuery, JobQuery};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{Refusal, RefusalCode};
use berth_model::{JobId, Time};
use berth_rpc::{Answers, PAGE};
use berth_store::{Reader, Stop, StoreError};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// How long a reader may take for one page.
const PATIENCE: Duration = Duration::from_secs(20);

/// A watched job is not looked at anew for so long after a change, for each node that the state before it lists. To make, send and free a
/// state takes the controller about 1 us for each (docs/wide.md), and a step over many nodes changes with every one of them.
const REST: Duration = Duration::from_micros(40);
/// States of fewer nodes are sent as they come.
const FEW: usize = 16;
/// Nobody waits longer for a change.
const LONGEST_REST: Duration = Duration::from_millis(200);

/// Where pages go. Waits for a slow reader, but not for ever.
pub(crate) struct Pages<P> {
    to: mpsc::Sender<Result<P, Refusal>>,
    runtime: tokio::runtime::Handle,
}

impl<P: Send + 'static> Pages<P> {
    fn send(&self, page: Result<P, Refusal>) -> Result<(), Stop> {
        self.runtime.block_on(self.to.send_timeout(page, PATIENCE)).map_err(|_| Stop)
    }

    /// Sends pages until nobody reads them any more.
    fn send_all(&self, pages: impl IntoIterator<Item = P>) {
        for page in pages {
            if self.send(Ok(page)).is_err() {
                return;
            }
        }
    }
}

/// Items in groups of [`PAGE`], or fewer that are large.
pub(crate) fn grouped<T: Serialize>(mut items: impl Iterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    std::iter::from_fn(move || {
        let (mut page, mut bytes) = (Vec::new(), 0);
        while page.len() < PAGE
            && bytes < PAGE_BYTES
            && let Some(item) = items.next()
        {
            bytes += size(&item);
            page.push(item);
        }
        (!page.is_empty()).then_some(page)
    })
}

/// Runs `work` on a thread where it may wait, and streams its pages. `turn`: its reader's, held meanwhile.
pub(crate) fn paged<P: Send + 'static>(
    turn: Turn,
    work: impl FnOnce(&Pages<P>) + Send + 'static,
) -> Answers<P> {
    let (to, pages) = mpsc::channel(2);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        work(&Pages { to, runtime });
        drop(turn);
    });
    Box::pin(ReceiverStream::new(pages))
}

/// Answers that are short enough to be there at once: no thread waits for who reads them.
fn at_once<T: Serialize + Send + 'static>(items: impl Iterator<Item = T>) -> Answers<Vec<T>> {
    let pages: Vec<_> = grouped(items).map(Ok).collect();
    Box::pin(tokio_stream::iter(pages))
}

/// All nodes.
pub(crate) fn nodes(turn: Turn, shared: &Shared) -> Answers<Vec<NodeInfo>> {
    let snapshot = shared.snapshot();
    paged(turn, move |out| out.send_all(grouped(snapshot.nodes())))
}

/// All partitions.
pub(crate) fn partitions(shared: &Shared) -> Answers<Vec<PartitionInfo>> {
    at_once(shared.snapshot().partitions())
}

/// All members, with the ends of their certificates.
pub(crate) fn members(shared: &Shared, ends: impl Fn(&KeyId) -> Option<Time>) -> Answers<Vec<MemberInfo>> {
    at_once(shared.snapshot().members().map(|member| MemberInfo { ends: ends(&member.key), ..member }))
}

/// All tokens.
pub(crate) fn tokens(shared: &Shared) -> Answers<Vec<TokenInfo>> {
    at_once(shared.snapshot().tokens())
}

/// The audit log's last entries.
pub(crate) fn audit(turn: Turn, reader: Reader, most: Option<u32>) -> Answers<Vec<AuditInfo>> {
    paged(turn, move |out| {
        if let Err(e) = reader.audit(most, PAGE, |page| out.send(Ok(page))) {
            // The reader may be gone.
            let _ = out.send(Err(unreadable(&e)));
        }
    })
}

/// Jobs in memory.
pub(crate) fn jobs(turn: Turn, shared: &Shared, query: JobQuery) -> Answers<JobList> {
    let snapshot = shared.snapshot();
    paged(turn, move |out| {
        if !query.names_jobs() {
            return out.send_all(snapshot.list(&query));
        }
        let mut ids = query.ids.clone();
        ids.sort_unstable();
        ids.dedup();
        let one_or_array = |id: JobId| {
            let single = snapshot.job(id).filter(|job| job.array.is_none() || job.array != Some(id));
            let array = single.is_none().then(|| snapshot.array(id));
            let led = single.as_ref().and_then(|job| job.spec.het).filter(|het| het.leads());
            let others: Vec<JobInfo> = led
                .into_iter()
                .flat_map(|het| het.members().skip(1))
                .filter_map(|member| snapshot.job(member))
                .collect();
            single.into_iter().chain(array.into_iter().flatten()).chain(others)
        };
        // A component may be named beside the first one.
        let mut seen = std::collections::BTreeSet::new();
        let found = ids
            .iter()
            .flat_map(|id| one_or_array(*id))
            .chain(query.sluids.iter().filter_map(|sluid| snapshot.job_of(*sluid)))
            .filter(move |job| seen.insert((job.id, job.task)))
            .filter(|job| query.matches(job));
        out.send_all(grouped(found).map(JobList::from));
    })
}

/// Jobs on record.
pub(crate) fn accounting(turn: Turn, reader: Reader, query: AccountingQuery) -> Answers<Vec<JobInfo>> {
    paged(turn, move |out| {
        if let Err(e) = reader.accounting(&query, PAGE, |page| out.send(Ok(page))) {
            // The reader may be gone.
            let _ = out.send(Err(unreadable(&e)));
        }
    })
}

fn unreadable(e: &StoreError) -> Refusal {
    tracing::error!("{e}");
    Refusal::new(RefusalCode::Unavailable, e.to_string())
}

/// One job on record.
async fn recorded(reader: Reader, job: JobId) -> Result<Option<JobInfo>, Refusal> {
    let query = AccountingQuery { ids: vec![job], ..AccountingQuery::default() };
    let read = tokio::task::spawn_blocking(move || {
        let mut found = None;
        reader
            .accounting(&query, PAGE, |page| {
                found = page.into_iter().find(|info| info.id == job).or(found.take());
                Ok(())
            })
            .map(|()| found)
    });
    match read.await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(e)) => Err(unreadable(&e)),
        Err(e) => Err(Refusal::new(RefusalCode::Internal, e.to_string())),
    }
}

/// How many nodes a state lists, steps that are over not counted: their number says nothing of how fast the job changes.
fn nodes_of(info: &JobInfo) -> usize {
    let running = info.steps.iter().filter(|step| step.ended.is_none());
    info.layout.nodes.len() + running.map(|step| step.layout.nodes.len()).sum::<usize>()
}

/// How long after a change a job is looked at anew, when the state before listed so many nodes.
fn rest_after(nodes: usize) -> Duration {
    match nodes {
        few if few < FEW => Duration::ZERO,
        many => REST.saturating_mul(u32::try_from(many).unwrap_or(u32::MAX)).min(LONGEST_REST),
    }
}

/// The job as it is, then at each change, until it is over.
pub(crate) async fn watch(
    shared: Arc<Shared>,
    reader: Reader,
    job: JobId,
) -> Result<Answers<JobInfo>, Refusal> {
    // Before the first look, so that no change falls between the two.
    let mut watcher = shared.watchers.watch(job);
    let snapshot = shared.snapshot();
    let first = match snapshot.job(job) {
        Some(info) => info,
        None if snapshot.knows(job) => {
            let text = format!("job {job} is an array whose tasks are jobs of their own by now; watch those");
            return Err(Refusal::new(RefusalCode::WrongState, text));
        }
        None => {
            let Some(info) = recorded(reader, job).await? else {
                return Err(Refusal::new(RefusalCode::NotFound, format!("Invalid job id specified: {job}")));
            };
            return Ok(Box::pin(tokio_stream::once(Ok(info))));
        }
    };
    let (to, states) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut last = first.clone();
        let mut next = Some(first);
        let mut rest = Duration::ZERO;
        loop {
            if let Some(info) = next.take() {
                let over = info.state.is_terminal();
                rest = rest_after(nodes_of(&info));
                last = info.clone();
                if to.send(Ok(info)).await.is_err() || over {
                    return;
                }
            }
            tokio::select! {
                () = async {
                    watcher.changed().await;
                    // Also a sleep of no time takes a tick.
                    if !rest.is_zero() {
                        tokio::time::sleep(rest).await;
                    }
                } => {}
                () = to.closed() => return,
            }
            next = match shared.snapshot().job(job) {
                Some(info) => Some(info).filter(|info| *info != last),
                // Gone from memory: its end is on record, unless it was an array that is all tasks by now.
                None => match recorded(reader.clone(), job).await {
                    Ok(Some(info)) if info.state.is_terminal() => Some(info),
                    Ok(_) => return,
                    Err(refusal) => {
                        // The watcher may be gone.
                        let _ = to.send(Err(refusal)).await;
                        return;
                    }
                },
            };
        }
    });
    Ok(Box::pin(ReceiverStream::new(states)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_job_of_many_nodes_is_told_less_often_and_one_of_few_at_once() {
        assert_eq!(rest_after(0), Duration::ZERO);
        assert_eq!(rest_after(FEW - 1), Duration::ZERO);
        assert_eq!(rest_after(1000), Duration::from_millis(40));
        assert_eq!(rest_after(usize::MAX), LONGEST_REST);
    }
}
