//! What a machine keeps to itself, in the hands of somebody who speaks with it over real TLS.

use crate::{Cmd, Hosts};
use std::path::Path;

/// A machine's certificate and key, as openssl takes them.
pub fn identity(hosts: &Hosts, host: &str) -> [String; 4] {
    shown(hosts, host, &hosts.state(host).join("private"))
}

/// A copy of all that a machine keeps to itself, on another one: its certificate and key there.
pub fn copy(hosts: &Hosts, of: &str, on: &str) -> [String; 4] {
    let place = hosts.state(on).join(format!("of-{of}"));
    Cmd::new("cp").arg("-a").arg(hosts.state(of).join("private")).arg(&place).ok();
    shown(hosts, on, &place)
}

fn shown(hosts: &Hosts, host: &str, private: &Path) -> [String; 4] {
    let find = |ending: &str| {
        let mut all = std::fs::read_dir(private).unwrap().flatten().map(|e| e.path().display().to_string());
        all.find(|path| path.contains("/node-") && path.ends_with(ending)).unwrap()
    };
    let out = private.with_extension("pem").display().to_string();
    hosts.root(host, "openssl").args(["x509", "-inform", "DER", "-in", &find(".crt"), "-out", &out]).ok();
    ["-cert".into(), out, "-key".into(), find(".key")]
}

/// Says bytes to a port by TLS, and gives what is answered within some seconds.
pub fn say(hosts: &Hosts, from: &str, shows: &[String], to: &str, bytes: &[u8]) -> String {
    let base = ["5", "openssl", "s_client", "-quiet", "-tls1_3", "-alpn", "berth-streams/1", "-connect", to];
    let told = hosts.root(from, "timeout").args(base).args(shows).stdin(bytes).limit(20).run();
    String::from_utf8_lossy(&told.stdout).into_owned()
}
