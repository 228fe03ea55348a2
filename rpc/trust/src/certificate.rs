//! X.509 certificates (RFC 5280) of the three kinds that a cluster has: written, and taken apart again.
//!
//! An authority's, a machine's that the authority signed, and one that a machine signs itself to join by. All keys are P-256, all
//! signatures ECDSA with SHA-256. Whether a certificate is to be trusted webpki says (`tls.rs`); here is what it does not
//! tell: points in time, the signed bytes, who is an authority.

use crate::authority::DAY;
use crate::der::{self, Reader, value};
use crate::key::{self, PrivateKey};
use crate::{TrustError, random};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use std::time::{Duration, SystemTime};

/// `SEQUENCE { ecdsa-with-SHA256 }`.
const ALGORITHM: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// `[0] { INTEGER 2 }`: version 3.
const VERSION: &[u8] = &[0xa0, 0x03, 0x02, 0x01, 0x02];
const EXTENSIONS: u8 = 0xa3;
const TRUE: &[u8] = &[0x01, 0x01, 0xff];

const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_KEY: &[u8] = &[0x55, 0x1d, 0x0e];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const SUBJECT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
const EXTENDED_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
/// `OBJECT IDENTIFIER`s of serverAuth and clientAuth.
const SERVER: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// What a certificate is to say; its key signs nothing here but itself or, of an authority, others.
pub(crate) struct Draft<'a> {
    /// Distinguished names, DER.
    pub(crate) issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    /// SubjectPublicKeyInfo, DER, of a machine or an authority.
    pub(crate) public: &'a [u8],
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
    pub(crate) kind: Kind<'a>,
}

/// Whose certificate it is.
pub(crate) enum Kind<'a> {
    Authority,
    /// A machine's, with its name, by an authority with this public key.
    Machine {
        name: &'a str,
        authority: &'a [u8],
    },
    /// Made by a machine that has not joined.
    Stranger,
}

impl Draft<'_> {
    /// The certificate, DER.
    pub(crate) fn sign(&self, key: &PrivateKey) -> Result<Vec<u8>, TrustError> {
        let mut serial: [u8; 16] = random()?;
        // Positive, and no leading byte that DER would leave out.
        serial[0] = serial[0] & 0x3f | 0x40;
        let validity = value(der::SEQUENCE, &[&time(self.from)?, &time(self.until)?]);
        let extensions = value(EXTENSIONS, &[&value(der::SEQUENCE, &[&self.extensions()?])]);
        let signed = value(
            der::SEQUENCE,
            &[
                VERSION,
                &value(der::INTEGER, &[&serial]),
                ALGORITHM,
                self.issuer,
                &validity,
                self.subject,
                self.public,
                &extensions,
            ],
        );
        let signature = key.sign(&signed)?;
        Ok(value(der::SEQUENCE, &[&signed, ALGORITHM, &value(der::BIT_STRING, &[&[0], &signature])]))
    }

    fn extensions(&self) -> Result<Vec<u8>, TrustError> {
        let own = key::key_identifier(key::point(self.public).ok_or(TrustError::PublicKey)?);
        // May sign certificates, and none below those; or: is no authority.
        let constraints = match self.kind {
            Kind::Authority => value(der::SEQUENCE, &[TRUE, &value(der::INTEGER, &[&[0]])]),
            _ => value(der::SEQUENCE, &[]),
        };
        // keyCertSign and cRLSign; or digitalSignature.
        let usage: &[u8] = match self.kind {
            Kind::Authority => &[1, 0x06],
            _ => &[7, 0x80],
        };
        let mut all = vec![
            extension(BASIC_CONSTRAINTS, true, &constraints),
            extension(KEY_USAGE, true, &value(der::BIT_STRING, &[usage])),
            extension(SUBJECT_KEY, false, &own),
        ];
        match &self.kind {
            Kind::Authority => {}
            Kind::Stranger => all.push(extension(EXTENDED_USAGE, false, &value(der::SEQUENCE, &[CLIENT]))),
            Kind::Machine { name, authority } => {
                let point = key::point(authority).ok_or(TrustError::PublicKey)?;
                // The same bytes, as `[0]`.
                let mut signer = key::key_identifier(point);
                signer[0] = 0x80;
                all.push(extension(AUTHORITY_KEY, false, &value(der::SEQUENCE, &[&signer])));
                all.push(extension(EXTENDED_USAGE, false, &value(der::SEQUENCE, &[SERVER, CLIENT])));
                // `[2]`: a name of the domain name system.
                let name = value(0x82, &[name.as_bytes()]);
                all.push(extension(SUBJECT_NAME, false, &value(der::SEQUENCE, &[&name])));
            }
        }
        Ok(all.concat())
    }
}

fn extension(id: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { TRUE } else { &[] };
    value(der::SEQUENCE, &[&value(der::OID, &[id]), critical, &value(der::OCTET_STRING, &[content])])
}

/// A distinguished name that is a common name alone: for people, nothing goes by it. At most 64 characters (RFC 5280).
pub(crate) fn distinguished(name: &str) -> Vec<u8> {
    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    let text = value(der::UTF8_STRING, &[name.as_bytes()]);
    let attribute = value(der::SEQUENCE, &[&value(der::OID, &[COMMON_NAME]), &text]);
    value(der::SEQUENCE, &[&value(der::SET, &[&attribute])])
}

/// UTCTime before 2050, GeneralizedTime from then on (RFC 5280, section 4.1.2.5), whole seconds.
fn time(time: SystemTime) -> Result<Vec<u8>, TrustError> {
    let beyond = TrustError::Malformed("its dates are in no calendar");
    // Nothing was valid before 1970.
    let time = time.max(SystemTime::UNIX_EPOCH);
    let Ok(stamp) = Timestamp::try_from(time) else { return Err(beyond) };
    let date = TimeZone::UTC.to_datetime(stamp);
    Ok(match date.year() {
        ..2050 => value(der::UTC_TIME, &[date.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()]),
        _ => value(der::GENERALIZED_TIME, &[date.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()]),
    })
}

/// A certificate, taken apart.
pub(crate) struct Parts<'a> {
    /// What the signature is of.
    pub(crate) signed: &'a [u8],
    pub(crate) signature: &'a [u8],
    /// Distinguished names, DER.
    pub(crate) issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    /// SubjectPublicKeyInfo, DER.
    pub(crate) public: &'a [u8],
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
    /// Says that its key signs certificates.
    pub(crate) authority: bool,
}

impl<'a> Parts<'a> {
    /// # Errors
    /// It is no certificate, or has another algorithm than ours.
    pub(crate) fn read(certificate: &'a [u8]) -> Result<Parts<'a>, TrustError> {
        Parts::take(certificate)
            .ok_or(TrustError::Malformed("it is no X.509 certificate signed with ECDSA and SHA-256"))
    }

    fn take(certificate: &'a [u8]) -> Option<Parts<'a>> {
        let mut outer = Reader::new(certificate);
        let mut inner = Reader::new(outer.content(der::SEQUENCE)?);
        outer.end()?;
        let signed = inner.whole(der::SEQUENCE)?;
        (inner.whole(der::SEQUENCE)? == ALGORITHM).then_some(())?;
        let signature = inner.content(der::BIT_STRING)?.strip_prefix(&[0])?;
        inner.end()?;

        let mut signed_part = Reader::new(Reader::new(signed).content(der::SEQUENCE)?);
        (signed_part.whole(VERSION[0])? == VERSION).then_some(())?;
        signed_part.content(der::INTEGER)?;
        (signed_part.whole(der::SEQUENCE)? == ALGORITHM).then_some(())?;
        let issuer = signed_part.whole(der::SEQUENCE)?;
        let mut validity = Reader::new(signed_part.content(der::SEQUENCE)?);
        let (from, until) = (read_time(&mut validity)?, read_time(&mut validity)?);
        validity.end()?;
        let subject = signed_part.whole(der::SEQUENCE)?;
        let public = signed_part.whole(der::SEQUENCE)?;
        let mut authority = false;
        if !signed_part.is_empty() {
            let mut list = Reader::new(signed_part.content(EXTENSIONS)?);
            authority = is_authority(list.content(der::SEQUENCE)?)?;
            list.end()?;
        }
        signed_part.end()?;
        Some(Parts { signed, signature, issuer, subject, public, from, until, authority })
    }

    /// Whether its own key signed it.
    pub(crate) fn signed_itself(&self) -> bool {
        key::point(self.public).is_some_and(|point| {
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
            self.issuer == self.subject && key.verify(self.signed, self.signature).is_ok()
        })
    }
}

/// Whether one of the extensions says that the certificate is an authority's.
fn is_authority(extensions: &[u8]) -> Option<bool> {
    let (mut list, mut authority) = (Reader::new(extensions), false);
    while !list.is_empty() {
        let mut one = Reader::new(list.content(der::SEQUENCE)?);
        let id = one.content(der::OID)?;
        if one.is_next(der::BOOLEAN) {
            one.content(der::BOOLEAN)?;
        }
        let content = one.content(der::OCTET_STRING)?;
        one.end()?;
        if id == BASIC_CONSTRAINTS {
            let mut constraints = Reader::new(Reader::new(content).content(der::SEQUENCE)?);
            authority |= constraints.is_next(der::BOOLEAN) && constraints.whole(der::BOOLEAN)? == TRUE;
        }
    }
    Some(authority)
}

fn read_time(reader: &mut Reader<'_>) -> Option<SystemTime> {
    let (text, century) = if reader.is_next(der::UTC_TIME) {
        let text = reader.content(der::UTC_TIME)?;
        // Two digits from 50 on are of the last century (RFC 5280, section 4.1.2.5.1).
        (text, if text.first()? >= &b'5' { "19" } else { "20" })
    } else {
        (reader.content(der::GENERALIZED_TIME)?, "")
    };
    let text = format!("{century}{}", std::str::from_utf8(text).ok()?);
    let digits = text.strip_suffix('Z').filter(|d| d.len() == 14 && d.bytes().all(|b| b.is_ascii_digit()))?;
    let at = |from: usize| digits.get(from..from + 2)?.parse::<i8>().ok();
    let year = digits.get(..4)?.parse::<i16>().ok()?;
    let date = DateTime::new(year, at(4)?, at(6)?, at(8)?, at(10)?, at(12)?, 0).ok()?;
    let seconds = u64::try_from(TimeZone::UTC.to_timestamp(date).ok()?.as_second()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// From when until when a certificate (DER) is valid.
///
/// # Errors
/// It is no certificate, or none of a cluster's make.
pub fn validity(certificate: &[u8]) -> Result<(SystemTime, SystemTime), TrustError> {
    Parts::read(certificate).map(|parts| (parts.from, parts.until))
}

/// When whoever has a certificate (DER) renews it: when two thirds of the time since it was made are over.
///
/// # Errors
/// As [`validity`].
pub fn renewal(certificate: &[u8]) -> Result<SystemTime, TrustError> {
    let (from, until) = validity(certificate)?;
    let made = from + DAY;
    Ok(made + until.duration_since(made).unwrap_or_default() * 2 / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(at: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(at)
    }

    #[test]
    fn points_in_time_come_back_as_they_were_written() {
        // The epoch, a leap day, the last second of UTCTime, the first of GeneralizedTime, and far away.
        for at in [0, 951_782_400, 2_524_607_999, 2_524_608_000, 253_000_000_000] {
            let bytes = time(seconds(at)).unwrap();
            assert_eq!(bytes[0] == der::UTC_TIME, at < 2_524_608_000, "{at}");
            assert_eq!(read_time(&mut Reader::new(&bytes)), Some(seconds(at)), "{at}");
        }
        // A clock that stands before 1970.
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(86_400);
        assert_eq!(read_time(&mut Reader::new(&time(before).unwrap())), Some(seconds(0)));
    }

    #[test]
    fn days_that_are_not_and_other_spellings_are_refused() {
        for text in [
            "20230229000000Z",
            "20231301000000Z",
            "20230101240000Z",
            "20230101000000",
            "2023010100000Z",
            "+0230101000000Z",
            "19691231235959Z",
            "20230101000000.5Z",
        ] {
            let bytes = value(der::GENERALIZED_TIME, &[text.as_bytes()]);
            assert_eq!(read_time(&mut Reader::new(&bytes)), None, "{text}");
        }
    }
}
