//! A mixed workload of GPU jobs, placed as we do and as textbooks do: how much of what is free lies about in pieces, and how long
//! jobs that need a whole node wait for one. `tests/bench/fragments.sh` draws it.

use super::tests::{gpu, node};
use super::*;
use berth_model::ids::{Attempt, JobId};
use std::collections::VecDeque;
use std::sync::Arc;

const NODES: usize = 16;
const GPUS: u64 = 8;
const CORES: u64 = 64;
const TICKS: u64 = 4000;

/// A job: GPUs or, without them, cores; when it comes and for how long it runs.
#[derive(Clone, Copy)]
struct Task {
    gpus: u64,
    cores: u64,
    comes: u64,
    takes: u64,
}

/// The same sequence of numbers each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Many small jobs, some of whole nodes, and some without GPUs.
fn workload() -> Vec<Task> {
    let mut dice = Dice(7);
    let mut all = Vec::new();
    for comes in 0..TICKS {
        while dice.roll(100) < 48 {
            let gpus = match dice.roll(100) {
                0..48 => 1,
                48..68 => 2,
                68..83 => 4,
                83..93 => 8,
                _ => 0,
            };
            let cores = if gpus == 0 { 4 + 4 * dice.roll(8) } else { gpus * CORES / GPUS };
            all.push(Task { gpus, cores, comes, takes: 10 + dice.roll(80) });
        }
    }
    all
}

/// How a way of placing jobs did.
#[derive(Debug)]
struct Score {
    /// Of the GPUs that were free, the part on nodes of which others were in use, in thousandths.
    pieces: u64,
    /// Ticks that a job which needs a whole node waited, on average.
    wait: u64,
    /// The first of these by the tick, for the picture.
    over_time: Vec<u64>,
}

/// Finds a node for a job, by its number and what is left of each node: GPUs and cores.
type Put<'a> = &'a mut dyn FnMut(u32, &Task, &[(u64, u64)]) -> Option<usize>;
/// A job that runs: its end, number, node and needs.
type Running = (u64, u32, usize, Task);

/// Runs the workload: `put` finds a node for a job, `free` takes it back.
fn run(put: Put<'_>, free: &mut dyn FnMut(u32, usize)) -> Score {
    let mut left = [(GPUS, CORES); NODES];
    let (mut waiting, mut running): (VecDeque<(u32, Task)>, Vec<Running>) = Default::default();
    let mut coming = workload().into_iter().zip(1..).peekable();
    let (mut pieces, mut idle, mut waits, mut whole) = (0, 0, 0, 0);
    let mut over_time = Vec::new();
    for now in 0..TICKS {
        running.retain(|(end, id, at, task)| {
            if *end <= now {
                left[*at].0 += task.gpus;
                left[*at].1 += task.cores;
                free(*id, *at);
            }
            *end > now
        });
        while let Some((task, id)) = coming.next_if(|(task, _)| task.comes <= now) {
            waiting.push_back((id, task));
        }
        waiting.retain(|(id, task)| {
            let Some(at) = put(*id, task, &left) else { return true };
            left[at].0 -= task.gpus;
            left[at].1 -= task.cores;
            running.push((now + task.takes, *id, at, *task));
            if task.gpus == GPUS {
                (waits, whole) = (waits + now - task.comes, whole + 1);
            }
            false
        });
        let in_pieces: u64 = left.iter().filter(|(gpus, _)| *gpus < GPUS).map(|(gpus, _)| gpus).sum();
        pieces += in_pieces;
        idle += left.iter().map(|(gpus, _)| gpus).sum::<u64>();
        over_time.push(in_pieces);
    }
    Score { pieces: pieces * 1000 / idle.max(1), wait: waits / whole.max(1), over_time }
}

fn ours() -> Score {
    let all =
        std::cell::RefCell::new((0..NODES).map(|i| node(i, &[1; 64], 64_000, 8)).collect::<Vec<Node>>());
    let id = |id: u32| (JobId(id), Attempt(0));
    run(
        &mut |job, task, _| {
            let mut r = ResourceRequest { memory: MemoryRequest::PerNode(1), ..ResourceRequest::default() };
            match task.gpus {
                0 => r.tasks = u32::try_from(task.cores).ok(),
                n => r.devices.total = Wanted::from([(gpu(None), n)]),
            }
            let found =
                place(&Need { request: &r, max_nodes: 1, warm: None }, all.borrow().iter(), Against::Free)?;
            let at = all.borrow().iter().position(|n| n.row.name == found.nodes[0])?;
            assert_eq!(found.shares[0].cpus.len() as u64, task.cores, "a GPU brings its share");
            all.borrow_mut()[at].take(id(job), &Arc::new(found.shares[0].clone())).ok()?;
            Some(at)
        },
        &mut |job, at| assert!(all.borrow_mut()[at].release(id(job))),
    )
}

/// Of the nodes on which a job fits the one with the least by some measure.
fn by(measure: fn(&Task, &(u64, u64)) -> u64) -> Score {
    run(
        &mut |_, task, left| {
            let fits = left.iter().enumerate().filter(|(_, l)| l.0 >= task.gpus && l.1 >= task.cores);
            fits.min_by_key(|(at, l)| (measure(task, l), *at)).map(|(at, _)| at)
        },
        &mut |_, _| {},
    )
}

#[test]
fn what_is_free_lies_in_no_more_pieces_than_with_best_fit() {
    let ways = [
        ("berth", ours()),
        // Nodes with as many free GPUs are told apart by their cores, as ours are.
        ("best fit", by(|task, left| if task.gpus > 0 { left.0 * (CORES + 1) + left.1 } else { left.1 })),
        ("first fit", by(|_, _| 0)),
        ("most free", by(|task, left| CORES - if task.gpus > 0 { left.0 } else { left.1 })),
    ];
    for (name, score) in &ways {
        // ok: a measurement, which nothing but a test makes.
        println!("score\t{name}\t{}\t{}", score.pieces, score.wait);
        for (at, chunk) in score.over_time.chunks(50).enumerate() {
            // ok: a measurement, which nothing but a test makes.
            println!("fragments\t{name}\t{}\t{}", at * 50, chunk.iter().sum::<u64>() / chunk.len() as u64);
        }
    }
    let (own, best) = (&ways[0].1, &ways[1].1);
    assert!(
        own.pieces <= best.pieces && own.wait <= best.wait,
        "{} of a thousand in pieces and {} ticks, best fit: {} and {}",
        own.pieces,
        own.wait,
        best.pieces,
        best.wait
    );
    assert!(ways[3].1.pieces > own.pieces, "the measure tells good from bad");
}
