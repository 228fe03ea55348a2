//! Logins as users of Enroot keep them: `.credentials`, in the form of netrc(5) as curl reads it. It is read and never written.

use std::path::{Path, PathBuf};

use super::credentials::{Credentials, Identity, read};
use crate::error::Result;
use crate::reference::DEFAULT_REGISTRY;

/// Who asks NVIDIA's registry with a key has this name there, which looks like a variable and is none.
const NO_VARIABLE: &str = "$oauthtoken";

/// What one machine is shown.
#[derive(Default)]
struct Entry {
    /// Nothing of the entry for all other machines: no registry that somebody names is shown that.
    machine: String,
    login: String,
    password: String,
}

/// What the file has for somebody.
enum Found {
    Login(Identity),
    /// A shell is to make it, which is not asked: where the file is, and for which machine.
    ByShell(PathBuf, String),
}

impl Credentials {
    /// With Enroot's configuration in this directory, where one is named, and not in `~/.config/enroot`.
    #[must_use]
    pub fn with_enroot(mut self, directory: Option<&Path>) -> Self {
        if let Some(directory) = directory {
            self.enroot = Some(directory.join(".credentials"));
        }
        self
    }

    /// The login of a registry in Enroot's file; only one of `user` where a user is named.
    pub(super) fn of_enroot(&self, registry: &str, user: Option<&str>) -> Result<Option<Identity>> {
        Ok(match self.in_enroot(registry, user)? {
            Some(Found::Login(identity)) => Some(identity),
            Some(Found::ByShell(..)) | None => None,
        })
    }

    /// Why a login that Enroot would show is not shown, to those who were refused without one.
    pub(super) fn not_of_enroot(&self, registry: &str) -> Option<String> {
        let Ok(Some(Found::ByShell(path, machine))) = self.in_enroot(registry, None) else { return None };
        let path = path.display();
        Some(format!(
            "the login of {machine} in {path} is made by a shell, which is not done here: write it out there"
        ))
    }

    /// Enroot's file, if it has a login for that.
    pub(super) fn enroot_has(&self, registry: &str, user: Option<&str>) -> Option<PathBuf> {
        self.in_enroot(registry, user).ok()??;
        self.enroot.clone()
    }

    fn in_enroot(&self, registry: &str, user: Option<&str>) -> Result<Option<Found>> {
        let Some(path) = &self.enroot else { return Ok(None) };
        let Some(text) = read(path)? else { return Ok(None) };
        Ok(find(path, &String::from_utf8_lossy(&text), registry, user))
    }
}

fn find(path: &Path, text: &str, registry: &str, user: Option<&str>) -> Option<Found> {
    let entries = entries(text);
    for machine in machines(registry) {
        for entry in entries.iter().filter(|entry| entry.machine.eq_ignore_ascii_case(machine)) {
            let by_shell = [&entry.login, &entry.password].into_iter().any(|text| is_by_shell(text));
            let login = entry.login.replace("\\$", "$");
            if user.is_some_and(|user| user != login) || entry.login.is_empty() || entry.password.is_empty() {
                continue;
            }
            if by_shell {
                return Some(Found::ByShell(path.to_path_buf(), machine.to_owned()));
            }
            let password = entry.password.replace("\\$", "$");
            return Some(Found::Login(Identity::Basic { user: login, password }));
        }
    }
    None
}

/// Names of machines that mean a registry, the most exact one first. Enroot has the names of token servers there, too; a registry may name
/// anybody's, and what that gives for the login: so no other registry than Docker Hub is known by one.
fn machines(registry: &str) -> Vec<&str> {
    let mut all = vec![registry];
    if let Some((host, _)) = registry.rsplit_once(':') {
        all.push(host);
    }
    if registry == DEFAULT_REGISTRY {
        all.extend(["auth.docker.io", "registry-1.docker.io", "index.docker.io"]);
    }
    all
}

/// Whether a shell would put something else in its place.
fn is_by_shell(text: &str) -> bool {
    let mut before = ' ';
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let begins = |next: &char| next.is_ascii_alphanumeric() || matches!(*next, '_' | '(' | '{');
        let does = c == '`' || (c == '$' && characters.peek().is_some_and(begins));
        if does && before != '\\' {
            return text != NO_VARIABLE;
        }
        before = c;
    }
    false
}

fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut in_macro = false;
    let lines = text.lines().map(str::trim).filter(|line| {
        // Macros end with an empty line.
        in_macro = !line.is_empty() && (in_macro || line.starts_with("macdef"));
        !in_macro && !line.starts_with('#')
    });
    let mut words = lines.flat_map(words).collect::<Vec<_>>().into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" => {
                entries.push(Entry { machine: words.next().unwrap_or_default(), ..Entry::default() });
            }
            "default" => entries.push(Entry::default()),
            key @ ("login" | "password" | "account") => {
                let value = words.next().unwrap_or_default();
                match (key, entries.last_mut()) {
                    ("login", Some(entry)) => entry.login = value,
                    ("password", Some(entry)) => entry.password = value,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    entries
}

/// Words of a line, which may be in quotes. A dollar that is no variable keeps its mark.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut characters = line.chars().peekable();
    loop {
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(first) = characters.next() else { return words };
        let mut word = String::new();
        if first == '"' {
            while let Some(c) = characters.next().filter(|c| *c != '"') {
                match (c, if c == '\\' { characters.next() } else { None }) {
                    ('\\', Some('n')) => word.push('\n'),
                    ('\\', Some('r')) => word.push('\r'),
                    ('\\', Some('t')) => word.push('\t'),
                    ('\\', Some(c @ ('$' | '`'))) => word.extend(['\\', c]),
                    ('\\', Some(c)) => word.push(c),
                    (c, _) => word.push(c),
                }
            }
        } else {
            word.push(first);
            while let Some(c) = characters.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
        }
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, registry: &str, user: Option<&str>) -> Option<(String, String)> {
        match find(Path::new("/x/.credentials"), text, registry, user)? {
            Found::Login(Identity::Basic { user, password }) => Some((user, password)),
            Found::Login(_) => panic!("another kind of login"),
            Found::ByShell(_, machine) => Some(("by a shell".to_owned(), machine)),
        }
    }

    const FILE: &str = r##"
# machine hidden.io login x password y
machine nvcr.io login $oauthtoken password nvapi-1
machine R.io
	login alice
	password a
machine r.io login bob password "b \"c\\ \$d"
machine auth.docker.io login hub password h#1
machine port.io login any password a
machine port.io:5000 account z login exact password e
macdef init
machine macro.io login x password y

machine gcr.io login oauth2accesstoken password $(gcloud auth print-access-token)
machine a.io login a password pa$word
machine b.io login a password ${SECRET}
machine c.io login a password `cat login`
machine d.io login a password pa\$word
machine e.io login a password end$
machine half.io login a
default login everybody password p
"##;

    #[test]
    fn logins_are_found_by_machine_and_user() {
        let is = |registry, user, login: &str, password: &str| {
            assert_eq!(of(FILE, registry, user), Some((login.to_owned(), password.to_owned())), "{registry}");
        };
        is("nvcr.io", None, "$oauthtoken", "nvapi-1");
        is("r.io", None, "alice", "a");
        is("r.io", Some("bob"), "bob", "b \"c\\ $d");
        is("docker.io", None, "hub", "h#1");
        is("port.io:1", None, "any", "a");
        is("port.io:5000", None, "exact", "e");
        is("d.io", None, "a", "pa$word");
        is("e.io", None, "a", "end$");
        // Nobody is shown what is for all others, or for another one.
        for none in ["hidden.io", "macro.io", "half.io", "other.io", "io", "auth.docker.io.evil.io"] {
            assert_eq!(of(FILE, none, None), None, "{none}");
        }
        assert_eq!(of(FILE, "r.io", Some("carol")), None);
        assert_eq!(of("machine", "r.io", None), None);
        assert_eq!(of("login x password y", "r.io", None), None);
    }

    #[test]
    fn what_a_shell_would_make_is_told_and_not_shown() {
        for registry in ["gcr.io", "a.io", "b.io", "c.io"] {
            assert_eq!(of(FILE, registry, None), Some(("by a shell".to_owned(), registry.to_owned())));
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".credentials"), FILE).unwrap();
        let here = Credentials::anonymous().with_enroot(Some(dir.path()));
        let told = here.not_of_enroot("gcr.io").unwrap();
        assert!(
            told.contains("gcr.io") && told.contains(".credentials") && !told.contains("gcloud"),
            "{told}"
        );
        assert!(here.of_enroot("gcr.io", None).unwrap().is_none());
        assert!(here.not_of_enroot("nvcr.io").is_none() && here.not_of_enroot("other.io").is_none());
    }

    #[test]
    fn other_files_count_before_it_and_a_pipe_in_its_place_is_told() {
        let home = tempfile::tempdir().unwrap();
        let enroot = home.path().join(".config/enroot");
        std::fs::create_dir_all(&enroot).unwrap();
        std::fs::write(enroot.join(".credentials"), FILE).unwrap();
        let of =
            |user| Credentials::from_parts(None, None, None, Some(home.path())).lookup("r.io", "x", user);
        let named = |user| of(user).unwrap().name();
        assert_eq!(named(None), r#"user "alice""#);
        std::fs::create_dir(home.path().join(".docker")).unwrap();
        // carol:d
        let docker = r#"{"auths":{"r.io":{"auth":"Y2Fyb2w6ZA=="}}}"#;
        std::fs::write(home.path().join(".docker/config.json"), docker).unwrap();
        assert_eq!(
            (named(None), named(Some("bob"))),
            (r#"user "carol""#.to_owned(), r#"user "bob""#.to_owned())
        );
        std::fs::remove_file(home.path().join(".docker/config.json")).unwrap();
        std::fs::remove_file(enroot.join(".credentials")).unwrap();
        nix::unistd::mkfifo(&enroot.join(".credentials"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = of(None).unwrap_err().to_string();
        assert!(error.contains("enroot/.credentials") && error.contains("is not a regular file"), "{error}");
    }
}
