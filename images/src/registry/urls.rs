//! Addresses in requests and answers, and the little of HTTP that is not the client's.

use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::{Body, ResponseExt};

use crate::error::printable;

/// `scheme://host:port` of a URL.
pub(super) fn origin(url: &str) -> Option<&str> {
    let start = url.find("://")? + 3;
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    Some(&url[..end])
}

/// Whether both addresses are of one server, however they are written: the case of scheme and host, and the port that a scheme
/// has anyway, make no other one of it (RFC 9110, section 4.2.3).
pub(super) fn is_same(one: &str, other: &str) -> bool {
    server(one).is_some_and(|one| server(other) == Some(one))
}

/// Scheme, host and port; nothing of an address with a user in it, which may stand there to be taken for a host.
fn server(url: &str) -> Option<(String, String, u16)> {
    let (scheme, authority) = origin(url)?.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let usual = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    // Colons in brackets are those of an address of IPv6.
    let end = authority.rfind(']').unwrap_or(0);
    let (host, port) = match authority[end..].find(':') {
        Some(at) => (&authority[..end + at], &authority[end + at + 1..]),
        None => (authority, ""),
    };
    let port = match port {
        "" => usual,
        digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    (!host.is_empty() && !host.contains('@')).then(|| (scheme, host.to_ascii_lowercase(), port))
}

/// Who answered, where that is not the server of `base`, which redirected there or named the place.
pub(super) fn elsewhere(base: &str, response: &Response<Body>) -> Option<String> {
    let answered = response.get_uri().to_string();
    let server = origin(&answered).unwrap_or(&answered);
    (!is_same(server, base)).then(|| printable(server, 300))
}

/// Where the answer to a request for `url` leads.
pub(super) fn location(url: &str, response: &Response<Body>) -> Option<String> {
    join(url, response.headers().get(header::LOCATION)?.to_str().ok()?)
}

/// Where a redirect leads: a whole address, or one that is to be read beside the one that was asked (RFC 3986, section 5.2).
/// Nothing where it is none of a server that speaks HTTP.
fn join(url: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().filter(|text| !text.is_empty())?;
    let server = origin(url)?;
    let target = if let Some((scheme, rest)) = scheme(location) {
        format!("{}:{rest}", scheme.to_ascii_lowercase())
    } else if location.starts_with("//") {
        format!("{}:{location}", scheme(url)?.0)
    } else {
        let asked = url[server.len()..].split(['?', '#']).next().unwrap_or_default();
        let (path, query) = location.split_at(location.find('?').unwrap_or(location.len()));
        let path = match path {
            "" => asked.to_owned(),
            path if path.starts_with('/') => straight(path),
            path => straight(&format!("{}/{path}", &asked[..asked.rfind('/').unwrap_or(0)])),
        };
        format!("{server}{path}{query}")
    };
    let uri = target.parse::<Uri>().ok()?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_http && uri.host().is_some_and(|host| !host.is_empty())).then_some(target)
}

/// Scheme of an address, and what comes after its colon; nothing of one without.
fn scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let is_one = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(fits);
    is_one.then_some((scheme, rest))
}

/// A path from its root without the steps `.` and `..` (RFC 3986, section 5.2.4).
fn straight(path: &str) -> String {
    let mut steps = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        match part {
            "." => {}
            ".." => {
                steps.pop();
            }
            step => steps.push(step),
        }
        if matches!(part, "." | "..") && parts.peek().is_none() {
            steps.push("");
        }
    }
    format!("/{}", steps.join("/"))
}

/// How long a busy registry wants to be left alone: it says seconds, or a time (RFC 9110, section 10.2.3), which may be over.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = httpdate::parse_http_date(text).ok()?;
    Some(time.duration_since(now).unwrap_or_default())
}

/// `k=v&k=v` with everything but unreserved characters escaped.
pub(super) fn query(pairs: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text += key;
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte))
                }
                _ => text += &format!("%{byte:02X}"),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            query(&[("scope", "repository:a/b:pull".to_owned()), ("x", "ä &".to_owned())]),
            "scope=repository%3Aa%2Fb%3Apull&x=%C3%A4%20%26"
        );
    }

    #[test]
    fn redirects() {
        let url = "https://r.io:5/v2/x?y=1/2";
        assert_eq!(origin(url), Some("https://r.io:5"));
        for (location, leads) in [
            ("/a/b", "https://r.io:5/a/b"),
            ("//s.io/a", "https://s.io/a"),
            ("http://s.io/a?b#c", "http://s.io/a?b"),
            ("HTTPS://s.io/a", "https://s.io/a"),
            ("a/b", "https://r.io:5/v2/a/b"),
            ("x?y=2", "https://r.io:5/v2/x?y=2"),
            ("./a:b", "https://r.io:5/v2/a:b"),
            ("../a/./b/../c?d=/../e", "https://r.io:5/a/c?d=/../e"),
            ("../../../a", "https://r.io:5/a"),
            ("a/..", "https://r.io:5/v2/"),
            ("..", "https://r.io:5/"),
            ("/a/.", "https://r.io:5/a/"),
            ("?z=3", "https://r.io:5/v2/x?z=3"),
        ] {
            assert_eq!(join(url, location).as_deref(), Some(leads), "{location}");
        }
        for (url, leads) in [("https://r.io:5", "https://r.io:5/a"), ("http://r.io?x=/y", "http://r.io/a")] {
            assert_eq!(join(url, "a").as_deref(), Some(leads), "{url}");
        }
        for nowhere in
            ["", "#a", "ftp://s.io/a", "http:a", "https://", "mailto:a@s.io", "/a b", "http://s .io"]
        {
            assert_eq!(join(url, nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn a_server_is_the_same_however_its_address_is_written_and_a_stranger_is_not() {
        for (base, other) in [
            ("https://r.io", "https://r.io/v2/x?y"),
            ("https://r.io", "https://r.io:443/"),
            ("https://r.io:443", "HTTPS://R.IO"),
            ("http://r.io", "http://r.io:80/v2/"),
            ("http://127.0.0.1:80", "http://127.0.0.1?x"),
            ("http://r.io:5", "http://R.io:5/"),
            ("https://[fd00::1]", "https://[FD00::1]:443/x"),
            ("https://r.io", "https://r.io:/x"),
        ] {
            assert!(is_same(base, other) && is_same(other, base), "{base} {other}");
        }
        for (base, other) in [
            ("https://r.io", "https://r.io:80/"),
            ("https://r.io", "http://r.io/"),
            ("http://r.io:443", "https://r.io:443"),
            ("https://r.io:443", "https://r.io:443@evil.io/"),
            ("https://r.io", "https://r.io@evil.io/"),
            ("https://r.io", "https://evil.io@r.io/"),
            ("https://r.io", "https://evil.io/https://r.io"),
            ("https://r.io", "https://r.io.evil.io"),
            ("https://r.io", "https://r.io:+443"),
            ("https://r.io", "https://r.io:65979"),
            ("https://[fd00::1]", "https://[fd00::1:443]"),
            ("ftp://r.io", "ftp://r.io"),
            ("r.io", "r.io"),
            ("https://", "https://"),
        ] {
            assert!(!is_same(base, other) && !is_same(other, base), "{base} {other}");
        }
    }

    #[test]
    fn a_busy_registry_says_seconds_or_a_time() {
        let now = httpdate::parse_http_date("Fri, 27 Nov 2026 10:00:00 GMT").unwrap();
        let asked = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Fri, 27 Nov 2026 10:00:05 GMT"), Some(Duration::from_secs(5)));
        assert_eq!(asked("Fri, 27 Nov 2026 09:00:00 GMT"), Some(Duration::ZERO));
        for odd in ["-1", "soon", "1.5", ""] {
            assert_eq!(asked(odd), None, "{odd}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
