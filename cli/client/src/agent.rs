//! Asking the node's agent, at the socket that is open to everyone on the node.

use crate::error::{Failure, Kind};
use crate::site::Site;
pub use berth_stream::ImagesQuery;
use berth_stream::{Frame, blocking};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take; what is removed may be large.
const PATIENCE: Duration = Duration::from_secs(300);

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
