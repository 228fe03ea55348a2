//! `--container-name`, `--container-scope` and `--container-unshare`: their grammars.

use crate::spec::{NameFlag, NameScope, Unshared};

/// Longest name of a container, so that a directory can have it.
const LONGEST: usize = 128;

/// Whether a container may be called so: letters, digits, `_`, `-` and `.`, of which the first is a letter or digit.
pub fn is_container_name(name: &str) -> bool {
    name.len() <= LONGEST
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Reads `NAME[:auto|create|exec|no_exec]`.
///
/// # Errors
/// Lines that say what is wrong and what to write.
pub fn parse_name(text: &str) -> Result<(String, NameFlag), Vec<String>> {
    let (name, flag) = match text.split_once(':') {
        Some((name, flag)) => (name, flag),
        None => (text, "auto"),
    };
    let flag = match flag {
        "auto" => NameFlag::Auto,
        "create" => NameFlag::Create,
        "exec" => NameFlag::Exec,
        "no_exec" => NameFlag::NoExec,
        _ => {
            return Err(vec![
                "--container-name: flag must be \"auto\", \"create\", \"exec\" or \"no_exec\"".to_string(),
                format!("write --container-name={name}:exec, or the name alone"),
            ]);
        }
    };
    if name.is_empty() {
        return Err(vec![
            "--container-name: empty name".to_string(),
            "give the container a name".to_string(),
        ]);
    }
    if !is_container_name(name) {
        return Err(vec![
            format!("--container-name: '{name}' cannot be a container's name"),
            format!("use at most {LONGEST} letters, digits, '_', '-' and '.', and a letter or digit first"),
        ]);
    }
    Ok((name.to_string(), flag))
}

/// Reads `job` or `user`.
///
/// # Errors
/// Lines that say what is wrong and what to write.
pub fn parse_scope(text: &str) -> Result<NameScope, Vec<String>> {
    match text {
        "job" => Ok(NameScope::Job),
        "user" => Ok(NameScope::User),
        _ => Err(vec![
            format!("--container-scope: '{text}' is neither job nor user"),
            "write job (the container goes with its job) or user (later jobs find it again)".to_string(),
        ]),
    }
}

/// Reads a list of `net`, `ipc` and `uts`; the result is in order and without repetition.
///
/// # Errors
/// Lines that say what is wrong and what to write.
pub fn parse_unshare(text: &str) -> Result<Vec<Unshared>, Vec<String>> {
    let mut found = Vec::new();
    for word in text.split(',') {
        found.push(match word {
            "net" => Unshared::Net,
            "ipc" => Unshared::Ipc,
            "uts" => Unshared::Uts,
            _ => {
                return Err(vec![
                    format!("--container-unshare: unknown namespace '{word}'"),
                    "name some of net, ipc and uts; mounts, processes and users are the container's anyway"
                        .to_string(),
                ]);
            }
        });
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(parse_name("data-1.x"), Ok(("data-1.x".to_string(), NameFlag::Auto)));
        assert_eq!(parse_name("d:no_exec"), Ok(("d".to_string(), NameFlag::NoExec)));
        assert_eq!(parse_name("d:exec"), Ok(("d".to_string(), NameFlag::Exec)));
        let long = "x".repeat(LONGEST + 1);
        for bad in ["", ":exec", "a:", "a:b", "a:exec:exec", "../a", "a/b", ".a", "-a", "a b", "é", &long] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn namespaces() {
        assert_eq!(parse_unshare("uts,net,uts"), Ok(vec![Unshared::Net, Unshared::Uts]));
        for bad in ["", "pid", "net,", "NET"] {
            assert!(parse_unshare(bad).is_err(), "{bad}");
        }
    }
}
