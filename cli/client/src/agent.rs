//! Asking the node's agent, at the socket that is open to everyone on the node.

use crate::error::{Failure, Kind};
use crate::site::Site;
use berth_model::NodeName;
use berth_stream::{Frame, blocking};
pub use berth_stream::{ImagesQuery, WholeQuery};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take; what is removed may be large.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of an answer from another machine.
const MOST: usize = 64 << 20;

/// Asks; `part` takes each frame of the answer, and says whether it is one.
///
/// # Errors
/// The agent does not answer, or refuses.
pub fn ask(site: &Site, query: &Frame, mut part: impl FnMut(Frame) -> bool) -> Result<(), Failure> {
    let away = |why: String| {
        Failure::new(
            Kind::Unreachable,
            format!(
                "the node's agent does not answer ({}: {why}): is it running? 'berth status' tells",
                site.streams.display()
            ),
        )
    };
    let mut stream = UnixStream::connect(&site.streams).map_err(|e| away(e.to_string()))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| away(e.to_string()))?;
    blocking::write_frame(&mut stream, query).map_err(|e| away(e.to_string()))?;
    loop {
        match blocking::read_frame(&mut stream) {
            Ok(Some(Frame::Accepted)) => return Ok(()),
            Ok(Some(Frame::Refused(why))) => return Err(Failure::user(why)),
            Ok(Some(frame)) => {
                if !part(frame) {
                    return Err(away("unexpected answer".to_string()));
                }
            }
            Ok(None) => return Err(away("it closed the connection".to_string())),
            Err(e) => return Err(away(e.to_string())),
        }
    }
}

/// Asks about the caller's images on the node. The answer is a JSON document.
///
/// # Errors
/// As for [`ask`].
pub fn images(site: &Site, query: ImagesQuery) -> Result<Vec<u8>, Failure> {
    let mut document = Vec::new();
    ask(site, &Frame::Images(query), |frame| match frame {
        Frame::Part(bytes) => {
            document.extend(bytes);
            true
        }
        _ => false,
    })?;
    Ok(document)
}

/// As [`images`], of any node of the cluster: where it is another machine the controller passes question and answer on, and says
/// for whom.
///
/// # Errors
/// The node cannot be asked, does not answer within `patience` or refuses; the text does not name it.
pub fn images_of(
    site: &Site,
    node: &NodeName,
    query: ImagesQuery,
    patience: Duration,
) -> Result<Vec<u8>, String> {
    let away = |e: &dyn std::fmt::Display| {
        format!("no answer ({e}): is it up, and its agent connected? 'sinfo -N' and 'berth node ls' tell")
    };
    let mut stream = UnixStream::connect(&site.attach).map_err(|e| away(&e))?;
    stream.set_read_timeout(Some(patience)).map_err(|e| away(&e))?;
    for frame in [Frame::Node(node.clone()), Frame::Images(query)] {
        blocking::write_frame(&mut stream, &frame).map_err(|e| away(&e))?;
    }
    let mut document = Vec::new();
    loop {
        match blocking::read_frame(&mut stream) {
            Ok(Some(Frame::Accepted)) => return Ok(document),
            Ok(Some(Frame::Refused(why))) => return Err(why),
            // A node has no say in how much memory of ours it takes.
            Ok(Some(Frame::Part(bytes))) if document.len() + bytes.len() <= MOST => document.extend(bytes),
            Ok(Some(Frame::Part(_))) => return Err(away(&format!("it is longer than {} MiB", MOST >> 20))),
            Ok(Some(_)) => return Err(away(&"it is to another question")),
            Ok(None) => return Err(away(&"the connection was closed")),
            Err(e) => return Err(away(&e)),
        }
    }
}
