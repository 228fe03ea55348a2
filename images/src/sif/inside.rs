//! What Apptainer and Singularity write into an image's root, `/.singularity.d`: variables, labels, and what `run` starts.

use std::collections::BTreeMap;

/// Files of variables, in the order in which they count. The first has those of the OCI image that it was made from, the second
/// those of the definition file (`%environment`).
pub(crate) const VARIABLES: [&str; 2] =
    [".singularity.d/env/10-docker2singularity.sh", ".singularity.d/env/90-environment.sh"];
/// Labels, as a JSON object.
pub(crate) const LABELS: &str = ".singularity.d/labels.json";
/// What `run` starts.
pub(crate) const RUNSCRIPT: &str = ".singularity.d/runscript";

/// Labels; none where the file is no object of texts.
pub(crate) fn labels(text: &[u8]) -> BTreeMap<String, String> {
    serde_json::from_slice(text).unwrap_or_default()
}

/// The variables that a script exports, added to those before: lines `export NAME=VALUE` with a value in quotes or without, in
/// which earlier variables may stand, and the form `${NAME:-"VALUE"}`. Other lines need a shell: they are left out.
pub(crate) fn variables(script: &[u8], into: &mut Vec<(String, String)>) {
    for line in String::from_utf8_lossy(script).lines() {
        let Some((name, word)) = line.strip_prefix("export ").and_then(|rest| rest.split_once('=')) else {
            continue;
        };
        let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(letter) {
            continue;
        }
        let default = word.strip_prefix(&format!("\"${{{name}:-")).and_then(|rest| rest.strip_suffix("}\""));
        let value = match default {
            // Without a value the variable is that of the caller, if there is one.
            Some("") => continue,
            Some(default) => value(default, into),
            None => value(word, into),
        };
        if let Some(value) = value {
            into.retain(|(known, _)| known != name);
            into.push((name.to_owned(), value));
        }
    }
}

/// What a shell makes of a word; nothing, where that takes more than quotes and variables.
fn value(word: &str, known: &[(String, String)]) -> Option<String> {
    let mut out = String::new();
    let mut rest = word.trim_end().chars().peekable();
    let (mut double, mut single) = (false, false);
    while let Some(c) = rest.next() {
        match c {
            '\'' if !double => single = !single,
            _ if single => out.push(c),
            '"' => double = !double,
            '\\' => match rest.next()? {
                next @ ('"' | '\\' | '$' | '`') => out.push(next),
                next if double => out.extend(['\\', next]),
                next => out.push(next),
            },
            '$' => {
                let braced = rest.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                if name.is_empty() || (braced && rest.next() != Some('}')) {
                    return None;
                }
                out.push_str(known.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| value));
            }
            '`' => return None,
            ' ' | '\t' | ';' | '&' | '|' | '(' | ')' | '<' | '>' | '*' | '?' | '[' | '#' | '~' if !double => {
                return None;
            }
            _ => out.push(c),
        }
    }
    (!double && !single).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_as_a_shell_would_have_them() {
        let mut all = Vec::new();
        let docker = b"#!/bin/sh\nexport PATH=\"/usr/local/bin:/usr/bin\"\nexport LANG=\"${LANG:-\"C.UTF-8\"}\"\n\
            export EMPTY=\"${EMPTY:-}\"\nexport QUOTE=\"${QUOTE:-\"a \\\"b\\\" \\$c \\\\ \\`d\"}\"\nexport GONE=\"${GONE:-\"\"}\"\n";
        variables(docker, &mut all);
        let own = b"# what the definition says\nexport PATH=/opt/bin:$PATH\nexport A='x $y'\nexport B=${A}z\nC=1\n  export D=1\n\
            export E=$(date)\nexport F=`date`\nexport G=a b\nexport 1H=x\nexport I-J=x\nexport K=\"open\nexport L=${PATH%:*}\nexport M=\n";
        variables(own, &mut all);
        let lines: Vec<String> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            lines,
            [
                "LANG=C.UTF-8",
                "QUOTE=a \"b\" $c \\ `d",
                "GONE=",
                "PATH=/opt/bin:/usr/local/bin:/usr/bin",
                "A=x $y",
                "B=x $yz",
                "M="
            ]
        );
    }

    #[test]
    fn labels_are_texts() {
        assert_eq!(labels(br#"{"a": "b"}"#), BTreeMap::from([("a".to_string(), "b".to_string())]));
        assert!(labels(br#"{"a": 1}"#).is_empty() && labels(b"[").is_empty());
    }
}
