//! The proxy by which registries are asked: the environment's, one that takes CONNECT.

use ureq::{Proxy, ProxyProtocol};

use crate::error::{Error, ErrorKind, Result};

/// The variables that may name one; the first that is set counts.
const VARIABLES: [&str; 6] =
    ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// The one that the environment names.
///
/// # Errors
/// What it names is no proxy, or there are only ones that speak SOCKS.
pub(super) fn of_env() -> Result<Option<Proxy>> {
    of(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Proxy>> {
    let mut socks = None;
    for name in VARIABLES {
        let Some(value) = variable(name).filter(|value| !value.trim().is_empty()) else { continue };
        // What it has may be a login, which no message has.
        let proxy = Proxy::new(value.trim()).map_err(|_| unfit(name, "does not name a proxy"))?;
        if matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
            return Ok(Some(proxy));
        }
        socks = socks.or(Some(name));
    }
    socks.map_or(Ok(None), |name| Err(unfit(name, "names a proxy that speaks SOCKS, by which none is asked")))
}

fn unfit(name: &str, reason: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{name} of the environment"), reason).next(
        "write http://[USER:PASSWORD@]HOST:PORT there or in HTTPS_PROXY, or name in NO_PROXY what is to be asked directly",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_can_be_asked_counts_and_what_is_none_is_named() {
        let of = |variables: &[(&str, &str)]| {
            let variable = |wanted: &str| {
                variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
            };
            match of(&variable) {
                Ok(proxy) => proxy.map_or("none".to_owned(), |p| format!("{}:{}", p.host(), p.port())),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(of(&[]), "none");
        assert_eq!(of(&[("ALL_PROXY", ""), ("http_proxy", " ")]), "none");
        assert_eq!(of(&[("HTTPS_PROXY", "http://a:3128"), ("HTTP_PROXY", "http://b:1")]), "a:3128");
        assert_eq!(of(&[("https_proxy", "a:3128")]), "a:3128");
        // What cannot be used hides nothing that can.
        assert_eq!(of(&[("ALL_PROXY", "socks5h://s:1080"), ("HTTPS_PROXY", "http://a:3128")]), "a:3128");
        let socks = of(&[("ALL_PROXY", "socks5://alice:secret@s:1080")]);
        assert!(
            socks.contains("ALL_PROXY") && socks.contains("SOCKS") && !socks.contains("secret"),
            "{socks}"
        );
        for bad in ["ftp://u:secret@a:1", "http://", "http://a b"] {
            let text = of(&[("HTTPS_PROXY", bad)]);
            assert!(text.contains("HTTPS_PROXY") && text.contains("does not name a proxy"), "{bad}: {text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
