//! Rows as they lie in the tables: content with a version beside it.

use crate::content::{Content, PAYLOAD_VERSION};
use crate::error::StoreError;
use berth_model::request::Payload;
use berth_model::{Sluid, StepId};
use berth_sched_core::{PayloadKey, ROW_VERSION};
use rusqlite::Row;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

/// The job's own script and environment, beside those of its steps.
const OF_JOB: i64 = -3;
/// The login of the job's image; below it those of steps.
const LOGIN: i64 = -4;

/// A step's place in its tables' keys: in the order in which steps are listed.
pub(crate) fn step_number(step: StepId) -> i64 {
    match step {
        StepId::Batch => -2,
        StepId::Interactive => -1,
        StepId::Number(n) => i64::from(n),
    }
}

/// Which step that is.
pub(crate) fn step_of(number: i64) -> Option<StepId> {
    match number {
        -2 => Some(StepId::Batch),
        -1 => Some(StepId::Interactive),
        n => u32::try_from(n).ok().map(StepId::Number),
    }
}

/// A SLUID in its column, whose numbers have a sign.
pub(crate) fn sluid_key(sluid: Sluid) -> i64 {
    i64::from_ne_bytes(sluid.0.to_ne_bytes())
}

/// Key columns of a payload.
pub(crate) fn payload_key(key: PayloadKey) -> (u32, i64) {
    match key {
        PayloadKey::Job(job) => (job.0, OF_JOB),
        PayloadKey::Step(job, step) => (job.0, step_number(step)),
        PayloadKey::Login(job) => (job.0, LOGIN),
        // The smallest step is the batch script's, -2.
        PayloadKey::StepLogin(job, step) => (job.0, LOGIN - 3 - step_number(step)),
    }
}

/// A payload's row: version and content.
pub(crate) fn decode_payload(path: &Path, row: &Row<'_>) -> Result<Payload, StoreError> {
    let raw = RawRow::take(path, row)?;
    raw.not_newer(path, PAYLOAD_VERSION)?;
    let content = if raw.version <= 1 {
        serde_json::from_slice(&raw.content).map_err(|e| e.to_string())
    } else {
        Payload::from_bytes(&raw.content)
    };
    content.map_err(|e| StoreError::row(path, "payloads", e))
}

/// A row whose first two columns are version and content.
pub(crate) fn decode<T: Content>(path: &Path, table: &str, row: &Row<'_>) -> Result<T, StoreError> {
    RawRow::take(path, row)?.decode(path, table)
}

/// Such a row, not yet looked into.
pub(crate) struct RawRow {
    version: i64,
    content: Vec<u8>,
}

impl RawRow {
    pub(crate) fn take(path: &Path, row: &Row<'_>) -> Result<RawRow, StoreError> {
        let read = || Ok(RawRow { version: row.get(0)?, content: row.get(1)? });
        read().map_err(|e| StoreError::from_sqlite(path, &e))
    }

    fn not_newer(&self, path: &Path, known: u32) -> Result<(), StoreError> {
        let (found, known) = (self.version, i64::from(known));
        if found > known {
            return Err(StoreError::Newer { path: path.to_path_buf(), what: "row version", found, known });
        }
        Ok(())
    }

    pub(crate) fn decode<T: Content>(&self, path: &Path, table: &str) -> Result<T, StoreError> {
        self.not_newer(path, ROW_VERSION)?;
        T::from_bytes(&self.content).map_err(|e| StoreError::row(path, table, e))
    }
}

/// Rows handed to a thread at a time.
pub(crate) const CHUNK: usize = 1024;

/// Decodes what `fill` reads, in its order. `fill` adds at most [`CHUNK`] rows, and none at the end.
pub(crate) fn decode_all<T: Send>(
    mut fill: impl FnMut(&mut Vec<RawRow>) -> Result<(), StoreError>,
    decode: impl Fn(&RawRow) -> Result<T, StoreError> + Sync,
) -> Result<Vec<T>, StoreError> {
    let decode_chunk = |chunk: Vec<RawRow>| chunk.iter().map(&decode).collect::<Result<Vec<T>, StoreError>>();
    let mut first = Vec::new();
    fill(&mut first)?;
    if first.len() < CHUNK {
        return decode_chunk(first);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let (work, waiting) = sync_channel::<(usize, Vec<RawRow>)>(threads * 2);
    let waiting = Mutex::new(waiting);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
    std::thread::scope(|scope| {
        let decoder = || {
            let mut done = Vec::new();
            while let Ok((number, chunk)) = next() {
                done.push((number, decode_chunk(chunk)));
            }
            done
        };
        let begin = |_| std::thread::Builder::new().spawn_scoped(scope, decoder).ok();
        let decoders: Vec<_> = (0..threads).map_while(begin).collect();
        if decoders.is_empty() {
            // There are no more threads: this one does it.
            let (mut all, mut chunk) = (Vec::new(), first);
            while !chunk.is_empty() {
                all.append(&mut decode_chunk(std::mem::take(&mut chunk))?);
                fill(&mut chunk)?;
            }
            return Ok(all);
        }
        let mut read = Ok(());
        let mut chunk = first;
        let mut number = 0;
        while !chunk.is_empty() {
            // The receiver lives outside of this scope.
            let _ = work.send((number, std::mem::take(&mut chunk)));
            number += 1;
            read = fill(&mut chunk);
            if read.is_err() {
                break;
            }
        }
        drop(work);
        let mut chunks = Vec::with_capacity(number);
        for decoder in decoders {
            match decoder.join() {
                Ok(done) => chunks.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        read?;
        chunks.sort_unstable_by_key(|(number, _)| *number);
        let mut all = Vec::with_capacity(number * CHUNK);
        for (_, chunk) in chunks {
            all.append(&mut chunk?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_places_of_their_own() {
        use berth_model::JobId;
        let steps = [StepId::Batch, StepId::Interactive, StepId::Number(0), StepId::Number(u32::MAX)];
        let job = JobId(1);
        let mut places: Vec<_> =
            [PayloadKey::Job(job), PayloadKey::Login(job)].into_iter().map(payload_key).collect();
        places.extend(steps.iter().map(|s| payload_key(PayloadKey::Step(job, *s))));
        places.extend(steps.iter().map(|s| payload_key(PayloadKey::StepLogin(job, *s))));
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), count);
    }

    #[test]
    fn steps_come_back_from_their_numbers() {
        for step in [StepId::Batch, StepId::Interactive, StepId::Number(0), StepId::Number(u32::MAX)] {
            assert_eq!(step_of(step_number(step)), Some(step));
        }
        assert_eq!((step_of(-3), step_of(1 << 32)), (None, None));
    }

    fn decoded(count: usize) -> Result<Vec<usize>, StoreError> {
        let mut numbers = 0..count;
        decode_all(
            |chunk| {
                chunk.extend(numbers.by_ref().take(CHUNK).map(|n| RawRow {
                    version: 1,
                    content: if n == 5000 { b"x".to_vec() } else { n.to_string().into_bytes() },
                }));
                Ok(())
            },
            |raw| raw.decode(Path::new("db"), "numbers"),
        )
    }

    #[test]
    fn many_rows_keep_their_order_and_one_bad_row_is_an_error() {
        for count in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5000] {
            assert_eq!(decoded(count).unwrap(), (0..count).collect::<Vec<_>>());
        }
        assert!(matches!(decoded(9000), Err(StoreError::Damaged { .. })));
    }
}
