//! Whether there can be a connection to each node of a step: by our own limit on open files, and by what this machine's agent carries for one
//! user.

use super::stream;
use crate::error::{Failure, Kind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;
use std::time::Duration;

/// Descriptors for everything that is no connection to a node.
pub(super) const OTHERS: u64 = 256;

/// As many connections any agent lets a user have.
const FEW: u32 = 64;
/// What a user needs there beside a step's.
const BESIDE: u64 = 8;
/// How long an agent may take to say how many.
const SAYS: Duration = Duration::from_secs(2);

/// Has room for a connection to each node, and gives for how many there is. What tasks get of our limits was said before.
pub(super) fn make_room(nodes: usize) -> usize {
    let wanted = u64::try_from(nodes).unwrap_or(u64::MAX).saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < wanted) {
        let current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
    let room = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(OTHERS);
    usize::try_from(room).unwrap_or(usize::MAX).max(1)
}

/// Whether there could be room for a connection to each of so many nodes: asked before there is a step.
///
/// # Errors
/// Why there could not.
pub fn could_have_room(nodes: u32) -> Result<(), Failure> {
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).saturating_sub(OTHERS);
    if u64::from(nodes) <= most.max(1) {
        return Ok(());
    }
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Err(Failure::new(Kind::User, too_many(count(nodes.into()), count(most.max(1)))))
}

/// Whether this machine's agent, which carries them, lets us have so many: asked before there is a step. An agent of a version that does not say so,
/// and one that is away, are found out about later.
///
/// # Errors
/// Why it does not.
pub async fn could_be_carried(socket: &Path, nodes: u32) -> Result<(), Failure> {
    if nodes <= FEW {
        return Ok(());
    }
    let told = tokio::time::timeout(SAYS, stream::places(socket)).await.ok().flatten();
    match told.filter(|most| u64::from(nodes).saturating_add(BESIDE) > *most) {
        None => Ok(()),
        Some(most) => Err(Failure::new(
            Kind::User,
            format!(
                "a step over {nodes} nodes needs a connection to each through this machine's agent, which lets one user have {most}, an eighth of its \
                 limit on open files (LimitNOFILE= of its service), and {BESIDE} of these are for commands beside it: take fewer nodes, or have the limit raised"
            ),
        )),
    }
}

/// Why there are no connections to so many nodes.
pub(super) fn too_many(nodes: usize, room: usize) -> String {
    format!(
        "a step over {nodes} nodes needs a connection to each, and there is room for {room} by this process's limit on open files (ulimit -Hn): \
         raise it to {} at least, take fewer nodes, or run the step from a batch script on a node whose limit is higher",
        u64::try_from(nodes).unwrap_or(u64::MAX).saturating_add(OTHERS)
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use berth_stream::Frame;
    use berth_stream::asynchronous::{read_frame, write_frame};

    pub(crate) fn in_runtime(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    }

    pub(crate) fn limit(most: u64) {
        let all = Some(most);
        setrlimit(Resource::Nofile, Rlimit { current: all, maximum: all }).unwrap();
    }

    #[test]
    fn more_nodes_than_open_files_are_refused_before_anything_is_made() {
        limit(OTHERS + 3);
        assert!(could_have_room(3).is_ok());
        let why = could_have_room(4).unwrap_err().to_string();
        assert!(why.contains("ulimit -Hn") && why.contains("4 nodes") && why.contains("260"), "{why}");
    }

    /// An agent that is asked once, and gives this answer.
    async fn asked(nodes: u32, answer: Option<Frame>) -> Result<(), Failure> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let agent = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            assert_eq!(read_frame(&mut stream).await.unwrap(), Some(Frame::Places(None)));
            if let Some(frame) = answer {
                write_frame(&mut stream, &frame).await.unwrap();
            }
        });
        let said = could_be_carried(&socket, nodes).await;
        agent.abort();
        said
    }

    #[test]
    fn more_nodes_than_the_agent_carries_for_one_user_are_refused_before_anything_is_made() {
        in_runtime(async {
            let places = |most| Some(Frame::Places(Some(most)));
            assert!(asked(92, places(100)).await.is_ok());
            let why = asked(93, places(100)).await.unwrap_err().to_string();
            assert!(
                why.contains("93 nodes") && why.contains("one user have 100") && why.contains("LimitNOFILE"),
                "{why}"
            );
            // Root, and agents that do not know the question.
            assert!(asked(u32::MAX, places(u64::MAX)).await.is_ok());
            assert!(asked(5000, None).await.is_ok());
            assert!(asked(5000, Some(Frame::Refused("expected Attach".into()))).await.is_ok());
            // Of few nothing is asked.
            assert!(could_be_carried(Path::new("/nowhere/agent.sock"), FEW).await.is_ok());
        });
    }
}
