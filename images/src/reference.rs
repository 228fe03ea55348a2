//! Image references: every spelling that people bring from Docker, Pyxis, Enroot and skopeo, read and printed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// The registry that a bare name means.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// An image as a person names it.
///
/// | text | meaning |
/// |---|---|
/// | `debian`, `debian:12`, `org/name@sha256:…` | a repository of docker.io |
/// | `registry:5000/x/y:tag`, `docker://…` | a repository of that registry |
/// | `[USER@][REGISTRY#]IMAGE[:TAG]` | the same, as Pyxis and Enroot write it |
/// | `oci:/path[:name]` | an OCI layout directory |
/// | `oci-archive:/path.tar[:name]` | an OCI layout in a tar file |
/// | `/path`, `./path`, `../path`, `~/path` | an OCI layout, an OCI tar, a squashfs file or a root directory, told apart by content |
/// | `containers-storage:NAME`, `podman://NAME` | an image of the user's own podman |
/// | `docker-daemon:NAME`, `dockerd://NAME` | an image of docker's daemon on this machine |
/// | `host:` | the node's own file system |
///
/// Printing gives the canonical spelling, which reads back as the same value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// An image of a registry.
    Registry(RegistryRef),
    /// An OCI layout directory; `name` selects one of several images.
    Oci {
        /// Where the layout is.
        path: PathBuf,
        /// Value of the annotation `org.opencontainers.image.ref.name`.
        name: Option<String>,
    },
    /// A tar file that holds an OCI layout.
    OciArchive {
        /// Where the tar file is.
        path: PathBuf,
        /// As in [`Reference::Oci`].
        name: Option<String>,
    },
    /// A tar file of `docker save`.
    DockerArchive {
        /// Where the tar file is.
        path: PathBuf,
        /// One of the names in its `RepoTags`.
        name: Option<String>,
    },
    /// A path whose content decides what it is.
    Path(PathBuf),
    /// An image in the local store of an engine.
    Engine {
        /// Whose store.
        engine: Engine,
        /// By a name or an id that the engine knows.
        name: String,
    },
    /// The node's own file system.
    Host,
}

/// An engine that keeps images on the machine it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// podman, with a storage for each user.
    Podman,
    /// docker, with a daemon for the machine.
    Docker,
}

/// The words of engines.
const ENGINES: [(&str, Engine); 4] = [
    ("containers-storage:", Engine::Podman),
    ("podman://", Engine::Podman),
    ("docker-daemon:", Engine::Docker),
    ("dockerd://", Engine::Docker),
];

/// Those of all else that can be named, as sources are listed, too.
const WORDS: [&str; 7] = ["docker://", "oci:", "oci-archive:", "docker-archive:", "sqsh:", "sif:", "host:"];

impl Reference {
    /// The words that may stand in front of what people name, with what ends them; those that are refused as well.
    pub fn words() -> impl Iterator<Item = &'static str> {
        let refused = REFUSED_SCHEMES.iter().map(|(word, ..)| *word);
        WORDS.into_iter().chain(ENGINES.into_iter().map(|(word, _)| word)).chain(refused)
    }
}

impl Engine {
    /// What stands before the colon, as skopeo writes it.
    pub fn scheme(self) -> &'static str {
        match self {
            Engine::Podman => "containers-storage",
            Engine::Docker => "docker-daemon",
        }
    }

    /// The engine that a text names, and what follows.
    pub(crate) fn of(text: &str) -> Option<(Engine, &str)> {
        ENGINES.into_iter().find_map(|(scheme, engine)| Some((engine, text.strip_prefix(scheme)?)))
    }
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryRef {
    /// Whose login to use, where the person said so (`USER@`).
    pub user: Option<String>,
    /// Host name or address, with `:port` where given. Docker Hub is always `docker.io`.
    pub registry: String,
    /// Repository, such as `library/debian`.
    pub repository: String,
    /// Tag; `latest` where neither tag nor digest was given.
    pub tag: Option<String>,
    /// Digest, which pins the image and wins over the tag.
    pub digest: Option<Digest>,
}

impl RegistryRef {
    /// `docker://registry/repository`, without tag and digest: the canonical source of a pinned image. A user
    /// name stays in it, because it chooses the login with which a node fetches.
    pub fn source(&self) -> String {
        Self { tag: None, digest: None, ..self.clone() }.to_string()
    }

    /// `registry/repository`, as a site's rules name it.
    pub fn place(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    fn base(&self) -> String {
        let mark = if looks_like_registry(&self.registry) { '/' } else { '#' };
        format!("{}{mark}{}", self.registry, self.repository)
    }
}

impl Reference {
    /// Where the image comes from, as a site's rules name it and as far as its name alone says: `registry/repository`, or an engine's
    /// store. Nothing for a path, which may be a link to another one, and for the node's own file system.
    pub fn place(&self) -> Option<String> {
        match self {
            Reference::Registry(name) => Some(name.place()),
            Reference::Engine { engine, .. } => Some(format!("{}:", engine.scheme())),
            Reference::Oci { .. }
            | Reference::OciArchive { .. }
            | Reference::DockerArchive { .. }
            | Reference::Path(_)
            | Reference::Host => None,
        }
    }
}

impl fmt::Display for RegistryRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("docker://")?;
        match &self.user {
            Some(user) => write!(f, "{user}@{}#{}", self.registry, self.repository)?,
            None => f.write_str(&self.base())?,
        }
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = |f: &mut fmt::Formatter<'_>, scheme: &str, path: &Path, name: &Option<String>| {
            write!(f, "{scheme}:{}", path.display())?;
            name.iter().try_for_each(|name| write!(f, ":{name}"))
        };
        match self {
            Reference::Registry(registry) => registry.fmt(f),
            Reference::Oci { path, name } => layout(f, "oci", path, name),
            Reference::OciArchive { path, name } => layout(f, "oci-archive", path, name),
            Reference::DockerArchive { path, name } => layout(f, "docker-archive", path, name),
            Reference::Path(path) => path.display().fmt(f),
            Reference::Engine { engine, name } => write!(f, "{}:{name}", engine.scheme()),
            Reference::Host => f.write_str("host:"),
        }
    }
}

/// Forms that other tools know and this version does not, and what to do instead.
const REFUSED_SCHEMES: &[(&str, &str, &str)] = &[
    (
        "dir:",
        "skopeo's dir: form is not supported",
        "run `skopeo copy dir:PATH oci:PATH2` and name oci:PATH2",
    ),
    (
        "oras://",
        "ORAS artifacts are not supported",
        "use the image that the artifact was made from, from its registry",
    ),
    (
        "library://",
        "Sylabs library images are not supported",
        "use the image that it was made from, from its registry",
    ),
    (
        "shub://",
        "Singularity Hub images are not supported",
        "use the image that it was made from, from its registry",
    ),
    (
        "https://",
        "a registry image is named without a scheme",
        "write REGISTRY/NAME:TAG or docker://REGISTRY/NAME:TAG",
    ),
    (
        "http://",
        "a registry image is named without a scheme",
        "write REGISTRY/NAME:TAG and allow HTTP with --insecure, or for jobs in images.insecure_registries of berth.toml",
    ),
];

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let quoted = format!("image {text:?}");
        let bad =
            |reason: &str, next: &str| Error::new(ErrorKind::Reference, quoted.clone(), reason).next(next);
        if text.is_empty() {
            return Err(bad(
                "is empty",
                "give a name such as debian:12, a path such as ./image.tar, or host:",
            ));
        }
        if text.len() > 4096 || text.chars().any(char::is_control) {
            return Err(bad("is too long or holds control characters", "check the quoting"));
        }
        if text == "host:" {
            return Ok(Reference::Host);
        }
        if text.starts_with("host:") {
            return Err(bad("has text after host:", "write host: alone for the node's own file system"));
        }
        if let Some((_, reason, next)) =
            REFUSED_SCHEMES.iter().find(|(scheme, _, _)| text.starts_with(scheme))
        {
            return Err(Error::new(ErrorKind::Unsupported, quoted, *reason).next(*next));
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, name) = layout_parts(rest, &bad)?;
            return Ok(Reference::OciArchive { path, name });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, name) = layout_parts(rest, &bad)?;
            return Ok(Reference::DockerArchive { path, name });
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, name) = layout_parts(rest, &bad)?;
            return Ok(Reference::Oci { path, name });
        }
        if let Some((engine, name)) = Engine::of(text) {
            return engine_name(name, &bad).map(|name| Reference::Engine { engine, name });
        }
        if is_path(text) {
            // Whatever its name ends with: content decides.
            return Ok(Reference::Path(PathBuf::from(text)));
        }
        let rest = text.strip_prefix("docker://").unwrap_or(text);
        if rest.len() == text.len() {
            refuse_suffix(text, &quoted)?;
        }
        if rest.is_empty() {
            return Err(bad("has no name after docker://", "write docker://REGISTRY/NAME:TAG"));
        }
        if let Some((scheme, _)) = rest.split_once("://") {
            return Err(bad(
                &format!("has an unknown scheme {scheme:?}"),
                "write REGISTRY/NAME:TAG, docker://REGISTRY/NAME:TAG, or a path that begins with ./ or /",
            ));
        }
        registry_ref(rest, &bad).map(Reference::Registry)
    }
}

/// A name or an id in an engine's store. The engine reads it; nothing in it is an option or another request.
fn engine_name(text: &str, bad: &impl Fn(&str, &str) -> Error) -> Result<String> {
    if text.starts_with('[') {
        return Err(bad(
            "names a storage in brackets",
            "name that storage in a file, and the file by CONTAINERS_STORAGE_CONF (containers-storage.conf(5))",
        ));
    }
    // skopeo writes an id behind @.
    let name = text.strip_prefix('@').unwrap_or(text);
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@+".contains(&b);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !name.bytes().all(fits)
        || name.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        return Err(bad(
            "has no valid name of an image",
            "write NAME[:TAG] or an id, as the engine lists it",
        ));
    }
    Ok(name.to_owned())
}

fn is_path(text: &str) -> bool {
    text == "." || text == ".." || ["/", "./", "../", "~/"].iter().any(|p| text.starts_with(p))
}

fn refuse_suffix(text: &str, quoted: &str) -> Result<()> {
    if [".sqsh", ".squashfs", ".sif"].iter().any(|s| text.ends_with(s)) {
        return Err(Error::new(ErrorKind::Reference, quoted, "looks like a file and is written like a name")
            .next(format!("write ./{text}, or the whole path")));
    }
    Ok(())
}

/// Splits `path[:name]` at the first colon, as skopeo does.
fn layout_parts(rest: &str, bad: &impl Fn(&str, &str) -> Error) -> Result<(PathBuf, Option<String>)> {
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) => (path, Some(name)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(bad(
            "has no path",
            "write a path behind the colon, such as oci:/path/to/layout or docker-archive:file.tar",
        ));
    }
    if path.starts_with("//") {
        return Err(bad(
            "is not a URL",
            "write the path with one slash, such as oci:/path or docker-archive:/path",
        ));
    }
    if name.is_some_and(|name| name.is_empty() || name.contains(char::is_whitespace)) {
        return Err(bad(
            "has no valid image name after the second colon",
            "leave the colon out, or give the name of an image in the layout",
        ));
    }
    Ok((PathBuf::from(path), name.map(str::to_owned)))
}

/// Whether the first component of a name is a registry, by Docker's rule.
fn looks_like_registry(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

fn registry_ref(text: &str, bad: &impl Fn(&str, &str) -> Error) -> Result<RegistryRef> {
    let (rest, digest) = match text.rsplit_once('@') {
        Some((rest, tail)) if is_digest_like(tail) => {
            let digest: Digest = tail
                .parse()
                .map_err(|e: Error| bad(&format!("has a bad digest: {e}"), "copy the whole digest"))?;
            (rest, Some(digest))
        }
        _ => (text, None),
    };
    let (registry, rest) = match rest.split_once('#') {
        Some((registry, rest)) => (Some(registry), rest),
        None => (None, rest),
    };
    // The user stands in front of the registry, or of the name where there is no registry.
    let (user, registry, rest) = match registry {
        Some(registry) => match registry.rsplit_once('@') {
            Some((user, registry)) => (Some(user), Some(registry), rest),
            None => (None, Some(registry), rest),
        },
        None => match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), None, rest),
            None => (None, None, rest),
        },
    };
    if user.is_some_and(|user| {
        user.is_empty() || user.contains(|c: char| c.is_whitespace() || "/@#:".contains(c))
    }) {
        return Err(bad(
            "has an invalid user name in front of @",
            "write [USER@][REGISTRY#]NAME[:TAG]; a digest is written @sha256:…",
        ));
    }
    let (registry, rest) = match registry {
        Some(registry) => (registry, rest),
        None => match rest.split_once('/') {
            Some((first, tail)) if looks_like_registry(first) => (first, tail),
            _ => (DEFAULT_REGISTRY, rest),
        },
    };
    let registry = registry_name(registry, bad)?;
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (repository, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(bad(
            &format!("has an invalid tag {tag:?}"),
            "a tag has letters, digits, _ . - and at most 128 characters",
        ));
    }
    check_repository(repository, bad)?;
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(RegistryRef { user: user.map(str::to_owned), registry, repository, tag, digest })
}

/// Whether text after `@` was meant as a digest, be it right or wrong.
fn is_digest_like(tail: &str) -> bool {
    tail.split_once(':').is_some_and(|(algorithm, hex)| {
        matches!(algorithm, "sha256" | "sha512" | "sha384" | "sha1" | "md5")
            || (hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

fn registry_name(text: &str, bad: &impl Fn(&str, &str) -> Error) -> Result<String> {
    let wrong =
        |reason: &str| bad(&format!("has an invalid registry {text:?}: {reason}"), "write HOST or HOST:PORT");
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest.split_once(']').ok_or_else(|| wrong("the bracket is not closed"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(wrong("not an IPv6 address in brackets"));
            }
            let port = match tail {
                "" => None,
                _ => Some(tail.strip_prefix(':').ok_or_else(|| wrong("text after the bracket"))?),
            };
            (format!("[{host}]"), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            let label = |l: &str| {
                !l.is_empty()
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                    && !l.starts_with('-')
                    && !l.ends_with('-')
            };
            if host.is_empty() || host.len() > 253 || !host.split('.').all(label) {
                return Err(wrong("not a host name"));
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    if let Some(port) = port
        && (port.parse::<u16>().map_or(true, |p| p == 0) || !port.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(wrong("the port is not a number from 1 to 65535"));
    }
    let name = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
    Ok(match name.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DEFAULT_REGISTRY.to_owned(),
        _ => name,
    })
}

/// An address of a registry without a scheme, slashes at its end and a version of the API, which login files and scripts have.
pub(crate) fn bare_address(text: &str) -> &str {
    let schemes = ["https://", "http://", "docker://", "oras://"];
    let text = schemes.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    let text = text.trim_end_matches('/');
    text.strip_suffix("/v1").or_else(|| text.strip_suffix("/v2")).unwrap_or(text)
}

/// A registry as a person names it alone: `HOST[:PORT]`, perhaps as [`bare_address`] takes it.
pub(crate) fn registry_alone(text: &str) -> Result<String> {
    let quoted = format!("registry {text:?}");
    let bad = |reason: &str, next: &str| Error::new(ErrorKind::Reference, quoted.clone(), reason).next(next);
    let host = bare_address(text);
    if host.contains('/') {
        return Err(bad("has a path", "name the registry alone: HOST or HOST:PORT"));
    }
    registry_name(host, &bad)
}

fn check_repository(text: &str, bad: &impl Fn(&str, &str) -> Error) -> Result<()> {
    if text.is_empty() {
        return Err(bad("has no repository name", "write NAME[:TAG], such as debian:12"));
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(bad(
            "has upper-case letters in the repository name",
            "registries want lower case; only tags may have capitals",
        ));
    }
    if text.len() > 255 || !text.split('/').all(is_component) {
        return Err(bad(
            &format!("has an invalid repository name {text:?}"),
            "names have lower-case letters and digits, joined by single . or _, __, or dashes, and / between parts; a file is named ./FILE",
        ));
    }
    Ok(())
}

/// One component of a repository, by the distribution specification's grammar.
fn is_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alnum(*first) || !alnum(*last) {
        return false;
    }
    bytes.split(|b| alnum(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap_or_else(|e| panic!("{e}")).to_string()
    }

    #[test]
    fn a_scheme_of_something_else_is_named_and_not_read_as_a_registry() {
        for text in ["ftp://x/y", "docker://https://x/y"] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("unknown scheme") && error.contains("docker://REGISTRY/"), "{error}");
        }
    }

    #[test]
    fn spellings() {
        let d = "a".repeat(64);
        for (text, want) in [
            ("debian", "docker://docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker://docker.io/library/debian:12".to_owned()),
            ("docker://debian:12", "docker://docker.io/library/debian:12".to_owned()),
            ("org/app", "docker://docker.io/org/app:latest".to_owned()),
            ("index.docker.io/org/app:1", "docker://docker.io/org/app:1".to_owned()),
            ("registry:5000/x/y:tag", "docker://registry:5000/x/y:tag".to_owned()),
            ("localhost/x", "docker://localhost/x:latest".to_owned()),
            ("localhost:5000", "docker://docker.io/library/localhost:5000".to_owned()),
            ("[::1]:5000/x:t", "docker://[::1]:5000/x:t".to_owned()),
            ("nvcr.io#nvidia/x:tag", "docker://nvcr.io/nvidia/x:tag".to_owned()),
            ("docker://nvcr.io#nvidia/x:tag", "docker://nvcr.io/nvidia/x:tag".to_owned()),
            ("myhost#x/y:tag", "docker://myhost#x/y:tag".to_owned()),
            ("host:5000#x:tag", "host".to_owned()),
            ("$oauthtoken@nvcr.io#nvidia/x:t", "docker://$oauthtoken@nvcr.io#nvidia/x:t".to_owned()),
            ("me@debian:12", "docker://me@docker.io#library/debian:12".to_owned()),
            (&format!("debian@sha256:{d}"), format!("docker://docker.io/library/debian@sha256:{d}")),
            (&format!("a.b/c:t@sha256:{d}"), format!("docker://a.b/c:t@sha256:{d}")),
            (&format!("me@a.b#c:t@sha256:{d}"), format!("docker://me@a.b#c:t@sha256:{d}")),
            ("oci:/path", "oci:/path".to_owned()),
            ("oci:/path:docker.io/x:1", "oci:/path:docker.io/x:1".to_owned()),
            ("oci-archive:./a.tar", "oci-archive:./a.tar".to_owned()),
            ("./a.tar", "./a.tar".to_owned()),
            ("/a:b", "/a:b".to_owned()),
            ("~/a", "~/a".to_owned()),
            ("podman://box", "containers-storage:box".to_owned()),
            ("containers-storage:localhost/box:1", "containers-storage:localhost/box:1".to_owned()),
            ("containers-storage:@0123abcd", "containers-storage:0123abcd".to_owned()),
            ("dockerd://debian:12", "docker-daemon:debian:12".to_owned()),
            ("docker-daemon:sha256:01ab", "docker-daemon:sha256:01ab".to_owned()),
            ("host:", "host:".to_owned()),
        ] {
            if want == "host" {
                // `host:` is a scheme; a registry of that name needs docker://.
                assert!(text.parse::<Reference>().is_err());
                assert_eq!(canonical(&format!("docker://{text}")), "docker://host:5000/x:tag");
                continue;
            }
            assert_eq!(canonical(text), want, "{text}");
            assert_eq!(canonical(&want), want, "{text} again");
        }
    }

    #[test]
    fn refusals_name_the_next_step() {
        for (text, word) in [
            ("", "debian:12"),
            ("Debian", "lower case"),
            ("a b", "names have"),
            ("a:", "tag"),
            ("a:b c", "tag"),
            ("a//b", "names have"),
            ("-a", "names have"),
            ("a@sha256:12", "digest"),
            ("a@md5:d41d8cd98f00b204e9800998ecf8427e", "sha256"),
            ("x.sqsh", "./x.sqsh"),
            ("x.sif", "./x.sif"),
            ("https://r/x", "without a scheme"),
            ("docker://", "REGISTRY"),
            ("oci:", "path"),
            ("podman://", "NAME[:TAG]"),
            ("containers-storage:--help", "NAME[:TAG]"),
            ("containers-storage:[vfs@/x]y", "CONTAINERS_STORAGE_CONF"),
            ("docker-daemon:x/../../containers", "NAME[:TAG]"),
            ("dockerd://x?a=b", "NAME[:TAG]"),
            ("docker-daemon:x HTTP/1.0", "NAME[:TAG]"),
            ("oci://x", "one slash"),
            ("docker-archive:", "docker-archive:file.tar"),
            ("oci:/x:", "colon"),
            ("host:5", "alone"),
            ("r:0/x.y/z", "port"),
            ("r:99999/x", "port"),
            ("a@b@c.d#x", "user"),
            ("@x", "user"),
            ("-r.io/x", "HOST"),
            ("x\ny", "control"),
        ] {
            let error = text.parse::<Reference>().expect_err(text).to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    prop_compose! {
        fn registry_text()(
            user in proptest::option::of("[a-z$][a-z0-9]{0,6}"),
            registry in proptest::option::of("[a-z][a-z0-9]{0,5}(\\.[a-z]{2,3})?(:[1-9][0-9]{1,3})?"),
            repository in "[a-z0-9]{1,5}([._-][a-z0-9]{1,3})?(/[a-z0-9]{1,4}(__|---)[a-z0-9]{1,3})?",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9._-]{0,12}"),
            digest in proptest::option::of("[0-9a-f]{64}"),
        ) -> String {
            let mut text = String::from("docker://");
            if let Some(user) = user { text += &user; text.push('@'); }
            if let Some(registry) = registry { text += &registry; text.push('#'); }
            text += &repository;
            if let Some(tag) = tag { text.push(':'); text += &tag; }
            if let Some(digest) = digest { text += "@sha256:"; text += &digest; }
            text
        }
    }

    proptest! {
        #[test]
        fn print_parse_print(text in registry_text()) {
            let reference: Reference = text.parse().unwrap();
            let printed = reference.to_string();
            let again: Reference = printed.parse().unwrap();
            prop_assert_eq!(&again, &reference);
            prop_assert_eq!(again.to_string(), printed);
        }

        #[test]
        fn anything_is_read_or_refused_and_what_is_read_prints_back(text in "\\PC{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let printed = reference.to_string();
                prop_assert_eq!(printed.parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
