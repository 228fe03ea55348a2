//! X11 forwarding (`--x11`): which display a step reaches, and on which of the job's nodes.

pub mod setup;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The variable in which the display's cookie travels beside the submitter's environment: that is stored apart from all
/// records and shown to nobody. No task has it in its environment.
pub const COOKIE: &str = "BERTH_X11_COOKIE";
/// In this one travels the cookie of a display that `srun` carries to other machines: made for the step, and good for nothing but its way to
/// `srun`, which puts the display's own in its place. No task has it in its environment.
pub const CARRIED: &str = "BERTH_X11_CARRIED";
/// By this `salloc --x11` tells the `srun`s in its allocation; no task has it either.
pub const WANTED: &str = "SLURM_X11";

/// On which nodes of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum X11Nodes {
    /// On all.
    #[default]
    All,
    /// On the first.
    First,
    /// On the last.
    Last,
    /// On that of the batch script, which is the first.
    Batch,
}

impl X11Nodes {
    const NAMES: [(&'static str, X11Nodes); 4] = [
        ("all", X11Nodes::All),
        ("first", X11Nodes::First),
        ("last", X11Nodes::Last),
        ("batch", X11Nodes::Batch),
    ];

    /// Whether the `at`-th of so many nodes is one.
    #[must_use]
    pub fn takes(self, at: usize, nodes: usize) -> bool {
        match self {
            X11Nodes::All => true,
            X11Nodes::First | X11Nodes::Batch => at == 0,
            X11Nodes::Last => at + 1 == nodes,
        }
    }
}

impl fmt::Display for X11Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = X11Nodes::NAMES.iter().find(|(_, which)| which == self).map_or("all", |(name, _)| *name);
        f.pad(name)
    }
}

impl FromStr for X11Nodes {
    type Err = String;
    fn from_str(text: &str) -> Result<X11Nodes, String> {
        let found = X11Nodes::NAMES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, which)| *which)
            .ok_or_else(|| format!("'{text}' is none of all, first, last and batch"))
    }
}

/// What a step was promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X11Spec {
    /// The submitter's DISPLAY.
    pub display: String,
    /// Where it is reached.
    #[serde(default)]
    pub nodes: X11Nodes,
    /// The machine on which that display was named: what its node is called, or its host name. Empty in what earlier versions sent.
    #[serde(default)]
    pub host: String,
    /// To other machines than that one the step's client carries the display, and the variable [`CARRIED`] has a cookie for it.
    #[serde(default)]
    pub carried: bool,
}

impl X11Spec {
    /// Whether a node has no use for the display's own cookie: the display is carried to it.
    #[must_use]
    pub fn is_carried_to(&self, node: &str) -> bool {
        self.carried && self.host != node
    }
}

/// How a display is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Display<'a> {
    /// The host of a display that is reached by TCP; `None`: by a socket of the machine.
    pub host: Option<&'a str>,
    /// Its number.
    pub number: u16,
}

impl<'a> Display<'a> {
    /// `[host]:number[.screen]`, as X(7) has it. `unix:0` is a socket of the machine, too; paths are not displays here.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Display<'a>> {
        let (host, rest) = text.rsplit_once(':')?;
        let (number, screen) = rest.split_once('.').unwrap_or((rest, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        // A second colon is DECnet's, and a slash a path's.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if !digits(number) || !digits(screen) || host.contains('/') || host.ends_with(':') {
            return None;
        }
        if host.contains(':') && bare.len() + 2 != host.len() {
            return None;
        }
        let host = (!matches!(host, "" | "unix")).then_some(host);
        Some(Display { host, number: number.parse().ok()? })
    }

    /// The socket of the machine at which it listens; `None` for one that is reached by TCP.
    #[must_use]
    pub fn socket(&self) -> Option<String> {
        self.host.is_none().then(|| format!("/tmp/.X11-unix/X{}", self.number))
    }

    /// The port at which it listens where it is reached by TCP; `None` where there is no such port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.number.checked_add(6000)
    }

    /// Whether its own machine alone reaches it: by a socket, or by an address of the loopback interface, as after `ssh -X`.
    #[must_use]
    pub fn is_of_one_machine(&self) -> bool {
        let Some(host) = self.host else { return true };
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        matches!(bare.as_str(), "localhost" | "ip6-localhost" | "ip6-loopback")
            || bare.starts_with("localhost.")
            || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// A file by which programs prove that they may use the display: one entry for whatever name the host has
    /// (Xau's FamilyWild), with numbers in network order, as `XauWriteAuth` writes it.
    #[must_use]
    pub fn authority(&self, cookie: &[u8]) -> Vec<u8> {
        let mut out = vec![0xff, 0xff, 0, 0];
        for part in [self.number.to_string().as_bytes(), b"MIT-MAGIC-COOKIE-1", cookie] {
            out.extend_from_slice(&u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }
}

/// The bytes of a cookie as `xauth list` prints it: an even number of hexadecimal digits, 64 at most.
#[must_use]
pub fn cookie(hex: &str) -> Option<Vec<u8>> {
    if hex.is_empty()
        || hex.len() > 64
        || !hex.len().is_multiple_of(2)
        || !hex.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays() {
        let is =
            |text, host, number| assert_eq!(Display::parse(text), Some(Display { host, number }), "{text}");
        is(":0", None, 0);
        is(":12.1", None, 12);
        is("unix:3", None, 3);
        is("localhost:10.0", Some("localhost"), 10);
        is("[::1]:10", Some("[::1]"), 10);
        is("10.0.0.1:0", Some("10.0.0.1"), 0);
        for bad in ["", "0", ":", ":x", ":0.", ":0.x", "host::0", "/tmp/x:0", "a:b:0", ":99999", ":-1"] {
            assert_eq!(Display::parse(bad), None, "{bad}");
        }
        assert_eq!(Display::parse(":4").unwrap().socket().as_deref(), Some("/tmp/.X11-unix/X4"));
        assert_eq!(Display::parse("h:4").unwrap().socket(), None);
        assert_eq!(Display::parse("h:4").unwrap().port(), Some(6004));
        assert_eq!(Display::parse("h:60000").unwrap().port(), None);
        let own = |text| Display::parse(text).unwrap().is_of_one_machine();
        for text in
            [":0", "unix:0", "localhost:10.0", "LocalHost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:10"]
        {
            assert!(own(text), "{text}");
        }
        for text in ["n1:0", "localhosts:0", "10.0.0.1:0", "[fe80::1]:0", "host.example:1"] {
            assert!(!own(text), "{text}");
        }
    }

    #[test]
    fn an_authority_is_what_xau_reads() {
        let bytes = Display::parse(":10").unwrap().authority(&cookie("00ffA0").unwrap());
        assert_eq!(bytes, b"\xff\xff\0\0\0\x0210\0\x12MIT-MAGIC-COOKIE-1\0\x03\0\xff\xa0");
        for bad in ["", "0", "xy", "0 ", &"a".repeat(66)] {
            assert_eq!(cookie(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_own_cookie_of_a_display_that_is_carried_is_for_its_own_machine_alone() {
        let spec =
            |carried| X11Spec { display: ":0".into(), nodes: X11Nodes::All, host: "n1".into(), carried };
        assert!(spec(true).is_carried_to("n2") && !spec(true).is_carried_to("n1"));
        assert!(!spec(false).is_carried_to("n2"), "an earlier client carries nothing");
    }

    #[test]
    fn nodes() {
        let taken = |text: &str| {
            let which: X11Nodes = text.parse().unwrap();
            assert_eq!(which.to_string(), text);
            [0, 1, 2].map(|at| which.takes(at, 3))
        };
        assert_eq!(taken("all"), [true; 3]);
        assert_eq!(taken("first"), [true, false, false]);
        assert_eq!(taken("batch"), [true, false, false]);
        assert_eq!(taken("last"), [false, false, true]);
        assert!("some".parse::<X11Nodes>().is_err());
    }
}
