//! What a machine keeps to itself, in the hands of somebody who speaks with it over real TLS.

use crate::{Cmd, Hosts, Running};
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

/// Says bytes to a port by TLS as one says them for a stream, and gives what is answered within some seconds.
pub fn say(hosts: &Hosts, from: &str, shows: &[String], to: &str, bytes: &[u8]) -> String {
    say_of(hosts, from, shows, to, "berth-streams/1", bytes)
}

/// What brings a Start to a node as if the controller had signed it: with the key and certificate of another machine, as they are on `on`.
pub fn signed_start(hosts: &Hosts, on: &str, shows: &[String; 4], to: &str) -> Vec<u8> {
    let [_, certificate, _, key] = shows;
    let der = hosts.root(on, "openssl").args(["x509", "-in", certificate, "-outform", "DER"]).ok().stdout;
    let digest = [7; 32];
    let node = [field(1, to.as_bytes()), field(2, &digest), vec![0x18, 1]].concat();
    let head = [field(1, &digest), vec![0x10, 5], field(3, &node)].concat();
    let words = [&b"berth, words of the controller: "[..], &head].concat();
    let signed = hosts.root(on, "openssl").args(["dgst", "-sha256", "-sign", key]).stdin(&words).ok().stdout;
    let opening = [field(1, &der), field(2, &signed), field(3, &head)].concat();
    let length = u32::try_from(opening.len()).unwrap();
    [&length.to_be_bytes()[..], &opening, b"start", b"x"].concat()
}

/// A field of a protobuf message that has bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut made = vec![number << 3 | 2];
    let mut left = bytes.len();
    while left >= 128 {
        made.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    made.push(u8::try_from(left).unwrap());
    [made, bytes.to_vec()].concat()
}

/// Says bytes to a port by TLS as one says them in this protocol, and gives what is answered within some seconds.
pub fn say_of(hosts: &Hosts, from: &str, shows: &[String], to: &str, protocol: &str, bytes: &[u8]) -> String {
    let base = client("5", protocol, to);
    let told = hosts.root(from, "timeout").args(base).args(shows).stdin(bytes).limit(20).run();
    String::from_utf8_lossy(&told.stdout).into_owned()
}

/// Comes to a port by TLS and says nothing, for half a minute or until it is sent away.
pub fn silent(hosts: &Hosts, from: &str, shows: &[String], to: &str, protocol: &str) -> Running {
    hosts.root(from, "timeout").args(client("30", protocol, to)).args(shows).stdin_open().spawn()
}

fn client<'a>(seconds: &'a str, protocol: &'a str, to: &'a str) -> [&'a str; 9] {
    [seconds, "openssl", "s_client", "-quiet", "-tls1_3", "-alpn", protocol, "-connect", to]
}
