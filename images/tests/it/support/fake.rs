//! A small HTTP server that serves an OCI layout as a registry and misbehaves on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_images::Digest;

use super::blob_path;

#[derive(Clone, Default)]
pub struct Behaviour {
    /// So many answers are 503 first, with `Retry-After: 0`.
    pub busy: u32,
    /// With this status and `Retry-After` instead.
    pub busy_with: Option<(&'static str, String)>,
    /// So many answers of the token server are, too.
    pub busy_tokens: u32,
    /// Blobs are cut after so many bytes of one answer.
    pub cut_after: Option<usize>,
    /// Ranges are not understood.
    pub no_ranges: bool,
    /// Blobs over so many bytes have one byte changed.
    pub corrupt: Option<usize>,
    /// Every answer is this one.
    pub answers: Option<&'static str>,
    /// With this in it.
    pub says: &'static str,
    /// Wants a bearer token, given to this `user:password` (base64), or to anyone for "".
    pub token: Option<String>,
    /// Tokens are given for this identity token alone, by OAuth 2's way.
    pub identity: Option<&'static str>,
    /// Tokens work for so many requests.
    pub token_uses: Option<u32>,
    /// Answers wait so long.
    pub slow: Duration,
    /// The digest header lies.
    pub wrong_header: bool,
    /// Every blob redirects to this address.
    pub redirect: Option<String>,
    /// Later ranges are given when so many were asked for at the same time.
    pub together: usize,
    /// Blobs over so many bytes are given when this is true, or after 20 seconds.
    pub held: Option<(usize, Arc<AtomicBool>)>,
    /// HEAD says of every manifest that it is this one.
    pub head_says: Option<Digest>,
    /// HEAD is refused.
    pub no_head: bool,
    /// HEAD of blobs redirects, too.
    pub redirect_head: bool,
    /// Whatever is read redirects, too.
    pub redirect_all: bool,
    /// Every answer but tokens' is 401, with its own token server.
    pub lures: bool,
    /// Blobs are to be uploaded to this address.
    pub uploads_to: Option<String>,
    /// Blobs are elsewhere, and said to be there by addresses that are to be read beside the ones that were asked.
    pub beside: bool,
    /// With tokens of this `user:password` (base64), nothing is there.
    pub hides_from: Option<String>,
    /// What comes after the start is given from the start.
    pub first_range_only: bool,
    /// Ranges have at most so many bytes.
    pub short_ranges: Option<usize>,
    /// Those of what comes after the start have.
    pub short_later: Option<usize>,
    /// No answer to GET says its length.
    pub no_length: bool,
    /// HEAD is answered as if everything were there.
    pub has_all: bool,
    /// So many uploads end with a closed connection.
    pub cut_uploads: u32,
    /// So many chunks do, after half of each is kept.
    pub cut_chunks: u32,
    /// Says of each chunk that nothing came.
    pub empty_uploads: bool,
    /// So many uploads are forgotten at their second chunk.
    pub lost_uploads: u32,
    /// Longer bodies are refused.
    pub largest_body: Option<usize>,
    /// Each chunk but the last must have so many bytes, and whoever asks for an upload is told so.
    pub least_chunk: Option<usize>,
    /// This repository has only what was uploaded into it, and nothing is mounted there: no token allows it.
    pub apart: Option<&'static str>,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    log: Vec<String>,
    tokens: BTreeMap<String, u32>,
    issued: u32,
    /// Requests for later ranges so far.
    together: usize,
    /// What came of uploads, by their numbers.
    uploads: Vec<Option<Vec<u8>>>,
}

pub struct FakeRegistry {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl FakeRegistry {
    /// Serves `layout` under every repository name; tags name its only image.
    pub fn new(layout: PathBuf, behaviour: Behaviour) -> Self {
        Self::at("127.0.0.1:0", layout, behaviour)
    }

    /// The same at an address.
    pub fn at(place: &str, layout: PathBuf, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(place).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State { behaviour, ..State::default() }));
        let shared = Arc::clone(&state);
        let own = address.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, layout, own) = (Arc::clone(&shared), layout.clone(), own.clone());
                std::thread::spawn(move || while serve(&stream, &shared, &layout, &own).is_some() {});
            }
        });
        Self { address, state }
    }

    /// Requests so far, as `METHOD path`, with ` range` where they were for what comes after the start, and ` auth` where they had one.
    pub fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.log().iter().filter(|line| line.contains(part)).count()
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>, layout: &std::path::Path, own: &str) -> Option<()> {
    let mut input = BufReader::new(stream);
    let mut next = || {
        let mut line = String::new();
        let read = input.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    };
    let first = next()?;
    let mut headers = BTreeMap::new();
    loop {
        let line = next()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next()?, words.next()?.to_owned());
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    input.read_exact(&mut body).ok()?;
    let mut line = format!("{method} {path}");
    if headers.get("range").is_some_and(|range| !range.starts_with("bytes=0-")) {
        line += " range";
    }
    if headers.contains_key("authorization") {
        line += " auth";
    }
    let behaviour = {
        let mut state = state.lock().unwrap();
        state.log.push(line);
        let is_token = path.starts_with("/token");
        let Behaviour { busy, busy_tokens, .. } = &mut state.behaviour;
        let left = if is_token && *busy_tokens > 0 { busy_tokens } else { busy };
        if *left > 0 {
            *left -= 1;
            let busy_with = state.behaviour.busy_with.clone();
            drop(state);
            let (status, wait) = busy_with.unwrap_or(("503 Service Unavailable", "0".into()));
            return answer(stream, status, &[("Retry-After", &wait)], b"");
        }
        state.behaviour.clone()
    };
    std::thread::sleep(behaviour.slow);
    if let Some(status) = behaviour.answers {
        let said = if method == "HEAD" { "" } else { behaviour.says };
        return answer(stream, status, &[], said.as_bytes());
    }
    if path.starts_with("/token") {
        if let Some(identity) = behaviour.identity {
            let form = String::from_utf8_lossy(&body);
            let has = |field: &str| form.split('&').any(|found| found == field);
            let refresh = format!("refresh_token={identity}");
            let wanted =
                ["grant_type=refresh_token", &refresh, "service=fake", "scope=repository%3Ax%3Apull"];
            if method != "POST" || !wanted.iter().all(|field| has(field)) {
                return answer(stream, "401 Unauthorized", &[], br#"{"details":"no such identity token"}"#);
            }
            let mut state = state.lock().unwrap();
            state.issued += 1;
            let token = format!("token{}", state.issued);
            state.tokens.insert(token.clone(), behaviour.token_uses.unwrap_or(u32::MAX));
            return answer(stream, "200 OK", &[], format!(r#"{{"access_token":"{token}"}}"#).as_bytes());
        }
        let wanted = behaviour.token.unwrap_or_default();
        if !wanted.is_empty() && headers.get("authorization") != Some(&format!("Basic {wanted}")) {
            return answer(
                stream,
                "401 Unauthorized",
                &[],
                br#"{"details":"incorrect username or password"}"#,
            );
        }
        let mut state = state.lock().unwrap();
        state.issued += 1;
        let hidden = behaviour.hides_from.is_some_and(|login| {
            headers.get("authorization").is_some_and(|shown| *shown == format!("Basic {login}"))
        });
        let token = format!("{}{}", if hidden { "hidden" } else { "token" }, state.issued);
        state.tokens.insert(token.clone(), behaviour.token_uses.unwrap_or(u32::MAX));
        return answer(stream, "200 OK", &[], format!(r#"{{"token":"{token}"}}"#).as_bytes());
    }
    if behaviour.lures {
        let challenge = format!(r#"Bearer realm="http://{own}/token",service="lure""#);
        return answer(stream, "401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"");
    }
    if behaviour.token.is_some() {
        let mut state = state.lock().unwrap();
        let token = headers.get("authorization").and_then(|a| a.strip_prefix("Bearer ")).unwrap_or_default();
        match state.tokens.get_mut(token) {
            Some(uses) if *uses > 0 => *uses -= 1,
            _ => {
                drop(state);
                let challenge =
                    format!(r#"Bearer realm="http://{own}/token",service="fake",scope="repository:x:pull""#);
                return answer(
                    stream,
                    "401 Unauthorized",
                    &[("WWW-Authenticate", &challenge)],
                    if method == "HEAD" {
                        b""
                    } else {
                        br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#
                    },
                );
            }
        }
    }
    let apart = behaviour.apart.is_some_and(|name| path.starts_with(&format!("/v2/{name}/")));
    match method {
        "POST" if apart && path.contains("?mount=") => {
            let challenge = format!(
                r#"Bearer realm="http://{own}/token",service="fake",scope="repository:x:pull",error="insufficient_scope""#
            );
            return answer(
                stream,
                "401 Unauthorized",
                &[("WWW-Authenticate", &challenge)],
                br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
            );
        }
        _ if behaviour.largest_body.is_some_and(|most| body.len() > most) => {
            return answer(stream, "413 Content Too Large", &[], b"");
        }
        "POST" => {
            let mut state = state.lock().unwrap();
            let to = match &behaviour.uploads_to {
                _ if behaviour.beside => "../uploads/./".to_owned(),
                to => format!("{}{path}", to.as_deref().unwrap_or_default()),
            };
            let place = format!("{to}session{}?state=x", state.uploads.len());
            state.uploads.push(Some(Vec::new()));
            drop(state);
            let least = behaviour.least_chunk.map(|least| least.to_string());
            let mut headers = vec![("Location", place.as_str())];
            headers.extend(least.as_deref().map(|least| ("OCI-Chunk-Min-Length", least)));
            return answer(stream, "202 Accepted", &headers, b"");
        }
        "PATCH" | "GET" if path.contains("/blobs/uploads/") => {
            return chunk(stream, state, (method, &path), headers.get("content-range"), &body);
        }
        "PUT" => {
            {
                let mut state = state.lock().unwrap();
                if state.behaviour.cut_uploads > 0 {
                    state.behaviour.cut_uploads -= 1;
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                    return None;
                }
            }
            if let Some(number) = session(&path) {
                let mut state = state.lock().unwrap();
                let Some(mut all) = state.uploads[number].take() else {
                    drop(state);
                    return answer(stream, "404 Not Found", &[], b"");
                };
                all.extend_from_slice(&body);
                body = all;
            }
            let found = Digest::of(berth_images::Algorithm::Sha256, &body);
            let said = path.split_once("digest=").map(|(_, digest)| digest.replace("%3A", ":"));
            if said.is_some_and(|said| said != found.to_string()) {
                return answer(stream, "400 Bad Request", &[], br#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
            }
            super::put_blob(layout, &found, &body);
            return answer(stream, "201 Created", &[], b"");
        }
        "HEAD" => {
            if behaviour.no_head {
                return answer(stream, "405 Method Not Allowed", &[], b"");
            }
            if let (true, Some(target)) =
                (behaviour.redirect_head && path.contains("/blobs/"), &behaviour.redirect)
            {
                let place = format!("{target}{path}");
                return answer(stream, "307 Temporary Redirect", &[("Location", &place)], b"");
            }
            if behaviour.has_all {
                return answer(stream, "200 OK", &[], b"");
            }
            let named = path.rsplit('/').next()?;
            let digest = named.parse().ok().or_else(|| path.contains("/manifests/").then(|| tagged(layout)));
            let uploaded = format!("digest={}", named.replace(':', "%3A"));
            let there = !apart || state.lock().unwrap().log.iter().any(|line| line.contains(&uploaded));
            let known = digest.filter(|digest| there && blob_path(layout, digest).exists());
            return match known {
                Some(digest) => {
                    let said = behaviour.head_says.filter(|_| path.contains("/manifests/")).unwrap_or(digest);
                    answer(stream, "200 OK", &[("Docker-Content-Digest", &said.to_string())], b"")
                }
                None => answer(stream, "404 Not Found", &[], b""),
            };
        }
        _ => {}
    }
    let blob = path.contains("/blobs/");
    if (blob || behaviour.redirect_all)
        && let Some(target) = &behaviour.redirect
    {
        return answer(stream, "307 Temporary Redirect", &[("Location", &format!("{target}{path}"))], b"");
    }
    if blob && behaviour.beside {
        let place = format!("../kept/{}?signed=/x", path.rsplit('/').next()?);
        return answer(stream, "307 Temporary Redirect", &[("Location", &place)], b"");
    }
    let digest = match path.split('?').next()?.rsplit('/').next()?.parse::<Digest>() {
        Ok(digest) => digest,
        Err(_) => tagged(layout),
    };
    let hidden = headers.get("authorization").is_some_and(|shown| shown.starts_with("Bearer hidden"));
    let Some(mut bytes) = std::fs::read(blob_path(layout, &digest)).ok().filter(|_| !hidden) else {
        return answer(
            stream,
            "404 Not Found",
            &[],
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
        );
    };
    if let (true, Some((above, go))) = (blob, &behaviour.held)
        && bytes.len() > *above
    {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !go.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    if blob && behaviour.corrupt.is_some_and(|above| bytes.len() > above) {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    let mut status = "200 OK";
    let total = bytes.len();
    let mut range = String::new();
    let begins = headers.get("range").is_some_and(|range| range.starts_with("bytes=0-"));
    let no_ranges = behaviour.no_ranges || (behaviour.first_range_only && !begins);
    if let (Some(asked), false) = (headers.get("range"), no_ranges) {
        let (start, last) = asked.strip_prefix("bytes=")?.split_once('-')?;
        let start: usize = start.parse().ok()?;
        let end = last.parse::<usize>().map_or(total, |last| total.min(last + 1));
        let short = behaviour.short_ranges.or(behaviour.short_later.filter(|_| start > 0));
        let end = short.map_or(end, |most| end.min(start + most));
        range = format!("bytes {start}-{}/{total}", end - 1);
        bytes.truncate(end);
        bytes.drain(..start);
        if start > 0 && behaviour.together > 0 {
            state.lock().unwrap().together += 1;
            let deadline = Instant::now() + Duration::from_secs(20);
            while state.lock().unwrap().together < behaviour.together {
                if Instant::now() > deadline {
                    // The client asks for one after the other.
                    return None;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        status = "206 Partial Content";
    }
    let named =
        if behaviour.wrong_header { format!("sha256:{}", "0".repeat(64)) } else { digest.to_string() };
    let mut extra = vec![("Docker-Content-Digest", named.as_str())];
    if !range.is_empty() {
        extra.push(("Content-Range", &range));
    }
    if let (true, Some(cut)) = (blob, behaviour.cut_after)
        && cut < bytes.len()
    {
        let head = head(status, &extra, bytes.len());
        let mut stream = stream;
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(&bytes[..cut]).ok()?;
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return None;
    }
    if behaviour.no_length {
        let mut stream = stream;
        let head = head(status, &extra, 0).replace("Content-Length: 0", "Connection: close");
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(&bytes).ok()?;
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return None;
    }
    answer(stream, status, &extra, &bytes)
}

fn session(path: &str) -> Option<usize> {
    path.split_once("/session")?.1.split('?').next()?.parse().ok()
}

/// A chunk of an upload, or the question how far it is.
fn chunk(
    stream: &TcpStream,
    state: &Mutex<State>,
    (method, path): (&str, &str),
    range: Option<&String>,
    body: &[u8],
) -> Option<()> {
    let mut state = state.lock().unwrap();
    let state = &mut *state;
    let Some(all) = state.uploads[session(path)?].as_mut() else {
        return answer(stream, "404 Not Found", &[], b"");
    };
    let mut status = "204 No Content";
    if method == "PATCH" {
        let (from, last) = range?.split_once('-')?;
        let (from, last): (usize, usize) = (from.parse().ok()?, last.parse().ok()?);
        if last + 1 - from != body.len() {
            return answer(stream, "400 Bad Request", &[], b"");
        }
        if from > 0 && state.behaviour.lost_uploads > 0 {
            state.behaviour.lost_uploads -= 1;
            state.uploads[session(path)?] = None;
            return answer(stream, "404 Not Found", &[], b"");
        }
        if from != all.len() {
            return answer(stream, "416 Range Not Satisfiable", &[], b"");
        }
        if state.behaviour.cut_chunks > 0 {
            state.behaviour.cut_chunks -= 1;
            all.extend_from_slice(&body[..body.len() / 2]);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return None;
        }
        all.extend_from_slice(body);
        status = "202 Accepted";
    }
    if state.behaviour.empty_uploads {
        all.clear();
    }
    let range = format!("0-{}", all.len().saturating_sub(1));
    answer(stream, status, &[("Location", path), ("Range", &range)], b"")
}

/// What every tag means.
fn tagged(layout: &std::path::Path) -> Digest {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap()
}

fn head(status: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text + "\r\n"
}

fn answer(mut stream: &TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<()> {
    stream.write_all(head(status, headers, body.len()).as_bytes()).ok()?;
    stream.write_all(body).ok()
}
