//! Entering a step that runs (`berth exec`): a further step in the same place, with what that one has.

use super::Cluster;
use super::steps::Plan;
use crate::job::Job;
use crate::rows::{StepNode, StepRow};
use berth_model::distribution::Distribution;
use berth_model::ids::{JobId, StepId};
use berth_model::request::{Refusal, RefusalCode};
use berth_model::spec::{EnterSpec, StepSpec};
use std::sync::Arc;

impl Cluster {
    /// A step that enters another one. It waits for nothing: what that one has is shared.
    pub(super) fn plan_entering(
        &self,
        record: &Job,
        spec: &StepSpec,
        enter: &EnterSpec,
    ) -> Result<Plan, Refusal> {
        let job = record.row.job;
        let entered = running(record, enter.step)?;
        let here: Vec<&StepNode> = match (&spec.receive, &enter.node) {
            // A file goes to all nodes on which the step still runs.
            (Some(_), None) => entered.nodes.unended().map(|(_, part)| part).collect(),
            _ => vec![part(job, entered, enter)?],
        };
        let mut spec = spec.clone();
        // For records, and for whoever asks which image it is: the node takes the very container.
        spec.container = entered.spec.as_ref().and_then(|s| s.container.clone());
        spec.overlap = true;
        Ok(Plan {
            name: spec.name.clone(),
            nodes: here
                .into_iter()
                .map(|here| StepNode {
                    node: here.node.clone(),
                    tasks: 1,
                    share: here.share.clone(),
                    pull: None,
                    exit: None,
                })
                .collect(),
            distribution: Distribution::Block,
            consumes: false,
            started: self.clock,
            time_limit: spec.time_limit,
            spec: Some(spec),
            het: None,
        })
    }
}

/// The step, if it runs.
fn running(record: &Job, id: StepId) -> Result<&Arc<StepRow>, Refusal> {
    let job = record.row.job;
    let Some(step) = record.steps.get(&id) else {
        let there: Vec<String> =
            record.steps.values().filter(|s| s.result.is_none()).map(|s| s.key.step.to_string()).collect();
        let there = if there.is_empty() { "none".to_string() } else { there.join(", ") };
        return Err(Refusal::new(
            RefusalCode::NotFound,
            format!("job {job} has no step {id}; of its steps these run: {there}"),
        ));
    };
    match &step.result {
        None => Ok(step),
        Some(result) => Err(Refusal::new(
            RefusalCode::WrongState,
            format!(
                "step {job}.{id} is over ({}): only a step that runs can be entered",
                result.state.name()
            ),
        )),
    }
}

/// The part of the step on the node that was named, or on its only one.
fn part<'a>(job: JobId, step: &'a StepRow, enter: &EnterSpec) -> Result<&'a StepNode, Refusal> {
    let id = step.key.step;
    let names: Vec<&str> = step.nodes.iter().map(|n| n.node.0.as_str()).collect();
    let on = berth_model::hostlist::compress(&names);
    let found = match &enter.node {
        Some(name) => step.nodes.find(name).and_then(|at| step.nodes.get(at)).ok_or_else(|| {
            Refusal::new(
                RefusalCode::NotFound,
                format!("step {job}.{id} is not on node {name}: it is on {on}"),
            )
        }),
        None if step.nodes.len() == 1 => Ok(&step.nodes[0]),
        None => Err(Refusal::new(
            RefusalCode::Invalid,
            format!("step {job}.{id} is on several nodes ({on}): say on which with --node"),
        )),
    }?;
    if found.exit.is_some() {
        return Err(Refusal::new(
            RefusalCode::WrongState,
            format!("step {job}.{id} is over on node {}: only where it runs can it be entered", found.node),
        ));
    }
    Ok(found)
}
