//! Rows as they lie in the tables: JSON with a version beside it.

use crate::error::StoreError;
use berth_model::StepId;
use berth_sched_core::{PayloadKey, ROW_VERSION};
use rusqlite::Row;
use serde::de::DeserializeOwned;
use std::path::Path;

/// The job's own script and environment, beside those of its steps.
const OF_JOB: i64 = -3;

/// A step's place in its tables' keys: in the order in which steps are listed.
pub(crate) fn step_number(step: StepId) -> i64 {
    match step {
        StepId::Batch => -2,
        StepId::Interactive => -1,
        StepId::Number(n) => i64::from(n),
    }
}

/// Key columns of a payload.
pub(crate) fn payload_key(key: PayloadKey) -> (u32, i64) {
    match key {
        PayloadKey::Job(job) => (job.0, OF_JOB),
        PayloadKey::Step(job, step) => (job.0, step_number(step)),
    }
}

/// A row whose first two columns are version and content.
pub(crate) fn decode<T: DeserializeOwned>(path: &Path, table: &str, row: &Row<'_>) -> Result<T, StoreError> {
    let sqlite = |e: rusqlite::Error| StoreError::from_sqlite(path, &e);
    let version: i64 = row.get(0).map_err(sqlite)?;
    let known = i64::from(ROW_VERSION);
    if version > known {
        return Err(StoreError::Newer {
            path: path.to_path_buf(),
            what: "row version",
            found: version,
            known,
        });
    }
    let bytes = row.get_ref(1).map_err(sqlite)?;
    let bytes = bytes.as_bytes().map_err(|e| StoreError::row(path, table, e))?;
    serde_json::from_slice(bytes).map_err(|e| StoreError::row(path, table, e))
}
