//! Which environment variables travel with a job: the grammar of `--export`, and what it lets through.

use crate::bytes::ByteStr;
use crate::grammar::BadText;
use std::fmt;

/// `--export`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportSpec {
    /// Everything, and then these variables.
    All(Vec<(ByteStr, ByteStr)>),
    /// `NONE`: the user's login environment, where the command can ask for it.
    None,
    /// `NIL`: nothing.
    Nil,
    /// These names as they are, and these variables.
    Only(Vec<ByteStr>, Vec<(ByteStr, ByteStr)>),
}

impl Default for ExportSpec {
    fn default() -> Self {
        ExportSpec::All(Vec::new())
    }
}

impl ExportSpec {
    /// `ALL`, `NONE`, `NIL`, or a list of `NAME` and `NAME=VALUE`, with `ALL` among them or not. A value with
    /// commas stands in single or double quotes.
    pub fn parse(text: &[u8]) -> Result<ExportSpec, BadText> {
        const WHAT: &str = "a list of variables";
        let shown = || String::from_utf8_lossy(text).into_owned();
        match text {
            b"NONE" => return Ok(ExportSpec::None),
            b"NIL" => return Ok(ExportSpec::Nil),
            _ => {}
        }
        let (mut all, mut names, mut set) = (false, Vec::new(), Vec::new());
        for item in items(text).ok_or_else(|| BadText::new(shown(), WHAT, "a quote is not closed"))? {
            if item == b"ALL" {
                all = true;
                continue;
            }
            if item == b"NONE" || item == b"NIL" {
                return Err(BadText::new(shown(), WHAT, "NONE and NIL stand alone"));
            }
            let equals = item.iter().position(|b| *b == b'=');
            let name = &item[..equals.unwrap_or(item.len())];
            if name.is_empty() || item.contains(&0) {
                return Err(BadText::new(shown(), WHAT, "write NAME or NAME=VALUE, separated by commas"));
            }
            match equals {
                Some(at) => set.push((ByteStr::from(name), ByteStr::from(&item[at + 1..]))),
                None => names.push(ByteStr::from(name)),
            }
        }
        Ok(if all { ExportSpec::All(set) } else { ExportSpec::Only(names, set) })
    }

    /// Whether `sbatch` starts from the user's login environment, as with `--get-user-env`.
    pub fn wants_login_environment(&self) -> bool {
        matches!(self, ExportSpec::None | ExportSpec::Only(..))
    }

    /// What of `environ` travels, as `NAME=VALUE`. Variables whose name begins with `SLURM_` or `PYXIS_` always
    /// do. A name that is not set is left out; a name that is given a value has that value.
    pub fn apply(&self, environ: &[(ByteStr, ByteStr)]) -> Vec<ByteStr> {
        let (none, empty) = (Vec::new(), Vec::new());
        let (all, names, set) = match self {
            ExportSpec::All(set) => (true, &none, set),
            ExportSpec::None | ExportSpec::Nil => (false, &none, &empty),
            ExportSpec::Only(names, set) => (false, names, set),
        };
        let is_set = |name: &ByteStr| set.iter().any(|(n, _)| n == name);
        let travels = |name: &ByteStr| {
            all || names.contains(name) || name.0.starts_with(b"SLURM_") || name.0.starts_with(b"PYXIS_")
        };
        let mut out: Vec<ByteStr> = environ
            .iter()
            .filter(|(name, _)| travels(name) && !is_set(name))
            .map(|(name, value)| assignment(name, value))
            .collect();
        for (at, (name, value)) in set.iter().enumerate() {
            // The last of several values counts, as in a shell.
            if !set[at + 1..].iter().any(|(later, _)| later == name) {
                out.push(assignment(name, value));
            }
        }
        out
    }
}

/// `NAME=VALUE`.
pub fn assignment(name: &ByteStr, value: &ByteStr) -> ByteStr {
    let mut out = Vec::with_capacity(name.0.len() + value.0.len() + 1);
    out.extend_from_slice(&name.0);
    out.push(b'=');
    out.extend_from_slice(&value.0);
    ByteStr(out)
}

/// Splits at commas outside quotes and drops the quotes; `None` where one is not closed.
fn items(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut items = vec![Vec::new()];
    let mut quote: Option<u8> = None;
    for byte in text {
        match (quote, *byte) {
            (Some(q), b) if q == b => quote = None,
            (None, b'\'' | b'"') => quote = Some(*byte),
            (None, b',') => items.push(Vec::new()),
            (_, b) => items.last_mut()?.push(b),
        }
    }
    items.retain(|item| !item.is_empty());
    quote.is_none().then_some(items)
}

impl fmt::Display for ExportSpec {
    /// The form that `SLURM_EXPORT_ENV` carries.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, names, set) = match self {
            ExportSpec::None => return f.write_str("NONE"),
            ExportSpec::Nil => return f.write_str("NIL"),
            ExportSpec::All(set) => (true, [].as_slice(), set),
            ExportSpec::Only(names, set) => (false, names.as_slice(), set),
        };
        let quoted = |value: &ByteStr| {
            let text = value.display().into_owned();
            if text.contains([',', '"', '\'']) {
                format!("'{}'", text.replace('\'', "'\"'\"'"))
            } else {
                text
            }
        };
        let items = all.then(|| "ALL".to_string()).into_iter();
        let items = items.chain(names.iter().map(|n| n.display().into_owned()));
        let items = items.chain(set.iter().map(|(n, v)| format!("{}={}", n.display(), quoted(v))));
        f.write_str(&items.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn environ() -> Vec<(ByteStr, ByteStr)> {
        [("FOO", "1"), ("BAR", "2"), ("SLURM_TIME_FORMAT", "relative"), ("PATH", "/bin")]
            .map(|(n, v)| (ByteStr::from(n), ByteStr::from(v)))
            .to_vec()
    }

    fn applied(spec: &str) -> String {
        let spec = ExportSpec::parse(spec.as_bytes()).unwrap();
        let out: Vec<String> = spec.apply(&environ()).iter().map(|v| v.display().into_owned()).collect();
        out.join(" ")
    }

    #[test]
    fn the_rules_are_sbatchs() {
        for (spec, expected) in [
            ("ALL", "FOO=1 BAR=2 SLURM_TIME_FORMAT=relative PATH=/bin"),
            ("NONE", "SLURM_TIME_FORMAT=relative"),
            ("NIL", "SLURM_TIME_FORMAT=relative"),
            ("FOO,NEW=x", "FOO=1 SLURM_TIME_FORMAT=relative NEW=x"),
            ("ALL,NEW=y", "FOO=1 BAR=2 SLURM_TIME_FORMAT=relative PATH=/bin NEW=y"),
            ("ALL,FOO=9", "BAR=2 SLURM_TIME_FORMAT=relative PATH=/bin FOO=9"),
            ("MISSING", "SLURM_TIME_FORMAT=relative"),
            ("A='1,2',B=\"x y\"", "SLURM_TIME_FORMAT=relative A=1,2 B=x y"),
            ("A=1,A=2", "SLURM_TIME_FORMAT=relative A=2"),
            ("A=b=c", "SLURM_TIME_FORMAT=relative A=b=c"),
            ("BAD-NAME", "SLURM_TIME_FORMAT=relative"),
        ] {
            assert_eq!(applied(spec), expected, "{spec}");
        }
        for spec in ["=x", "ALL,NONE", "A='1", "NIL,A=1"] {
            assert!(ExportSpec::parse(spec.as_bytes()).is_err(), "{spec}");
        }
        let wants = |spec: &str| ExportSpec::parse(spec.as_bytes()).unwrap().wants_login_environment();
        assert_eq!(["ALL", "NONE", "NIL", "FOO", "ALL,A=1"].map(wants), [false, true, false, true, false]);
    }

    #[test]
    fn values_that_are_not_utf8_survive() {
        let spec = ExportSpec::parse(b"ALL,A=\xff\xfe").unwrap();
        let environ = [(ByteStr::from("B"), ByteStr(vec![0xe9]))];
        assert_eq!(spec.apply(&environ), [ByteStr(b"B=\xe9".to_vec()), ByteStr(b"A=\xff\xfe".to_vec())]);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            all: bool,
            names in proptest::collection::vec("[A-Z_]{4,6}", 0..4),
            set in proptest::collection::vec(("[A-Z_]{4,6}", "[a-z ,='\"]{0,6}"), 0..4)
        ) {
            let set: Vec<_> = set.into_iter().map(|(n, v)| (ByteStr::from(n), ByteStr::from(v))).collect();
            let names: Vec<_> = names.into_iter().filter(|n| n != "NONE").map(ByteStr::from).collect();
            let spec = if all { ExportSpec::All(set) } else { ExportSpec::Only(names, set) };
            prop_assert_eq!(ExportSpec::parse(spec.to_string().as_bytes()), Ok(spec));
        }

        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(prop_oneof![Just(b','), Just(b'='), Just(b'\''), any::<u8>()], 0..30)) {
            if let Ok(spec) = ExportSpec::parse(&text) {
                spec.apply(&environ());
            }
        }
    }
}
