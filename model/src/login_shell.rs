//! The environment that a user gets at login: how the login shell is asked for it, and what it answers.

use crate::bytes::ByteStr;
use crate::spec::Identity;

/// The command that has the shell print it. Profiles may print before that, and leave something behind that has the output open for ever.
pub const ASK: &str =
    "printf '\\0berth-login-environment\\0'; env -0; printf '\\0berth-login-environment ends\\0'";
const BEGIN: &[u8] = b"\0berth-login-environment\0";
const END: &[u8] = b"\0berth-login-environment ends\0";
/// More bytes than any environment has with which a program could be started.
pub const MOST: usize = 8 << 20;

/// As what the login shell is called to be that of a login, and by which options it runs a command as such. By the name `csh` and `tcsh` know
/// it, which take no option for it beside a command; by the option those that go by the name at a terminal alone.
pub fn called(identity: &Identity) -> (ByteStr, &'static [&'static str]) {
    let name = identity.shell.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let options: &[&str] = if name.ends_with(b"csh") { &["-c"] } else { &["-l", "-c"] };
    (ByteStr([b"-".as_slice(), name].concat()), options)
}

fn find(said: &[u8], mark: &[u8]) -> Option<usize> {
    said.windows(mark.len()).position(|at| at == mark)
}

/// What stands between the marks.
fn environment(said: &[u8]) -> Option<&[u8]> {
    let from = said.get(find(said, BEGIN)? + BEGIN.len()..)?;
    from.get(..find(from, END)?)
}

/// Whether nothing more is to come of what was said so far. It was not with the first `known` bytes: who says much is not searched from the
/// beginning each time.
pub fn is_whole(said: &[u8], known: usize) -> bool {
    let new = said.get(known.saturating_sub(END.len())..).unwrap_or_default();
    find(new, END).is_some() && environment(said).is_some()
}

/// The `NAME=value` strings in what was said; `None` where it has no environment.
pub fn variables(said: &[u8]) -> Option<Vec<ByteStr>> {
    let all = environment(said)?.split(|byte| *byte == 0);
    Some(all.filter(|text| text.contains(&b'=')).map(ByteStr::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_what_stands_between_the_marks() {
        let said = [b"welcome=1\n".as_slice(), BEGIN, b"A=b c\0_X\0HOME=/\0", END, b"later=1"].concat();
        assert_eq!(variables(&said), Some(vec!["A=b c".into(), "HOME=/".into()]));
        let end = said.len() - b"later=1".len();
        assert!(is_whole(&said, 0) && !is_whole(&said[..end - 1], 0));
        // However the last of it comes.
        assert!((1..=END.len()).all(|last| is_whole(&said[..end], end - last)));
        // What profiles print before is no end.
        let begun = [END, BEGIN, b"A=b\0"].concat();
        assert!(!is_whole(&begun, 0) && is_whole(&[begun.as_slice(), END].concat(), begun.len()));
        // A shell that was killed in the middle has said none.
        assert_eq!(variables(&said[..said.len() - 10]), None);
        assert_eq!(variables(b"A=b\0"), None);
        assert_eq!(variables(&[BEGIN, END].concat()), Some(vec![]));
    }

    #[test]
    fn shells_are_called_as_they_know_that_of_a_login() {
        let of = |shell: &str| {
            let identity = Identity {
                uid: crate::Uid(1),
                gid: crate::Gid(1),
                groups: Vec::new(),
                user: "ann".into(),
                group: "ann".into(),
                home: "/".into(),
                shell: shell.into(),
            };
            called(&identity)
        };
        assert_eq!(of("/bin/bash"), (ByteStr::from("-bash"), &["-l", "-c"][..]));
        assert_eq!(of("/usr/bin/tcsh"), (ByteStr::from("-tcsh"), &["-c"][..]));
        assert_eq!(of("csh"), (ByteStr::from("-csh"), &["-c"][..]));
    }
}
