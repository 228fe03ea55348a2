//! `berth audit`: what operators, administrators and coordinators did, and who joined.

use berth_client::error::Outcome;
use berth_client::fmt::time;
use berth_client::out;
use berth_client::site::Site;
use berth_model::{JobId, NodeName};
use serde_json::json;
use std::path::Path;

/// Show who did what to nodes, tokens, machines and other people's jobs, in which role and from which machine (administrators)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The last so many entries; 0 shows all
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    number: u32,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Other people's words: what would move the cursor or end the line is shown as its code.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// From where somebody asked, behind who it was; nothing on the controller's own machine.
fn place(inside: Option<JobId>, via: Option<&NodeName>) -> String {
    match (inside, via) {
        (None, None) => String::new(),
        (Some(job), None) => format!(" (in job {job})"),
        (None, Some(machine)) => format!(" (from {machine})"),
        (Some(job), Some(machine)) => format!(" (in job {job}, from {machine})"),
    }
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let site = Site::find(state)?;
    let most = Some(args.number).filter(|n| *n > 0);
    let entries = berth_client::block_on(async { Ok(site.connect().await?.audit(most).await?) })?;
    if args.json {
        let all: Vec<_> = entries
            .iter()
            .map(|e| {
                json!({
                    "number": e.number, "time": e.at.secs(), "uid": e.uid, "user": e.user, "role": e.role,
                    "job": e.inside, "from": e.via, "what": e.what,
                })
            })
            .collect();
        return out::print(&crate::explain::json(&all)?).map(|()| 0);
    }
    let mut rows = vec![["NUMBER", "TIME", "USER", "ROLE", "WHAT"].map(str::to_string)];
    for entry in entries {
        let from = place(entry.inside, entry.via.as_ref());
        rows.push([
            entry.number.to_string(),
            time::iso(entry.at),
            plain(&entry.user) + &from,
            entry.role.map_or("-".to_string(), |role| role.to_string()),
            plain(&entry.what),
        ]);
    }
    out::print(&super::image::table(&rows)).map(|()| 0)
}
