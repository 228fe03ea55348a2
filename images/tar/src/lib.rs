//! Members of a POSIX archive, written: a ustar header, and in front of it an extended header for what ustar cannot hold
//! (IEEE Std 1003.1, pax). The same member always gives the same bytes.
#![forbid(unsafe_code)]

/// Bytes of a block.
pub const BLOCK: usize = 512;
/// The end of an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// Follows the end of a container's archive that was written whole: without it, one that was cut off between two files would
/// look complete.
pub const WHOLE: &[u8] = b"whole\n";
/// What seven octal digits hold.
const OCTAL_ID: u32 = 0o7_777_777;
/// What eleven octal digits hold.
const OCTAL: u64 = 0o77_777_777_777;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, whose bytes follow the header.
    File,
    /// Another name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl Kind {
    fn letter(self) -> u8 {
        match self {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        }
    }
}

/// A member, without its bytes.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// Its name, without a slash in front or behind.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Numbers of the user and of the group.
    pub owner: (u32, u32),
    /// Bytes of a file.
    pub size: u64,
    /// Seconds and nanoseconds of the last change.
    pub mtime: (i64, u32),
    /// What a link names.
    pub link: &'a [u8],
    /// Extended attributes with their whole names.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl Member<'_> {
    /// The blocks in front of its bytes.
    pub fn header(&self) -> Vec<u8> {
        let mut path = self.path.to_vec();
        if self.kind == Kind::Directory {
            path.push(b'/');
        }
        let size = if self.kind == Kind::File { self.size } else { 0 };
        let mut records = Vec::new();
        if path.len() > 100 {
            record(&mut records, b"path", &path);
        }
        if self.link.len() > 100 {
            record(&mut records, b"linkpath", self.link);
        }
        if size > OCTAL {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        for (name, id) in [(b"uid", self.owner.0), (b"gid", self.owner.1)] {
            if id > OCTAL_ID {
                record(&mut records, name, id.to_string().as_bytes());
            }
        }
        let (seconds, nanos) = self.mtime;
        let fits = u64::try_from(seconds).is_ok_and(|s| s <= OCTAL);
        if nanos > 0 || !fits {
            record(&mut records, b"mtime", time(seconds, nanos).as_bytes());
        }
        for (name, value) in self.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        let mut out = Vec::with_capacity(BLOCK);
        if !records.is_empty() {
            out.extend_from_slice(&block(b"pax", b'x', 0o644, (0, 0), records.len() as u64, 0, b""));
            let over = padding(records.len() as u64);
            out.extend_from_slice(&records);
            out.resize(out.len() + over, 0);
        }
        let seconds = if fits { u64::try_from(seconds).unwrap_or(0) } else { 0 };
        // A size that the field cannot hold stands in the extended header alone.
        let size = if size > OCTAL { 0 } else { size };
        let (name, link) = (&path[..path.len().min(100)], &self.link[..self.link.len().min(100)]);
        out.extend_from_slice(&block(name, self.kind.letter(), self.mode, self.owner, size, seconds, link));
        out
    }
}

/// Zero bytes that follow so many bytes of a member.
pub fn padding(size: u64) -> usize {
    usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0)
}

fn block(
    name: &[u8],
    letter: u8,
    mode: u32,
    (uid, gid): (u32, u32),
    size: u64,
    mtime: u64,
    link: &[u8],
) -> [u8; BLOCK] {
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, format!("{:07o}\0", mode & 0o7777).as_bytes());
    // One that the field cannot hold stands in the extended header alone.
    let field = |id: u32| format!("{:07o}\0", if id > OCTAL_ID { 0 } else { id });
    put(108, field(uid).as_bytes());
    put(116, field(gid).as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{mtime:011o}\0").as_bytes());
    put(148, b"        ");
    put(156, &[letter]);
    put(157, link);
    put(257, b"ustar\x0000");
    // Other names than root's mean nothing without the image's own files of users.
    if uid == 0 {
        put(265, b"root");
    }
    if gid == 0 {
        put(297, b"root");
    }
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Seconds with a fraction; of a time before 1970 the fraction counts away from the second below.
fn time(seconds: i64, nanos: u32) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    if seconds < 0 {
        return format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos);
    }
    format!("{seconds}.{nanos:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member<'a>(path: &'a [u8]) -> Member<'a> {
        Member {
            path,
            kind: Kind::File,
            mode: 0o4755,
            owner: (0, 0),
            size: 5,
            mtime: (7, 0),
            link: b"",
            xattrs: &[],
        }
    }

    #[test]
    fn owners_are_numbers() {
        let block = Member { owner: (33, 0), ..member(b"x") }.header();
        assert_eq!((&block[108..116], &block[116..124]), (&b"0000041\0"[..], &b"0000000\0"[..]));
        assert_eq!((&block[265..270], &block[297..302]), (&b"\0\0\0\0\0"[..], &b"root\0"[..]));
        let blocks = Member { owner: (0, 3_000_000), ..member(b"x") }.header();
        assert!(blocks[BLOCK..].starts_with(b"15 gid=3000000\n"));
        assert_eq!(&blocks[2 * BLOCK + 116..2 * BLOCK + 124], b"0000000\0");
    }

    #[test]
    fn a_short_member_has_one_block() {
        let block = member(b"bin/x").header();
        assert_eq!(block.len(), BLOCK);
        assert!(block.starts_with(b"bin/x\0") && &block[100..108] == b"0004755\0");
        assert_eq!(&block[124..136], b"00000000005\0");
    }

    #[test]
    fn what_ustar_cannot_hold_stands_in_an_extended_header() {
        let long = vec![b'p'; 300];
        let xattrs = [(b"user.x".to_vec(), vec![0, 1])];
        let blocks = Member { mtime: (7, 5), xattrs: &xattrs, ..member(&long) }.header();
        assert_eq!(blocks[156], b'x');
        let text = String::from_utf8_lossy(&blocks);
        assert!(text.contains("310 path=ppp") && text.contains("mtime=7.000000005\n"));
        assert!(text.contains("26 SCHILY.xattr.user.x=\0\u{1}\n"));
    }

    #[test]
    fn lengths_of_records_count_themselves() {
        for length in 80..120 {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; length]);
            let digits = out.iter().position(|b| *b == b' ').unwrap();
            let said: usize = String::from_utf8_lossy(&out[..digits]).parse().unwrap();
            assert_eq!(said, out.len());
        }
        assert_eq!(time(-1, 250_000_000), "-0.750000000");
    }
}
