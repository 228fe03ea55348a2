//! The exchange of this machine's key for another one, over whatever cuts it off.
//!
//! The key to come is on the disk, and `rotating` names it, before the controller hears of it. Who finds that file later asks once more for
//! that exchange, by the old key and by the new one: the controller makes it once, and one of the two is told so.

use super::{Joined, fault, file_fault, private, remove, whole};
use berth_client::error::Failure;
use berth_client::site::StateDir;
use berth_rpc::{Hex, Question, Remote, Reply, RpcError, Uplink};
use berth_trust::PrivateKey;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;

/// Names the key to come.
const PENDING: &str = "rotating";

/// Exchanges the machine's key for a new one; the old one is good for nothing from then on.
///
/// # Errors
/// The controller refuses, and the old key stays; or it cannot be reached, or the disk is full, and it is seen later which key counts.
pub async fn rotate(dir: &StateDir, joined: &Joined) -> Result<Joined, Failure> {
    let _alone = alone(dir, FlockOperation::LockExclusive)?;
    // The agent may have seen an earlier exchange to its end meanwhile.
    let joined = Joined::read(dir)?.unwrap_or_else(|| joined.clone());
    let joined = match pending(dir, &joined)? {
        // Whoever has a copy of what is here may have that key, too: another one is made behind it.
        Some(key) => match asked(dir, &joined, &key).await? {
            Heard::Certificate(certificate) => adopt(dir, &joined, &key, &certificate)?,
            Heard::Nobody(why) => return Err(Failure::user(give_up(dir, &joined, &why)?)),
            Heard::Not(why) => return Err(why.into()),
        },
        None => joined,
    };
    let key = PrivateKey::make().map_err(fault)?;
    let path = Joined::key_file(dir, &key.id());
    // On the disk before the controller believes in it.
    key.write(&path).map_err(fault)?;
    whole(&private(dir).join(PENDING), key.id().as_bytes(), 0o600)?;
    let later = |failure: Failure| {
        let text = "the exchange of the key was begun, and this machine's agent sees it to its end; 'berth node rotate-key' does, too";
        Failure { text: format!("{}; {text}", failure.text), ..failure }
    };
    match asked(dir, &joined, &key).await.map_err(later)? {
        Heard::Certificate(certificate) => adopt(dir, &joined, &key, &certificate).map_err(later),
        Heard::Nobody(why) => Err(Failure::user(give_up(dir, &joined, &why)?)),
        // It has answered that it does not take the key: nothing is on its way.
        Heard::Not(why @ RpcError::Refused(_)) => {
            forget(dir)?;
            remove(&path)?;
            Err(why.into())
        }
        Heard::Not(why) => Err(later(why.into())),
    }
}

/// What became of an exchange that was cut off.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finished {
    /// There was none, or somebody is at it.
    Nothing,
    /// The new key counts.
    Done,
    /// Neither key counts, and nothing comes of asking for it: why, and what to do.
    GivenUp(String),
}

/// Sees an exchange that was cut off to its end, unless somebody is at it.
///
/// # Errors
/// That cannot be done now: the controller answers to neither key, or the disk is full.
pub(super) async fn finish(dir: &StateDir) -> Result<Finished, Failure> {
    if !private(dir).join(PENDING).exists() {
        return Ok(Finished::Nothing);
    }
    let Some(_alone) = alone(dir, FlockOperation::NonBlockingLockExclusive)? else {
        return Ok(Finished::Nothing);
    };
    let Some(joined) = Joined::read(dir)? else { return Ok(Finished::Nothing) };
    let Some(key) = pending(dir, &joined)? else { return Ok(Finished::Nothing) };
    match asked(dir, &joined, &key).await? {
        Heard::Certificate(certificate) => {
            adopt(dir, &joined, &key, &certificate)?;
            Ok(Finished::Done)
        }
        Heard::Nobody(why) => Ok(Finished::GivenUp(give_up(dir, &joined, &why)?)),
        Heard::Not(why) => Err(why.into()),
    }
}

/// Held while somebody is at it. `None`: another one is, and is not waited for.
fn alone(dir: &StateDir, how: FlockOperation) -> Result<Option<File>, Failure> {
    let folder = private(dir);
    let file = File::open(&folder).map_err(file_fault(&folder))?;
    match flock(&file, how) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(file_fault(&folder)(e.into())),
    }
}

/// The key of an exchange that was begun. Of one of which only the note was left the note goes.
fn pending(dir: &StateDir, joined: &Joined) -> Result<Option<PrivateKey>, Failure> {
    let note = private(dir).join(PENDING);
    let id = match std::fs::read_to_string(&note) {
        Ok(id) => id,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(file_fault(&note)(e)),
    };
    let id = id.trim();
    let key = match id != joined.key && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => PrivateKey::read(&Joined::key_file(dir, id)).map_err(fault)?,
        false => None,
    };
    if key.is_none() {
        forget(dir)?;
        sweep(dir, &joined.key)?;
    }
    Ok(key)
}

/// What the controller says to an exchange.
enum Heard {
    Certificate(Hex),
    /// It does not have the old key, and the new one neither.
    Nobody(String),
    /// It does not do it, or says nothing; [`RpcError::Refused`] when it has said so to both keys.
    Not(RpcError),
}

/// Asks for the exchange: by the old key, and by the new one where that brings nothing, since the answer to an earlier question may have been
/// lost.
async fn asked(dir: &StateDir, joined: &Joined, key: &PrivateKey) -> Result<Heard, Failure> {
    let question = || Question::Renew { public: Hex(key.public()) };
    let first = match Uplink::Remote(joined.remote(dir)?).ask(question()).await {
        Ok(Reply::Nobody(why)) => Ok(why),
        Ok(reply) => return certificate(reply).map(Heard::Certificate),
        Err(first) => Err(first),
    };
    let fingerprint = <[u8; 32]>::try_from(joined.authority.0.as_slice())
        .map_err(|_| fault("joined.json has no fingerprint of the authority"))?;
    let (tls, _) = berth_trust::joining_config(key, fingerprint).map_err(fault)?;
    let itself = Uplink::Remote(Arc::new(Remote::new(joined.address.clone(), tls)));
    Ok(match (itself.ask(question()).await, first) {
        // Which of the two reasons it is, the new key is told: it may be known, and be too late.
        (Ok(Reply::Nobody(why)), Ok(_)) => Heard::Nobody(why),
        // The old key may be good for all that, as with a clock that is wrong.
        (Ok(Reply::Nobody(_)), Err(first)) => Heard::Not(first),
        (Ok(reply), _) => Heard::Certificate(certificate(reply)?),
        (Err(RpcError::Refused(_)), Err(first)) => Heard::Not(first),
        // Not known of the new key: what was refused to the old one says nothing.
        (Err(second), Ok(_) | Err(RpcError::Refused(_))) => Heard::Not(second),
        (Err(_), Err(first)) => Heard::Not(first),
    })
}

fn certificate(reply: Reply) -> Result<Hex, Failure> {
    match reply {
        Reply::Enrolled { certificate, .. } => Ok(certificate),
        _ => Err(fault("the controller's answer does not fit; use the same version of berth on both sides")),
    }
}

/// Nothing can come of the exchange: only the key from before is left, as if it had not been begun. What to tell.
fn give_up(dir: &StateDir, joined: &Joined, why: &str) -> Result<String, Failure> {
    forget(dir)?;
    sweep(dir, &joined.key)?;
    Ok(format!(
        "the exchange of {}'s key is given up, since cluster '{}' takes neither the old key nor the new one: {why}. It was removed from the cluster, or was cut off from it for long; \
         'berth leave' on this machine, and 'berth join' with a new token, let it in again ('berth node remove {}' on the controller first, if it is still listed there)",
        joined.name, joined.cluster, joined.name
    ))
}

/// The new key counts.
fn adopt(dir: &StateDir, joined: &Joined, key: &PrivateKey, certificate: &Hex) -> Result<Joined, Failure> {
    let rotated = Joined { key: key.id(), ..joined.clone() };
    whole(&Joined::certificate_file(dir, &rotated.key), &certificate.0, 0o644)?;
    rotated.write(dir)?;
    forget(dir)?;
    sweep(dir, &rotated.key)?;
    Ok(rotated)
}

fn forget(dir: &StateDir) -> Result<(), Failure> {
    remove(&private(dir).join(PENDING))
}

/// Removes keys and certificates but those of this key.
fn sweep(dir: &StateDir, key: &str) -> Result<(), Failure> {
    let folder = private(dir);
    let kept = [Joined::key_file(dir, key), Joined::certificate_file(dir, key)];
    for entry in std::fs::read_dir(&folder).map_err(file_fault(&folder))? {
        let path = entry.map_err(file_fault(&folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = name.starts_with("node-") && (name.ends_with(".key") || name.ends_with(".crt"));
        if ours && !kept.contains(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
