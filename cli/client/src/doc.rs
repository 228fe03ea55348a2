//! A command's help is the doc comment of its module, taken from the source when it is compiled.

/// Length of the text that [`copy`] makes of the leading `//!` lines of a source file.
pub const fn len(source: &str) -> usize {
    let s = source.as_bytes();
    let (mut at, mut n) = (0, 0);
    while at + 2 < s.len() && s[at] == b'/' && s[at + 1] == b'/' && s[at + 2] == b'!' {
        at += 3;
        if at < s.len() && s[at] == b' ' {
            at += 1;
        }
        while at < s.len() && s[at] != b'\n' {
            at += 1;
            n += 1;
        }
        at += 1;
        n += 1;
    }
    n
}

/// The leading `//!` lines of a source file without their marks. `N` is [`len`] of the same source.
pub const fn copy<const N: usize>(source: &str) -> [u8; N] {
    let s = source.as_bytes();
    let mut out = [b'\n'; N];
    let (mut at, mut n) = (0, 0);
    while at + 2 < s.len() && s[at] == b'/' && s[at + 1] == b'/' && s[at + 2] == b'!' {
        at += 3;
        if at < s.len() && s[at] == b' ' {
            at += 1;
        }
        while at < s.len() && s[at] != b'\n' {
            out[n] = s[at];
            at += 1;
            n += 1;
        }
        at += 1;
        n += 1;
    }
    out
}

/// The doc comment of the named source file as a constant `ABOUT`.
macro_rules! about {
    ($file:literal) => {
        const ABOUT: &[u8] =
            &$crate::doc::copy::<{ $crate::doc::len(include_str!($file)) }>(include_str!($file));
    };
}
pub(crate) use about;

#[cfg(test)]
mod tests {
    #[test]
    fn takes_the_leading_comment_alone() {
        const SOURCE: &str = "//! One.\n//!\n//! Two.\n\nuse x;\n//! no\n";
        let text = super::copy::<{ super::len(SOURCE) }>(SOURCE);
        assert_eq!(std::str::from_utf8(&text).unwrap(), "One.\n\nTwo.\n");
    }
}
