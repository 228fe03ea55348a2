//! Paths as text: absolute, without `.` and `..`, before any file is touched.

use super::PlanError;
use berth_model::ByteStr;

/// Checks and normalises an absolute path: `//a/./b/` becomes `/a/b`.
///
/// # Errors
/// A relative path, an empty one, one with `..`, and one with a zero byte are refused; `what` names it in
/// the message.
pub fn clean_absolute(path: &ByteStr, what: &str) -> Result<ByteStr, PlanError> {
    let refuse = || PlanError::Path { what: what.into(), path: path.display().into_owned() };
    if path.0.first() != Some(&b'/') || path.0.contains(&0) {
        return Err(refuse());
    }
    let mut out = Vec::with_capacity(path.0.len());
    for part in path.0.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refuse()),
            name => {
                out.push(b'/');
                out.extend_from_slice(name);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Ok(ByteStr(out))
}

/// Joins a relative path to a base, without interpreting either.
pub(super) fn join(base: &ByteStr, relative: &[u8]) -> ByteStr {
    let mut out = base.0.clone();
    out.push(b'/');
    out.extend_from_slice(relative);
    ByteStr(out)
}

/// Resolves `.` and `..` of a mount source by text: it is looked up by the kernel afterwards.
pub(crate) fn lexical(path: &ByteStr) -> ByteStr {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.0.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    let mut out = Vec::with_capacity(path.0.len());
    for part in parts {
        out.push(b'/');
        out.extend_from_slice(part);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    ByteStr(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dots_and_slashes_go() {
        assert_eq!(clean_absolute(&"//a/./b/".into(), "x").unwrap(), "/a/b".into());
        assert_eq!(clean_absolute(&"/".into(), "x").unwrap(), "/".into());
        for bad in ["", "a", "/a/../b", "/..", "./a"] {
            assert!(clean_absolute(&bad.into(), "x").is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn cleaning_twice_changes_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut path = vec![b'/'];
            path.extend(bytes);
            if let Ok(once) = clean_absolute(&ByteStr(path), "x") {
                prop_assert_eq!(clean_absolute(&once, "x").unwrap(), once);
            }
        }

        #[test]
        fn no_cleaned_path_leaves_the_root(text in "[./a]{0,20}") {
            if let Ok(clean) = clean_absolute(&ByteStr::from(text.as_str()), "x") {
                let leaves = clean.0.split(|b| *b == b'/').any(|p| p == b"..");
                prop_assert!(!leaves);
            }
        }
    }
}
