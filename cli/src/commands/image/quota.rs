//! `berth image quota`: what images take of a node's store, and may take.

use super::places::{Places, Which};
use super::{document, table};
use crate::images;
use berth_client::error::{Failure, Outcome};
use berth_client::{out, users};
use berth_images::{Error, Usage};
use berth_runtime::facts::is_privileged;
use serde::Serialize;
use std::path::Path;

/// One user's part.
#[derive(Serialize)]
struct Row {
    user: String,
    uid: u32,
    #[serde(flatten)]
    usage: Usage,
    /// Bytes; none without a bound.
    quota: Option<u64>,
}

/// Shows the caller's part, to root everybody's.
pub fn run(json: bool, state: Option<&Path>) -> Outcome {
    let rows = if is_privileged() { everybodys(state)? } else { vec![own(state)?] };
    if json {
        return out::print(&document(&rows)?).map(|()| 0);
    }
    let mut lines = vec![["USER", "IMAGES", "LAYERS", "USED", "QUOTA"].map(str::to_string)];
    for Row { user, usage, quota, .. } in rows {
        let quota = quota.map_or("none".to_string(), images::size);
        let (count, layers) = (usage.images.to_string(), usage.layers.to_string());
        lines.push([user, count, layers, images::size(usage.bytes), quota]);
    }
    out::print(&table(&lines)).map(|()| 0)
}

fn own(state: Option<&Path>) -> Result<Row, Failure> {
    let uid = nix::unistd::geteuid().as_raw();
    let places = Places::find(Which::default(), state)?;
    let (usage, quota) = match (&places.node, &places.own) {
        (Some(node), _) => node.usage()?,
        (None, Some(store)) => {
            let all = store.df().map_err(|e: Error| images::failed(&e))?;
            (Usage { images: all.images, layers: all.layers, bytes: all.disk_bytes }, None)
        }
        (None, None) => (Usage::default(), None),
    };
    Ok(Row { user: users::name(uid), uid, usage, quota })
}

fn everybodys(state: Option<&Path>) -> Result<Vec<Row>, Failure> {
    let failed = |e: Error| images::failed(&e);
    let (store, rules) = (images::store(state)?, images::rules(state)?);
    let mut rows = Vec::new();
    for uid in store.users().map_err(failed)? {
        let user = users::name(uid);
        let (usage, quota) = (store.usage(uid).map_err(failed)?, rules.quota_of(&user, uid));
        rows.push(Row { user, uid, usage, quota });
    }
    rows.sort_by(|a, b| b.usage.bytes.cmp(&a.usage.bytes).then_with(|| a.uid.cmp(&b.uid)));
    Ok(rows)
}
