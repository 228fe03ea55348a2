//! Submits jobs as fast as they are acknowledged, for `tests/bench/run.sh`: several connections, each with many requests
//! outstanding. The jobs are held. Prints the microseconds that it took.
#![forbid(unsafe_code)]

use berth_model::limits::Limits;
use berth_model::request::{Payload, Response};
use berth_model::spec::{BatchScript, IoSpec, JobKind, JobSpec, ResourceRequest, TimeLimit};
use berth_model::{ByteStr, SubmissionId};
use berth_rpc::{Client, Endpoint};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const USAGE: &str = "usage: submissions SOCKET JOBS CONNECTIONS OUTSTANDING BYTES";

fn spec(number: usize) -> JobSpec {
    JobSpec {
        submission: SubmissionId(format!("bench-{}-{number}", std::process::id())),
        kind: JobKind::Batch,
        name: "train-model".into(),
        partition: None,
        account: None,
        resources: ResourceRequest::default(),
        time_limit: Some(TimeLimit::Minutes(60)),
        begin: None,
        hold: true,
        nice: 0,
        requeue: None,
        array: None,
        immediate: None,
        comment: None,
        work_dir: "/tmp".into(),
        submit_dir: "/tmp".into(),
        io: IoSpec::default(),
        container: None,
        limits: Limits::default(),
        umask: 0o22,
        warn_signal: None,
        lost_after: None,
        clientless: false,
        user_env: false,
        command: "/home/someone/projects/training/job.sh".into(),
        submit_line: "sbatch --hold job.sh".into(),
        submit_host: "login1".into(),
        submit_sid: 1,
        het: None,
    }
}

/// Half of it a script, half an environment.
fn payload(bytes: usize) -> Payload {
    let mut text = b"#!/bin/sh\n".to_vec();
    text.resize((bytes / 2).max(text.len()), b'#');
    let variable = |i| ByteStr::from(format!("VARIABLE_{i:03}={}", "v".repeat(51)));
    Payload {
        script: Some(BatchScript { text: ByteStr(text), args: Vec::new() }),
        env: (0..bytes / 128).map(variable).collect(),
        login: None,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, numbers @ ..] = words.as_slice() else { return Err(USAGE.into()) };
    let numbers: Vec<usize> = numbers.iter().map(|word| word.parse()).collect::<Result<_, _>>()?;
    let [jobs, connections, outstanding, bytes] = numbers[..] else { return Err(USAGE.into()) };
    let (next, payload) = (Arc::new(AtomicUsize::new(0)), Arc::new(payload(bytes)));
    let begun = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..connections {
        let client = Client::connect(&Endpoint::Unix(socket.into())).await?;
        for _ in 0..outstanding {
            let (client, next, payload) = (client.clone(), Arc::clone(&next), Arc::clone(&payload));
            workers.push(tokio::spawn(async move {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= jobs {
                        return Ok(());
                    }
                    match client.submit(&spec(at), &payload, None, false).await {
                        Ok(Response::Submitted { .. }) => {}
                        other => return Err(format!("not submitted: {other:?}")),
                    }
                }
            }));
        }
    }
    for worker in workers {
        worker.await??;
    }
    println!("{}", begun.elapsed().as_micros());
    Ok(())
}
