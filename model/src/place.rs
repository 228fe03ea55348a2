//! Where images come from, as a site's rules name it: a registry, a repository and all below it, or a path and all below it.
//! Compared by component, never by the text's beginning: `ghcr.io/team` is not `ghcr.io/team-evil`.

/// What comes after `rule` in `place`, without a slash in front; nothing where the rule does not cover it. `place` is
/// `registry/repository` or an absolute path.
///
/// A path with `..` in it is not what it looks like, and no rule covers it. Two ways to write one registry are the same.
pub fn below<'a>(rule: &str, place: &'a str) -> Option<&'a str> {
    if place.split('/').any(|part| matches!(part, "." | "..")) {
        return None;
    }
    let rule = rule.trim_end_matches('/');
    let (rule_registry, rule_rest) = split(rule);
    let (registry, rest) = split(place);
    if address(rule_registry) != address(registry) {
        return None;
    }
    let rest = rest.strip_prefix(rule_rest)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

/// The registry, which is empty in front of a path, and what follows from the slash on.
fn split(place: &str) -> (&str, &str) {
    place.split_at(place.find('/').unwrap_or(place.len()))
}

/// Where a registry is: 443 is the port of every registry that names none, and addresses and numbers have more than one
/// spelling.
fn address(registry: &str) -> (String, Option<u16>) {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (registry, None),
        },
        _ => (registry, None),
    };
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match inside.and_then(|host| host.parse::<std::net::Ipv6Addr>().ok()) {
        Some(address) => address.to_string(),
        None => host.to_owned(),
    };
    (host, port.filter(|port| *port != 443))
}

/// Other names of docker.io.
const ALIASES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// Whether the first component of a name is a registry and not part of a repository.
pub fn is_registry(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':'])
}

/// Whether a registry is written in the one way in which canonical sources have it.
pub fn is_canonical(registry: &str) -> bool {
    !registry.is_empty()
        && !ALIASES.contains(&registry)
        && registry.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || b"-_.:[]".contains(&b))
}

/// How many components a rule has: the one with most is the closest.
pub fn depth(rule: &str) -> usize {
    rule.split('/').filter(|part| !part.is_empty()).count()
}

/// Why a rule's text names no place, and what to write.
///
/// # Errors
/// It is no place.
pub fn check(rule: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("'{rule}' {why}"));
    if rule.is_empty() || rule.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return wrong("is empty or has spaces; write HOST, HOST/REPOSITORY or /PATH");
    }
    if let Some(path) = rule.strip_prefix('/') {
        return match path.trim_end_matches('/').split('/').any(|part| matches!(part, "." | "..")) {
            true => wrong("has . or .. in it; write the whole path"),
            false => Ok(()),
        };
    }
    if rule.contains("://") || rule.contains(['@', '#']) {
        return wrong(
            "is an image's reference; write HOST or HOST/REPOSITORY, without scheme, user and digest",
        );
    }
    let (host, repository) = rule.split_once('/').unwrap_or((rule, ""));
    if !is_registry(host) {
        return wrong(
            "does not start with a registry's host; write docker.io/… for Docker Hub, or an absolute path",
        );
    }
    if ALIASES.contains(&host) {
        return wrong("is another name of docker.io; write that");
    }
    if rule.bytes().any(|b| b.is_ascii_uppercase()) {
        return wrong("has upper-case letters; registries and repositories have none");
    }
    if repository.contains(':') {
        return wrong("has a tag; a rule is about all of a repository");
    }
    let repository = repository.strip_suffix('/').unwrap_or(repository);
    if rule.contains('/')
        && repository.split('/').any(|part| matches!(part, "" | "." | ".."))
        && !repository.is_empty()
    {
        return wrong("has an empty component, . or .. in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_compared_and_not_text() {
        for (rule, place, rest) in [
            ("ghcr.io/team", "ghcr.io/team", Some("")),
            ("ghcr.io/team/", "ghcr.io/team", Some("")),
            ("ghcr.io/team", "ghcr.io/team/app/x", Some("app/x")),
            ("ghcr.io", "ghcr.io/team/app", Some("team/app")),
            ("ghcr.io/team", "ghcr.io/team-evil/app", None),
            ("ghcr.io", "ghcr.io.evil.org/team", None),
            ("ghcr.io/team/app", "ghcr.io/team", None),
            ("r.io", "r.io:5000/x", None),
            ("r.io", "r.io:443/x", Some("x")),
            ("r.io:443/x", "r.io/x/y", Some("y")),
            ("r.io:05000", "r.io:5000/x", Some("x")),
            ("[::1]:5000", "[0:0::1]:5000/x", Some("x")),
            ("[::1]", "[::2]/x", None),
            ("/shared/images", "/shared/images/a.sqsh", Some("a.sqsh")),
            ("/shared/images", "/shared/images-of-mine/a.sqsh", None),
            ("/shared/images", "/shared/images/../../home/ann/a.sqsh", None),
            ("/shared/images", "/shared/./images/a.sqsh", None),
            ("/", "/home/a.sqsh", Some("home/a.sqsh")),
            ("/", "ghcr.io/team", None),
        ] {
            assert_eq!(below(rule, place), rest, "{rule} {place}");
        }
        assert!(depth("ghcr.io/team") > depth("ghcr.io/") && depth("/") == 0);
    }

    #[test]
    fn what_is_no_place_says_why() {
        for good in
            ["ghcr.io", "docker.io/library", "localhost:5000/a/b", "/shared/images", "/", "[::1]:5000/x"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, says) in [
            ("", "empty"),
            ("a b.io", "spaces"),
            ("team/app", "docker.io/"),
            ("docker://ghcr.io/team", "without scheme"),
            ("me@ghcr.io#team", "without scheme"),
            ("ghcr.io/team@sha256:00", "digest"),
            ("ghcr.io/team:1", "tag"),
            ("ghcr.io/Team", "upper-case"),
            ("index.docker.io/library", "docker.io"),
            ("ghcr.io//team", "empty component"),
            ("ghcr.io/../team", ".."),
            ("/shared/../home", ".."),
        ] {
            let why = check(bad).unwrap_err();
            assert!(why.contains(says), "{bad}: {why}");
        }
    }
}
