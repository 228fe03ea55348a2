//! Asking the node's agent about containers that are kept under names.

use crate::agent;
use crate::error::Failure;
use crate::site::Site;
use berth_stream::Frame;
pub use berth_stream::{KeptContainer, KeptQuery, KeptState};

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
    let mut answer = Answer::default();
    agent::ask(site, &Frame::Kept(query), |frame| {
        match frame {
            Frame::KeptContainer(one) => answer.containers.push(*one),
            Frame::Message(name) => answer.names.push(name),
            _ => return false,
        }
        true
    })?;
    Ok(answer)
}
