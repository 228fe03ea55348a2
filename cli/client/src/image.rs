//! The image that a submission names: judged by the cluster's rules by its name, and only then looked up. Whoever is asked what a
//! name means hears of it, and may be shown a login.

use crate::error::Failure;
use crate::site::Site;
use crate::submit::{self, PATIENCE};
use crate::{Invocation, block_on, out};
use berth_model::config::ImagesConfig;
use berth_model::login::Login;
use berth_model::options::SubmitOptions;
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::request::{Refusal, RefusalCode};
use berth_model::spec::{ImageRef, JobSelector};
use berth_rpc::RpcError;
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// After which somebody who waits for a registry is told.
const A_WORD: Duration = Duration::from_secs(4);

/// What the cluster's configuration says of images, once it was asked; nothing within where the answer was not understood.
#[derive(Default)]
pub(crate) struct Rules(OnceCell<Option<ImagesConfig>>);

/// The image that the options name, looked up where there is a resolver, and the login that its registry wanted. `part`: which
/// part of the command line the options are, where it has several; `known`: the cluster's rules, of all parts.
pub(crate) fn named(
    options: &SubmitOptions,
    part: Option<usize>,
    call: &Invocation<'_>,
    known: &Rules,
) -> Result<(Option<ImageRef>, Option<Login>), Failure> {
    let Some(typed) = options.container.image.clone() else { return Ok((None, None)) };
    let Some(resolver) = call.resolver else { return Ok((Some(ImageRef { typed, resolved: None }), None)) };
    let site = call.site()?;
    let (rules, accounts) = block_on(rules(options, part, &site, known))?;
    if let Some(rules) = &rules {
        for account in &accounts {
            let judged = resolver.admits(&typed, rules, account.as_deref());
            judged.map_err(|why| refused(options, &why))?;
        }
    }
    let resolved = aloud(options, &typed, || resolver.resolve(&typed, rules.as_ref()));
    let (resolved, login) = resolved.map_err(|why| Failure::user(format!("--container-image: {why}")))?;
    if resolved.is_none() && options.explain.is_some() {
        return Err(Failure::user(format!(
            "--container-image: {typed}: a gateway looks this name up when a step with it starts, and --explain needs its image now: ask \
             on a machine with a way to the registry"
        )));
    }
    let login = login.filter(|_| !options.container.no_login);
    Ok((Some(ImageRef { typed, resolved }), login))
}

/// What the cluster's configuration says of images, and the accounts of the jobs that are to have this one.
async fn rules(
    options: &SubmitOptions,
    part: Option<usize>,
    site: &Site,
    known: &Rules,
) -> Result<(Option<ImagesConfig>, BTreeSet<Option<String>>), Failure> {
    let connect = || site.connect_patiently(options.command.name());
    let mut client = None;
    let rules = match known.0.get() {
        Some(rules) => rules.clone(),
        None => {
            let asked = client.insert(connect().await?);
            let told = asked.persist(Some(PATIENCE), |client| async move { client.config().await }).await;
            let rules = match told {
                Ok(config) => Some(config.images),
                Err(e) if e.is_transient() => return Err(e.into()),
                // A controller of another version, whose answer is not understood: it judges alone.
                Err(_) => None,
            };
            known.0.get_or_init(|| rules).clone()
        }
    };
    // Without rules about accounts nobody needs to know them.
    let accounts = match &options.jobid {
        Some(selector) if rules.as_ref().is_some_and(|rules| !rules.rules.is_empty()) => {
            let part = part.and_then(|part| u32::try_from(part).ok());
            let groups: Vec<u32> = if options.het_group.is_empty() {
                part.into_iter().collect()
            } else {
                options.het_group.clone()
            };
            let query = JobQuery { include_finished: true, ..JobQuery::of([selector]) };
            let query = &query;
            let client = match client {
                Some(client) => client,
                None => connect().await?,
            };
            let found =
                client.persist(Some(PATIENCE), |client| async move { client.jobs(query).await }).await?;
            let found = match (selector, found.as_slice()) {
                // A SLUID is that of one component alone.
                (JobSelector::Sluid(_), [one]) if !groups.is_empty() && one.spec.het.is_some() => {
                    crate::het::of_job(&client, one).await?
                }
                _ => found,
            };
            accounts(&found, selector, &groups)
        }
        Some(_) => BTreeSet::from([None]),
        None => BTreeSet::from([options.account.clone()]),
    };
    Ok((rules, accounts))
}

/// The accounts of the job that a step is to be in, of those that were found under its id; where it has components, of those of
/// these numbers.
fn accounts(found: &[JobInfo], selector: &JobSelector, groups: &[u32]) -> BTreeSet<Option<String>> {
    let meant = |job: &&JobInfo| match (job.spec.het, selector) {
        (None, _) => true,
        (Some(het), JobSelector::Component(_, offset)) => het.offset == *offset,
        (Some(het), _) if !groups.is_empty() => groups.contains(&het.offset),
        (Some(_), _) => selector.named().is_none_or(|id| job.id == id),
    };
    let accounts: BTreeSet<_> = found.iter().filter(meant).map(|job| job.spec.account.clone()).collect();
    // That there is no such job is said by whoever makes the step; the rules for everybody count in any case.
    if accounts.is_empty() { BTreeSet::from([None]) } else { accounts }
}

/// The refusal as the controller words it, which judges what the name turns out to mean.
fn refused(options: &SubmitOptions, why: &str) -> Failure {
    let refusal = Refusal::new(RefusalCode::Denied, format!("Access/permission denied: {why}"));
    match &options.jobid {
        Some(job) => {
            submit::refused(&format!("Unable to create step for job {job}"), RpcError::Refused(refusal))
        }
        None if options.test_only => submit::not_even_then(&refusal),
        None => submit::refused(options.command.failed(), RpcError::Refused(refusal)),
    }
}

/// Looks an image up, and says that it does when a registry, or what stands before it, does not answer soon: it is waited for
/// longer than people wait for a word.
fn aloud<T>(options: &SubmitOptions, typed: &str, look: impl FnOnce() -> T) -> T {
    if options.quiet {
        return look();
    }
    let (found, watched) = mpsc::channel::<()>();
    let name = options.command.name();
    std::thread::scope(|scope| {
        // Without a thread to be had nothing is said.
        let _teller = std::thread::Builder::new().spawn_scoped(scope, move || {
            if watched.recv_timeout(A_WORD) == Err(RecvTimeoutError::Timeout) {
                out::complain(&format!("{name}: still asking what the image {typed} is; no answer yet"));
            }
        });
        let answer = look();
        drop(found);
        answer
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::samples;
    use berth_model::JobId;
    use berth_model::het::HetPlace;

    #[test]
    fn a_step_is_judged_by_the_accounts_of_those_components_that_it_is_in() {
        let job = |id: u32, offset: Option<u32>, account: &str| {
            let mut job = samples::job(id, "x");
            job.spec.het = offset.map(|offset| HetPlace { leader: JobId(12), offset, size: 3 });
            job.spec.account = Some(account.to_string());
            job
        };
        let several = [job(12, Some(0), "chem"), job(13, Some(1), "physics"), job(14, Some(2), "bio")];
        let names = |found: &[JobInfo], selector: JobSelector, groups: &[u32]| -> Vec<String> {
            accounts(found, &selector, groups)
                .into_iter()
                .map(|account| account.unwrap_or_default())
                .collect()
        };
        let leader = || JobSelector::Job(JobId(12));
        assert_eq!(names(&several, leader(), &[]), ["chem"]);
        assert_eq!(names(&several, leader(), &[1]), ["physics"]);
        assert_eq!(names(&several, leader(), &[0, 2]), ["bio", "chem"]);
        assert_eq!(names(&several, JobSelector::Component(JobId(12), 1), &[0]), ["physics"]);
        assert_eq!(names(&[job(12, None, "chem")], JobSelector::Task(JobId(12), 3), &[0]), ["chem"]);
        // Nobody's: the rules for everybody.
        assert_eq!(names(&[], leader(), &[]), [""]);
    }
}
