//! The dynamic loader's cache, `/etc/ld.so.cache` (glibc `sysdeps/generic/dl-cache.h`): read, and written with more libraries in it.
//! So a container's libraries are found without any program of its image having run.

/// Magic and version of the format that glibc has written since 2.2, alone since 2.32.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Header and entry of it, in bytes.
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// The older format, which may stand before it.
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
/// An ELF library of glibc.
const ELF_LIBC6: u32 = 3;
/// Libraries that a cache can have; distributions have some thousand. A cache may be an image's, and its names may overlap.
const MOST: usize = 1 << 14;
/// Bytes of a name or path.
const LONGEST: usize = 1024;

/// One library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Kind and architecture.
    pub flags: u32,
    /// Name by which programs ask: `libcuda.so.1`.
    pub name: Vec<u8>,
    /// Where it is.
    pub path: Vec<u8>,
    /// Lowest kernel.
    pub os: u32,
    /// Capabilities of the processor that it wants.
    pub hwcap: u64,
}

/// The flags of libraries of this machine's architecture.
pub fn native_flags() -> u32 {
    let arch = match std::env::consts::ARCH {
        "x86_64" => 0x0300,
        "aarch64" => 0x0a00,
        _ => 0,
    };
    ELF_LIBC6 | arch
}

/// The flags of libraries for programs of 32 bits, where the machine runs these beside its own.
pub fn narrow_flags() -> u32 {
    // Of x86 they have no architecture.
    ELF_LIBC6
}

/// What a cache holds.
///
/// # Errors
/// It is none, or is cut off.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let start = start(bytes).ok_or("it is no cache of glibc's loader")?;
    let part = &bytes[start..];
    let count = word(part, MAGIC.len()).ok_or("its header is cut off")? as usize;
    if count > MOST {
        return Err(format!("it claims to have {count} libraries"));
    }
    let mut entries = Vec::new();
    for n in 0..count {
        let at = HEADER + n * ENTRY;
        let get = |offset| word(part, at + offset).ok_or("an entry is cut off");
        let text = |offset: u32| text(part, offset as usize).ok_or("a name is cut off");
        entries.push(Entry {
            flags: get(0)?,
            name: text(get(4)?)?,
            path: text(get(8)?)?,
            os: get(12)?,
            hwcap: u64::from(get(16)?) | u64::from(get(20)?) << 32,
        });
    }
    Ok(entries)
}

/// A cache of these libraries. What a later glibc keeps beside them (names of subdirectories by processor, who wrote it) is left out:
/// entries that refer to it are, too, and each library has one that does not.
pub fn write(entries: &[Entry]) -> Vec<u8> {
    /// Bit 62 of the capabilities: the other bits are an index into what is left out (`DL_CACHE_HWCAP_EXTENSION`).
    const EXTENSION: u64 = 1 << 62;
    let mut sorted: Vec<&Entry> = entries.iter().filter(|e| e.hwcap & EXTENSION == 0).collect();
    // The loader searches by halves, in an order of its own that falls.
    sorted.sort_by(|a, b| compare(&b.name, &a.name).then(b.flags.cmp(&a.flags)).then(b.hwcap.cmp(&a.hwcap)));
    let mut names = Vec::new();
    let base = HEADER + sorted.len() * ENTRY;
    let mut out = MAGIC.to_vec();
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut table = Vec::new();
    for entry in &sorted {
        let mut put = |text: &[u8]| {
            let at = size(base + names.len());
            names.extend_from_slice(text);
            names.push(0);
            at
        };
        let (name, path) = (put(&entry.name), put(&entry.path));
        for number in [entry.flags, name, path, entry.os] {
            table.extend_from_slice(&number.to_ne_bytes());
        }
        table.extend_from_slice(&entry.hwcap.to_ne_bytes());
    }
    out.extend_from_slice(&size(sorted.len()).to_ne_bytes());
    out.extend_from_slice(&size(names.len()).to_ne_bytes());
    // Flags (the machine's byte order, which 0 leaves open), padding, offset of extensions, unused.
    out.resize(HEADER, 0);
    out.extend(table);
    out.extend(names);
    out
}

/// The loader's order of names: runs of digits by their value (`_dl_cache_libcmp`).
fn compare(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let (mut a, mut b) = (a, b);
    while let Some((&x, rest)) = a.split_first() {
        match (x.is_ascii_digit(), b.first().map(u8::is_ascii_digit)) {
            (true, Some(true)) => {
                let (n, after_a) = digits(a);
                let (m, after_b) = digits(b);
                if n != m {
                    return n.cmp(&m);
                }
                (a, b) = (after_a, after_b);
            }
            (true, _) => return Greater,
            (false, Some(true)) => return Less,
            (false, None) => return Greater,
            (false, Some(false)) => {
                let y = b[0];
                if x != y {
                    // As signed characters.
                    return x.cast_signed().cmp(&y.cast_signed());
                }
                (a, b) = (rest, &b[1..]);
            }
        }
    }
    if b.is_empty() { Equal } else { Less }
}

fn digits(text: &[u8]) -> (u64, &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let value = text[..end].iter().fold(0u64, |n, b| n.wrapping_mul(10).wrapping_add(u64::from(b - b'0')));
    (value, &text[end..])
}

/// Where the newer format begins; behind the older one it is aligned to 8 bytes.
fn start(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(MAGIC) {
        return Some(0);
    }
    if !bytes.starts_with(OLD_MAGIC) {
        return None;
    }
    let count = word(bytes, 12)? as usize;
    let at = 16usize.checked_add(count.checked_mul(12)?)?.checked_next_multiple_of(8)?;
    bytes.get(at..)?.starts_with(MAGIC).then_some(at)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_ne_bytes)
}

fn text(bytes: &[u8], at: usize) -> Option<Vec<u8>> {
    let rest = bytes.get(at..)?;
    let rest = &rest[..rest.len().min(LONGEST)];
    Some(rest[..rest.iter().position(|b| *b == 0)?].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, path: &str) -> Entry {
        Entry { flags: native_flags(), name: name.into(), path: path.into(), os: 0, hwcap: 0 }
    }

    #[test]
    fn what_is_written_is_read_in_the_order_of_the_loader() {
        let all = [
            entry("liba.so.9", "/x/liba.so.9"),
            entry("liba.so.10", "/x/liba.so.10"),
            entry("libb.so", "/b"),
        ];
        let names: Vec<Vec<u8>> = parse(&write(&all)).unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, [b"libb.so".to_vec(), b"liba.so.10".to_vec(), b"liba.so.9".to_vec()]);
    }

    #[test]
    fn the_cache_of_this_machine_is_read_and_its_own_order_kept() {
        let Ok(bytes) = std::fs::read("/etc/ld.so.cache") else { return };
        let entries = parse(&bytes).unwrap();
        assert!(entries.iter().any(|e| e.name.starts_with(b"libc.so")));
        let again = parse(&write(&entries)).unwrap();
        let plain: Vec<&Entry> = entries.iter().filter(|e| e.hwcap >> 62 == 0).collect();
        assert_eq!(
            again.iter().map(|e| &e.name).collect::<Vec<_>>(),
            plain.iter().map(|e| &e.name).collect::<Vec<_>>()
        );
    }

    #[test]
    fn garbage_is_refused_and_never_read_beyond_its_end() {
        let whole = write(&[entry("liba.so.1", "/x/liba.so.1")]);
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        let mut large = whole;
        large[MAGIC.len()..MAGIC.len() + 4].fill(0xff);
        assert!(parse(&large).is_err());
        assert!(parse(b"ld.so-1.7.0\0\xff\xff\xff\xff").is_err());
    }
}
