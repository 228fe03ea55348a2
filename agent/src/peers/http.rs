//! As much of HTTP/1.1 as two nodes need for GET and HEAD with ranges (RFC 9112, RFC 9110 section 14). Every length is bounded; what
//! is not understood is an error, and nothing is guessed.

use std::io::{self, Read};

/// Most bytes of a request's or an answer's head.
const MOST: usize = 8 << 10;

/// A head: its first line, and its fields with names in lower case.
pub(super) struct Head {
    pub(super) line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let mut all = self.fields.iter().filter(|(of, _)| of == name);
        // One that is there twice says nothing.
        all.next().filter(|_| all.next().is_none()).map(|(_, value)| value.as_str())
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

/// Reads a head and not a byte more; `None` where the other side is done.
pub(super) fn read_head(input: &mut impl Read) -> io::Result<Option<Head>> {
    let mut bytes = Vec::with_capacity(256);
    let mut one = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if bytes.len() == MOST {
            return Err(invalid("its head is too long"));
        }
        match input.read(&mut one) {
            Ok(0) if bytes.is_empty() => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => bytes.push(one[0]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    parse(&bytes).map(Some)
}

fn parse(bytes: &[u8]) -> io::Result<Head> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("its head is no text"))?;
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap_or_default().to_string();
    let field = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a field of its head has no name"))?;
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(invalid("a field of its head has no name"));
        }
        Ok((name.to_ascii_lowercase(), value.trim().to_string()))
    };
    Ok(Head { line, fields: lines.map(field).collect::<Result<_, _>>()? })
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) head_only: bool,
    pub(super) what: What,
    /// The first byte, and the last where it is named.
    pub(super) range: Option<(u64, Option<u64>)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Whether this speaks the distribution API.
    Api,
    Manifest {
        name: String,
        /// A digest or a tag.
        reference: String,
    },
    Blob {
        name: String,
        digest: String,
    },
}

/// Why a request is not answered as it wants: status and words.
pub(super) type Refused = (u16, &'static str);

impl Request {
    pub(super) fn of(head: &Head) -> Result<Request, Refused> {
        let words: Vec<&str> = head.line.split(' ').collect();
        let [method, path, "HTTP/1.1"] = words[..] else { return Err((400, "Bad Request")) };
        let head_only = match method {
            "GET" => false,
            "HEAD" => true,
            _ => return Err((405, "Method Not Allowed")),
        };
        if head.field("content-length").is_some_and(|length| length != "0")
            || head.field("transfer-encoding").is_some()
        {
            return Err((400, "Bad Request"));
        }
        let range = head.field("range").map(|text| range(text).ok_or((416, "Range Not Satisfiable")));
        let what = what(path).ok_or((404, "Not Found"))?;
        Ok(Request { head_only, what, range: range.transpose()? })
    }
}

/// `bytes=FIRST-[LAST]`, one range alone.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (first, last) = (number(first)?, if last.is_empty() { None } else { Some(number(last)?) });
    last.is_none_or(|last| first <= last).then_some((first, last))
}

fn what(path: &str) -> Option<What> {
    let rest = path.strip_prefix("/v2/")?;
    if rest.is_empty() {
        return Some(What::Api);
    }
    let (rest, digest) = rest.rsplit_once('/')?;
    let (name, kind) = rest.rsplit_once('/')?;
    if name.is_empty() || digest.is_empty() {
        return None;
    }
    let (name, digest) = (name.to_string(), digest.to_string());
    match kind {
        "manifests" => Some(What::Manifest { name, reference: digest }),
        "blobs" => Some(What::Blob { name, digest }),
        _ => None,
    }
}

/// Status of an answer.
pub(super) fn status(head: &Head) -> io::Result<u16> {
    let status = head.line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.ok_or_else(|| invalid("it does not speak HTTP/1.1"))
}

/// First byte, and length of all, of `bytes FIRST-LAST/ALL`.
pub(super) fn content_range(text: &str) -> Option<(u64, u64)> {
    let (span, all) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let (first, last, all): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, all.parse().ok()?);
    (first <= last && last.checked_add(1)? == all).then_some((first, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<Request, Refused> {
        Request::of(&read_head(&mut text.as_bytes()).unwrap().unwrap())
    }

    #[test]
    fn requests() {
        let blob = |name: &str, digest: &str| What::Blob { name: name.into(), digest: digest.into() };
        let got =
            request("GET /v2/r.io:5000/a/b/blobs/sha256:1 HTTP/1.1\r\nHost: x\r\nRange: bytes=5-\r\n\r\n")
                .unwrap();
        assert_eq!(
            got,
            Request { head_only: false, what: blob("r.io:5000/a/b", "sha256:1"), range: Some((5, None)) }
        );
        let got = request("HEAD /v2/r/x/manifests/sha256:2 HTTP/1.1\r\nrange: bytes=1-2\r\n\r\n").unwrap();
        assert!(
            got.head_only && got.range == Some((1, Some(2))) && matches!(got.what, What::Manifest { .. })
        );
        assert_eq!(request("GET /v2/ HTTP/1.1\r\n\r\n").unwrap().what, What::Api);
        for (text, status) in [
            ("POST /v2/r/x/blobs/sha256:1 HTTP/1.1\r\n\r\n", 405),
            ("GET /v2/r/x/blobs/sha256:1 HTTP/1.0\r\n\r\n", 400),
            ("GET /v2/r/x/blobs/sha256:1\r\n\r\n", 400),
            ("GET /etc/passwd HTTP/1.1\r\n\r\n", 404),
            ("GET /v2/blobs/sha256:1 HTTP/1.1\r\n\r\n", 404),
            ("GET /v2/r/x/tags/list HTTP/1.1\r\n\r\n", 404),
            ("GET /v2/r/x/blobs/sha256:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
            ("GET /v2/r/x/blobs/sha256:1 HTTP/1.1\r\nRange: bytes=9-1\r\n\r\n", 416),
            ("GET /v2/r/x/blobs/sha256:1 HTTP/1.1\r\nRange: bytes=0-1,5-6\r\n\r\n", 416),
            ("GET /v2/r/x/blobs/sha256:1 HTTP/1.1\r\nRange: bytes=-5\r\n\r\n", 416),
        ] {
            assert_eq!(request(text).unwrap_err().0, status, "{text}");
        }
    }

    #[test]
    fn heads_are_bounded_and_whole() {
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
        assert!(read_head(&mut &b"GET / HTTP"[..]).is_err());
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(MOST));
        assert!(read_head(&mut long.as_bytes()).is_err());
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nno name\r\n\r\n"[..]).is_err());
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nX\xff: 1\r\n\r\n"[..]).is_err());
        let twice = read_head(&mut &b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\n\r\nrest"[..]).unwrap().unwrap();
        assert_eq!((twice.field("a"), status(&twice).unwrap()), (None, 200));
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for bad in ["bytes 5-8/10", "bytes 9-5/10", "5-9/10", "bytes 5-9/*", "bytes 0-18446744073709551615/0"]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
