//! `berth container`: looks after the containers that are kept under names.

use berth_client::error::{Failure, Outcome};
use berth_client::kept::{KeptContainer, KeptQuery, KeptState, ask};
use berth_client::out;
use berth_client::site::Site;
use berth_client::users;
use std::path::Path;

/// Look after the containers that jobs keep on this node under names (--container-name)
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// List them
    Ls {
        /// Everybody's (root)
        #[arg(long)]
        all: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove some that are kept for later jobs (--container-scope=user), with all that was written in them
    Rm {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
        /// Of this user, by name or number (root)
        #[arg(long)]
        user: Option<String>,
    },
    /// Remove those that are kept for later jobs and have not been used for a while
    Prune {
        /// For so many days
        #[arg(long, value_name = "DAYS", default_value_t = 7)]
        older_than: u32,
        /// Everybody's (root)
        #[arg(long)]
        all: bool,
    },
}

pub fn run(args: Args, state: Option<&Path>) -> Outcome {
    let site = Site::find(state)?;
    match args {
        Args::Ls { all, json } => {
            let found = ask(&site, KeptQuery::List { all })?.containers;
            if json {
                return out::print(&crate::explain::json(&found)?).map(|()| 0);
            }
            out::print(&super::image::table(&rows(&found, all))).map(|()| 0)
        }
        Args::Rm { names, user } => {
            let known = |user: String| {
                users::uid(&user)
                    .map(berth_model::Uid)
                    .ok_or_else(|| Failure::user(format!("--user: there is no user '{user}'")))
            };
            let uid = user.map(known).transpose()?;
            for name in names {
                for name in ask(&site, KeptQuery::Remove { name, uid })?.names {
                    out::print(&format!("removed {name}\n"))?;
                }
            }
            Ok(0)
        }
        Args::Prune { older_than, all } => {
            let unused = u64::from(older_than) * 86_400;
            for name in ask(&site, KeptQuery::Prune { unused, all })?.names {
                out::print(&format!("removed {name}\n"))?;
            }
            Ok(0)
        }
    }
}

fn rows(found: &[KeptContainer], all: bool) -> Vec<[String; 6]> {
    let now = berth_client::now();
    let mut rows = vec![["NAME", "USER", "SCOPE", "STATE", "LAST USED", "IMAGE"].map(str::to_string)];
    for one in found {
        let user = if all { users::name(one.uid.0) } else { "me".to_string() };
        let scope = one.job.map_or("user".to_string(), |job| format!("job {job}"));
        let state = match one.state {
            KeptState::Idle => "idle".to_string(),
            KeptState::Starting => "starting".to_string(),
            KeptState::Running(job) => format!("running in job {job}"),
        };
        let age = u64::try_from(now.secs().saturating_sub(one.used.secs())).unwrap_or(0);
        let used = format!("{} ago", crate::images::age(age));
        rows.push([one.name.clone(), user, scope, state, used, one.image.clone()]);
    }
    rows
}
