//! Files of keys and certificates: PEM, read only where nobody else can have had a hand in them, written whole or not at all.

use crate::TrustError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// No file of ours is larger.
const MOST: u64 = 16 * 1024;
/// Of a private key.
pub(crate) const PRIVATE: u32 = 0o600;
/// Of a certificate.
pub(crate) const PUBLIC: u32 = 0o644;

/// The bytes of a file of ours; `None` where there is no file. Neither links nor what is no regular file, nor what belongs to
/// somebody else, nor what others can write is read; and of a private file also nothing that others can read.
pub(crate) fn read(path: &Path, mode: u32) -> Result<Option<Vec<u8>>, TrustError> {
    // A pipe is not waited for.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => {
            return Err(TrustError::file(path, "it is a link", "put the file itself there"));
        }
        Err(e) => return Err(TrustError::file(path, e, "see who may read it, and that it is a file")),
    };
    let meta = file.metadata().map_err(|e| TrustError::file(path, e, "see whether the disk is well"))?;
    if !meta.is_file() {
        return Err(TrustError::file(path, "it is no regular file", "put the file itself there"));
    }
    let (owner, own) = (meta.uid(), nix::unistd::geteuid().as_raw());
    if owner != own {
        let why = format!("it belongs to uid {owner}, not to uid {own}, as which this runs");
        return Err(TrustError::file(
            path,
            why,
            "give it to that user if nobody else can have read or changed it",
        ));
    }
    let open = meta.mode() & 0o7777 & !mode;
    if open != 0 {
        let why = format!("others may read or change it (mode {:04o})", meta.mode() & 0o7777);
        let next = match mode {
            PRIVATE => {
                "chmod 600 it if nobody else can have read it; else move it away: a new key is made, and \
                 has to be admitted"
            }
            _ => "chmod 644 it if nobody else can have changed it",
        };
        return Err(TrustError::file(path, why, next));
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| TrustError::file(path, e, "see whether the disk is well"))?;
    if bytes.len() as u64 > MOST {
        return Err(TrustError::file(path, "it is too large", "put the right file there"));
    }
    Ok(Some(bytes))
}

/// Puts the file there, with exactly this mode: whole, and on the disk, or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TrustError> {
    write_new(path, bytes, mode).map_err(|e| {
        TrustError::file(
            path,
            format!("it cannot be written: {e}"),
            "see whether the disk is full or read-only",
        )
    })
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut fresh = path.as_os_str().to_os_string();
    fresh.push(".new");
    let fresh = Path::new(&fresh);
    match std::fs::remove_file(fresh) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(fresh)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(fresh, path)?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// PEM (RFC 7468) of these bytes.
pub(crate) fn pem(label: &str, bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// The bytes in a PEM file that holds exactly one thing, and that thing of this label.
pub(crate) fn unpem(label: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let inner = text.strip_prefix(&format!("-----BEGIN {label}-----"))?;
    let inner = inner.strip_suffix(&format!("-----END {label}-----"))?;
    let joined: String = inner.split_ascii_whitespace().collect();
    STANDARD.decode(joined).ok()
}
