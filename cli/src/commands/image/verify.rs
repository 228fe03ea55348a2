//! `berth image verify`: what is damaged in the store, and fetched again where that is asked for.

use super::silence::bounded;
use crate::images::{self, Bar};
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_images::{Damage, Digest, Error, ErrorKind, Helpers, ResolvedManifest, Store, Thing, VerifyReport};
use berth_runtime::facts::is_privileged;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Problems of one thing that are shown to people.
const SHOWN: usize = 10;
/// For how long nothing may be heard of what somebody is asked for: files of a user's, and what serves them, may never answer, and the
/// others who have the image are asked instead. A registry that is busy may want to be left alone for two minutes at a time.
const SILENCE: Duration = Duration::from_secs(600);

/// Look for damage: every manifest, configuration and file of a layer, against what was fetched
///
/// Names, kinds, permissions, owners, sizes, times, links and extended attributes of all files are compared with what was
/// unpacked, their content with the sums of that moment, and the whole with the digest of the layer, which is made again from
/// the files. The exit code is 1 when something is damaged and was not repaired.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or digests; without one, all images of the store
    images: Vec<String>,
    /// Fetch again what is damaged; containers that run on it keep what they have until they end. A damaged record is
    /// written anew from the rest of its image, without the names, which pulling by a name gives back. As root, an image that a
    /// user's file or engine gave is read as that user, and one that a registry refuses to root is asked for by the logins of those
    /// who have it from there
    #[arg(long)]
    repair: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    report: &'a VerifyReport,
    /// Digests of what was damaged and is whole again.
    repaired: Vec<Digest>,
}

pub fn run(args: &Args, store: &Store, state: Option<&Path>) -> Outcome {
    let failed = |e: Error| images::failed(&e);
    let only: Vec<Digest> =
        args.images.iter().map(|name| store.find(name)).collect::<Result<_, _>>().map_err(failed)?;
    let mut report = store.verify(&only).map_err(failed)?;
    let mut repaired = Vec::new();
    if args.repair && !report.damaged.is_empty() {
        if !args.json {
            print(&report)?;
        }
        repair(store, &report, state)?;
        let after = store.verify(&only).map_err(failed)?;
        let still: BTreeSet<_> = after.damaged.iter().map(|d| &d.digest).collect();
        repaired = report.damaged.iter().map(|d| d.digest.clone()).filter(|d| !still.contains(d)).collect();
        report = after;
    }
    if args.json {
        out::print(&super::document(&Document { report: &report, repaired })?)?;
    } else {
        if !args.repair {
            print(&report)?;
        }
        for digest in &repaired {
            out::print(&format!("repaired {digest}\n"))?;
        }
        out::print(&summary(&report))?;
    }
    if report.damaged.is_empty() {
        return Ok(0);
    }
    let next = match args.repair {
        true => {
            "what could not be repaired is named above: remove such an image with 'berth image rm' and pull it again"
        }
        false => "'berth image verify --repair' fetches it again",
    };
    Err(Failure::user(format!(
        "{} of the store's blobs and layers are damaged; {next}",
        report.damaged.len()
    )))
}

fn summary(report: &VerifyReport) -> String {
    let mut text =
        format!("{}, {}: ", images::counted(report.images, "image"), images::counted(report.layers, "layer"));
    text.push_str(&match report.damaged.len() {
        0 => "all as they were fetched\n".to_string(),
        n => format!("{n} damaged\n"),
    });
    if !report.without_content.is_empty() {
        text.push_str(&format!(
            "of {} layers not all contents could be compared: their archives have files that take the place of others, \
             what is in them is closed to its owner, or an earlier version made them one of several\n",
            report.without_content.len()
        ));
    }
    text
}

fn print(report: &VerifyReport) -> Result<(), Failure> {
    for Damage { thing, digest, images, problems } in &report.damaged {
        let thing = match thing {
            Thing::Record => "record",
            Thing::Blob => "blob",
            Thing::Layer => "layer",
        };
        let of: Vec<&str> = images.iter().map(Digest::short).collect();
        out::print(&format!("{thing} {digest} of image {}\n", of.join(", ")))?;
        for problem in problems.iter().take(SHOWN) {
            let path = problem.path.iter().map(|path| format!("{path} ")).collect::<String>();
            out::print(&format!("  {path}{}\n", problem.what))?;
        }
        if problems.len() > SHOWN {
            out::print(&format!("  and {} more, which --json shows\n", problems.len() - SHOWN))?;
        }
    }
    Ok(())
}

/// Fetches again what is damaged, image by image; what fails is told, and the others go on.
fn repair(store: &Store, report: &VerifyReport, state: Option<&Path>) -> Result<(), Failure> {
    for Damage { digest, .. } in report.damaged.iter().filter(|d| d.thing == Thing::Record) {
        if let Err(e) = store.record_again(digest) {
            out::complain(&format!("berth: error: image {}: {e}", digest.short()));
        }
    }
    let mut done: BTreeSet<&Digest> = BTreeSet::new();
    let all: BTreeSet<&Digest> = report.damaged.iter().flat_map(|damage| &damage.images).collect();
    for image in all {
        let damaged: Vec<&Damage> =
            report.of(image).filter(|d| d.thing != Thing::Record && !done.contains(&d.digest)).collect();
        if damaged.is_empty() {
            continue;
        }
        let layers: Vec<Digest> =
            damaged.iter().filter(|d| d.thing == Thing::Layer).map(|d| d.digest.clone()).collect();
        match again(store, image, &layers, state) {
            Ok(()) => done.extend(damaged.iter().map(|d| &d.digest)),
            Err(e) => out::complain(&format!("berth: error: image {}: {e}", image.short())),
        }
    }
    Ok(())
}

/// Fetches layers of an image again, by whoever can be asked for it.
fn again(store: &Store, image: &Digest, layers: &[Digest], state: Option<&Path>) -> Result<(), String> {
    let origin = store.origin(image).map_err(|e| e.to_string())?;
    let bar = Bar::new(&origin.source, false);
    let of_registry = origin.source.starts_with("docker://");
    // Root reads a registry, and no file of a user's: the path may lead somewhere else by now.
    let mut users = if of_registry || !is_privileged() { vec![0] } else { Vec::new() };
    if is_privileged() {
        let granted = store.granted_from(image, &origin.source).map_err(|e| e.to_string())?;
        users.extend(granted.into_iter().filter(|uid| *uid != 0 || !of_registry));
    }
    let mut refused: Vec<String> = Vec::new();
    for uid in users {
        match again_as(store, &origin, layers, (uid, state), &bar) {
            Ok(()) => {
                bar.finish();
                return Ok(());
            }
            Err(why) => {
                refused.push(if uid == 0 { why.text } else { format!("as {}: {}", named(uid), why.text) });
                // Others would not reach it either. What a user's files and processes come to says nothing of others'.
                if of_registry && uid == 0 && !why.of_rights {
                    break;
                }
            }
        }
    }
    bar.finish();
    // Who was asked first and last says enough where many have it.
    let more = refused.len().saturating_sub(2);
    match (refused.first(), refused.last().filter(|_| refused.len() > 1)) {
        (None, _) => Err(format!(
            "{}: nobody has the image from there any more who could be asked for it",
            origin.source
        )),
        (Some(only), None) => Err(only.clone()),
        (Some(first), Some(last)) if more == 0 => Err(format!("{first}; {last}")),
        (Some(first), Some(last)) => Err(format!("{first}; as {more} others who have it, too; {last}")),
    }
}

/// Why somebody could not fetch layers again.
struct Refused {
    text: String,
    /// Somebody else might.
    of_rights: bool,
}

fn again_as(
    store: &Store,
    origin: &ResolvedManifest,
    layers: &[Digest],
    (uid, state): (u32, Option<&Path>),
    bar: &Bar,
) -> Result<(), Refused> {
    let helpers =
        if uid == 0 { images::helpers(origin, state) } else { images::helpers_as(origin, uid, state) };
    let helpers = helpers.map_err(|e| Refused { text: e.text, of_rights: true })?;
    let (repaired, silent) = match helpers {
        Some(helpers) => {
            let stop = Arc::new(AtomicBool::new(false));
            let helpers = Helpers { stop: Some(Arc::clone(&stop)), ..helpers };
            bounded(SILENCE, &stop, bar, |progress| helpers.repair(store, origin, layers, progress))
        }
        None => {
            let opened = images::open(origin, state);
            (opened.and_then(|source| store.repair(origin, layers, source.as_ref(), bar)), false)
        }
    };
    // A registry says of what one may not have that it is not there.
    repaired.map_err(|e| Refused {
        text: if silent { given_up(origin) } else { e.to_string() },
        of_rights: matches!(e.kind(), ErrorKind::Denied | ErrorKind::NotFound),
    })
}

fn given_up(origin: &ResolvedManifest) -> String {
    let minutes = SILENCE.as_secs() / 60;
    format!(
        "{}: nothing was heard of it for {minutes} minutes, and it is not waited for any more; see whether it, and the file system \
         with the logins for it, answers",
        origin.source
    )
}

/// A user as people know them.
fn named(uid: u32) -> String {
    let known = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    known.map_or_else(|| format!("uid {uid}"), |user| user.name)
}
