//! Byte strings that travel through JSON unchanged: paths, environment, scripts and arguments are
//! bytes from end to end, because not every locale is UTF-8.

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A string of any bytes. In JSON it is a plain string when it is UTF-8, and otherwise
/// `{"hex": "<two digits a byte>"}`, so that stored records stay readable.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteStr(pub Vec<u8>);

impl ByteStr {
    /// The bytes as an operating-system string.
    pub fn as_os(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The bytes as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(self.as_os())
    }

    /// The text for messages; bytes that are not UTF-8 become U+FFFD.
    pub fn display(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for ByteStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.display())
    }
}

impl From<&str> for ByteStr {
    fn from(s: &str) -> Self {
        ByteStr(s.as_bytes().to_vec())
    }
}
impl From<String> for ByteStr {
    fn from(s: String) -> Self {
        ByteStr(s.into_bytes())
    }
}
impl From<&[u8]> for ByteStr {
    fn from(s: &[u8]) -> Self {
        ByteStr(s.to_vec())
    }
}
impl From<Vec<u8>> for ByteStr {
    fn from(s: Vec<u8>) -> Self {
        ByteStr(s)
    }
}
impl From<OsString> for ByteStr {
    fn from(s: OsString) -> Self {
        ByteStr(s.into_vec())
    }
}
impl From<&OsStr> for ByteStr {
    fn from(s: &OsStr) -> Self {
        ByteStr(s.as_bytes().to_vec())
    }
}
impl From<&Path> for ByteStr {
    fn from(s: &Path) -> Self {
        ByteStr::from(s.as_os_str())
    }
}

impl Serialize for ByteStr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => {
                let mut hex = String::with_capacity(self.0.len() * 2);
                for b in &self.0 {
                    hex.push(char::from_digit(u32::from(b >> 4), 16).unwrap_or('0'));
                    hex.push(char::from_digit(u32::from(b & 15), 16).unwrap_or('0'));
                }
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("hex", &hex)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for ByteStr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ByteStrVisitor)
    }
}

struct ByteStrVisitor;

impl<'de> Visitor<'de> for ByteStrVisitor {
    type Value = ByteStr;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or {\"hex\": \"...\"}")
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<ByteStr, E> {
        Ok(ByteStr::from(v))
    }

    fn visit_string<E: de::Error>(self, v: String) -> Result<ByteStr, E> {
        Ok(ByteStr::from(v))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ByteStr, A::Error> {
        let (key, hex): (String, String) =
            map.next_entry()?.ok_or_else(|| de::Error::custom("an empty object is no byte string"))?;
        if key != "hex" || hex.len() % 2 != 0 {
            return Err(de::Error::custom("expected {\"hex\": \"<two digits a byte>\"}"));
        }
        let digits = hex.as_bytes();
        let mut out = Vec::with_capacity(digits.len() / 2);
        for pair in digits.chunks_exact(2) {
            let byte = std::str::from_utf8(pair)
                .ok()
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or_else(|| de::Error::custom("not a hexadecimal digit"))?;
            out.push(byte);
        }
        Ok(ByteStr(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive_json(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = serde_json::to_string(&ByteStr(bytes.clone())).unwrap();
            prop_assert_eq!(serde_json::from_str::<ByteStr>(&text).unwrap().0, bytes);
        }
    }
}
