//! Who fetches, who waits and who gives, whatever nodes say.

use super::*;
use proptest::prelude::*;

const USER: Uid = Uid(1000);
const RUN: RunOf = (JobId(1), Attempt(0));

fn want(user: Uid) -> Want {
    Want { digest: "sha256:1".into(), source: "docker://r/x".into(), user }
}

fn node(n: usize) -> NodeName {
    NodeName(format!("n{n:03}"))
}

fn at(seconds: i64) -> Time {
    Time(seconds * 1_000_000)
}

/// Nodes that all can give.
fn nodes(count: usize) -> Exchange {
    let mut exchange = Exchange::default();
    for n in 0..count {
        let _ = exchange.ready(&node(n), format!("10.0.0.{n}:1"), format!("key{n}"));
    }
    exchange
}

fn ask(exchange: &mut Exchange, n: usize, now: i64) -> Vec<Said> {
    exchange.wanted((node(n), 1), want(USER), (RUN, 0, Vec::new()), at(now))
}

/// What a node was told last.
fn way(said: &[Said], n: usize) -> Option<ImageWay> {
    said.iter().rev().find_map(|(to, told)| match told {
        ToPeers::Way { way, .. } if *to == node(n) => Some(way.clone()),
        _ => None,
    })
}

fn from(said: &[Said], n: usize) -> Option<NodeName> {
    match way(said, n) {
        Some(ImageWay::Peer { node, .. }) => Some(node),
        _ => None,
    }
}

#[test]
fn one_fetches_and_the_others_take_it_from_each_other() {
    let count = 30;
    let mut e = nodes(count);
    assert_eq!(way(&ask(&mut e, 0, 0), 0), Some(ImageWay::Source));
    for n in 1..count {
        assert_eq!(way(&ask(&mut e, n, 0), n), Some(ImageWay::Wait));
    }
    // Rounds: whoever has it gives it to four others.
    let mut said = e.over(&(node(0), 1), Ok(()), at(1));
    let (mut have, mut rounds) = (1, 0);
    while have < count {
        rounds += 1;
        let takers: Vec<usize> = (0..count).filter(|n| from(&said, *n).is_some()).collect();
        assert!(takers.len() <= have * FAN && !takers.is_empty());
        // Who gives was told of who takes, by its key.
        for n in &takers {
            let giver = from(&said, *n).unwrap();
            let told = said.iter().any(|(to, told)| {
                *to == giver
                    && matches!(told, ToPeers::Serve { key, user, .. } if *key == format!("key{n}") && *user == USER)
            });
            assert!(told, "{giver} does not know of {n}");
        }
        said = takers.iter().flat_map(|n| e.over(&(node(*n), 1), Ok(()), at(2))).collect();
        have += takers.len();
    }
    assert_eq!(rounds, 3, "1, 5, 25, 30");
    assert!(e.groups.is_empty() && e.asks.is_empty() && e.load.is_empty());
    // One that comes later takes it at once.
    let _ = e.ready(&node(99), "a".into(), "k".into());
    assert!(from(&ask(&mut e, 99, 9), 99).is_some());
}

#[test]
fn another_user_has_shown_nothing() {
    let mut e = nodes(2);
    let _ = ask(&mut e, 0, 0);
    let _ = e.over(&(node(0), 1), Ok(()), at(1));
    let said = e.wanted((node(1), 7), want(Uid(1001)), (RUN, 0, Vec::new()), at(2));
    assert_eq!(way(&said, 1), Some(ImageWay::Source));
    assert!(!said.iter().any(|(_, told)| matches!(told, ToPeers::Serve { .. })));
}

#[test]
fn one_that_fails_is_gone_or_gets_nowhere_is_not_waited_for() {
    let mut e = nodes(4);
    let _ = ask(&mut e, 0, 0);
    assert_eq!(way(&ask(&mut e, 1, 0), 1), Some(ImageWay::Wait));
    assert_eq!(way(&ask(&mut e, 2, 0), 2), Some(ImageWay::Wait));
    // It fails: the next one fetches.
    assert_eq!(way(&e.over(&(node(0), 1), Err("no".into()), at(1)), 1), Some(ImageWay::Source));
    // Its node is gone: the next.
    assert_eq!(way(&e.gone(&node(1), at(2)), 2), Some(ImageWay::Source));
    // It says nothing for 20 s: whoever asks then.
    assert_eq!(way(&ask(&mut e, 3, 3), 3), Some(ImageWay::Wait));
    assert_eq!(way(&ask(&mut e, 3, 20), 3), Some(ImageWay::Wait));
    assert_eq!(way(&ask(&mut e, 3, 24), 3), Some(ImageWay::Source));
    // It says that nothing comes for a minute.
    let _ = ask(&mut e, 0, 30);
    for now in [40, 50, 60, 70, 80] {
        let _ = ask(&mut e, 3, now);
        assert_eq!(way(&ask(&mut e, 0, now), 0), Some(ImageWay::Wait), "{now}");
    }
    let _ = ask(&mut e, 3, 85);
    assert_eq!(way(&ask(&mut e, 0, 86), 0), Some(ImageWay::Source));
}

#[test]
fn one_that_cannot_take_it_from_a_node_is_sent_to_the_next() {
    let mut e = nodes(3);
    e.has(&node(0), "sha256:1", USER);
    e.has(&node(1), "sha256:1", USER);
    assert_eq!(from(&ask(&mut e, 2, 0), 2), Some(node(0)));
    let again = |e: &mut Exchange, failed: &[usize]| {
        let failed = failed.iter().map(|n| node(*n)).collect();
        e.wanted((node(2), 1), want(USER), (RUN, 0, failed), at(1))
    };
    assert_eq!(from(&again(&mut e, &[0]), 2), Some(node(1)));
    assert_eq!(way(&again(&mut e, &[0, 1]), 2), Some(ImageWay::Source));
    assert!(e.load.is_empty());
}

#[test]
fn one_that_has_no_way_to_the_source_lets_another_one_fetch_and_takes_it_from_there() {
    let no_way = |e: &mut Exchange, n: usize, nodes: usize, now: i64| {
        e.wanted_among((node(n), 1), want(USER), (RUN, 0, vec![node(n)]), nodes, at(now))
    };
    // Another one waits for it: that one fetches, whoever is first by name.
    let mut e = nodes(3);
    assert_eq!(way(&ask(&mut e, 0, 0), 0), Some(ImageWay::Source));
    assert_eq!(way(&ask(&mut e, 2, 0), 2), Some(ImageWay::Wait));
    let said = no_way(&mut e, 0, 2, 1);
    assert_eq!((way(&said, 0), way(&said, 2)), (Some(ImageWay::Wait), Some(ImageWay::Source)));
    // What it says again changes nothing.
    assert_eq!(way(&no_way(&mut e, 0, 2, 15), 0), Some(ImageWay::Wait));
    assert_eq!(from(&e.over(&(node(2), 1), Ok(()), at(16)), 0), Some(node(2)));
    // The other one is to come yet: it is waited for, and then it is that one's.
    let mut e = nodes(2);
    let _ = ask(&mut e, 0, 0);
    assert_eq!(way(&no_way(&mut e, 0, 2, 1), 0), Some(ImageWay::Wait));
    assert_eq!(way(&ask(&mut e, 1, 2), 1), Some(ImageWay::Source));
    assert_eq!(from(&e.over(&(node(1), 1), Ok(()), at(3)), 0), Some(node(1)));
    // It does not come, for ever as long as it wants; neither can have it; nobody else wants it.
    let mut e = nodes(2);
    let _ = ask(&mut e, 0, 0);
    let _ = no_way(&mut e, 0, 2, 1);
    assert_eq!(way(&no_way(&mut e, 0, 2, 9), 0), Some(ImageWay::Wait));
    assert_eq!(way(&no_way(&mut e, 0, 2, 11), 0), Some(ImageWay::Source));
    let mut e = nodes(2);
    let _ = (ask(&mut e, 0, 0), ask(&mut e, 1, 0));
    assert_eq!(way(&no_way(&mut e, 0, 2, 1), 1), Some(ImageWay::Source));
    let said = no_way(&mut e, 1, 2, 2);
    assert!(
        said.iter().any(|(_, told)| matches!(told, ToPeers::Way { way: ImageWay::Source, .. })),
        "{said:?}"
    );
    let mut e = nodes(2);
    let _ = ask(&mut e, 0, 0);
    assert_eq!(way(&no_way(&mut e, 0, 1, 1), 0), Some(ImageWay::Source));
    // Somebody has it.
    let mut e = nodes(2);
    let _ = ask(&mut e, 0, 0);
    e.has(&node(1), "sha256:1", USER);
    assert_eq!(from(&no_way(&mut e, 0, 1, 1), 0), Some(node(1)));
}

#[test]
fn nobody_gives_a_removed_node_anything_any_more() {
    let mut e = nodes(3);
    e.has(&node(0), "sha256:1", USER);
    let _ = ask(&mut e, 1, 0);
    let all_end = |said: &[Said], key: &str, nodes: &[usize]| {
        for n in nodes {
            let end = ToPeers::EndServe { key: key.into(), digest: None };
            assert!(said.contains(&(node(*n), end)), "{said:?}");
        }
    };
    // What it was to be given ends with its connection, too.
    let end = ToPeers::EndServe { key: "key1".into(), digest: Some("sha256:1".into()) };
    assert!(e.clone().gone(&node(1), at(1)).contains(&(node(0), end)));
    let said = e.revoked(&node(1), Some("key in the records".into()), at(1));
    all_end(&said, "key1", &[0, 2]);
    all_end(&said, "key in the records", &[0, 2]);
    // A key that was rotated is nobody's any more, either.
    assert!(e.ready(&node(2), "a".into(), "key2".into()).is_empty());
    all_end(&e.ready(&node(2), "a".into(), "another".into()), "key2", &[0, 2]);
    // What it still says is answered with nothing of others.
    assert_eq!(way(&ask(&mut e, 1, 2), 1), Some(ImageWay::Source));
}

#[test]
fn who_has_an_image_is_what_they_last_said() {
    let mut e = nodes(2);
    let image = |digest: &str| (digest.to_string(), vec![USER]);
    let has = |e: &Exchange, digest| e.holders(digest).map_or(0, BTreeMap::len);
    e.holds(&node(0), true, vec![image("a"), image("b")], &[]);
    e.holds(&node(1), true, vec![image("a")], &[]);
    assert_eq!((has(&e, "a"), has(&e, "b")), (2, 1));
    e.holds(&node(0), false, vec![image("c")], &["a".into()]);
    assert_eq!((has(&e, "a"), has(&e, "b"), has(&e, "c")), (1, 1, 1));
    // Another user's now, and not the first one's any more.
    e.holds(&node(1), false, vec![("a".into(), vec![Uid(5)])], &[]);
    assert_eq!(e.holders("a").unwrap()[&node(1)], BTreeSet::from([Uid(5)]));
    e.holds(&node(0), true, vec![], &[]);
    let _ = e.gone(&node(1), at(1));
    assert!(e.holders.is_empty());
}

#[test]
fn a_gateway_fetches_where_there_is_no_job_too() {
    let mut e = nodes(4);
    e.set_gateways(&BTreeSet::from([node(3)]));
    let asks =
        |e: &mut Exchange, n: usize| e.wanted((node(n), 1), want(USER), (NO_RUN, 0, Vec::new()), at(0));
    assert_eq!(way(&asks(&mut e, 0), 0), Some(ImageWay::Wait));
    assert_eq!(way(&asks(&mut e, 1), 1), Some(ImageWay::Wait));
    assert_eq!(e.take_fetches(), [(node(3), NO_RUN, want(USER))]);
    assert_eq!(way(&asks(&mut e, 3), 3), Some(ImageWay::Source));
    let said = e.over(&(node(3), 1), Ok(()), at(1));
    assert_eq!((from(&said, 0), from(&said, 1)), (Some(node(3)), Some(node(3))));
}

#[test]
fn gateways_fetch_for_the_others_and_what_they_say_is_passed_on() {
    let mut e = nodes(5);
    e.set_gateways(&BTreeSet::from([node(3), node(4), node(9)]));
    // A gateway for its own jobs.
    assert_eq!(way(&ask(&mut e, 3, 0), 3), Some(ImageWay::Source));
    let _ = e.over(&(node(3), 1), Err("".into()), at(0));
    assert_eq!(way(&ask(&mut e, 0, 0), 0), Some(ImageWay::Wait));
    assert_eq!(way(&ask(&mut e, 1, 0), 1), Some(ImageWay::Wait));
    assert_eq!(e.take_fetches(), [(node(3), RUN, want(USER))]);
    assert!(e.is_sent(&node(3), &want(USER)) && !e.is_sent(&node(4), &want(USER)));
    // It does, and is refused: the next one. That one never asks.
    assert_eq!(way(&ask(&mut e, 3, 1), 3), Some(ImageWay::Source));
    let said = e.over(&(node(3), 1), Err("login refused".into()), at(2));
    assert_eq!((way(&said, 0), e.take_fetches()), (None, vec![(node(4), RUN, want(USER))]));
    let _ = ask(&mut e, 1, 3);
    let told = ask(&mut e, 0, 30);
    assert_eq!(way(&told, 0), Some(ImageWay::Source), "nobody else is there");
    let note = told.iter().find_map(|(to, told)| match told {
        ToPeers::Way { note, .. } if *to == node(0) => Some(note.clone()),
        _ => None,
    });
    assert_eq!(note.unwrap(), "gateway n003: login refused; gateway n004: it gets nowhere");
    // A file it may not even see.
    let mut e = nodes(5);
    e.set_gateways(&BTreeSet::from([node(4)]));
    let file = Want { source: "sqsh:/shared/x".into(), ..want(USER) };
    let said = e.wanted((node(0), 1), file.clone(), (RUN, 0, Vec::new()), at(0));
    assert_eq!((way(&said, 0), e.take_fetches()), (Some(ImageWay::Source), Vec::new()));
    // What a gateway has the others take.
    let mut e = nodes(5);
    e.set_gateways(&BTreeSet::from([node(4)]));
    let _ = ask(&mut e, 0, 0);
    let _ = ask(&mut e, 4, 1);
    let said = e.over(&(node(4), 1), Ok(()), at(2));
    assert_eq!(from(&said, 0), Some(node(4)));
}

#[test]
fn a_gateway_that_was_not_told_is_not_waited_for() {
    let mut e = nodes(5);
    e.set_gateways(&BTreeSet::from([node(3), node(4)]));
    let _ = ask(&mut e, 0, 0);
    let _ = ask(&mut e, 1, 0);
    assert_eq!(e.take_fetches(), [(node(3), RUN, want(USER))]);
    let said = e.not_told(&node(3), &want(USER), NotTold::Gateway("it is old"), at(0));
    assert_eq!((way(&said, 0), e.take_fetches()), (None, vec![(node(4), RUN, want(USER))]));
    assert!(
        e.not_told(&node(3), &want(USER), NotTold::Gateway("it is old"), at(0)).is_empty(),
        "nobody waits for it"
    );
    // One waits for the other, as where there is no gateway.
    let said = e.not_told(&node(4), &want(USER), NotTold::Gateway("it is old"), at(0));
    assert_eq!((way(&said, 0), way(&said, 1)), (Some(ImageWay::Source), None));
    assert!(e.take_fetches().is_empty());
    // One that asks by itself meanwhile fetches.
    let mut e = nodes(5);
    e.set_gateways(&BTreeSet::from([node(3)]));
    let _ = ask(&mut e, 0, 0);
    let _ = ask(&mut e, 3, 0);
    assert!(e.not_told(&node(3), &want(USER), NotTold::Gateway("it is old"), at(0)).is_empty());
    assert!(e.is_sent(&node(3), &want(USER)));
}

#[test]
fn what_is_an_askers_own_fault_is_held_against_no_gateway() {
    let other: RunOf = (JobId(2), Attempt(0));
    let ask_other =
        |e: &mut Exchange, now: i64| e.wanted((node(1), 1), want(USER), (other, 0, Vec::new()), at(now));
    let two = || {
        let mut e = nodes(5);
        e.set_gateways(&BTreeSet::from([node(4)]));
        let _ = ask(&mut e, 0, 0);
        let _ = ask_other(&mut e, 0);
        assert_eq!(e.take_fetches(), [(node(4), RUN, want(USER))]);
        e
    };
    // The first job is over: it is the gateway's turn for the other one.
    let mut e = two();
    let said = e.not_told(&node(4), &want(USER), NotTold::Asker("the job is over"), at(0));
    assert_eq!((way(&said, 0), way(&said, 1)), (Some(ImageWay::Source), None));
    assert!(
        matches!(&said[0].1, ToPeers::Way { note, .. } if note == "no gateway is asked: the job is over")
    );
    assert_eq!(e.take_fetches(), [(node(4), other, want(USER))]);
    // So it was on its way to the gateway, which was not told: it is again, and is silent then.
    let mut e = two();
    let _ = e.over(&(node(0), 1), Err("".into()), at(1));
    assert_eq!(way(&ask_other(&mut e, 30), 1), Some(ImageWay::Wait));
    assert_eq!(e.take_fetches(), [(node(4), other, want(USER))]);
    assert_eq!(way(&ask_other(&mut e, 60), 1), Some(ImageWay::Source));
}

#[test]
fn a_gateway_that_fetches_nothing_without_a_job_fetches_what_jobs_want() {
    let mut e = nodes(5);
    e.set_gateways(&BTreeSet::from([node(3)]));
    let _ = e.wanted((node(0), 1), want(USER), (NO_RUN, 0, Vec::new()), at(0));
    let _ = ask(&mut e, 1, 0);
    assert_eq!(e.take_fetches(), [(node(3), NO_RUN, want(USER))]);
    let said = e.not_told(&node(3), &want(USER), NotTold::WithoutJob("it is old"), at(0));
    assert_eq!((way(&said, 0), way(&said, 1)), (Some(ImageWay::Source), None));
    // Who asked without a job does not get it.
    let said = e.over(&(node(0), 1), Err("no way".into()), at(1));
    assert_eq!((way(&said, 1), e.take_fetches()), (None, vec![(node(3), RUN, want(USER))]));
}

#[test]
fn what_a_gateway_was_told_it_may_want_for_as_long_as_somebody_waits() {
    let mut e = nodes(5);
    e.set_gateways(&BTreeSet::from([node(3)]));
    let _ = ask(&mut e, 0, 0);
    assert_eq!(e.sent(&node(3), USER, "sha256:1"), Some(want(USER)));
    assert!(e.sent(&node(4), USER, "sha256:1").is_none() && e.sent(&node(3), Uid(1), "sha256:1").is_none());
    assert!(e.sent(&node(3), USER, "sha256:2").is_none());
    // Its own question, for which another node waits.
    assert!(e.fetched_by(&(node(3), 1), "sha256:1").is_none());
    let _ = ask(&mut e, 3, 1);
    assert_eq!(e.fetched_by(&(node(3), 1), "sha256:1"), Some(want(USER)));
    assert!(
        e.fetched_by(&(node(3), 1), "sha256:2").is_none()
            && e.fetched_by(&(node(0), 1), "sha256:1").is_none()
    );
    let _ = e.over(&(node(3), 1), Ok(()), at(2));
    let _ = e.over(&(node(0), 1), Ok(()), at(3));
    assert!(
        e.sent(&node(3), USER, "sha256:1").is_none() && e.fetched_by(&(node(3), 1), "sha256:1").is_none()
    );
}

#[test]
fn gateways_share_what_is_to_be_fetched() {
    let mut e = nodes(5);
    e.set_gateways(&BTreeSet::from([node(3), node(4)]));
    let of = |n: u64| Want { digest: format!("sha256:{n}"), ..want(USER) };
    let mut told = BTreeMap::<NodeName, usize>::new();
    for n in 0..4 {
        assert_eq!(
            way(&e.wanted((node(0), n + 1), of(n), (RUN, 0, Vec::new()), at(0)), 0),
            Some(ImageWay::Wait)
        );
        for (gateway, _, want) in e.take_fetches() {
            assert_eq!(want, of(n));
            *told.entry(gateway).or_default() += 1;
        }
    }
    assert_eq!(told, BTreeMap::from([(node(3), 2), (node(4), 2)]));
    // Who is done is asked again.
    assert_eq!((e.fetches_of(&node(3)), e.fetches_of(&node(4))), (2, 2));
    let _ = e.wanted((node(4), 9), of(1), (RUN, 0, Vec::new()), at(1));
    let _ = e.over(&(node(4), 9), Ok(()), at(2));
    let _ = e.wanted((node(0), 8), of(7), (RUN, 0, Vec::new()), at(3));
    assert_eq!(e.take_fetches(), [(node(4), RUN, of(7))]);
}

#[test]
fn nobody_waits_for_ever() {
    let mut e = nodes(FAN + 2);
    e.has(&node(0), "sha256:1", USER);
    for n in 1..=FAN {
        assert_eq!(from(&ask(&mut e, n, 0), n), Some(node(0)));
    }
    let last = FAN + 1;
    assert_eq!(way(&ask(&mut e, last, 0), last), Some(ImageWay::Wait));
    assert_eq!(way(&ask(&mut e, last, 601), last), Some(ImageWay::Source));
}

proptest! {
    /// Whatever nodes say: nobody gives to more than it should, takes from itself or from one that has it not, or for somebody
    /// who has not shown it; and where all ends well, nothing is left.
    #[test]
    fn whatever_nodes_say_it_adds_up(steps in prop::collection::vec((0usize..6, 1u64..4, 0u8..6, 0u32..2), 1..120)) {
        let mut e = nodes(6);
        let mut has: BTreeSet<(NodeName, Uid)> = BTreeSet::new();
        for (second, (n, number, what, user)) in steps.into_iter().enumerate() {
            let (now, user) = (at(second as i64 * 3), Uid(1000 + user));
            let asker = (node(n), number);
            let said = match what {
                0..=2 => {
                    // The third question of a node is of one that has no way itself.
                    let other = usize::from(number != 3);
                    let failed = if what == 2 { vec![node((n + other) % 6)] } else { Vec::new() };
                    e.wanted(asker, want(user), (RUN, u64::from(what), failed), now)
                }
                3 => {
                    let of = e.asks.get(&asker).map(|want| want.user);
                    has.extend(of.map(|user| (node(n), user)));
                    e.over(&asker, Ok(()), now)
                }
                4 => e.over(&asker, Err("no".into()), now),
                _ => {
                    has.retain(|(of, _)| *of != node(n));
                    let said = e.gone(&node(n), now);
                    let _ = e.ready(&node(n), "a".into(), format!("key{n}"));
                    said
                }
            };
            for (to, told) in &said {
                if let ToPeers::Serve { node: taker, key, user, .. } = told {
                    prop_assert!(has.contains(&(to.clone(), *user)), "{to} has nothing to give");
                    let number = taker.0[1..].parse::<usize>().unwrap();
                    prop_assert!(taker != to);
                    prop_assert_eq!(key, &format!("key{number}"));
                }
            }
            let mut takers: BTreeMap<NodeName, usize> = BTreeMap::new();
            for group in e.groups.values() {
                let waiting = group.asks.iter().filter(|(_, ask)| ask.state == State::Waits).map(|(asker, _)| asker);
                prop_assert!(waiting.eq(group.waiting.iter()));
                for ask in group.asks.values() {
                    if let State::Takes(from) = &ask.state {
                        *takers.entry(from.clone()).or_default() += 1;
                    }
                }
            }
            prop_assert!(takers.values().all(|count| *count <= FAN));
            prop_assert_eq!(&takers, &e.load);
            prop_assert_eq!(e.asks.len(), e.groups.values().map(|group| group.asks.len()).sum::<usize>());
        }
        for n in 0..6 {
            for number in 1..4 {
                let _ = e.over(&(node(n), number), Err("no".into()), at(10_000));
            }
        }
        prop_assert!(e.groups.is_empty() && e.load.is_empty());
    }
}
