//! `berth sim`: a run is written down, shown up to an event, stepped through, and a log that another run would write is told of.

use berth_tests::{Cmd, machine};
use serde_json::Value;
use std::fs;
use std::path::Path;

const SEED: &str = "7";

fn sim(dir: &Path, words: &[&str]) -> Cmd {
    Cmd::new(machine::programs().join("berth")).arg("sim").args(words).dir(dir)
}

/// Numbers of the events that were shown, in order.
fn shown(text: &str) -> Vec<u64> {
    let number = |line: &str| {
        // The first line after a question comes behind its sign.
        let mut words = line.trim_start_matches("> ").split_whitespace();
        let number = words.next()?.parse().ok()?;
        // Then the time, and from where to where.
        words.next()?.parse::<f64>().ok()?;
        line.contains(" -> ").then_some(number)
    };
    text.lines().filter_map(number).collect()
}

#[test]
fn a_run_is_written_down_shown_and_stepped_through() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let told = sim(dir, &["--seed", SEED, "--log", "run.log"]).ok().text();
    let log = fs::read_to_string(dir.join("run.log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (header, events) = lines.split_first().unwrap();
    assert_eq!(header["seed"], 7, "{header}");
    assert!(told.starts_with(&format!("seed {SEED}: good, {} events: ", events.len())), "{told}");
    assert!(events.len() > 50 && events[39]["n"] == 40, "{}", events[39]);

    // Up to an event, with all of the state there.
    let told = sim(dir, &["--replay", "run.log", "--until", "40"]).ok().text();
    assert!(told.starts_with(&format!("seed {SEED}, written by version ")), "{told}");
    assert_eq!(shown(&told), [40], "{told}");
    let event = format!("{}: {}", events[39]["to"].as_str().unwrap(), events[39]["event"].as_str().unwrap());
    assert!(told.contains(&event) && told.contains("\ncontroller: "), "{told}");

    // The first event, one more, on to the fifth, to the next one in which a text stands.
    let text = "Hello";
    let after = log.lines().skip(6).position(|line| line.contains(text)).unwrap() as u64 + 6;
    let words = format!("\n5\n/{text}\ns\nwhat\nq\n");
    let told = sim(dir, &["--replay", "run.log", "--step"]).stdin(words).ok().text();
    assert_eq!(shown(&told), (1..=after).collect::<Vec<_>>(), "{told}");
    let answers = |begin: &str| told.lines().filter(|line| line.starts_with(begin)).count();
    assert_eq!(answers("> "), 6, "{told}");
    assert_eq!(answers("> Enter, a number, /TEXT, s or q"), 1, "{told}");
    assert_eq!(answers("> controller: "), 1, "{told}");
    // Who has nothing more to say has seen enough; and stepping may begin in the middle.
    let told = sim(dir, &["--replay", "run.log", "--step", "--until", "40"]).stdin("\n").ok().text();
    assert_eq!(shown(&told), [40, 41], "{told}");
}

#[test]
fn a_log_that_the_run_does_not_write_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sim(dir, &["--seed", SEED, "--log", "run.log"]).ok();
    let log = fs::read_to_string(dir.join("run.log")).unwrap();
    let mut lines: Vec<String> = log.lines().map(str::to_string).collect();
    // The header, and 20 events.
    fs::write(dir.join("cut.log"), lines[..21].join("\n")).unwrap();
    let at = lines[20].find("\"state\":\"").unwrap() + "\"state\":\"".len();
    lines[20].insert_str(at, "another ");
    fs::write(dir.join("altered.log"), lines.join("\n")).unwrap();
    for (file, first) in [("altered.log", 20), ("cut.log", 21)] {
        let words = ["--replay", file];
        let told = sim(dir, &words).fails().says(&[&format!("from event {first} on"), "runs otherwise"]);
        assert_eq!(shown(&told.text()).last(), Some(&(first - 1)), "{told}");
        // As far as it goes it can be looked at.
        let until = (first - 1).to_string();
        sim(dir, &[&words[..], &["--until", until.as_str()]].concat()).ok();
    }
    fs::write(dir.join("none.log"), "something else\n").unwrap();
    sim(dir, &["--replay", "none.log"]).fails().says(&["none.log is no log of the simulator"]);
    sim(dir, &["--replay", "absent.log"]).fails().says(&["cannot read absent.log"]);
}

/// A run in which a promise is broken: it goes on for longer than it may. What led there is told, written, shown and stepped through to its end.
#[test]
fn a_broken_promise_is_told_written_down_and_stepped_through() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let why = "too many events: something goes round in circles";
    let world = ["--seed", SEED, "--calm", "--most-events", "30"];
    let told = sim(dir, &world).fails().says(&[
        &format!("a promise is broken: seed {SEED}: {why}"),
        &format!(
            "write down what led there with 'berth sim --seed {SEED} --calm --most-events 30 --log FILE'"
        ),
    ]);
    assert_eq!((told.rc, told.text().as_str()), (1, ""), "{told}");
    let told = sim(dir, &[&world[..], &["--log", "run.log"]].concat()).fails();
    let told = told.says(&[why, "step through it with 'berth sim --replay run.log --step'"]);
    assert_eq!(told.rc, 1, "{told}");
    let log = fs::read_to_string(dir.join("run.log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 32, "{log}");
    assert_eq!((lines[30]["n"].as_u64(), lines[31]["broken"].as_str()), (Some(30), Some(why)), "{log}");

    // The run is made again by the log alone, with the state in which it broke behind its last event.
    let ends = |told: &str| {
        let states = told.lines().filter(|line| line.starts_with("controller: ")).count();
        states == 1 && told.ends_with(&format!("\nbroken: {why}"))
    };
    let told = sim(dir, &["--replay", "run.log"]).fails();
    assert_eq!(told.rc, 1, "{told}");
    assert!(shown(&told.text()) == (1..=30).collect::<Vec<_>>() && ends(&told.text()), "{told}");
    let told = sim(dir, &["--replay", "run.log", "--step", "--until", "28"]).stdin("\n\n\n").fails();
    assert_eq!(told.rc, 1, "{told}");
    assert!(
        shown(&told.text()) == [28, 29, 30] && told.text().ends_with(&format!("\nbroken: {why}")),
        "{told}"
    );
    // Before it breaks it can be looked at as any other.
    let told = sim(dir, &["--replay", "run.log", "--until", "30"]).ok().text();
    assert!(shown(&told) == [30] && !told.contains("broken"), "{told}");
}
