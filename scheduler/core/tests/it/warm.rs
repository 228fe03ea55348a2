//! Nodes that have a job's image come first among equals, and what a node may want of others is what its jobs have on record.

use crate::common::*;
use berth_model::exchange::{FromPeers, HeldImage, ImageWay, RemovedImage, ToPeers};
use berth_model::ids::{Attempt, JobId, NodeName, Uid};
use berth_model::link::{FromAgent, ToAgent};
use berth_model::login::SealedLogin;
use berth_model::pin::FilePin;
use berth_model::request::{Request, Response};
use berth_model::spec::{JobKind, JobSpec, ResolvedImage};
use berth_model::state::ExitStatus;
use berth_model::time::Span;
use berth_sched_core::Write;

const DIGEST: &str = "sha256:1";

fn of_image(digest: &str) -> impl FnOnce(&mut JobSpec) {
    let source = "docker://r.io/x".to_string();
    let resolved = ResolvedImage::Manifest {
        source,
        digest: digest.to_string(),
        insecure: false,
        indexes: Vec::new(),
        pin: None,
    };
    let container = berth_samples::container("x", Some(resolved));
    move |spec| spec.container = Some(container)
}

fn three() -> World {
    let mut w = World::new(&Default::default());
    for name in ["n1", "n2", "n3"] {
        w.node(name, hardware(2, 1, 8000, 0));
    }
    w
}

fn says(w: &mut World, node: &str, said: FromPeers) -> Vec<ToPeers> {
    w.sent.clear();
    w.tell(node, |session| FromAgent::Peers { session, said });
    let told = w.sent.drain(..).filter_map(|message| match message {
        ToAgent::Peers(told) => Some(told),
        _ => None,
    });
    told.collect()
}

fn wants(w: &mut World, node: &str, job: JobId, digest: &str) -> Vec<ToPeers> {
    let (ask, digest, failed) = (u64::from(job.0), digest.to_string(), Vec::new());
    says(w, node, FromPeers::Wanted { ask, job, attempt: Attempt(0), digest, bytes: 0, failed })
}

fn node_of(w: &World, job: JobId) -> NodeName {
    w.info(job).layout.nodes[0].clone()
}

/// A node that gives images to others, and takes streams.
fn serves(w: &mut World, name: &str) {
    let said = FromPeers::Ready {
        address: format!("{name}:1"),
        key: format!("key of {name}"),
        streams: true,
        connected: Vec::new(),
    };
    assert!(says(w, name, said).is_empty());
}

/// What they have.
fn image() -> ResolvedImage {
    ResolvedImage::Manifest {
        source: "docker://r.io/x".into(),
        digest: DIGEST.into(),
        insecure: false,
        indexes: Vec::new(),
        pin: None,
    }
}

#[test]
fn a_job_starts_where_its_image_is() {
    let mut w = three();
    let images = vec![HeldImage { digest: DIGEST.into(), users: vec![Uid(1000)], made: Vec::new() }];
    says(&mut w, "n2", FromPeers::Holds { all: true, images, gone: Vec::new() });
    // So it is told who asks where a job would run.
    let mut spec = berth_samples::job(JobKind::Batch, "asked");
    of_image(DIGEST)(&mut spec);
    let spec = Box::new(spec);
    let asked = Request::Submit { spec, payload: script(), first_step: None, test_only: true };
    let Ok(Response::WouldStart { nodes, .. }) = w.request(actor(1000), asked) else { panic!("no answer") };
    assert_eq!(nodes, [NodeName::from("n2")]);
    let job = w.batch("warm", of_image(DIGEST));
    assert_eq!(node_of(&w, job).0, "n2");
    let other = w.batch("cold", of_image("sha256:2"));
    assert_eq!(node_of(&w, other).0, "n2", "the tightest node comes before the warm one");
    for job in [job, other] {
        w.exited("n2", batch_key(job, 0), ExitStatus::OK);
        w.gone("n2", job, 0);
    }
    let cold = w.batch("cold again", of_image("sha256:2"));
    assert_eq!(node_of(&w, cold).0, "n1");
}

#[test]
fn a_node_gets_what_its_jobs_have_and_nothing_by_a_digest() {
    let mut w = three();
    for node in ["n1", "n2", "n3"] {
        serves(&mut w, node);
    }
    let job = w.batch("one", of_image(DIGEST));
    let here = node_of(&w, job).0;
    assert_eq!(here, "n1");
    let source =
        |job: JobId| vec![ToPeers::Way { ask: u64::from(job.0), way: ImageWay::Source, note: String::new() }];
    assert_eq!(wants(&mut w, "n1", job, DIGEST), source(job));
    assert!(
        says(&mut w, "n1", FromPeers::Done { ask: u64::from(job.0), there: true, why: String::new() })
            .is_empty()
    );
    // It has nothing of the job; it has, but of another image; it names a run that there was not.
    assert_eq!(wants(&mut w, "n2", job, DIGEST), source(job));
    let other = w.batch("two", |spec| {
        of_image("sha256:2")(spec);
        spec.resources.exclusive = true;
    });
    assert_eq!(node_of(&w, other).0, "n2");
    assert_eq!(wants(&mut w, "n2", other, DIGEST), source(other));
    // A job of the same user with the image: the node that has it is told first, and the other then where to go.
    let third = w.batch("three", |spec| {
        of_image(DIGEST)(spec);
        spec.resources.exclusive = true;
    });
    assert_eq!(node_of(&w, third).0, "n3");
    let told = wants(&mut w, "n3", third, DIGEST);
    let [ToPeers::Serve { key, digest, source, user, .. }, ToPeers::Way { way, .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((key.as_str(), digest.as_str(), source.as_str()), ("key of n3", DIGEST, "docker://r.io/x"));
    assert_eq!(*user, Uid(1000));
    assert!(matches!(way, ImageWay::Peer { node, .. } if node.0 == "n1"));
}

#[test]
fn an_image_of_a_file_goes_from_node_to_node_where_it_is_known_which_file_that_is() {
    let mut w = three();
    for node in ["n1", "n2", "n3"] {
        serves(&mut w, node);
    }
    let mut job = |name: &str, source: &str, pin: Option<FilePin>| {
        let (source, digest) = (source.to_string(), DIGEST.to_string());
        let image = ResolvedImage::Manifest { source, digest, insecure: false, indexes: Vec::new(), pin };
        let container = berth_samples::container("x", Some(image));
        w.batch(name, |spec| {
            spec.container = Some(container);
            spec.resources.exclusive = true;
        })
    };
    let pin = Some(FilePin { inode: 7, size: 70, modified: 1 });
    let (first, second) = (job("one", "sqsh:/shared/x", pin), job("two", "sqsh:/shared/x", pin));
    let unknown = job("three", "sqsh:/shared/x", None);
    let [at, other, last] = [first, second, unknown].map(|job| node_of(&w, job).0);
    let way = |told: Vec<ToPeers>| match told.into_iter().next_back() {
        Some(ToPeers::Way { way, .. }) => way,
        other => panic!("{other:?}"),
    };
    assert_eq!(way(wants(&mut w, &at, first, DIGEST)), ImageWay::Source);
    assert_eq!(way(wants(&mut w, &other, second, DIGEST)), ImageWay::Wait);
    assert_eq!(way(wants(&mut w, &last, unknown, DIGEST)), ImageWay::Source, "it may be any file");
    let told =
        says(&mut w, &at, FromPeers::Done { ask: u64::from(first.0), there: true, why: String::new() });
    assert!(matches!(way(told), ImageWay::Peer { node, .. } if node.0 == at));
}

#[test]
fn what_a_user_asked_of_nodes_these_may_want_of_each_other_and_nothing_else() {
    let mut w = three();
    for node in ["n1", "n2", "n3"] {
        serves(&mut w, node);
    }
    let asks = |w: &mut World, node: &str, ask: u64, user: u32, digest: &str| {
        let (user, digest, failed) = (Uid(user), digest.to_string(), Vec::new());
        says(w, node, FromPeers::Asked { ask, user, digest, bytes: 0, failed })
    };
    let way = |ask: u64, way: ImageWay| vec![ToPeers::Way { ask, way, note: String::new() }];
    assert_eq!(asks(&mut w, "n1", 1, 1000, DIGEST), way(1, ImageWay::Source), "nobody asked for it");
    assert_eq!(asks(&mut w, "n2", 1, 1000, DIGEST), way(1, ImageWay::Source), "and so nobody waits");
    let image = image();
    let nodes = ["n1", "n2", "n9"].map(NodeName::from).to_vec();
    let pull = Request::PullImage { image: Box::new(image), nodes, login: None };
    assert_eq!(w.request(actor(1000), pull), Ok(Response::Done));
    assert_eq!(asks(&mut w, "n1", 2, 1000, DIGEST), way(2, ImageWay::Source));
    assert_eq!(asks(&mut w, "n2", 2, 1000, DIGEST), way(2, ImageWay::Wait));
    // Another node, another user, another image.
    assert_eq!(asks(&mut w, "n3", 2, 1000, DIGEST), way(2, ImageWay::Source));
    assert_eq!(asks(&mut w, "n2", 3, 1001, DIGEST), way(3, ImageWay::Source));
    assert_eq!(asks(&mut w, "n2", 4, 1000, "sha256:2"), way(4, ImageWay::Source));
    let told = says(&mut w, "n1", FromPeers::Done { ask: 2, there: true, why: String::new() });
    let [
        ToPeers::Serve { key, digest, user, .. },
        ToPeers::Way { ask: 2, way: ImageWay::Peer { node, .. }, .. },
    ] = &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!(
        (key.as_str(), digest.as_str(), *user, node.0.as_str()),
        ("key of n2", DIGEST, Uid(1000), "n1")
    );
    // After an hour it counts no more.
    w.later(Span::from_secs(3601));
    assert_eq!(asks(&mut w, "n2", 5, 1000, DIGEST), way(5, ImageWay::Source));
}

#[test]
fn who_removed_images_of_others_from_a_node_is_in_the_audit_log() {
    let mut w = three();
    let removed = |ask, images| FromPeers::Removed { ask, by: Uid(0), user: "root".into(), images };
    let image = |n: usize, name: &str| RemovedImage {
        digest: format!("sha256:{n}"),
        name: name.into(),
        owners: vec!["ann".into(), "ben".into()],
    };
    let audit = |w: &World| -> Vec<(Uid, String, String)> {
        let entry = |write: &Write| match write {
            Write::AddAudit(row) => Some((row.uid, row.user.clone(), row.what.clone())),
            _ => None,
        };
        w.writes.iter().filter_map(entry).collect()
    };
    assert_eq!(
        says(&mut w, "n2", removed(7, vec![image(1, "r.io/x:1"), image(2, "")])),
        [ToPeers::Noted { ask: 7 }]
    );
    // Whoever the node names, it is the node that says it.
    let what =
        "says that root (uid 0) removed there: image sha256:1 (r.io/x:1) of ann, ben; sha256:2 of ann, ben";
    assert_eq!(audit(&w), [(Uid(0), "node n2".to_string(), what.to_string())]);
    // Whatever a node says, an entry stays an entry; and nothing is no removal.
    let many = (0..1000).map(|n| image(n, &"x".repeat(1000))).collect();
    assert_eq!(says(&mut w, "n2", removed(8, many)), [ToPeers::Noted { ask: 8 }]);
    says(&mut w, "n2", removed(9, Vec::new()));
    let all = audit(&w);
    assert_eq!(all.len(), 2);
    assert!(
        all[1].2.chars().count() < 2010
            && all[1].2.contains("sha256:7 (")
            && !all[1].2.contains("sha256:8 (")
    );
}

#[test]
fn a_node_fills_the_audit_log_with_no_more_than_sixty_removals_an_hour() {
    let mut w = three();
    let removed = |ask| {
        let image = RemovedImage { digest: DIGEST.into(), name: String::new(), owners: vec!["ann".into()] };
        FromPeers::Removed { ask, by: Uid(1000), user: "ann".into(), images: vec![image] }
    };
    let made = |w: &World, by: &str| -> Vec<String> {
        let entry = |write: &Write| match write {
            Write::AddAudit(row) if row.user == by => Some(row.what.clone()),
            _ => None,
        };
        w.writes.iter().filter_map(entry).collect()
    };
    for ask in 0..200 {
        assert_eq!(says(&mut w, "n2", removed(ask)), [ToPeers::Noted { ask }]);
    }
    let all = made(&w, "node n2");
    assert_eq!(all.len(), 61);
    assert!(all[59].contains("ann (uid 1000)") && all[60].contains("in that agent's own log"), "{all:?}");
    // Not at the cost of another node, and for an hour.
    says(&mut w, "n3", removed(1));
    assert_eq!(made(&w, "node n3").len(), 1);
    w.later(Span::from_secs(3600));
    says(&mut w, "n2", removed(1));
    assert_eq!(made(&w, "node n2").len(), 62);
}

#[test]
fn a_gateway_hears_that_nobody_waits_any_more_for_what_it_fetches() {
    let mut config = berth_model::config::Config::default();
    config.images.gateways = "gw".into();
    let mut w = World::new(&config);
    for (name, cores) in [("n1", 2), ("gw", 1)] {
        w.node(name, hardware(cores, 1, 8000, 0));
        serves(&mut w, name);
    }
    let job = w.batch("one", |spec| {
        of_image(DIGEST)(spec);
        spec.resources.cpus_per_task = Some(2);
    });
    assert_eq!(node_of(&w, job).0, "n1");
    let ask = u64::from(job.0);
    let way = |way: ImageWay| ToPeers::Way { ask, way, note: String::new() };
    assert_eq!(wants(&mut w, "n1", job, DIGEST), [way(ImageWay::Wait)]);
    assert_eq!(wants(&mut w, "gw", job, DIGEST), [way(ImageWay::Source)]);
    w.exited("n1", batch_key(job, 0), ExitStatus::OK);
    w.gone("n1", job, 0);
    // As far as it is known the node still waits.
    assert_eq!(wants(&mut w, "gw", job, DIGEST), [way(ImageWay::Source)]);
    says(&mut w, "n1", FromPeers::Done { ask, there: false, why: String::new() });
    assert_eq!(wants(&mut w, "gw", job, DIGEST), [ToPeers::Unwanted { ask }]);
    // A node that is no gateway fetches by itself what it says it wants.
    assert_eq!(wants(&mut w, "n1", job, DIGEST), [way(ImageWay::Source)]);
}

#[test]
fn what_a_user_asked_for_without_a_job_a_gateway_fetches_for_them() {
    let mut config = berth_model::config::Config::default();
    config.images.gateways = "n3".into();
    let mut w = World::new(&config);
    for name in ["n1", "n2", "n3"] {
        w.node(name, hardware(2, 1, 8000, 0));
        serves(&mut w, name);
    }
    let image = image();
    let nodes = vec![NodeName::from("n1")];
    let login = SealedLogin { registry: "r.io".into(), sealed: "sealed".into() };
    let pull = Request::PullImage { image: Box::new(image.clone()), nodes, login: Some(login) };
    assert_eq!(w.request(actor(1000), pull), Ok(Response::Done));
    let asks = |w: &mut World, node: &str, user: u32| {
        let (user, digest, failed) = (Uid(user), DIGEST.to_string(), Vec::new());
        says(w, node, FromPeers::Asked { ask: 1, user, digest, bytes: 0, failed })
    };
    let way = |way: ImageWay| ToPeers::Way { ask: 1, way, note: String::new() };
    let told = ToPeers::Fetch { user: Uid(1000), image };
    assert_eq!(asks(&mut w, "n1", 1000), [way(ImageWay::Wait), told]);
    // Whoever asks the registry is shown the login, once.
    assert_eq!(asks(&mut w, "n3", 1000), [ToPeers::Login { ask: 1, login: None }, way(ImageWay::Source)]);
    assert_eq!(asks(&mut w, "n3", 1000), [way(ImageWay::Source)]);
    let given = says(&mut w, "n3", FromPeers::Done { ask: 1, there: true, why: String::new() });
    let [ToPeers::Serve { key, user, .. }, ToPeers::Way { way: ImageWay::Peer { node, .. }, .. }] =
        &given[..]
    else {
        panic!("{given:?}")
    };
    assert_eq!((key.as_str(), *user, node.0.as_str()), ("key of n1", Uid(1000), "n3"));
    // It is over for the node, and with it the login: who asks again has none.
    says(&mut w, "n1", FromPeers::Done { ask: 1, there: false, why: "no disk".into() });
    says(&mut w, "n3", FromPeers::Holds { all: true, images: Vec::new(), gone: Vec::new() });
    assert_eq!(asks(&mut w, "n3", 1000), [way(ImageWay::Source)]);
    // Nobody asked it of another node, nor for another user: these are sent nowhere else.
    assert_eq!(asks(&mut w, "n2", 1000), [way(ImageWay::Source)]);
    assert_eq!(asks(&mut w, "n1", 1001), [way(ImageWay::Source)]);
}

/// As with `images.peers = "off"`: none of the nodes says that others find it.
#[test]
fn nodes_that_fetch_by_themselves_have_the_login_that_a_user_sent_along_each_for_as_long_as_it_fetches() {
    let mut w = three();
    let login = SealedLogin { registry: "r.io".into(), sealed: "sealed".into() };
    let nodes = ["n1", "n2"].map(NodeName::from).to_vec();
    let pull = Request::PullImage { image: Box::new(image()), nodes, login: Some(login) };
    assert_eq!(w.request(actor(1000), pull), Ok(Response::Done));
    let asks = |w: &mut World, node: &str, ask: u64, user: u32| {
        let (user, digest, failed) = (Uid(user), DIGEST.to_string(), Vec::new());
        says(w, node, FromPeers::Asked { ask, user, digest, bytes: 0, failed })
    };
    let source = |ask: u64| ToPeers::Way { ask, way: ImageWay::Source, note: String::new() };
    let with_login = |ask: u64| vec![ToPeers::Login { ask, login: None }, source(ask)];
    for node in ["n1", "n2"] {
        assert_eq!(asks(&mut w, node, 1, 1000), with_login(1));
        // Once.
        assert_eq!(asks(&mut w, node, 1, 1000), [source(1)]);
    }
    // Of another pull of the same, too; and again when what it was told may be lost with its connection.
    assert_eq!(asks(&mut w, "n1", 2, 1000), with_login(2));
    w.node("n1", hardware(2, 1, 8000, 0));
    assert_eq!(asks(&mut w, "n1", 1, 1000), with_login(1));
    // Nobody asked it of another node, nor for another user.
    assert_eq!(asks(&mut w, "n3", 1, 1000), [source(1)]);
    assert_eq!(asks(&mut w, "n1", 7, 1001), [source(7)]);
    // When all have it, or have said why not, nobody has the login any more.
    for (node, there) in [("n1", true), ("n2", false)] {
        assert!(says(&mut w, node, FromPeers::Done { ask: 1, there, why: "no disk".into() }).is_empty());
    }
    for node in ["n1", "n2"] {
        assert_eq!(asks(&mut w, node, 8, 1000), [source(8)]);
    }
}

#[test]
fn a_pull_that_is_too_old_takes_no_gateway_from_a_job_with_the_same_image() {
    let mut config = berth_model::config::Config::default();
    config.images.gateways = "n[3-4]".into();
    let mut w = World::new(&config);
    let all = ["n1", "n2", "n3", "n4"];
    for name in all {
        w.node(name, hardware(2, 1, 8000, 0));
        serves(&mut w, name);
    }
    let nodes = vec![NodeName::from("n1")];
    let pull = Request::PullImage { image: Box::new(image()), nodes, login: None };
    assert_eq!(w.request(actor(1000), pull), Ok(Response::Done));
    w.later(Span::from_secs(3599));
    for name in all {
        let asked = w.clock();
        w.heartbeat(name, asked);
    }
    let other = w.batch("other", |spec| spec.resources.exclusive = true);
    let job = w.batch("job", of_image(DIGEST));
    assert_eq!((node_of(&w, other).0.as_str(), node_of(&w, job).0.as_str()), ("n1", "n2"));
    let asks = |w: &mut World, node: &str, ask: u64| {
        let (user, digest, failed) = (Uid(1000), DIGEST.to_string(), Vec::new());
        says(w, node, FromPeers::Asked { ask, user, digest, bytes: 0, failed })
    };
    let way = |ask: u64, way: ImageWay| ToPeers::Way { ask, way, note: String::new() };
    let fetch = ToPeers::Fetch { user: Uid(1000), image: image() };
    assert_eq!(asks(&mut w, "n1", 77), [way(77, ImageWay::Wait), fetch]);
    assert_eq!(wants(&mut w, "n2", job, DIGEST), [way(u64::from(job.0), ImageWay::Wait)]);
    // What a gateway was told counts for it, however long ago a user asked.
    w.later(Span::from_secs(2));
    assert_eq!(asks(&mut w, "n3", 5), [way(5, ImageWay::Source)]);
    w.later(Span::from_secs(15));
    assert_eq!(wants(&mut w, "n2", job, DIGEST), [way(u64::from(job.0), ImageWay::Wait)]);
    assert_eq!(asks(&mut w, "n3", 5), [way(5, ImageWay::Source)]);
    // It fails, and the other is told for the job.
    w.sent.clear();
    let said = FromPeers::Done { ask: 5, there: false, why: "no route".into() };
    w.tell("n3", |session| FromAgent::Peers { session, said });
    let alone = |told: &ToAgent| match told {
        ToAgent::Peers(ToPeers::Way { ask: 77, way: ImageWay::Source, note }) => Some(note.clone()),
        _ => None,
    };
    let note = w.sent.iter().find_map(alone).unwrap();
    assert!(note.contains("gateway n3: no route") && note.contains("too long ago"), "{note}");
    let told = |told: &ToAgent| matches!(told, ToAgent::Fetch(start) if start.launch.key.job == job);
    assert!(w.sent.iter().any(told));
    // It waits, and is told what that gateway said before.
    let (ask, note) = (u64::from(job.0), "gateway n3: no route".to_string());
    assert_eq!(wants(&mut w, "n2", job, DIGEST), [ToPeers::Way { ask, way: ImageWay::Wait, note }]);
}

#[test]
fn a_gateway_of_an_earlier_version_is_not_waited_for() {
    let mut config = berth_model::config::Config::default();
    config.images.gateways = "n[2-3]".into();
    for early in [&["n2"][..], &["n2", "n3"]] {
        let mut w = World::new(&config);
        for name in ["n1", "n2", "n3"] {
            w.node(name, hardware(2, 1, 8000, 0));
            if early.contains(&name) {
                w.hello_knowing(name, hardware(2, 1, 8000, 0), Vec::new());
            }
            serves(&mut w, name);
        }
        let image = image();
        let nodes = vec![NodeName::from("n1")];
        let pull = Request::PullImage { image: Box::new(image.clone()), nodes, login: None };
        assert_eq!(w.request(actor(1000), pull), Ok(Response::Done));
        let (user, digest, failed) = (Uid(1000), DIGEST.to_string(), Vec::new());
        let told = says(&mut w, "n1", FromPeers::Asked { ask: 1, user, digest, bytes: 0, failed });
        let way = |way: ImageWay, note: &str| ToPeers::Way { ask: 1, way, note: note.into() };
        let then = match early {
            ["n2"] => ToPeers::Fetch { user: Uid(1000), image },
            _ => {
                let why = "its agent is of an earlier version";
                way(ImageWay::Source, &format!("gateway n2: {why}; gateway n3: {why}"))
            }
        };
        assert_eq!(told, [way(ImageWay::Wait, ""), then]);
    }
}
