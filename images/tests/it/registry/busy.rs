//! Registries that throttle, cut connections, begin anew or answer nothing: survived, waited for, or given up with a reason.

use super::{image, pattern};
use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::{Bench, ensure_text, only_layer, resolve_text};
use berth_images::{Credentials, ErrorKind};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn busy_registries_and_cut_connections_are_survived() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { busy: 2, cut_after: Some(1 << 20), ..Behaviour::default() },
    );
    let image =
        ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
            .unwrap();
    assert_eq!(std::fs::read(only_layer(&image).join("big")).unwrap(), pattern(3 << 20));
    assert!(fake.count(" range") >= 2, "{:?}", fake.log());
}

/// Hands requests on to a registry, one after the other. In the middle of the first answer of more than `most` bytes it goes away, and comes
/// back where it was; then it is true.
fn restarting(to: String, most: usize) -> (String, Arc<AtomicBool>) {
    let mut listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (place, back) = (address.clone(), Arc::new(AtomicBool::new(false)));
    let is_back = Arc::clone(&back);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let most = if is_back.load(Ordering::SeqCst) { usize::MAX } else { most };
            let Some(answer) = asked(&stream, &to) else { continue };
            let _ = stream.write_all(&answer[..most.min(answer.len())]);
            drop(stream);
            if answer.len() > most {
                drop(listener);
                // For longer than who does not wait for it takes to give it up.
                std::thread::sleep(Duration::from_millis(1500));
                listener = loop {
                    match TcpListener::bind(&place) {
                        Ok(again) => break again,
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                };
                is_back.store(true, Ordering::SeqCst);
            }
        }
    });
    (address, back)
}

/// What a registry answers to the one request of a connection.
fn asked(stream: &TcpStream, to: &str) -> Option<Vec<u8>> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let mut other = TcpStream::connect(to).ok()?;
    other.write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes()).ok()?;
    other.shutdown(Shutdown::Write).ok()?;
    let mut answer = Vec::new();
    other.read_to_end(&mut answer).ok()?;
    let end = answer.windows(2).position(|two| two == b"\r\n")? + 2;
    drop(answer.splice(end..end, *b"Connection: close\r\n"));
    Some(answer)
}

#[test]
fn a_registry_that_begins_anew_in_the_middle_of_a_blob_is_waited_for() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour::default());
    let (address, back) = restarting(fake.address.clone(), 1 << 20);
    let image =
        ensure_text(&bench.store(), &format!("{address}/x:1"), &Credentials::anonymous(), true).unwrap();
    assert_eq!(std::fs::read(only_layer(&image).join("big")).unwrap(), pattern(3 << 20));
    assert!(back.load(Ordering::SeqCst), "it was not away");
    assert_eq!(fake.count(" range"), 1, "{:?}", fake.log());
}

#[test]
fn a_registry_without_ranges_that_cuts_is_given_up_with_a_message() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { no_ranges: true, cut_after: Some(1 << 20), ..Behaviour::default() },
    );
    let error =
        ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
            .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("broke at byte 1048576"), "{error}");
    assert!(fake.log().len() < 30, "{:?}", fake.log());
    bench.assert_empty();
}

#[test]
fn a_registry_that_stays_busy_is_reported() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour { busy: 1000, ..Behaviour::default() });
    let error = resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("503") && error.contains("try again later"), "{error}");
    assert_eq!(fake.log().len(), 5);
}

#[test]
fn a_registry_that_throttles_is_left_alone_for_as_long_as_it_says() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let soon = || httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3));
    let waits: [&dyn Fn() -> String; 2] = [&|| "2".to_owned(), &soon];
    for wait in waits {
        let wait = wait();
        let busy_with = Some(("429 Too Many Requests", wait.clone()));
        let fake =
            FakeRegistry::new(bench.layout(), Behaviour { busy: 1, busy_with, ..Behaviour::default() });
        let begun = std::time::Instant::now();
        resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true).unwrap();
        // A date has whole seconds.
        assert!(begun.elapsed() >= Duration::from_secs(1), "{wait}: {:?}", begun.elapsed());
        assert!(wait != "2" || begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(fake.log().len(), 2);
    }
    // Nobody waits for an hour, and nobody asks before.
    let busy_with = Some(("429 Too Many Requests", "3600".to_owned()));
    let fake = FakeRegistry::new(bench.layout(), Behaviour { busy: 1, busy_with, ..Behaviour::default() });
    let error = resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("429") && error.contains("left alone for 3600 s"), "{error}");
    assert_eq!(fake.log().len(), 1);
}

#[test]
fn a_busy_token_server_is_asked_again_and_reported_after_five_times() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let anybody = Some(String::new());
    let busy = |busy_tokens, status: &'static str| Behaviour {
        token: anybody.clone(),
        busy_tokens,
        busy_with: Some((status, "0".into())),
        ..Behaviour::default()
    };
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        let fake = FakeRegistry::new(bench.layout(), busy(3, status));
        resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true).unwrap();
        assert_eq!(fake.count("/token"), 4, "{:?}", fake.log());
    }
    let fake = FakeRegistry::new(bench.layout(), busy(1000, "503 Service Unavailable"));
    let error = resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("token server") && error.contains("503"), "{error}");
    assert_eq!(fake.count("/token"), 5, "{:?}", fake.log());
}
