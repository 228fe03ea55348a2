//! The `WWW-Authenticate` header: what a registry wants to see before it answers (RFC 9110, section 11).

/// One way to authenticate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The first challenge that we can answer; Bearer before Basic.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in split(header) {
            if scheme.eq_ignore_ascii_case("bearer") {
                let get = |name: &str| {
                    parameters.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone())
                };
                if let Some(realm) = get("realm") {
                    return Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// Splits `Scheme k="v", k=v, Scheme2 …`.
fn split(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c == ',' || c.is_whitespace()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let after = tail.trim_start();
        if let Some(value) = after.strip_prefix('=') {
            let (value, tail) = take_value(value.trim_start());
            if let Some((_, parameters)) = found.last_mut() {
                parameters.push((word.to_owned(), value));
            }
            rest = tail;
        } else {
            if !word.is_empty() {
                found.push((word.to_owned(), Vec::new()));
            }
            rest = after;
        }
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
    }
    found
}

fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges() {
        let one = |text| parse([text].into_iter());
        assert_eq!(one(r#"Basic realm="Registry""#), Some(Challenge::Basic));
        assert_eq!(
            one(
                r#"Basic realm="x", Bearer realm="https://a/t",service=s , scope="repository:a/b:pull,push""#
            ),
            Some(Challenge::Bearer {
                realm: "https://a/t".to_owned(),
                service: Some("s".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned())
            })
        );
        assert_eq!(one("Negotiate"), None);
        assert_eq!(one("Bearer service=x"), None);
        assert_eq!(
            one(r#"bearer realm="a\"b"#),
            Some(Challenge::Bearer { realm: "a\"b".to_owned(), service: None, scope: None })
        );
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "\\PC{0,80}") {
            let _ = parse([text.as_str()].into_iter());
        }
    }
}
