//! Addresses in requests and answers, and the little of HTTP that is not the client's.

use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, Response, header};
use ureq::{Body, ResponseExt};

use crate::error::printable;

/// `scheme://host:port` of a URL.
pub(super) fn origin(url: &str) -> Option<&str> {
    let start = url.find("://")? + 3;
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    Some(&url[..end])
}

/// Who answered, where that is not the server of `base`, which redirected there or named the place.
pub(super) fn elsewhere(base: &str, response: &Response<Body>) -> Option<String> {
    let answered = response.get_uri().to_string();
    let server = origin(&answered).unwrap_or(&answered);
    (server != base).then(|| printable(server, 300))
}

/// Where a redirect leads: a whole address, or a path of the same server.
pub(super) fn join(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}://{rest}", url.split("://").next()?));
    }
    if location.starts_with('/') { origin(url).map(|origin| format!("{origin}{location}")) } else { None }
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
        let url = "https://r.io:5/v2/x?y=1";
        assert_eq!(origin(url), Some("https://r.io:5"));
        assert_eq!(join(url, "/a/b").as_deref(), Some("https://r.io:5/a/b"));
        assert_eq!(join(url, "//s.io/a").as_deref(), Some("https://s.io/a"));
        assert_eq!(join(url, "http://s.io/a").as_deref(), Some("http://s.io/a"));
        assert_eq!(join(url, "a/b"), None);
        assert_ne!(origin("https://r.io:5@evil.io/x"), Some("https://r.io:5"));
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
