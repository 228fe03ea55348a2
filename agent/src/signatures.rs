//! Whose signature an image needs, by the site's rules, with the keys that the node has; and what people are told of images
//! that have none.

use berth_images::{Progress, ProgressEvent, SignerKey, Signers};
use berth_model::config::ImagesConfig;
use berth_model::signature::is_key_text;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

/// Largest file of a key.
const MAX_KEY: u64 = 16 << 10;

/// Why a root directory is unsigned.
pub const DIRECTORY: &str = "it is a directory, and only images of registries have signatures";

/// What an image from `place` needs; nothing where nobody looks.
///
/// # Errors
/// A key cannot be read.
pub fn signers(config: &ImagesConfig, place: &str) -> Result<Option<Signers>, String> {
    let Some(needed) = config.needed_signature(place) else { return Ok(None) };
    let key = |(at, text): (usize, &String)| -> Result<SignerKey, String> {
        let (name, pem) = match is_key_text(text) {
            true => (format!("key {} of its rule in berth.toml", at + 1), text.clone()),
            false => {
                let pem = read_key(text).map_err(|e| {
                    format!("{text}: {e}; images.signature in berth.toml names it as a key that signs images")
                })?;
                (text.clone(), pem)
            }
        };
        Ok(SignerKey { name, pem })
    };
    let mut keys = Vec::new();
    for key in needed.keys.iter().enumerate().map(key) {
        match key {
            Ok(key) => keys.push(key),
            Err(why) if needed.required => return Err(why),
            // Where nothing is refused, the others may do.
            Err(why) => tracing::warn!("{why}"),
        }
    }
    Ok(Some(Signers { required: needed.required, keys, identity: needed.identity }))
}

/// All keys that the rules name, read: what is wrong with the first that is none.
///
/// # Errors
/// Which key, and why.
pub fn check(config: &ImagesConfig) -> Result<(), String> {
    for rule in &config.signature_rules {
        if let Some(signers) = signers(config, &rule.images)? {
            signers.keys.iter().try_for_each(SignerKey::check).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// A file that nobody but its owner, who is root or ourselves, can have written.
fn read_key(path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let stat = file.metadata()?;
    if !stat.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    let me = rustix::process::geteuid().as_raw();
    if (stat.uid() != 0 && stat.uid() != me) || stat.mode() & 0o022 != 0 {
        return Err(io::Error::other("others than root can write it: chown root and chmod go-w"));
    }
    let mut text = String::new();
    file.take(MAX_KEY).read_to_string(&mut text)?;
    Ok(text)
}

/// Images that have no signature that counts, for the user's eyes and the log's.
#[derive(Default)]
pub struct Unsigned(Mutex<Vec<String>>);

impl Unsigned {
    /// Listens, beside another.
    pub fn also<'a>(&'a self, other: &'a dyn Progress) -> impl Progress + 'a {
        move |event: ProgressEvent| {
            if let ProgressEvent::Unsigned { text } = &event {
                tracing::warn!("unsigned image: {text}");
                let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                told.push(format!("unsigned image: {text}"));
            }
            other.event(event);
        }
    }

    /// What was heard.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
