//! The proxy by which registries are asked: the environment's for their scheme, one that takes CONNECT.

use ureq::{Proxy, ProxyProtocol};

use crate::error::{Error, ErrorKind, Result};

/// The variables that may name one for servers with TLS, and without; the first that is set counts. Those for all come last, as for curl:
/// docker and podman do not know them.
const SECURE: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const PLAIN: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// The one that the environment names for servers with TLS, or for those without, and the variable that does.
///
/// # Errors
/// What it names is no proxy, or there are only ones that speak SOCKS.
pub(super) fn of_env(tls: bool) -> Result<Option<(Proxy, &'static str)>> {
    of(tls, &|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

fn of(tls: bool, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<(Proxy, &'static str)>> {
    let variables = if tls { SECURE } else { PLAIN };
    let mut socks = None;
    for name in variables {
        let Some(value) = variable(name).filter(|value| !value.trim().is_empty()) else { continue };
        // What it has may be a login, which no message has.
        let proxy =
            Proxy::new(value.trim()).map_err(|_| unfit(name, variables[0], "does not name a proxy"))?;
        if matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
            return Ok(Some((proxy, name)));
        }
        socks = socks.or(Some(name));
    }
    let reason = "names a proxy that speaks SOCKS, by which none is asked";
    socks.map_or(Ok(None), |name| Err(unfit(name, variables[0], reason)))
}

/// Says so of a variable, where `own` is the one of the scheme.
fn unfit(name: &str, own: &str, reason: &str) -> Error {
    let place = if name == own { "there".to_owned() } else { format!("there or in {own}") };
    Error::new(ErrorKind::Unsupported, format!("{name} of the environment"), reason).next(format!(
        "write http://[USER:PASSWORD@]HOST:PORT {place}, or name in NO_PROXY what is to be asked directly",
    ))
}

#[cfg(test)]
mod tests {
    /// What these variables name.
    fn named(tls: bool, variables: &[(&str, &str)]) -> String {
        let variable = |wanted: &str| {
            variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
        };
        match super::of(tls, &variable) {
            Ok(Some((proxy, variable))) => format!("{variable} {}:{}", proxy.host(), proxy.port()),
            Ok(None) => "none".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_scheme_has_its_own_and_that_for_all_stands_behind_it() {
        let (secure, plain) = (("HTTPS_PROXY", "http://a:3128"), ("http_proxy", "b:1"));
        let all = ("all_proxy", "http://c:2");
        for tls in [false, true] {
            assert_eq!(named(tls, &[]), "none");
            assert_eq!(named(tls, &[("ALL_PROXY", ""), ("HTTP_PROXY", " "), ("HTTPS_PROXY", "")]), "none");
            assert_eq!(named(tls, &[all]), "all_proxy c:2");
        }
        assert_eq!(named(true, &[secure]), "HTTPS_PROXY a:3128");
        assert_eq!(named(true, &[plain]), "none");
        assert_eq!(named(true, &[all, plain, secure]), "HTTPS_PROXY a:3128");
        assert_eq!(named(true, &[all, plain]), "all_proxy c:2");
        assert_eq!(named(false, &[plain]), "http_proxy b:1");
        assert_eq!(named(false, &[secure]), "none");
        assert_eq!(named(false, &[all, plain, secure]), "http_proxy b:1");
        assert_eq!(named(false, &[all, secure]), "all_proxy c:2");
    }

    #[test]
    fn what_cannot_be_asked_hides_nothing_that_can_and_is_named() {
        let usable = [("HTTPS_PROXY", "socks5h://s:1080"), ("ALL_PROXY", "http://a:3128")];
        assert_eq!(named(true, &usable), "ALL_PROXY a:3128");
        let socks = named(true, &[("ALL_PROXY", "socks5://alice:secret@s:1080")]);
        for part in ["ALL_PROXY", "SOCKS", "there or in HTTPS_PROXY"] {
            assert!(socks.contains(part) && !socks.contains("secret"), "{socks}");
        }
        assert_eq!(named(false, &[("HTTPS_PROXY", "socks5://s:1080")]), "none");
        for bad in ["ftp://u:secret@a:1", "http://", "http://a b"] {
            let text = named(true, &[("HTTPS_PROXY", bad)]);
            assert!(text.contains("HTTPS_PROXY") && text.contains("does not name a proxy"), "{bad}: {text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
