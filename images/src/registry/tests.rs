//! Clients of registries that are slow, stop or dribble, with less patience than people have.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::trials::ATTEMPTS;
use super::*;

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(60);

/// A registry that says this to each request and then nothing, and how often it was asked.
fn stalling(said: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            count.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(said.as_bytes());
            open.push(stream);
        }
    });
    (address, asked)
}

fn client(address: &str, answer: Duration, read: Duration) -> Client {
    let name =
        RegistryRef { user: None, registry: address.into(), repository: "x".into(), tag: None, digest: None };
    let patience = Patience { connect: LONG, answer, read };
    let (none, registries) = (Credentials::anonymous(), Registries::default());
    Client::at(format!("http://{address}"), name, None, &none, &registries, Access::Pull, &patience).unwrap()
}

#[test]
fn a_registry_that_stalls_is_asked_again_and_then_given_up() {
    let (address, asked) = stalling("");
    let error = client(&address, SOON, LONG).manifest("1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("no answer in time"), "{text}");
    // It may be slower to notice than the client is to go.
    let all = || asked.load(Ordering::Relaxed) == usize::try_from(ATTEMPTS).unwrap();
    assert!((0..2000).any(|_| all() || (std::thread::sleep(Duration::from_millis(10)), false).1));
}

#[test]
fn where_a_registry_leads_is_not_asked_without_the_proxy_that_it_needs() {
    let said =
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://storage.example/x\r\nContent-Length: 0\r\n\r\n";
    let (address, asked) = stalling(said);
    let mut client = client(&address, LONG, LONG);
    let why = Error::new(ErrorKind::Unsupported, "ALL_PROXY", "names no proxy");
    client.agents.http = Err(why.clone());
    client.agents.unproxied = unproxied::Unproxied::default();
    assert_eq!(client.manifest("1").unwrap_err(), why);
    assert_eq!(asked.load(Ordering::Relaxed), 1, "it is not asked again for that");
}

#[test]
fn an_answer_that_stalls_is_given_up() {
    let (address, asked) = stalling("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{");
    let error = client(&address, LONG, SOON).manifest("1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("no answer in time"), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// Gives a blob of `whole` after the offset of each request, `piece` bytes at a time, `pause` in between, and `most` at once: then
/// nothing more, and the connection stays open.
fn dribbling(whole: &'static [u8], piece: usize, pause: Duration, most: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(|line| line.ok());
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                count.fetch_add(1, Ordering::Relaxed);
                let range = head.iter().find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned)
                });
                let from =
                    range.map_or(0, |range| range.split('-').next().unwrap().parse::<usize>().unwrap());
                let total = whole.len();
                let status = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}\r\nContent-Length: {}\r\n\r\n",
                    total - 1,
                    total - from
                );
                let _ = stream.write_all(status.as_bytes());
                for bytes in whole[from..(from + most).min(total)].chunks(piece) {
                    if stream.write_all(bytes).is_err() {
                        return;
                    }
                    std::thread::sleep(pause);
                }
                std::thread::sleep(LONG);
            });
        }
    });
    (address, asked)
}

fn read_blob(address: &str, read: Duration, whole: &[u8]) -> std::io::Result<Vec<u8>> {
    let ways = ways::Ways::of_one(client(address, LONG, read));
    let digest = Digest::of(Algorithm::Sha256, whole);
    let mut got = Vec::new();
    span::Span::open(&ways, BlobKind::Blob, &digest, 0, None, 0).unwrap().read_to_end(&mut got)?;
    Ok(got)
}

#[test]
fn a_blob_that_stalls_is_gone_on_with_where_it_stopped() {
    let whole: &'static [u8] = (0..400_000u32).map(|n| n.to_le_bytes()[0] ^ 7).collect::<Vec<u8>>().leak();
    let (address, asked) = dribbling(whole, 50_000, Duration::ZERO, 150_000);
    assert!(read_blob(&address, Duration::from_millis(300), whole).unwrap() == whole);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[test]
fn a_blob_that_comes_byte_by_byte_is_given_up_in_the_end() {
    let (address, asked) = dribbling(&[7; 100_000], 1, Duration::from_millis(20), 100_000);
    let error = read_blob(&address, Duration::from_millis(200), &[7; 100_000]).unwrap_err().to_string();
    assert!(error.contains("less than 65536 bytes") && error.contains(&address), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 6, "once, and five times more");
}

/// A registry that answers each request, told by its first line, at once with the first text, and then with the bytes of the second one
/// for as long as anybody listens.
fn trickling(answer: fn(&str, &str) -> (String, &'static str)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let own = address.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let own = own.clone();
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(|line| line.ok());
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let (at_once, slowly) = answer(head.first().map_or("", String::as_str), &own);
                let _ = stream.write_all(at_once.as_bytes());
                for byte in slowly.bytes().cycle() {
                    if stream.write_all(&[byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    address
}

/// The start of an answer that nobody waits for the end of.
fn long(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: 60000\r\n\r\n")
}

const PATIENCE: Duration = Duration::from_millis(200);

#[test]
fn small_answers_that_dribble_are_given_up() {
    let dribbles = |address: &str| {
        let error = client(address, LONG, PATIENCE).manifest("1").unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{text}");
        assert!(text.contains("no answer in time") && text.contains(address), "{text}");
        text
    };
    let manifest = trickling(|_, _| (long("200 OK"), " "));
    dribbles(&manifest);
    // What stands behind all bytes counts, too.
    dribbles(&trickling(|_, _| {
        let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n";
        (whole.to_owned(), "more: x\r\n")
    }));
    let token = dribbles(&trickling(|asked, own| {
        if asked.contains("/token") {
            return (long("200 OK"), " ");
        }
        let wants =
            format!("WWW-Authenticate: Bearer realm=\"http://{own}/token\"\r\nContent-Length: 0\r\n\r\n");
        (format!("HTTP/1.1 401 Unauthorized\r\n{wants}"), "")
    }));
    assert!(token.contains("token server"), "{token}");
    let ways = ways::Ways::of_one(client(&manifest, LONG, PATIENCE));
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let signatures = signatures::collect(&ways, &digest).unwrap_err().to_string();
    assert!(signatures.contains("no answer in time"), "{signatures}");
}

#[test]
fn words_of_a_refusal_that_dribble_are_not_waited_for() {
    let refuses = trickling(|_, _| (long("403 Forbidden"), "no "));
    let refused = client(&refuses, LONG, PATIENCE).manifest("1").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    assert!(refused.to_string().contains("403"), "{refused}");
    // Also where a blob was asked for, which may take as long as it takes.
    let ways = ways::Ways::of_one(client(&refuses, LONG, PATIENCE));
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let blob = span::Span::open(&ways, BlobKind::Blob, &digest, 0, None, 0).err().unwrap();
    assert_eq!(blob.kind(), ErrorKind::Denied, "{blob}");
}

#[test]
fn a_blob_without_ranges_that_dribbles_is_given_up_also_where_it_starts_over() {
    let address = trickling(|_, _| (long("200 OK"), "x"));
    let error = read_blob(&address, PATIENCE, b"x").unwrap_err().to_string();
    assert!(error.contains("less than 65536 bytes") && error.contains(&address), "{error}");
}

#[test]
fn a_mirror_is_waited_for_less_and_an_upload_more() {
    let answer = |access: Access, mirror| Patience::of(&access, mirror).answer;
    assert!(answer(Access::Pull, true) < answer(Access::Pull, false));
    assert!(answer(Access::Push { from: None }, false) > answer(Access::Pull, false));
}
