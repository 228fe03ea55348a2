//! Asking the node's agent about containers that are kept under names.

use crate::error::{Failure, Kind};
use crate::site::Site;
use berth_stream::{Frame, blocking};
pub use berth_stream::{KeptContainer, KeptQuery, KeptState};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take; what is removed may be large.
const PATIENCE: Duration = Duration::from_secs(300);

/// What was answered: containers, or names of those that were removed.
#[derive(Debug, Default)]
pub struct Answer {
    /// Containers.
    pub containers: Vec<KeptContainer>,
    /// Names.
    pub names: Vec<String>,
}

/// Asks.
///
/// # Errors
/// The agent does not answer, or refuses.
pub fn ask(site: &Site, query: KeptQuery) -> Result<Answer, Failure> {
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
    blocking::write_frame(&mut stream, &Frame::Kept(query)).map_err(|e| away(e.to_string()))?;
    let mut answer = Answer::default();
    loop {
        match blocking::read_frame(&mut stream) {
            Ok(Some(Frame::KeptContainer(one))) => answer.containers.push(*one),
            Ok(Some(Frame::Message(name))) => answer.names.push(name),
            Ok(Some(Frame::Accepted)) => return Ok(answer),
            Ok(Some(Frame::Refused(why))) => return Err(Failure::user(why)),
            Ok(Some(_)) => return Err(away("unexpected answer".to_string())),
            Ok(None) => return Err(away("it closed the connection".to_string())),
            Err(e) => return Err(away(e.to_string())),
        }
    }
}
