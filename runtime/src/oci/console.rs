//! Terminals: one of the container's own devpts, its master passed out over the console socket.

use super::error::{Naming, Result, invalid};
use crate::setup::target::{self, Kind, Root};
use crate::setup::{attach, mounts};
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pty::OpenptFlags;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
const PTMX: (u32, u32) = (5, 2);

/// Connects to the console socket.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    UnixStream::connect(path).map(OwnedFd::from).named_at("connect to the console socket", path)
}

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    /// The outer end.
    pub master: OwnedFd,
    /// The container's end.
    pub slave: OwnedFd,
}

/// Opens a terminal of the devpts that is mounted in the container.
///
/// The multiplexer is checked on its descriptor, and the inner end is asked of the outer one: no name in the
/// container is trusted.
pub fn open(root: &Root, size: Option<(u16, u16)>) -> Result<Terminal> {
    let action = "open a terminal of the container's /dev/pts";
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = target::open(root, b"/dev/pts/ptmx", flags).named(action)?;
    let stat = rustix::fs::fstat(&master).named(action)?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let magic = rustix::fs::fstatfs(&master).named(action)?.f_type;
    let device = FileType::from_raw_mode(stat.st_mode).is_char_device();
    if !device || number != PTMX || magic != DEVPTS_SUPER_MAGIC {
        return Err(invalid(
            "the container's /dev/pts/ptmx is not a terminal multiplexer",
            "mount a devpts on /dev/pts in config.json, or set process.terminal to false",
        ));
    }
    rustix::pty::unlockpt(&master).named(action)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).named(action)?;
    if let Some((rows, columns)) = size {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).named(action)?;
    }
    Ok(Terminal { master, slave })
}

/// Puts the inner end at `/dev/console`.
pub fn bind(root: &Root, slave: &OwnedFd) -> Result<()> {
    let place = target::ensure(root, &"/dev/console".into(), Kind::File)?;
    let tree = mounts::clone_tree(slave, false).named("bind the terminal to /dev/console")?;
    attach(tree.as_fd(), &place, "").named("bind the terminal to /dev/console")
}

/// Sends the outer end out.
pub fn send(socket: BorrowedFd<'_>, master: &OwnedFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .named("send the terminal to the console socket")
}

/// Makes it the controlling terminal and the three standard streams.
pub fn take(slave: &OwnedFd) -> Result<()> {
    let action = "take the terminal";
    rustix::process::ioctl_tiocsctty(slave).named(action)?;
    (0..3).try_for_each(|n| crate::sys::exec::place_at(slave.as_fd(), n)).named(action)
}

/// Lets the container's user open its own standard streams again by name, the null device excepted.
pub fn own_streams(uid: u32) {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for stream in streams {
        let Ok(stat) = rustix::fs::statat(stream, "", AtFlags::EMPTY_PATH) else { continue };
        let null = FileType::from_raw_mode(stat.st_mode).is_char_device()
            && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
        if !null && stat.st_uid != uid {
            // A stream that cannot be given away (a file of another user) is used as it is.
            let _ = rustix::fs::fchown(stream, Some(rustix::process::Uid::from_raw(uid)), None);
        }
    }
}
