//! PAX extended headers: the records that override a header, read so that no two readers can disagree.

use std::collections::BTreeSet;

use super::refused;
use crate::error::Result;

/// What the records of one extended header say.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<PaxSparse>,
}

/// GNU's sparse format 1.0; its map stands in front of the data.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
}

impl Pax {
    /// Reads the records `LENGTH KEY=VALUE\n` of an extended header of one entry.
    pub(super) fn parse(mut rest: &[u8]) -> Result<Self> {
        let mut pax = Self::default();
        let mut seen: BTreeSet<&[u8]> = BTreeSet::new();
        while !rest.is_empty() {
            let (key, value, tail) = record(rest)?;
            rest = tail;
            if !seen.insert(key) {
                return Err(refused(&[], format!("an extended header has {} twice", super::show(key))));
            }
            pax.take(key, value)?;
        }
        Ok(pax)
    }

    /// Checks a global extended header: nothing in it may change names or sizes of later entries.
    pub(super) fn check_global(mut rest: &[u8]) -> Result<()> {
        while !rest.is_empty() {
            let (key, _, tail) = record(rest)?;
            rest = tail;
            if matches!(key, b"path" | b"linkpath" | b"size")
                || key.starts_with(b"GNU.sparse.")
                || key.starts_with(b"SCHILY.xattr.")
            {
                return Err(refused(
                    &[],
                    format!(
                        "a global extended header sets {}, which readers treat differently",
                        super::show(key)
                    ),
                ));
            }
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let bad = |what: &str| refused(&[], format!("an extended header has an invalid {what}"));
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or_else(|| bad("size"))?),
            b"uid" => self.uid = id(value),
            b"gid" => self.gid = id(value),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(|| bad("mtime"))?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) {
                        return Err(bad("attribute name"));
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
                    let sparse = self.sparse.get_or_insert_default();
                    let number = || decimal(value).ok_or_else(|| bad("sparse field"));
                    match field {
                        b"major" => sparse.major = Some(number()?),
                        b"minor" => sparse.minor = Some(number()?),
                        b"name" => sparse.name = Some(value.to_vec()),
                        b"realsize" => sparse.real_size = Some(number()?),
                        _ => {
                            return Err(refused(
                                &[],
                                "a sparse file is stored in format 0.0 or 0.1, which is not supported",
                            ));
                        }
                    }
                }
                // Everything else (atime, ctime, names, comments) does not reach an unpacked layer.
            }
        }
        Ok(())
    }
}

/// Owners reach no unpacked layer: one that is no number is none.
fn id(value: &[u8]) -> Option<u32> {
    decimal(value).and_then(|id| u32::try_from(id).ok())
}

fn record(rest: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let bad = || refused(&[], "an extended header is malformed");
    let space = rest.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
    let length = decimal(&rest[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
    if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
        return Err(bad());
    }
    let body = &rest[space + 1..length - 1];
    let equals = body.iter().position(|b| *b == b'=').ok_or_else(bad)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    // NUL would end a name for some readers and not for others.
    if key.is_empty()
        || key.contains(&0)
        || (matches!(key, b"path" | b"linkpath" | b"GNU.sparse.name") && value.contains(&0))
    {
        return Err(bad());
    }
    Ok((key, value, &rest[length..]))
}

/// Plain decimal digits, nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds with an optional sign and fraction, rounded down to nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos =
        (0..9).fold(0u32, |value, at| value * 10 + fraction.get(at).map_or(0, |d| u32::from(d - b'0')));
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rec(key: &str, value: &str) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length.to_string().len() + body != length {
            length = length.to_string().len() + body;
        }
        format!("{length} {key}={value}\n").into_bytes()
    }

    #[test]
    fn records() {
        let bytes =
            [rec("path", "a/b"), rec("size", "12"), rec("mtime", "-1.5"), rec("SCHILY.xattr.user.x", "y")]
                .concat();
        let pax = Pax::parse(&bytes).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.size, Some(12));
        assert_eq!(pax.mtime, Some((-2, 500_000_000)));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"y".to_vec())]);
    }

    #[test]
    fn as_many_records_as_a_header_holds_are_read_in_no_more_time_than_they_are_long() {
        let mut bytes: Vec<u8> = (0..70_000).flat_map(|n| rec(&format!("{n}"), "")).collect();
        assert!(bytes.len() as u64 <= crate::archive::MAX_EXTENSION);
        Pax::parse(&bytes).unwrap();
        bytes.extend(rec("0", ""));
        assert!(Pax::parse(&bytes).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn disputed_records_are_refused() {
        for bytes in [
            [rec("path", "a"), rec("path", "b")].concat(),
            rec("size", "-1"),
            rec("size", "0x10"),
            rec("path", "a\0b"),
            b"99 path=a\n".to_vec(),
            b"5 a\n".to_vec(),
            b"path=a\n".to_vec(),
            rec("GNU.sparse.map", "0,1"),
        ] {
            assert!(Pax::parse(&bytes).is_err(), "{}", String::from_utf8_lossy(&bytes));
        }
        assert!(Pax::check_global(&rec("size", "1")).is_err());
        assert!(Pax::check_global(&rec("comment", "1")).is_ok());
    }
}
