//! Which servers are asked without the environment's proxy: those that NO_PROXY names, as docker, podman and others in Go read it,
//! and this machine's own.

use std::net::IpAddr;

use super::urls::origin;

/// What NO_PROXY has.
#[derive(Debug, Default)]
pub(super) struct Unproxied(Vec<Rule>);

#[derive(Debug, PartialEq, Eq)]
enum Rule {
    /// `*`
    All,
    /// `10.0.0.0/8`: servers that are named by such an address. Names are not looked up for it.
    Network(IpAddr, u32),
    /// `10.1.2.3`, `10.1.2.3:5000`
    Address(IpAddr, Option<u16>),
    /// `example.com`, with what is below it; `.example.com` and `*.example.com`, only that; each perhaps at one port.
    Name { name: String, itself: bool, port: Option<u16> },
    /// `10.1.*`, `10.1.`, `host*`: what begins so.
    Front(String, Option<u16>),
    /// `*example.com`: what ends so.
    End(String, Option<u16>),
}

impl Unproxied {
    pub(super) fn from_env() -> Self {
        Self::of(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// The first of the variables that says something.
    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut values = ["NO_PROXY", "no_proxy"].into_iter().filter_map(variable);
        Self::read(&values.find(|value| !value.trim().is_empty()).unwrap_or_default())
    }

    fn read(text: &str) -> Self {
        Self(text.split(',').filter_map(Rule::read).collect())
    }

    /// Whether the server of this URL is asked directly.
    pub(super) fn has(&self, url: &str) -> bool {
        let Some((scheme, server)) = origin(url).and_then(|origin| origin.split_once("://")) else {
            return false;
        };
        let (host, port) = split(server);
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let port = port.unwrap_or(if scheme == "http" { 80 } else { 443 });
        host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || self.0.iter().any(|rule| rule.has(&host, address, port))
    }
}

impl Rule {
    /// What one of its parts means; nothing where it means nothing.
    fn read(part: &str) -> Option<Self> {
        let part = part.trim().to_ascii_lowercase();
        if part == "*" {
            return Some(Rule::All);
        }
        if let Some((address, bits)) = part.split_once('/') {
            let address = address.parse::<IpAddr>().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            return Some(Rule::Network(address, bits.parse::<u32>().ok().filter(|bits| *bits <= most)?));
        }
        let (host, port) = split(&part);
        if let Ok(address) = host.parse() {
            return Some(Rule::Address(address, port));
        }
        let is_front = host.ends_with('.') && host.starts_with(|first: char| first.is_ascii_digit());
        if let Some(front) = host.strip_suffix('*').or(is_front.then_some(host)) {
            return (!front.is_empty()).then(|| Rule::Front(front.to_owned(), port));
        }
        if let Some(end) = host.strip_prefix('*').filter(|end| !end.starts_with('.')) {
            return Some(Rule::End(end.to_owned(), port));
        }
        let below = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
        let name = below.unwrap_or(host).to_owned();
        (!name.is_empty()).then_some(Rule::Name { name, itself: below.is_none(), port })
    }

    fn has(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        let at = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match self {
            Rule::All => true,
            Rule::Network(network, bits) => address.is_some_and(|address| within(address, *network, *bits)),
            Rule::Address(wanted, own) => address == Some(*wanted) && at(own),
            Rule::Front(front, own) => host.starts_with(front.as_str()) && at(own),
            Rule::End(end, own) => host.ends_with(end.as_str()) && at(own),
            Rule::Name { name, itself, port: own } => {
                let front = host.strip_suffix(name.as_str());
                at(own)
                    && front
                        .is_some_and(|front| if front.is_empty() { *itself } else { front.ends_with('.') })
            }
        }
    }
}

/// Whether the first so many bits of both are the same.
fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differs = u32::from(address) ^ u32::from(network);
            differs.checked_shr(32u32.saturating_sub(bits)).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differs = u128::from(address) ^ u128::from(network);
            differs.checked_shr(128u32.saturating_sub(bits)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// A host and its port; an address of IPv6 may stand in brackets.
fn split(server: &str) -> (&str, Option<u16>) {
    if let Some((host, rest)) = server.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        return (host, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match server.rsplit_once(':') {
        // More of them are an address of IPv6.
        Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
        _ => (server, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_means_what_it_means_to_docker() {
        let named = |rules: &str, url: &str| Unproxied::read(rules).has(url);
        for (rules, url) in [
            ("*", "https://r.io"),
            ("r.io", "https://r.io/v2/"),
            ("R.io", "https://r.IO:5000/v2/"),
            ("r.io", "https://a.b.r.io"),
            ("x, r.io ,y", "http://r.io"),
            (".r.io", "https://a.r.io"),
            ("*.r.io", "https://a.r.io"),
            ("r.io:443", "https://r.io/"),
            ("r.io:80", "http://r.io/"),
            ("r.io:5000", "https://a.r.io:5000/"),
            ("10.0.0.0/8", "https://10.200.3.4:5000/v2/"),
            ("0.0.0.0/0", "https://1.2.3.4"),
            ("10.1.2.3", "https://10.1.2.3:5000"),
            ("10.1.2.3:5000", "https://10.1.2.3:5000"),
            ("10.1.*", "https://10.1.2.3:5000/v2/"),
            ("10.1.", "https://10.1.2.3"),
            ("10.1.*:5000", "https://10.1.2.3:5000"),
            ("reg*", "https://registry.example.com"),
            ("*r.io", "https://r.io"),
            ("*r.io", "https://xr.io"),
            ("fd00::/8", "https://[fd12::1]:5000/"),
            ("[fd12::1]:5000", "https://[fd12::1]:5000/"),
            ("fd12::1", "https://[fd12::1]/"),
            ("", "http://localhost:5000/v2/"),
            ("", "https://127.0.0.3/"),
            ("", "https://[::1]:5000/"),
        ] {
            assert!(named(rules, url), "{rules:?} {url}");
        }
        for (rules, url) in [
            ("", "https://r.io"),
            (",, ", "https://r.io"),
            ("r.io", "https://xr.io"),
            ("r.io", "https://r.io.evil.com"),
            (".r.io", "https://r.io"),
            ("*.r.io", "https://r.io"),
            ("r.io:80", "https://r.io/"),
            ("r.io:5000", "https://r.io:5001/"),
            ("10.0.0.0/8", "https://11.0.0.1"),
            ("10.0.0.0/8", "https://10.example.com"),
            ("10.0.0.0/33", "https://10.0.0.0"),
            ("10.1.2.3:5000", "https://10.1.2.3"),
            ("10.1.2.3", "https://10.1.2.30"),
            ("fd00::/8", "https://[fe80::1]/"),
            ("0.0.0.0/0", "https://[fe80::1]/"),
            ("10.1.*", "https://10.11.2.3"),
            ("10.1.", "https://10.11.2.3"),
            ("10.1.*:5000", "https://10.1.2.3"),
            ("*r.io", "https://r.io.evil.com"),
            ("*:80", "https://r.io"),
            (".", "https://r.io"),
            ("r.io", "r.io"),
        ] {
            assert!(!named(rules, url), "{rules:?} {url}");
        }
    }

    #[test]
    fn a_variable_that_is_empty_hides_none() {
        let of = |variables: &[(&str, &str)]| {
            let variable = |wanted: &str| {
                variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
            };
            Unproxied::of(&variable).has("https://r.io")
        };
        assert!(of(&[("NO_PROXY", " "), ("no_proxy", "r.io")]));
        assert!(!of(&[("NO_PROXY", "other.io"), ("no_proxy", "r.io")]));
        assert!(!of(&[]));
    }
}
