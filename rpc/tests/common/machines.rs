//! Machines with keys and certificates, and a port for them.

use berth_model::Time;
use berth_model::member::{KeyId, MemberInfo, MemberRole, MemberState};
use berth_rpc::{MachineListener, Remote, Uplink};
use berth_trust::{Authority, Identity, PrivateKey, client_config, server_config};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;

pub fn identity(authority: &Authority, name: &str, role: &str) -> Identity {
    let key = PrivateKey::make().unwrap();
    let life = Duration::from_secs(3600);
    let certificate = authority.issue(&key.public(), name, role, SystemTime::now(), life).unwrap();
    Identity { key, certificate }
}

pub fn member(identity: &Identity, name: &str, role: MemberRole, administrators: bool) -> MemberInfo {
    MemberInfo {
        name: name.into(),
        role,
        state: MemberState::Approved,
        key: KeyId(identity.key.id()),
        joined: Time(0),
        token: String::new(),
        from: String::new(),
        renewed: Time(0),
        ends: None,
        administrators,
    }
}

/// A port for machines, and where it is.
pub async fn open_port(authority: &Authority, own: &Identity) -> (Arc<MachineListener>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = server_config(authority, own).unwrap();
    let port = Arc::new(MachineListener::new(listener, authority.certificate().to_vec(), tls));
    let address = port.address().unwrap().to_string();
    (port, address)
}

/// How a machine with this certificate reaches the port there.
pub fn uplink(authority: &Authority, machine: &Identity, address: &str) -> Uplink {
    let tls = client_config(machine, authority.certificate(), "controller").unwrap();
    Uplink::Remote(Arc::new(Remote::new(address.to_string(), tls)))
}
