//! Who a machine of a cluster is: the cluster's authority, keys, certificates, the text of join tokens, and TLS by them.
//!
//! Every machine has a key of its own that never leaves it. The cluster's authority signs a certificate for the key of a
//! machine that joined, under a name that ends in the machine's role: `n1.compute.berth.internal`. Nothing else is
//! trusted: no authority of the system's, no name of the network, no address.
//!
//! A connection is TLS 1.3. The one who dials judges the other side by [`client_config`], before it sends anything. The one who
//! listens lets everybody shake hands who has the key of the certificate shown, and then asks [`presented`] who that is: so it
//! can say what is wrong with a certificate, and can listen to a machine that has a token and no certificate yet. Nothing is
//! ever resumed: each connection shows its certificate anew, and a revoked key is refused at once.
#![forbid(unsafe_code)]

mod authority;
mod certificate;
mod der;
mod error;
mod files;
mod key;
mod signed;
mod tls;
mod token;

pub use authority::Authority;
pub use certificate::{renewal, validity};
pub use error::TrustError;
pub use key::{Identity, PrivateKey, key_id};
pub use signed::{controller_signed, sign};
pub use tls::{
    Presented, SeenAuthority, client_config, is_of, joining_config, member_server_config, presented,
    presented_as, server_config, server_name,
};
pub use token::JoinToken;

/// What all names in certificates end in. The domain is set aside for private use and is never resolved.
const DOMAIN: &str = "berth.internal";
/// The role in the certificate of the cluster's controller.
const CONTROLLER: &str = "controller";

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    sum
}

/// Lower-case hex digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Random bytes of the kernel's.
fn random<const N: usize>() -> Result<[u8; N], TrustError> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| TrustError::Random)?;
    Ok(bytes)
}
