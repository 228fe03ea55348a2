//! Tells systemd how a daemon of a unit is, by the protocol of sd_notify(3): datagrams to the socket that `NOTIFY_SOCKET` names.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The daemon serves. Without a unit that waits for it, nothing happens.
pub fn ready() {
    tell("READY=1\nSTATUS=serves");
}

/// What `systemctl status` shows of it.
pub fn status(text: &str) {
    tell(&format!("STATUS={}", text.replace('\n', " ")));
}

/// The daemon ends; what ran on goes on.
pub fn stopping() {
    tell("STOPPING=1");
}

fn tell(text: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    let sent = address.and_then(|to| UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &to));
    if let Err(e) = sent {
        tracing::warn!("systemd cannot be told ({}): {e}", name.display());
    }
}
