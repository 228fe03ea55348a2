//! `--x11` where it is typed: the display, its cookie, and whether a server is there at all.

use crate::error::{Failure, Kind};
use crate::submit;
use berth_model::ByteStr;
use berth_model::x11::{CARRIED, COOKIE, Display, X11Nodes, X11Spec, cookie};
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a step is promised, and the cookie beside it.
pub struct Forward {
    /// For the step's specification.
    pub spec: X11Spec,
    /// For the environment that is submitted with it; no task sees them there.
    pub variables: Vec<ByteStr>,
    /// How the display is reached for programs on other machines, where they do not reach it themselves.
    pub carrier: Option<Carrier>,
}

/// A display that is carried to other machines.
#[derive(Clone)]
pub struct Carrier {
    /// As the caller names it.
    pub display: String,
    /// The X server's socket; absent where it is reached by TCP.
    pub socket: Option<PathBuf>,
    /// The host that is reached by TCP.
    pub host: String,
    /// And its port.
    pub port: u16,
    /// The cookie that was made for programs on other machines.
    pub made: Vec<u8>,
    /// The display's own, which takes its place.
    pub own: Vec<u8>,
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Cookies are in no log.
        f.debug_struct("Carrier").field("display", &self.display).finish_non_exhaustive()
    }
}

impl Carrier {
    /// That of a display which its own machine alone reaches; the cookies as hexadecimal digits.
    fn of(name: &str, display: Display<'_>, made: &str, own: &str) -> Option<Carrier> {
        let host = display.host.unwrap_or_default();
        display.is_of_one_machine().then_some(())?;
        Some(Carrier {
            display: name.to_string(),
            socket: display.socket().map(PathBuf::from),
            host: host.trim_start_matches('[').trim_end_matches(']').to_string(),
            port: display.port().or(display.host.is_none().then_some(0))?,
            made: cookie(made)?,
            own: cookie(own)?,
        })
    }
}

/// Finds the caller's display and its cookie.
///
/// # Errors
/// There is no display, no server, no xauth or no cookie: which, and what to do.
pub fn forward(nodes: X11Nodes) -> Result<Forward, Failure> {
    let display = std::env::var("DISPLAY").unwrap_or_default();
    if display.is_empty() {
        return Err(Failure::user(
            "No DISPLAY variable set, cannot setup x11 forwarding.\n\
             --x11: log in with 'ssh -X', or submit from within the desktop session",
        ));
    }
    let Some(parsed) = Display::parse(&display) else {
        return Err(Failure::user(format!(
            "--x11: DISPLAY is '{display}', which is not of the form [host]:number[.screen]: set it to that of your X server"
        )));
    };
    if let Some(socket) = parsed.socket().filter(|socket| !Path::new(socket).exists()) {
        return Err(Failure::user(format!(
            "--x11: no X server listens for display '{display}' ({socket} is not there): is DISPLAY that of your session?"
        )));
    }
    let hex = list(&display)?;
    let made = submit::by_chance()?;
    let carrier = Carrier::of(&display, parsed, &made, &hex);
    let mut variables = vec![ByteStr::from(format!("{COOKIE}={hex}"))];
    if carrier.is_some() {
        variables.push(ByteStr::from(format!("{CARRIED}={made}")));
    }
    let spec = X11Spec { nodes, host: here(), carried: carrier.is_some(), display };
    Ok(Forward { spec, variables, carrier })
}

/// This machine, to which a display by socket or loopback belongs: in a step what its node is called, which may be another name.
fn here() -> String {
    let node = std::env::var("SLURMD_NODENAME").ok().filter(|node| !node.is_empty());
    node.unwrap_or_else(|| {
        nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    })
}

/// The display's cookie, by xauth: it knows where cookies are kept and under which names.
fn list(display: &str) -> Result<String, Failure> {
    let xauth = Command::new("xauth").args(["-i", "list", display]).stdin(Stdio::null()).output();
    let output = xauth.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Failure::new(
            Kind::Configuration,
            "--x11: xauth is not here, which knows the display's magic cookie: install it (Debian and Red Hat: package xauth)",
        ),
        _ => Failure::new(Kind::Internal, format!("--x11: xauth cannot be started: {e}")),
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next() == Some("MIT-MAGIC-COOKIE-1")).then(|| words.next()).flatten()
    });
    match found.filter(|hex| cookie(hex).is_some()) {
        Some(hex) => Ok(hex.to_string()),
        None => Err(Failure::user(format!(
            "Could not retrieve magic cookie. Cannot use X11 forwarding.\n\
             --x11: 'xauth list {display}' shows none{}: is XAUTHORITY that of your session?",
            match String::from_utf8_lossy(&output.stderr).trim() {
                "" => String::new(),
                said => format!(" ({said})"),
            }
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_machine_alone_reaches_is_carried() {
        let of = |name: &str| {
            let carrier = Carrier::of(name, Display::parse(name).unwrap(), "00", "01")?;
            assert_eq!((carrier.made, carrier.own), (vec![0], vec![1]));
            Some((carrier.socket, carrier.host, carrier.port))
        };
        let by_tcp = |host: &str| Some((None, host.to_string(), 6010));
        assert_eq!(of("localhost:10.0"), by_tcp("localhost"));
        assert_eq!(of("[::1]:10"), by_tcp("::1"));
        let socket = Some(PathBuf::from("/tmp/.X11-unix/X60000"));
        assert_eq!(of(":60000").map(|(socket, ..)| socket), Some(socket));
        // There is no such port; and others reach it without help.
        assert_eq!(of("localhost:60000"), None);
        assert_eq!(of("host.example:0"), None);
    }

    #[test]
    fn no_cookie_is_in_what_is_printed_of_it() {
        let carrier = Carrier::of(":0", Display::parse(":0").unwrap(), "aa", "bb").unwrap();
        let text = format!("{carrier:?}");
        assert!(text.contains(":0") && !text.contains("170") && !text.contains("187"), "{text}");
    }
}
