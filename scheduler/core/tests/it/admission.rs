//! Images that jobs may not have: refused at submission and when a step is made, whatever the client says of them.

use crate::common::*;
use berth_model::admission::ImageRule;
use berth_model::config::{AccountConfig, Config, ImagesConfig};
use berth_model::ids::*;
use berth_model::launch::{ImagePull, StepPhase};
use berth_model::link::FromAgent;
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::time::Span;
use berth_sched_core::Write;

fn world(images: ImagesConfig) -> World {
    let mut w = World::new(&Config { images, ..Config::default() });
    w.node("n1", hardware(4, 1, 4000, 2));
    w
}

fn image(source: &str) -> Option<ContainerSpec> {
    let resolved = ResolvedImage::Manifest {
        source: source.into(),
        digest: format!("sha256:{}", "0".repeat(64)),
        insecure: false,
        indexes: vec![],
        pin: None,
    };
    Some(berth_samples::container("typed", Some(resolved)))
}

fn list(places: &[&str]) -> Vec<String> {
    places.iter().map(|place| (*place).to_owned()).collect()
}

fn refused(result: Result<impl std::fmt::Debug, Refusal>) -> String {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Denied, "{refusal:?}");
    assert!(refusal.message.starts_with("Access/permission denied: "), "{refusal:?}");
    refusal.message
}

#[test]
fn what_no_list_allows_is_refused_at_submission() {
    let mut w = world(ImagesConfig { allow: list(&["docker.io/library"]), ..ImagesConfig::default() });
    for (at, (source, is)) in [
        ("docker://docker.io/library/debian", true),
        ("docker://docker.io/library-evil/debian", false),
        ("docker://docker.io/debian", false),
        ("docker://INDEX.docker.io/library/debian", false),
        ("sqsh:/home/x.sqsh", false),
    ]
    .into_iter()
    .enumerate()
    {
        for kind in [JobKind::Batch, JobKind::Run, JobKind::Alloc] {
            let spec = JobSpec { container: image(source), ..job(kind, &format!("{at} {kind:?}")) };
            let result = w.submit(spec);
            if is {
                result.unwrap();
            } else {
                refused(result);
            }
        }
    }
    // The step of an srun has an image of its own.
    let first = StepSpec { container: image("docker://quay.io/x"), ..step("own") };
    let spec = job(JobKind::Run, "own");
    let body = |test_only| Request::Submit {
        spec: Box::new(spec.clone()),
        payload: Payload::default(),
        first_step: Some(Box::new(first.clone())),
        test_only,
    };
    refused(w.request(actor(1000), body(false)));
    refused(w.request(actor(1000), body(true)));
    // Without an image, and with one that only its node finds.
    w.batch("none", |_| {});
    w.batch("later", |spec| spec.container = Some(berth_samples::container("quay.io/x", None)));
}

#[test]
fn steps_are_judged_with_the_account_of_their_job() {
    let rule = ImageRule { accounts: list(&["physics"]), allow: list(&["ghcr.io"]), ..ImageRule::default() };
    let mut w = world(ImagesConfig { rules: vec![rule], deny: list(&["host:"]), ..ImagesConfig::default() });
    refused(w.submit(job(JobKind::Batch, "on the node")));
    let spec = JobSpec { account: Some("physics".into()), ..job(JobKind::Alloc, "a") };
    let id = w.submit(spec).unwrap();
    let mut ask = |name: &str, container| {
        let spec = Box::new(StepSpec { container, ..step(name) });
        w.request(actor(1000), Request::CreateStep { job: id, spec })
    };
    assert!(refused(ask("1", None)).contains("host:"));
    let why = refused(ask("2", image("docker://quay.io/x")));
    assert!(why.contains("physics") && why.contains("images.rule[1].allow"), "{why}");
    ask("3", image("docker://ghcr.io/x")).unwrap();
    let key = w.starts()[0];
    // Who enters a step that runs has what it has.
    w.phase("n1", key, StepPhase::Running);
    let enter = Some(EnterSpec { step: key.step, node: Some(NodeName::from("n1")) });
    let spec = Box::new(StepSpec { enter, ..step("4") });
    w.request(actor(1000), Request::CreateStep { job: id, spec }).unwrap();
}

#[test]
fn a_rule_for_all_others_holds_for_jobs_without_an_account() {
    let rules = vec![
        ImageRule { accounts: list(&["physics"]), allow: list(&["ghcr.io"]), ..ImageRule::default() },
        ImageRule { otherwise: true, allow: list(&["docker.io"]), ..ImageRule::default() },
    ];
    let mut w = world(ImagesConfig { rules, ..ImagesConfig::default() });
    let mut ask = |account: Option<&str>| {
        let name = format!("{account:?}");
        w.submit(JobSpec {
            container: image("docker://ghcr.io/x"),
            account: account.map(str::to_owned),
            ..job(JobKind::Batch, &name)
        })
    };
    for account in [None, Some("chem")] {
        let why = refused(ask(account));
        assert!(why.contains("images.rule[2].allow names only docker.io"), "{why}");
    }
    ask(Some("physics")).unwrap();
}

/// What a rule gives an account is its users' alone: nobody has it by naming the account.
#[test]
fn an_account_with_users_takes_jobs_of_these_alone() {
    let users = vec![berth_samples::identity(1000).user];
    let account = AccountConfig { name: "physics".into(), users, ..AccountConfig::default() };
    let coordinated = AccountConfig {
        name: "bio".into(),
        coordinators: vec![berth_samples::identity(1001).user],
        users: vec!["somebody".into()],
    };
    let mut w = World::new(&Config { accounts: vec![account, coordinated], ..Config::default() });
    w.node("n1", hardware(4, 1, 4000, 2));
    let mut ask = |uid: u32, account: &str, test_only: bool| {
        let name = format!("{uid} {account} {test_only}");
        let spec = JobSpec { account: Some(account.into()), ..job(JobKind::Batch, &name) };
        let body = Request::Submit { spec: Box::new(spec), payload: script(), first_step: None, test_only };
        w.request(actor(uid), body)
    };
    for (uid, account, takes) in [
        (1000, "physics", true),
        (1000, "Physics", true),
        (1001, "physics", false),
        (1001, "PHYSICS", false),
        (1001, "bio", true),
        (1000, "bio", false),
        (1001, "chem", true),
    ] {
        for test_only in [true, false] {
            let asked = ask(uid, account, test_only);
            assert_eq!(asked.is_ok(), takes, "{uid} {account}: {asked:?}");
            if let Err(refusal) = asked {
                assert_eq!(refusal.code, RefusalCode::Denied);
                let says = ["Invalid account", account, "[[account]]", "--account"];
                assert!(says.iter().all(|says| refusal.message.contains(says)), "{refusal:?}");
            }
        }
    }
}

/// Names inside containers are looked up by nodes, and the first word of one is every later run's image.
#[test]
fn what_a_node_finds_is_kept_where_the_rules_admit_it_alone() {
    let allow = list(&["docker.io/library", "/shared"]);
    let rule =
        ImageRule { accounts: list(&["physics"]), deny: list(&["/shared/old"]), ..ImageRule::default() };
    let mut w = world(ImagesConfig { allow, rules: vec![rule], ..ImagesConfig::default() });
    let id = w.batch("named", |spec| {
        spec.container = Some(berth_samples::container("./a.sqsh", None));
        spec.account = Some("physics".into());
    });
    let key = batch_key(id, 0);
    let mut kept = |source: &str| {
        let found = image(source).and_then(|container| container.image.resolved).map(Box::new);
        let pull = ImagePull { took: Span::from_secs(1), bytes: 1, hit: false, digest: None, found };
        w.tell("n1", |session| FromAgent::Pulled { session, key, pull });
        w.writes.iter().filter(|write| matches!(write, Write::PutSpec(_))).count()
    };
    let before = kept("sqsh:/home/a.sqsh");
    assert_eq!(kept("sqsh:/shared/../home/a.sqsh"), before);
    assert_eq!(kept("sqsh:/shared/old/a.sqsh"), before, "not for this account");
    assert_eq!(kept("sqsh:/shared/new/a.sqsh"), before + 1);
}
