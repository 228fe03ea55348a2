//! Versions of the C library in ELF files (the System V ABI's dynamic section; symbol versions as of the Linux Standard Base): which glibc
//! a library needs, and which one a `libc.so.6` is. So it is known before a container starts whether a driver's libraries can be loaded there,
//! and nothing of the image runs for it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A file's bytes from an offset, as many as asked for; `None` where there are fewer.
pub type Bytes<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const DT_VERDEF: u64 = 0x6fff_fffc;
const DT_VERDEFNUM: u64 = 0x6fff_fffd;
const DT_VERNEED: u64 = 0x6fff_fffe;
const DT_VERNEEDNUM: u64 = 0x6fff_ffff;
/// A file may be an image's and say anything: no more of each is looked at.
const MOST: u64 = 4096;
/// Bytes of a name.
const LONGEST: usize = 128;

/// A version of glibc: 2.34, or 2.2.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Glibc(pub u32, pub u32, pub u32);

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Glibc(a, b, 0) => write!(f, "{a}.{b}"),
            Glibc(a, b, c) => write!(f, "{a}.{b}.{c}"),
        }
    }
}

impl Glibc {
    /// A symbol version of glibc's. Others, and what is for glibc itself, are none.
    fn of_symbol(name: &[u8]) -> Option<Glibc> {
        // What relative relocations in a packed form need is named by what it is.
        if name == b"GLIBC_ABI_DT_RELR" {
            return Some(Glibc(2, 36, 0));
        }
        let text = std::str::from_utf8(name.strip_prefix(b"GLIBC_")?).ok()?;
        let mut numbers = text.split('.').map(str::parse::<u32>);
        let mut next = || numbers.next().unwrap_or(Ok(0)).ok();
        Some(Glibc(next()?, next()?, next()?))
    }
}

/// The programs of this machine that can load a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadeFor {
    /// Those of 64 bits.
    Native,
    /// Those of 32 bits, on a machine that runs them beside the others.
    Narrow,
    /// None.
    Others,
    /// It is no ELF file.
    Unsaid,
}

/// What the head of a file says of that.
pub fn made_for(bytes: Bytes<'_>) -> MadeFor {
    made_for_machine(bytes, std::env::consts::ARCH)
}

fn made_for_machine(bytes: Bytes<'_>, machine: &str) -> MadeFor {
    // e_ident, e_type, e_machine.
    let Some(head) = bytes(0, 20).filter(|head| head.starts_with(b"\x7fELF")) else { return MadeFor::Unsaid };
    let of =
        |class: u8, number_of: u64| head[4] == class && head[5] == 1 && number(&head[18..20]) == number_of;
    match machine {
        "x86_64" if of(2, 62) => MadeFor::Native,
        "x86_64" if of(1, 3) => MadeFor::Narrow,
        "aarch64" if of(2, 183) => MadeFor::Native,
        _ => MadeFor::Others,
    }
}

/// Which glibc something needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeedsGlibc {
    /// That one, or a newer one.
    pub version: Glibc,
    /// What needs it, for people.
    pub of: String,
}

/// The newest glibc of which a file needs symbols; `None` where it needs none, or is no ELF file of 64 bits.
pub fn needs(bytes: Bytes<'_>) -> Option<Glibc> {
    let file = File::open(bytes)?;
    let (mut at, count) = (file.offset(file.tag(DT_VERNEED)?)?, file.tag(DT_VERNEEDNUM)?);
    let mut newest = None;
    for _ in 0..count.min(MOST) {
        // Elf64_Verneed: version, number of versions, file, first version, next.
        let record = bytes(at, 16)?;
        let mut aux = at.checked_add(number(&record[8..12]))?;
        for _ in 0..number(&record[2..4]).min(MOST) {
            // Elf64_Vernaux: hash, flags, other, name, next.
            let version = bytes(aux, 16)?;
            newest = newest.max(Glibc::of_symbol(&file.name(number(&version[8..12]))?));
            aux = aux.checked_add(number(&version[12..16]))?;
        }
        match number(&record[12..16]) {
            0 => break,
            next => at = at.checked_add(next)?,
        }
    }
    newest
}

/// Which glibc a `libc.so.6` is, by the versions that it defines; `None` where it is none.
pub fn defines(bytes: Bytes<'_>) -> Option<Glibc> {
    let file = File::open(bytes)?;
    let (mut at, count) = (file.offset(file.tag(DT_VERDEF)?)?, file.tag(DT_VERDEFNUM)?);
    let mut newest = None;
    for _ in 0..count.min(MOST) {
        // Elf64_Verdef: version, flags, index, number of names, hash, first name, next.
        let record = bytes(at, 20)?;
        // Elf64_Verdaux: name, next; the first one is the version itself.
        let name = bytes(at.checked_add(number(&record[12..16]))?, 8)?;
        newest = newest.max(Glibc::of_symbol(&file.name(number(&name[..4]))?));
        match number(&record[16..20]) {
            0 => break,
            next => at = at.checked_add(next)?,
        }
    }
    newest
}

/// The name by which programs ask for a library; `None` where it has none.
pub fn soname(bytes: Bytes<'_>) -> Option<String> {
    let file = File::open(bytes)?;
    String::from_utf8(file.name(file.tag(DT_SONAME)?)?).ok().filter(|name| !name.is_empty())
}

/// An ELF file of this machine's byte order and width.
struct File<'a> {
    bytes: Bytes<'a>,
    /// Where parts of the file lie in memory: address, offset, length.
    loads: Vec<(u64, u64, u64)>,
    /// The dynamic section.
    tags: Vec<(u64, u64)>,
}

impl<'a> File<'a> {
    fn open(bytes: Bytes<'a>) -> Option<File<'a>> {
        let head = bytes(0, 64)?;
        // 64 bits, the lowest byte first.
        if head.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let (start, size, count) =
            (number(&head[32..40]), number(&head[54..56]), number(&head[56..58]).min(MOST));
        if size < 56 {
            return None;
        }
        let (mut loads, mut dynamic) = (Vec::new(), None);
        for n in 0..count {
            let part = bytes(start.checked_add(n * size)?, 56)?;
            let (offset, address, length) =
                (number(&part[8..16]), number(&part[16..24]), number(&part[32..40]));
            match number(&part[..4]) {
                PT_LOAD => loads.push((address, offset, length)),
                PT_DYNAMIC => dynamic = Some((offset, length)),
                _ => {}
            }
        }
        let (offset, length) = dynamic?;
        let mut tags = Vec::new();
        for n in 0..(length / 16).min(MOST) {
            let entry = bytes(offset.checked_add(n * 16)?, 16)?;
            match (number(&entry[..8]), number(&entry[8..])) {
                (0, _) => break,
                tag => tags.push(tag),
            }
        }
        Some(File { bytes, loads, tags })
    }

    fn tag(&self, wanted: u64) -> Option<u64> {
        self.tags.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value)
    }

    /// Where in the file an address is.
    fn offset(&self, address: u64) -> Option<u64> {
        let holds = |(start, _, length): &&(u64, u64, u64)| {
            address.checked_sub(*start).is_some_and(|within| within < *length)
        };
        let (start, offset, _) = self.loads.iter().find(holds)?;
        offset.checked_add(address - start)
    }

    /// A name of the string table.
    fn name(&self, at: u64) -> Option<Vec<u8>> {
        let from = self.offset(self.tag(DT_STRTAB)?.checked_add(at)?)?;
        // Names at the end of a file may have less behind them.
        let text = (0..=LONGEST.ilog2()).find_map(|n| (self.bytes)(from, LONGEST >> n))?;
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        Some(text[..end].to_vec())
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(bytes: &[u8]) -> impl Fn(u64, usize) -> Option<Vec<u8>> {
        move |at, len| {
            let at = usize::try_from(at).ok()?;
            Some(bytes.get(at..at.checked_add(len)?)?.to_vec())
        }
    }

    #[test]
    fn versions_are_ordered_and_written_as_glibc_does() {
        let version = |name: &str| Glibc::of_symbol(name.as_bytes());
        assert_eq!(version("GLIBC_2.34"), Some(Glibc(2, 34, 0)));
        assert!(version("GLIBC_2.2.5") < version("GLIBC_2.17"));
        assert_eq!(version("GLIBC_2.2.5").unwrap().to_string(), "2.2.5");
        assert_eq!(version("GLIBC_ABI_DT_RELR").unwrap().to_string(), "2.36");
        for other in ["GLIBC_PRIVATE", "GLIBCXX_3.4", "CXXABI_1.3", "GLIBC_", "GLIBC_2.x"] {
            assert_eq!(version(other), None, "{other}");
        }
    }

    static LIBC: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let files = maps.lines().filter_map(|line| line.split_whitespace().last());
        std::fs::read(files.into_iter().find(|path| path.ends_with("/libc.so.6")).unwrap()).unwrap()
    });

    /// The program that runs this was linked by the machine's own linker against its own library.
    #[test]
    fn this_programs_own_library_has_what_this_program_needs() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needed = needs(&of(&own)).unwrap();
        let defined = defines(&of(&LIBC)).unwrap();
        assert!(needed >= Glibc(2, 2, 5) && needed <= defined, "{needed} {defined}");
        assert_eq!(defines(&of(&own)), None, "a program is no C library");
        assert_eq!((soname(&of(&LIBC)).as_deref(), soname(&of(&own))), (Some("libc.so.6"), None));
        for cut in [0, 3, 63, 64, 200, own.len() / 2] {
            let _ = (needs(&of(&own[..cut])), defines(&of(&LIBC[..cut.min(LIBC.len())])));
        }
    }

    #[test]
    fn a_files_head_says_which_programs_can_load_it() {
        let head = |class: u8, machine: u8| {
            let mut head = b"\x7fELF\0\x01\x01".to_vec();
            head[4] = class;
            head.resize(18, 0);
            head.extend([machine, 0]);
            head
        };
        let on = |machine: &str, file: &[u8]| made_for_machine(&of(file), machine);
        assert_eq!(made_for(&of(&LIBC)), MadeFor::Native);
        for (machine, native, other) in [("x86_64", 62, 183), ("aarch64", 183, 62)] {
            assert_eq!(on(machine, &head(2, native)), MadeFor::Native);
            assert_eq!(on(machine, &head(2, other)), MadeFor::Others);
        }
        assert_eq!(on("x86_64", &head(1, 3)), MadeFor::Narrow);
        assert_eq!(on("aarch64", &head(1, 40)), MadeFor::Others);
        for no_file in [&b""[..], b"\x7fELF", b"/* a script of the linker's: GROUP(libc.so.6) */"] {
            assert_eq!(on("x86_64", no_file), MadeFor::Unsaid);
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(
            head in 0usize..1024,
            at in any::<proptest::sample::Index>(),
            with in proptest::collection::vec(any::<u8>(), 1..64),
        ) {
            let mut file = LIBC.clone();
            for at in [head, at.index(file.len() - with.len())] {
                file[at..at + with.len()].copy_from_slice(&with);
            }
            let _ = (needs(&of(&file)), defines(&of(&file)));
        }
    }
}
