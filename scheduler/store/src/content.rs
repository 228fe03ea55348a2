//! What rows hold, as bytes. The simulator keeps its rows in this form too.

use berth_model::ByteStr;
use berth_model::login::SealedLogin;
use berth_model::request::Payload;
use berth_model::spec::BatchScript;
use berth_sched_core::{AuditRow, JobRow, MemberRow, MetaRow, NodeRow, SpecRow, StepNode, StepRow, TokenRow};

/// A row's content, written and read. Not generic over what is written: a writer and a reader of each row are compiled here,
/// once, and not in every package that keeps rows.
pub trait Content: Sized {
    /// The row as bytes.
    ///
    /// # Errors
    /// What cannot be written.
    fn to_bytes(&self) -> Result<Vec<u8>, String>;

    /// The row in these bytes.
    ///
    /// # Errors
    /// Why they are none.
    fn from_bytes(bytes: &[u8]) -> Result<Self, String>;
}

macro_rules! as_json {
    ($($row:ty),*) => {$(
        impl Content for $row {
            fn to_bytes(&self) -> Result<Vec<u8>, String> {
                serde_json::to_vec(self).map_err(|e| e.to_string())
            }

            fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
                serde_json::from_slice(bytes).map_err(|e| e.to_string())
            }
        }
    )*};
}

as_json!(MetaRow, SpecRow, JobRow, StepRow, StepNode, NodeRow, MemberRow, TokenRow, AuditRow);

#[cfg(test)]
as_json!(usize);

impl Content for Payload {
    fn to_bytes(&self) -> Result<Vec<u8>, String> {
        Ok(payload_bytes(self))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Payload, String> {
        payload_of(bytes).ok_or_else(|| "it ends too early, or too late".to_string())
    }
}

/// The form of payload rows: lengths and bytes, because scripts and environments are most of what is written. Version
/// 1 was JSON; version 2 had no logins.
pub(crate) const PAYLOAD_VERSION: u32 = 3;

/// A payload as its row holds it: whether there is a script, its text and arguments, and the environment.
fn payload_bytes(payload: &Payload) -> Vec<u8> {
    fn put(out: &mut Vec<u8>, text: &ByteStr) {
        count(out, text.0.len());
        out.extend_from_slice(&text.0);
    }
    fn count(out: &mut Vec<u8>, n: usize) {
        // A request is bounded far below.
        out.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    }
    let size = |texts: &[ByteStr]| texts.iter().map(|t| t.0.len() + 4).sum::<usize>();
    let script = payload.script.as_ref().map_or(0, |s| s.text.0.len() + size(&s.args) + 8);
    let mut out = Vec::with_capacity(script + size(&payload.env) + 8);
    out.push(u8::from(payload.script.is_some()));
    if let Some(script) = &payload.script {
        put(&mut out, &script.text);
        count(&mut out, script.args.len());
        script.args.iter().for_each(|arg| put(&mut out, arg));
    }
    count(&mut out, payload.env.len());
    payload.env.iter().for_each(|variable| put(&mut out, variable));
    if let Some(SealedLogin { registry, sealed }) = &payload.login {
        put(&mut out, &registry.as_str().into());
        put(&mut out, sealed);
    }
    out
}

/// The payload in a row's bytes; `None` when they are none.
fn payload_of(bytes: &[u8]) -> Option<Payload> {
    fn number(rest: &mut &[u8]) -> Option<usize> {
        let (first, others) = rest.split_first_chunk::<4>()?;
        *rest = others;
        usize::try_from(u32::from_le_bytes(*first)).ok()
    }
    fn text(rest: &mut &[u8]) -> Option<ByteStr> {
        let length = number(rest)?;
        let (text, others) = rest.split_at_checked(length)?;
        *rest = others;
        Some(text.into())
    }
    fn texts(rest: &mut &[u8]) -> Option<Vec<ByteStr>> {
        (0..number(rest)?).map(|_| text(rest)).collect()
    }
    let (has_script, mut rest) = bytes.split_first()?;
    let script = match has_script {
        0 => None,
        1 => Some(BatchScript { text: text(&mut rest)?, args: texts(&mut rest)? }),
        _ => return None,
    };
    let env = texts(&mut rest)?;
    let login = match rest.is_empty() {
        true => None,
        false => {
            let registry = String::from_utf8(text(&mut rest)?.0).ok()?;
            Some(SealedLogin { registry, sealed: text(&mut rest)? })
        }
    };
    rest.is_empty().then_some(Payload { script, env, login })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_survive_as_bytes_and_damaged_ones_are_told() {
        let texts = |list: &[&[u8]]| list.iter().map(|t| ByteStr(t.to_vec())).collect::<Vec<_>>();
        let script =
            BatchScript { text: ByteStr(b"#!/bin/sh\n\xff\n".to_vec()), args: texts(&[b"", b"a b"]) };
        let env = texts(&[b"A=1", b"B=\xc3\x28", b""]);
        for payload in [
            Payload { script: Some(script), env: env.clone(), login: None },
            Payload { script: None, env, login: None },
            Payload::default(),
        ] {
            let bytes = payload_bytes(&payload);
            assert_eq!(payload_of(&bytes).as_ref(), Some(&payload));
            for cut in 0..bytes.len() {
                assert_eq!(payload_of(&bytes[..cut]), None);
            }
            assert_eq!(payload_of(&[&bytes[..], b"x"].concat()), None);
        }
        assert_eq!(payload_of(&[1, 255, 255, 255, 255]), None, "a length beyond the end");
        let sealed = SealedLogin { registry: "r.io:5000".into(), sealed: ByteStr(vec![0, 255]) };
        let with_login = Payload { login: Some(sealed), ..Payload::default() };
        let bytes = payload_bytes(&with_login);
        assert_eq!(payload_of(&bytes).as_ref(), Some(&with_login));
        assert_eq!(payload_of(&bytes[..bytes.len() - 1]), None);
    }
}
