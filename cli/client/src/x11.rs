//! `--x11` where it is typed: the display, its cookie, and whether a server is there at all.

use crate::error::{Failure, Kind};
use berth_model::ByteStr;
use berth_model::x11::{COOKIE, Display, X11Nodes, X11Spec, cookie};
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a step is promised, and the cookie beside it.
pub struct Forward {
    /// For the step's specification.
    pub spec: X11Spec,
    /// For the environment that is submitted with it; no task sees it there.
    pub variable: ByteStr,
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
    Ok(Forward {
        spec: X11Spec { display, nodes, host: here() },
        variable: ByteStr::from(format!("{COOKIE}={hex}")),
    })
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
