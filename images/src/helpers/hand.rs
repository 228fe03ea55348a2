//! A file that a user can read, handed over: one process opens it as the user, and another one, which is nobody, gets the descriptor, which
//! shows that right by itself, whatever the first one says.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Sends a file over a socket; whether that was possible.
pub(super) fn give(socket: BorrowedFd<'_>, file: &File) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    beside.push(SendAncillaryMessage::ScmRights(&files))
        && sendmsg(socket, &[IoSlice::new(b"f")], &mut beside, SendFlags::NOSIGNAL).is_ok()
}

/// What the other side of the socket sends; nothing, where it goes without.
pub(super) fn take(socket: BorrowedFd<'_>) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut beside, RecvFlags::CMSG_CLOEXEC)
            .map(|message| message.bytes)
    })
    .ok()?;
    beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_file_comes_over_and_who_sends_none_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(give(theirs.as_fd(), &File::open(&path).unwrap()));
        let mut text = String::new();
        File::from(take(ours.as_fd()).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        drop(theirs);
        assert!(take(ours.as_fd()).is_none());
    }
}
