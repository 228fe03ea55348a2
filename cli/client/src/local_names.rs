//! The machine's own lists of users and groups, read without the C library where its name service would ask them first: its way
//! there, over the sockets of a cache that is hardly ever there, takes longer than to make a container's namespaces.

use berth_model::ByteStr;
use std::io::Read;

/// A list is at most this long; of a longer one the name service is asked.
const MAX_LENGTH: u64 = 1 << 20;

/// What `/etc/passwd` says of a user.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Home directory.
    pub home: ByteStr,
    /// Login shell.
    pub shell: ByteStr,
}

/// A user of `/etc/passwd`, and the name of a group of `/etc/group`; where one is `None`, the name service may know more.
pub fn user_and_group(uid: u32, gid: u32) -> (Option<Entry>, Option<String>) {
    let Some(configuration) = read("/etc/nsswitch.conf") else { return (None, None) };
    let list = |database, path| files_first(&configuration, database).then(|| read(path)).flatten();
    (
        list("passwd", "/etc/passwd").and_then(|text| find_user(&text, uid)),
        list("group", "/etc/group").and_then(|text| find_group(&text, gid)),
    )
}

/// A user of `/etc/passwd`.
pub fn user(uid: u32) -> Option<Entry> {
    find_user(&read("/etc/passwd")?, uid)
}

/// The number of a user of `/etc/passwd`.
pub fn uid(name: &str) -> Option<u32> {
    find_uid(&read("/etc/passwd")?, name)
}

/// The name of a group of `/etc/group`.
pub fn group(gid: u32) -> Option<String> {
    find_group(&read("/etc/group")?, gid)
}

fn read(path: &str) -> Option<Vec<u8>> {
    let file = std::fs::File::open(path).ok()?;
    let mut text = Vec::with_capacity(4096);
    file.take(MAX_LENGTH + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= MAX_LENGTH).then_some(text)
}

/// Whether the name service asks the files first, and is content with what it finds there (nsswitch.conf(5)).
fn files_first(configuration: &[u8], database: &str) -> bool {
    let text = String::from_utf8_lossy(configuration);
    let line = text.lines().find_map(|line| {
        let line = line.split('#').next()?.trim_start();
        line.strip_prefix(database)?.trim_start().strip_prefix(':')
    });
    let Some(line) = line else { return false };
    let mut services = line.split_whitespace();
    services.next() == Some("files") && services.next().is_none_or(|next| !next.starts_with('['))
}

/// Fields of the lines that are entries.
fn entries(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    text.split(|b| *b == b'\n')
        .map(|line| line.trim_ascii_start())
        .filter(|line| !line.is_empty() && !matches!(line[0], b'#' | b'+' | b'-'))
        .map(|line| line.split(|b| *b == b':').collect())
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn name(field: &[u8]) -> Option<String> {
    String::from_utf8(field.to_vec()).ok().filter(|name| !name.is_empty())
}

fn find_user(text: &[u8], uid: u32) -> Option<Entry> {
    let fields = entries(text).find(|f| f.len() == 7 && number(f[2]) == Some(uid))?;
    Some(Entry {
        name: name(fields[0])?,
        home: ByteStr(fields[5].to_vec()),
        shell: ByteStr(fields[6].to_vec()),
    })
}

fn find_uid(text: &[u8], name: &str) -> Option<u32> {
    number(entries(text).find(|f| f.len() == 7 && f[0] == name.as_bytes())?[2])
}

fn find_group(text: &[u8], gid: u32) -> Option<String> {
    name(entries(text).find(|f| f.len() == 4 && number(f[2]) == Some(gid))?[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_files_come_first_and_are_the_last_word() {
        let first = |text: &str| files_first(text.as_bytes(), "passwd");
        assert!(first("# names\npasswd:         files systemd\ngroup: sss files\n"));
        assert!(first("  passwd : files\n"));
        assert!(first("passwd: files sss [NOTFOUND=return] # as installed\n"));
        assert!(!first("passwd: sss files\n"));
        assert!(!first("passwd: compat\n"));
        assert!(!first("passwd: files [SUCCESS=continue] sss\n"));
        assert!(!first("#passwd: files\nshadow: files\n"));
        assert!(!first("passwd:\n"));
        assert!(!first(""));
    }

    #[test]
    fn entries_are_read_as_the_name_service_reads_them() {
        let text = b"# local\nroot:x:0:0:root:/root:/bin/bash\nbad:x:7\n+nis:::::: \n ann:x:7:7:Ann, of 5:/home/ann:\nlate:x:0:0::/:/x\n";
        let user = |uid| find_user(text, uid);
        assert_eq!(
            user(0),
            Some(Entry { name: "root".into(), home: "/root".into(), shell: "/bin/bash".into() })
        );
        assert_eq!(user(7), Some(Entry { name: "ann".into(), home: "/home/ann".into(), shell: "".into() }));
        assert_eq!(user(8), None);
        assert_eq!(find_uid(text, "ann"), Some(7));
        assert_eq!(find_uid(text, "bad"), None);
        let groups = b"root:x:0:\nstaff:x:50:ann,bob\nbroken:x:51\n";
        assert_eq!(find_group(groups, 50).as_deref(), Some("staff"));
        assert_eq!(find_group(groups, 51), None);
    }

    #[test]
    fn it_says_what_the_name_service_says() {
        for id in [0, 1, 2, 50, 65534, nix::unistd::geteuid().as_raw()] {
            let (user, group) = user_and_group(id, id);
            assert_eq!((&self::user(id), &self::group(id)), (&user, &group));
            if let Some(found) = user {
                let known = nix::unistd::User::from_uid(id.into()).unwrap().unwrap();
                assert_eq!((found.name, found.home.as_path()), (known.name, known.dir.as_path()));
            }
            if let Some(found) = group {
                assert_eq!(found, nix::unistd::Group::from_gid(id.into()).unwrap().unwrap().name);
            }
        }
    }
}
