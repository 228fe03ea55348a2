//! Rows as they lie in the tables: JSON with a version beside it.

use crate::error::StoreError;
use berth_model::request::Payload;
use berth_model::spec::BatchScript;
use berth_model::{ByteStr, StepId};
use berth_sched_core::{PayloadKey, ROW_VERSION};
use rusqlite::Row;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

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

/// The form of payload rows: lengths and bytes, because scripts and environments are most of what is written. Version
/// 1 was JSON.
pub(crate) const PAYLOAD_VERSION: u32 = 2;

/// A payload as its row holds it: whether there is a script, its text and arguments, and the environment.
pub(crate) fn payload_bytes(payload: &Payload) -> Vec<u8> {
    fn put(out: &mut Vec<u8>, text: &ByteStr) {
        count(out, text.0.len());
        out.extend_from_slice(&text.0);
    }
    fn count(out: &mut Vec<u8>, n: usize) {
        // A request is bounded far below.
        out.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    }
    let size = |texts: &[ByteStr]| texts.iter().map(|t| t.0.len() + 4).sum::<usize>();
    let script = payload.script.as_ref().map_or(0, |s| s.text.0.len() + size(&s.args) + 8);
    let mut out = Vec::with_capacity(script + size(&payload.env) + 8);
    out.push(u8::from(payload.script.is_some()));
    if let Some(script) = &payload.script {
        put(&mut out, &script.text);
        count(&mut out, script.args.len());
        script.args.iter().for_each(|arg| put(&mut out, arg));
    }
    count(&mut out, payload.env.len());
    payload.env.iter().for_each(|variable| put(&mut out, variable));
    out
}

/// The payload in a row's bytes; `None` when they are none.
pub(crate) fn payload_of(bytes: &[u8]) -> Option<Payload> {
    fn number(rest: &mut &[u8]) -> Option<usize> {
        let (first, others) = rest.split_first_chunk::<4>()?;
        *rest = others;
        usize::try_from(u32::from_le_bytes(*first)).ok()
    }
    fn text(rest: &mut &[u8]) -> Option<ByteStr> {
        let length = number(rest)?;
        let (text, others) = rest.split_at_checked(length)?;
        *rest = others;
        Some(text.into())
    }
    fn texts(rest: &mut &[u8]) -> Option<Vec<ByteStr>> {
        (0..number(rest)?).map(|_| text(rest)).collect()
    }
    let (has_script, mut rest) = bytes.split_first()?;
    let script = match has_script {
        0 => None,
        1 => Some(BatchScript { text: text(&mut rest)?, args: texts(&mut rest)? }),
        _ => return None,
    };
    let payload = Payload { script, env: texts(&mut rest)? };
    rest.is_empty().then_some(payload)
}

/// A payload's row: version and content.
pub(crate) fn decode_payload(path: &Path, row: &Row<'_>) -> Result<Payload, StoreError> {
    let raw = RawRow::take(path, row)?;
    raw.not_newer(path, PAYLOAD_VERSION)?;
    if raw.version < i64::from(PAYLOAD_VERSION) {
        return raw.decode(path, "payloads");
    }
    payload_of(&raw.content)
        .ok_or_else(|| StoreError::row(path, "payloads", "it ends too early, or too late"))
}

/// A row whose first two columns are version and content.
pub(crate) fn decode<T: DeserializeOwned>(path: &Path, table: &str, row: &Row<'_>) -> Result<T, StoreError> {
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

    pub(crate) fn decode<T: DeserializeOwned>(&self, path: &Path, table: &str) -> Result<T, StoreError> {
        self.not_newer(path, ROW_VERSION)?;
        serde_json::from_slice(&self.content).map_err(|e| StoreError::row(path, table, e))
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
        let decoders: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    while let Ok((number, chunk)) = next() {
                        done.push((number, decode_chunk(chunk)));
                    }
                    done
                })
            })
            .collect();
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
    fn payloads_survive_as_bytes_and_damaged_ones_are_told() {
        let texts = |list: &[&[u8]]| list.iter().map(|t| ByteStr(t.to_vec())).collect::<Vec<_>>();
        let script =
            BatchScript { text: ByteStr(b"#!/bin/sh\n\xff\n".to_vec()), args: texts(&[b"", b"a b"]) };
        let env = texts(&[b"A=1", b"B=\xc3\x28", b""]);
        for payload in [
            Payload { script: Some(script), env: env.clone() },
            Payload { script: None, env },
            Payload::default(),
        ] {
            let bytes = payload_bytes(&payload);
            assert_eq!(payload_of(&bytes).as_ref(), Some(&payload));
            for cut in 0..bytes.len() {
                assert_eq!(payload_of(&bytes[..cut]), None);
            }
            assert_eq!(payload_of(&[&bytes[..], b"x"].concat()), None);
        }
        assert_eq!(payload_of(&[1, 255, 255, 255, 255]), None, "a length beyond the end");
    }

    #[test]
    fn many_rows_keep_their_order_and_one_bad_row_is_an_error() {
        for count in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5000] {
            assert_eq!(decoded(count).unwrap(), (0..count).collect::<Vec<_>>());
        }
        assert!(matches!(decoded(9000), Err(StoreError::Damaged { .. })));
    }
}
