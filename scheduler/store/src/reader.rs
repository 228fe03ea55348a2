//! Reading beside the writer: scripts and environments for starts, and accounting.

use crate::encode::{decode, decode_payload, payload_key, sluid_key, step_number};
use crate::error::StoreError;
use crate::schema;
use berth_model::JobId;
use berth_model::listing::{PAGE_BYTES, size};
use berth_model::member::AuditInfo;
use berth_model::query::AccountingQuery;
use berth_model::record::JobInfo;
use berth_model::request::Payload;
use berth_sched_core::{AuditRow, JobRow, PayloadKey, SpecRow, StepRow, View, job_info};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params, params_from_iter};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest life of a read transaction: the write-ahead log cannot begin anew while one is open.
const LONGEST: Duration = Duration::from_secs(60);
/// Connections kept open for the next reader.
const IDLE: usize = 4;

/// Opens read connections and keeps some. Cheap to clone; any thread may use it.
#[derive(Debug, Clone)]
pub struct Reader {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
}

/// The receiver of pages wants no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop;

impl Reader {
    pub(crate) fn new(path: PathBuf) -> Reader {
        Reader { path, idle: Arc::new(Mutex::new(Vec::new())) }
    }

    fn sqlite(&self, e: &rusqlite::Error) -> StoreError {
        StoreError::from_sqlite(&self.path, e)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => schema::connect(&self.path, false).map_err(|e| self.sqlite(&e))?,
        };
        let result = work(&mut connection)?;
        // After an error, the connection is not used again.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(connection);
        }
        Ok(result)
    }

    /// A script and an environment, if they are there.
    ///
    /// # Errors
    /// The database's own.
    pub fn payload(&self, key: PayloadKey) -> Result<Option<Payload>, StoreError> {
        self.with(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT version, row FROM payloads WHERE job = ?1 AND step = ?2")
                .map_err(|e| self.sqlite(&e))?;
            statement
                .query_row(payload_key(key), |row| Ok(decode_payload(&self.path, row)))
                .optional()
                .map_err(|e| self.sqlite(&e))?
                .transpose()
        })
    }

    /// Live and finished jobs that the query wants, by id, in pages of at most `page` (fewer that are large), all from
    /// one transaction. `receive` may end it early.
    ///
    /// # Errors
    /// The database's own, and a receiver that takes longer than a minute in all.
    pub fn accounting(
        &self,
        query: &AccountingQuery,
        page: usize,
        mut receive: impl FnMut(Vec<JobInfo>) -> Result<(), Stop>,
    ) -> Result<(), StoreError> {
        self.with(|connection| {
            let begun = Instant::now();
            let transaction =
                Transaction::new(connection, TransactionBehavior::Deferred).map_err(|e| self.sqlite(&e))?;
            let mut found = Vec::with_capacity(page);
            let mut bytes = 0;
            let mut specs: HashMap<u32, Arc<SpecRow>> = HashMap::new();
            let components = self.components(&transaction, query)?;
            let (text, values) = select(query, &components);
            let mut statement = transaction.prepare_cached(&text).map_err(|e| self.sqlite(&e))?;
            let mut rows = statement.query(params_from_iter(values)).map_err(|e| self.sqlite(&e))?;
            while let Some(row) = rows.next().map_err(|e| self.sqlite(&e))? {
                let job: JobRow = decode(&self.path, "jobs", row)?;
                let Some(spec) = self.spec(&transaction, &mut specs, &job)? else { continue };
                let steps = self.steps(&transaction, &job)?;
                let steps: Vec<&StepRow> = steps.iter().collect();
                let info = job_info(View::Accounting, &spec, &job, &steps);
                if query.matches(&info) {
                    bytes += size(&info);
                    found.push(info);
                }
                if found.len() == page || bytes >= PAGE_BYTES {
                    bytes = 0;
                    if receive(std::mem::take(&mut found)).is_err() {
                        return Ok(());
                    }
                }
                if begun.elapsed() > LONGEST {
                    return Err(StoreError::Database {
                        path: self.path.clone(),
                        why:
                            "the query took longer than 60 s; ask for fewer jobs (--starttime, --endtime, -j)"
                                .to_string(),
                    });
                }
            }
            if !found.is_empty() {
                // The end is near in any case.
                let _ = receive(found);
            }
            Ok(())
        })
    }

    /// The last `most` entries of the audit log (all of them with `None`), oldest first, in pages of at most `page`, from one
    /// transaction. `receive` may end it early.
    ///
    /// # Errors
    /// As of [`Reader::accounting`].
    pub fn audit(
        &self,
        most: Option<u32>,
        page: usize,
        mut receive: impl FnMut(Vec<AuditInfo>) -> Result<(), Stop>,
    ) -> Result<(), StoreError> {
        self.with(|connection| {
            let sqlite = |e: rusqlite::Error| self.sqlite(&e);
            let begun = Instant::now();
            let transaction = Transaction::new(connection, TransactionBehavior::Deferred).map_err(sqlite)?;
            let most = most.map_or(-1, i64::from); // to SQLite, all of them
            let mut statement = transaction
                .prepare_cached(
                    "SELECT version, row FROM audit WHERE number IN
                     (SELECT number FROM audit ORDER BY number DESC LIMIT ?1) ORDER BY number",
                )
                .map_err(sqlite)?;
            let mut rows = statement.query([most]).map_err(sqlite)?;
            let mut found = Vec::with_capacity(page);
            while let Some(row) = rows.next().map_err(sqlite)? {
                found.push(decode::<AuditRow>(&self.path, "audit", row)?.info());
                if found.len() == page && receive(std::mem::take(&mut found)).is_err() {
                    return Ok(());
                }
                if begun.elapsed() > LONGEST {
                    let why = "the query took longer than 60 s; ask for fewer entries (-n)".to_string();
                    return Err(StoreError::Database { path: self.path.clone(), why });
                }
            }
            if !found.is_empty() {
                // The end is near in any case.
                let _ = receive(found);
            }
            Ok(())
        })
    }

    /// The ids that are asked for, with those of the components that a leader's id stands for.
    fn components(
        &self,
        transaction: &Transaction<'_>,
        query: &AccountingQuery,
    ) -> Result<Vec<JobId>, StoreError> {
        let mut ids = query.ids.clone();
        let mut statement = transaction
            .prepare_cached("SELECT version, row FROM specs WHERE job = ?1")
            .map_err(|e| self.sqlite(&e))?;
        for id in &query.ids {
            let spec: Option<SpecRow> = statement
                .query_row([id.0], |row| Ok(decode(&self.path, "specs", row)))
                .optional()
                .map_err(|e| self.sqlite(&e))?
                .transpose()?;
            let het = spec.and_then(|spec| spec.spec.het).filter(|het| het.leads());
            ids.extend(het.into_iter().flat_map(|het| het.members().skip(1)));
        }
        Ok(ids)
    }

    /// The job's specification; tasks of one array share it.
    fn spec(
        &self,
        transaction: &Transaction<'_>,
        known: &mut HashMap<u32, Arc<SpecRow>>,
        job: &JobRow,
    ) -> Result<Option<Arc<SpecRow>>, StoreError> {
        if let Some(spec) = known.get(&job.spec_of.0) {
            return Ok(Some(Arc::clone(spec)));
        }
        let mut statement = transaction
            .prepare_cached("SELECT version, row FROM specs WHERE job = ?1")
            .map_err(|e| self.sqlite(&e))?;
        let spec: Option<SpecRow> = statement
            .query_row([job.spec_of.0], |row| Ok(decode(&self.path, "specs", row)))
            .optional()
            .map_err(|e| self.sqlite(&e))?
            .transpose()?;
        let Some(spec) = spec.map(Arc::new) else {
            tracing::error!("{}: job {} has no specification", self.path.display(), job.job);
            return Ok(None);
        };
        if job.spec_of != job.job || spec.spec.array.is_some() {
            if known.len() > 1024 {
                known.clear();
            }
            known.insert(job.spec_of.0, Arc::clone(&spec));
        }
        Ok(Some(spec))
    }

    /// Steps of the job's last run.
    fn steps(&self, transaction: &Transaction<'_>, job: &JobRow) -> Result<Vec<StepRow>, StoreError> {
        let sqlite = |e: rusqlite::Error| self.sqlite(&e);
        let mut statement = transaction
            .prepare_cached("SELECT version, row FROM steps WHERE job = ?1 AND attempt = ?2 ORDER BY step")
            .map_err(sqlite)?;
        let mut rows = statement.query(params![job.job.0, job.attempt.0]).map_err(sqlite)?;
        let mut steps = Vec::new();
        while let Some(row) = rows.next().map_err(sqlite)? {
            steps.push(decode(&self.path, "steps", row)?);
        }
        for step in &mut steps {
            self.bring_up_to_date(transaction, step)?;
        }
        Ok(steps)
    }
}

impl Reader {
    /// Puts in what was written of the step's parts since its own row, which an unfinished step over several nodes has.
    fn bring_up_to_date(&self, transaction: &Transaction<'_>, step: &mut StepRow) -> Result<(), StoreError> {
        if step.result.is_some() || step.nodes.len() < 2 {
            return Ok(());
        }
        let sqlite = |e: rusqlite::Error| self.sqlite(&e);
        let mut statement = transaction
            .prepare_cached(
                "SELECT version, row, at FROM parts WHERE job = ?1 AND attempt = ?2 AND step = ?3",
            )
            .map_err(sqlite)?;
        let key = params![step.key.job.0, step.key.attempt.0, step_number(step.key.step)];
        let mut rows = statement.query(key).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let at: u32 = row.get(2).map_err(sqlite)?;
            step.nodes.replace(at as usize, decode(&self.path, "parts", row)?);
        }
        Ok(())
    }
}

/// The narrowest selection that an index serves; the rest of the query is checked on the records.
fn select(query: &AccountingQuery, ids: &[JobId]) -> (String, Vec<Value>) {
    // Beyond what one statement may name, all jobs are looked at.
    let sluids = &query.sluids;
    if (1..=10_000).contains(&(ids.len() + sluids.len())) {
        let marks = |count| vec!["?"; count].join(",");
        let (marks, names) = (marks(ids.len()), marks(sluids.len()));
        let ids = || ids.iter().map(|id| Value::from(id.0));
        let sluids = sluids.iter().map(|sluid| Value::from(sluid_key(*sluid)));
        let text = format!(
            "SELECT version, row FROM jobs WHERE job IN
             (SELECT job FROM jobs WHERE job IN ({marks})
              UNION SELECT job FROM jobs WHERE spec_of IN ({marks}) AND spec_of <> job
              UNION SELECT job FROM jobs WHERE sluid IN ({names}))
             ORDER BY job"
        );
        return (text, ids().chain(ids()).chain(sluids).collect());
    }
    match query.from {
        Some(from) => (
            "SELECT version, row FROM jobs WHERE job IN
             (SELECT job FROM jobs WHERE ended IS NULL UNION ALL SELECT job FROM jobs WHERE ended >= ?)
             ORDER BY job"
                .to_string(),
            vec![Value::from(from.0)],
        ),
        None => ("SELECT version, row FROM jobs ORDER BY job".to_string(), Vec::new()),
    }
}
