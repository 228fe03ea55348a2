//! The words of an answer that is no success: a registry's own list of reasons, or what a proxy or a web server says to people.

use serde::Deserialize;

use crate::error::printable;

/// Reasons of one answer that are told.
const MOST_REASONS: usize = 4;
/// Characters of one of them, or of a page.
const MOST_CHARACTERS: usize = 300;

/// Reasons as the distribution specification has them ("Error codes"), and the one of docker's token servers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    errors: Vec<Detail>,
    details: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Detail {
    code: String,
    message: String,
}

/// What it says; nothing where it says nothing that can be read.
pub(super) fn words(body: &[u8]) -> String {
    let Ok(Answer { errors, details }) = serde_json::from_slice(body) else { return of_people(body) };
    let mut reasons: Vec<String> = Vec::new();
    for Detail { code, message } in errors {
        let parts = [code.to_ascii_lowercase(), message];
        let parts: Vec<&str> = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).collect();
        let reason = printable(&parts.join(": "), MOST_CHARACTERS);
        if !reason.is_empty() && !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    let more = reasons.len().saturating_sub(MOST_REASONS);
    reasons.truncate(MOST_REASONS);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    match (reasons.is_empty(), details.is_empty()) {
        (false, _) => reasons.join("; "),
        (true, false) => printable(&details, MOST_CHARACTERS),
        // JSON of another kind.
        (true, true) => of_people(body),
    }
}

/// The text of a page, without what is for browsers.
fn of_people(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    if text.contains('\0') {
        return String::new();
    }
    let mut said = String::new();
    let mut left: &str = &text;
    while let Some((before, tag)) = left.split_once('<') {
        said += before;
        if !tag.starts_with(|first: char| first.is_ascii_alphabetic() || matches!(first, '/' | '!' | '?')) {
            // No element, but less than something.
            said.push('<');
            left = tag;
            continue;
        }
        // Words of two elements are not one.
        said.push(' ');
        let unseen = ["head", "style", "script", "!--"].into_iter().find(|name| {
            let begins = tag.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name));
            let ends = tag.get(name.len()..).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
            begins && (ends || *name == "!--")
        });
        left = match unseen {
            Some("!--") => tag.split_once("-->").map_or("", |(_, rest)| rest),
            Some(name) => behind(tag, &format!("</{name}")),
            None => tag.split_once('>').map_or("", |(_, rest)| rest),
        };
    }
    said += left;
    let words: Vec<&str> = said.split_whitespace().collect();
    printable(&words.join(" "), MOST_CHARACTERS)
}

/// What comes behind the end of an element.
fn behind<'a>(text: &'a str, end: &str) -> &'a str {
    // Lower case of ASCII alone leaves every place where it is.
    let at = text.to_ascii_lowercase().find(end).map_or(text.len(), |at| at + end.len());
    text[at..].split_once('>').map_or("", |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn all_reasons_of_a_registry_are_told() {
        let one = br#"{"errors":[{"code":"DENIED","message":"no access","detail":{"x":1}}]}"#;
        assert_eq!(words(one), "denied: no access");
        let two = br#"{"errors":[{"code":"DENIED"},{"code":"TOOMANYREQUESTS","message":"quota"},{"code":"DENIED"}]}"#;
        assert_eq!(words(two), "denied; toomanyrequests: quota");
        let many: Vec<String> = (0..9).map(|n| format!(r#"{{"message":"m{n}"}}"#)).collect();
        let many = format!(r#"{{"errors":[{}]}}"#, many.join(","));
        assert_eq!(words(many.as_bytes()), "m0; m1; m2; m3; and 5 more");
        assert_eq!(words(br#"{"details":"incorrect password"}"#), "incorrect password");
    }

    #[test]
    fn what_is_no_list_of_reasons_is_told_as_it_is() {
        let nginx = b"<html>\r\n<head><title>413 Too Large</title></head>\r\n<body>\r\n<center><h1>413 Too Large</h1></center>\r\n\
            <hr><center>nginx</center></body></html>";
        assert_eq!(words(nginx), "413 Too Large nginx");
        assert_eq!(words(b"closed until noon\n"), "closed until noon");
        assert_eq!(words(br#"{"error":"backend down"}"#), r#"{"error":"backend down"}"#);
        assert_eq!(words(br#"{"errors":"odd"}"#), r#"{"errors":"odd"}"#);
        assert_eq!(
            words(b"<!-- a > b --><p>one<p>two <STYLE>x{}</STYLE><header>three</header>"),
            "one two three"
        );
        assert_eq!(words(b"2 < 3 <b>GB</b>"), "2 < 3 GB");
        assert_eq!(words(b"\x1b[31mred"), "\u{fffd}[31mred");
        for nothing in [&b""[..], b"{}", b"\0\x01", b"<head>never ends", b"<p", "<hé>".as_bytes()] {
            assert!(matches!(words(nothing).as_str(), "" | "{}"), "{nothing:?}");
        }
        assert_eq!(words(&vec![b'x'; 60_000]).len(), 300);
    }
}
