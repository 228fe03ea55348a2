//! Throws bytes at the judges of certificates: arbitrary ones, and a member's with some of them changed, which is no member's any
//! more.
#![cfg_attr(fuzzing, no_main)]

use berth_trust::{Authority, Presented, PrivateKey, presented, validity};
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::CertificateDer;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

#[derive(Debug)]
struct Input<'a> {
    /// Seconds since 1970.
    now: u32,
    /// Which byte of the member's certificate is exchanged for which.
    edits: Vec<(u16, u8)>,
    /// Where it is cut off.
    end: Option<u16>,
    /// A certificate of nobody's make, and an authority's.
    garbage: &'a [u8],
    authority: &'a [u8],
}

impl<'a> Arbitrary<'a> for Input<'a> {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Input {
            now: bytes.arbitrary()?,
            edits: bytes.arbitrary()?,
            end: bytes.arbitrary()?,
            garbage: bytes.arbitrary()?,
            authority: bytes.arbitrary()?,
        })
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// An authority's certificate and a member's.
fn cluster() -> &'static (Vec<u8>, Vec<u8>) {
    static MADE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("berth-fuzz-{}", std::process::id()));
        let authority = Authority::open_or_make(&directory, "fuzzed", now()).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let key = PrivateKey::make().unwrap();
        let member = authority
            .issue(&key.public(), "n1", "compute", now(), Duration::from_secs(30 * 24 * 3600))
            .unwrap();
        (authority.certificate().to_vec(), member)
    })
}

fuzz_target!(|input: Input<'_>| {
    let (authority, member) = cluster();
    let of =
        |authority: &[u8], bytes: &[u8], now| presented(authority, Some(&[CertificateDer::from(bytes)]), now);
    let is_member = |bytes: &[u8], now| matches!(of(authority, bytes, now), Ok(Presented::Member { .. }));
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(input.now.into());

    let _ = validity(input.garbage);
    assert!(input.garbage == member || !is_member(input.garbage, at));
    let _ = of(input.authority, member, now());
    let _ = of(input.authority, input.garbage, at);

    let mut changed = member.clone();
    for (place, byte) in input.edits {
        let place = usize::from(place) % changed.len();
        changed[place] = byte;
    }
    changed.truncate(input.end.map_or(changed.len(), usize::from));
    let _ = validity(&changed);
    let _ = of(&changed, member, now());
    assert_eq!(is_member(&changed, now()), changed == *member);
});
