//! `berth image ls`, `inspect` and `df`: what a store has, and what of it is the caller's on a node that users share.

use super::places::{Found, Places};
use super::{document, table};
use crate::images;
use crate::local::room;
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_images::{DiskUsage, Error, RoomState, Store};
use serde_json::{Value, json};
use std::path::Path;

/// An image in the list, wherever it is.
struct Row {
    names: Vec<String>,
    digest: String,
    bytes: u64,
    layers: usize,
    /// Unix seconds; nothing where it is used now.
    last_used: Option<u64>,
    store: &'static str,
}

/// Lists images.
pub fn ls(places: &Places, json: bool) -> Outcome {
    let own = places.own.as_ref().map(Store::list).transpose().map_err(|e: Error| images::failed(&e))?;
    let own = own.unwrap_or_default();
    let node = places.node.as_ref().map_or(&[][..], |node| &node.images);
    if json {
        let mut all = own.iter().map(value).collect::<Result<Vec<Value>, _>>()?;
        if places.node.is_some() {
            all.iter_mut().for_each(|image| image["store"] = json!("own"));
            for image in node {
                let mut image = value(image)?;
                image["store"] = json!("node");
                all.push(image);
            }
        }
        return out::print(&document(&all)?).map(|()| 0);
    }
    let own = own.into_iter().map(|image| Row {
        names: image.names,
        digest: image.digest.short().to_string(),
        bytes: image.bytes,
        layers: image.layers,
        last_used: (!image.in_use).then_some(image.last_used),
        store: "own",
    });
    let node = node.iter().map(|listed| &listed.image).map(|image| Row {
        names: image.names.clone(),
        digest: image.digest.short().to_string(),
        bytes: image.bytes,
        layers: image.layers,
        last_used: Some(image.last_used),
        store: "node",
    });
    let now = u64::try_from(berth_client::now().secs()).unwrap_or(0);
    let mut rows = vec![["NAME", "DIGEST", "SIZE", "LAYERS", "LAST USED", "STORE"].map(str::to_string)];
    for row in own.chain(node) {
        let name = if row.names.is_empty() { "<none>".to_string() } else { row.names.join(",") };
        let used = row
            .last_used
            .map_or("now".to_string(), |used| format!("{} ago", images::age(now.saturating_sub(used))));
        let (size, layers) = (images::size(row.bytes), row.layers.to_string());
        rows.push([name, row.digest, size, layers, used, row.store.to_string()]);
    }
    if places.node.is_some() {
        return out::print(&table(&rows)).map(|()| 0);
    }
    let rows: Vec<[String; 5]> = rows
        .into_iter()
        .map(|[name, digest, size, layers, used, _]| [name, digest, size, layers, used])
        .collect();
    out::print(&table(&rows)).map(|()| 0)
}

/// Shows everything about an image.
pub fn inspect(places: &Places, image: &str) -> Outcome {
    let text = match places.image(image, false)? {
        Found::Own(store, digest) => document(&store.inspect(&digest).map_err(|e| images::failed(&e))?)?,
        Found::Node(node, digest) => document(&node.inspect(&digest)?)?,
    };
    out::print(&text).map(|()| 0)
}

/// Shows what images take.
pub fn df(places: &Places, json: bool, state: Option<&Path>) -> Outcome {
    let own = match &places.own {
        Some(store) => {
            let mut usage = store.df().map_err(|e: Error| images::failed(&e))?;
            // The sizes are known whatever the rules are.
            let unknown = match room::rules(state, store) {
                Ok(None) => None,
                Ok(rules) => {
                    usage.room.rules = rules;
                    None
                }
                Err(why) => {
                    usage.room.rules = None;
                    Some(why.text)
                }
            };
            Some((usage, store, unknown))
        }
        None => None,
    };
    let node = places.node.as_ref().map(|node| node.usage()).transpose()?;
    if json {
        let mut all = own.as_ref().map_or_else(|| Ok(json!({})), |(usage, ..)| value(usage))?;
        if let Some((.., Some(why))) = &own {
            all["room"]["error"] = json!(why);
        }
        if let Some((node, limit)) = &node {
            all["node"] = value(node)?;
            all["node"]["quota"] = json!(limit);
        }
        return out::print(&document(&all)?).map(|()| 0);
    }
    if let Some((usage, store, unknown)) = &own {
        out::print(&own_store(usage, store, unknown.as_deref()))?;
    }
    if let Some((usage, limit)) = node {
        let limit = limit.map_or(String::new(), |limit| format!(" of {}", images::size(limit)));
        out::print(&format!(
            "node         {} of yours, {}, {}{limit}\n",
            images::counted(usage.images, "image"),
            images::counted(usage.layers, "layer"),
            images::size(usage.bytes)
        ))?;
    }
    Ok(0)
}

fn own_store(usage: &DiskUsage, store: &Store, unknown: Option<&str>) -> String {
    let text = format!(
        "images       {} ({} in use)\nlayers       {}\nsize         {}\non disk      {}\nreclaimable  {}\nfree         {}\nstore        {}\n",
        usage.images,
        usage.images_in_use,
        usage.layers,
        images::size(usage.bytes),
        images::size(usage.disk_bytes),
        images::size(usage.reclaimable_bytes),
        images::size(usage.free_bytes),
        store.root().display()
    );
    text + &room_text(&usage.room, unknown)
}

fn value(of: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(of).map_err(|e| Failure::new(Kind::Internal, format!("cannot print: {e}")))
}

/// By which rules room is kept, or why that is not known, and what was last removed for it.
fn room_text(room: &RoomState, unknown: Option<&str>) -> String {
    let mut text = match (&room.rules, unknown) {
        (None, Some(why)) => format!("room         {why}\n"),
        (None, None) => {
            "room         is kept by the agent of this machine's cluster, which has not run here yet\n"
                .to_string()
        }
        (Some(rules), _) => {
            let mut parts = match rules.high_watermark {
                100 => vec!["images go when the filesystem is full".to_string()],
                high => vec![format!(
                    "images go above {high}% of the filesystem, down to {}%",
                    rules.low_watermark
                )],
            };
            parts.extend(rules.max_size.map(|most| format!("above {} of layers", images::size(most))));
            parts.extend(rules.keep_days.map(|days| format!("after {days} days without use")));
            format!("room         {}\n", parts.join(", "))
        }
    };
    if let Some(last) = &room.last {
        let now = u64::try_from(berth_client::now().secs()).unwrap_or(0);
        text += &format!(
            "removed      {} and {}, {}, {} ago: {}\n",
            images::counted(last.images.len(), "image"),
            images::counted(last.layers, "layer"),
            images::size(last.bytes),
            images::age(now.saturating_sub(last.at)),
            last.why
        );
        for image in &last.images {
            text += &format!("             {} {}\n", image.digest.short(), image.names.join(","));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_the_rules_are_not_known_stands_in_their_place() {
        let room = RoomState::default();
        assert_eq!(
            room_text(&room, Some("joined.json: it is damaged")),
            "room         joined.json: it is damaged\n"
        );
        assert!(room_text(&room, None).contains("which has not run here yet"));
    }
}
