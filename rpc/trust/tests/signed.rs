//! Words that the controller signed for other machines, and who tries to have others signed so.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // a failure is a failed test

use berth_trust::{Authority, Identity, PrivateKey, TrustError, controller_signed, sign};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);
const WORDS: &[u8] = b"start step 7.0 on n1";

fn authority() -> Authority {
    let dir = tempfile::tempdir().unwrap();
    Authority::open_or_make(dir.path(), "c", SystemTime::now()).unwrap()
}

fn member(authority: &Authority, name: &str, role: &str) -> Identity {
    let key = PrivateKey::make().unwrap();
    let certificate = authority.issue(&key.public(), name, role, SystemTime::now(), DAY).unwrap();
    Identity { key, certificate }
}

#[test]
fn what_the_controller_signed_is_known_and_nothing_that_is_like_it() {
    let cluster = authority();
    let controller = member(&cluster, "head", "controller");
    let signature = sign(&controller, WORDS).unwrap();
    let judge = |certificate: &[u8], now, words: &[u8], signature: &[u8]| {
        controller_signed(cluster.certificate(), certificate, now, words, signature)
    };
    let now = SystemTime::now();
    judge(&controller.certificate, now, WORDS, &signature).unwrap();
    // Another word, another signature, another key of a controller.
    let other = member(&cluster, "head", "controller");
    for (certificate, words, signature) in [
        (&controller.certificate, &b"start step 7.0 on n2"[..], signature.clone()),
        (&controller.certificate, WORDS, sign(&controller, b"").unwrap()),
        (&controller.certificate, WORDS, sign(&other, WORDS).unwrap()),
        (&controller.certificate, WORDS, Vec::new()),
        (&other.certificate, WORDS, signature.clone()),
    ] {
        let judged = judge(certificate, now, words, &signature);
        assert!(matches!(judged, Err(TrustError::Signature)), "{judged:?}");
    }
    let mut bent = signature.clone();
    for at in 0..bent.len() {
        bent[at] ^= 1;
        assert!(judge(&controller.certificate, now, WORDS, &bent).is_err(), "byte {at}");
        bent[at] ^= 1;
    }
}

#[test]
fn nodes_and_other_clusters_sign_nothing_of_the_controllers() {
    let (cluster, others) = (authority(), authority());
    let now = SystemTime::now();
    let judge = |own: &Identity, now| {
        let signature = sign(own, WORDS).unwrap();
        controller_signed(cluster.certificate(), &own.certificate, now, WORDS, &signature)
    };
    for (name, role) in [("n1", "compute"), ("n1", "login"), ("n1.controller.berth.internal", "compute")] {
        let judged = judge(&member(&cluster, name, role), now);
        assert!(matches!(judged, Err(TrustError::Role { .. })), "{name} {role}: {judged:?}");
    }
    let judged = judge(&member(&others, "head", "controller"), now);
    assert!(matches!(judged, Err(TrustError::OtherAuthority)), "{judged:?}");
    let controller = member(&cluster, "head", "controller");
    judge(&controller, now).unwrap();
    assert!(matches!(judge(&controller, now + 2 * DAY), Err(TrustError::Expired { .. })));
    assert!(matches!(judge(&controller, now - 2 * DAY), Err(TrustError::NotYetValid { .. })));
    let nothing = Identity { certificate: Vec::new(), ..controller };
    assert!(matches!(judge(&nothing, now), Err(TrustError::Malformed(_))));
}
