//! Children that share this process's memory: no page table is copied for them, which is most of what a fork costs.

use super::fork::{exit_now, single_threaded};
use super::{Errno, SysResult, check, signals};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Room for a child's stack, in bytes. Pages that are not touched cost nothing.
const STACK: usize = 256 * 1024;

/// Memory that a child uses as its stack.
#[derive(Debug)]
struct Stack(Vec<u128>);

impl Stack {
    fn new(bytes: usize) -> Stack {
        Stack(Vec::with_capacity(bytes / size_of::<u128>()))
    }

    /// Where it begins: stacks grow downwards. Aligned to 16 bytes, as both architectures want it.
    fn top(&mut self) -> *mut libc::c_void {
        self.0.spare_capacity_mut().as_mut_ptr_range().end.cast()
    }
}

type Entry = extern "C" fn(*mut libc::c_void) -> libc::c_int;

/// `clone(2)` with `CLONE_VM`, every signal blocked in the child, so that none of this program's handlers runs there.
///
/// # Safety
/// `stack` and what `argument` points to must stay as they are until the child has ended or replaced its program, and
/// `entry` must be able to run beside or (with `CLONE_VFORK`) instead of the caller.
unsafe fn clone(
    flags: libc::c_int,
    stack: &mut Stack,
    entry: Entry,
    argument: *mut libc::c_void,
) -> SysResult<(i32, OwnedFd)> {
    if !single_threaded() {
        return Err(Errno::BUSY);
    }
    let mut pidfd: libc::c_int = -1;
    let before = signals::block_all();
    // SAFETY: the stack is ours alone and large enough, the rest is the caller's promise; with CLONE_PIDFD the kernel
    // writes a descriptor where the fifth argument points.
    let pid = unsafe {
        let flags = flags | libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
        libc::clone(entry, stack.top(), flags, argument, std::ptr::from_mut(&mut pidfd))
    };
    let result = check(libc::c_long::from(pid));
    signals::set_mask(before);
    result?;
    // SAFETY: the kernel stored a fresh descriptor that nothing else owns.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Runs `body` in a new process, and waits until that has replaced its program or ended, as with `vfork(2)`. Descriptors,
/// directory, masks and identity are the child's own. It starts with every signal blocked, and ends with exit code 127 when
/// `body` returns.
///
/// What `body` changes in memory is changed here too, and what it owns is not dropped when it replaces the program: let
/// it borrow. It must not unwind.
///
/// # Errors
/// `EBUSY` when the process has more than one thread: another could hold a lock that `body` needs. Otherwise the
/// kernel's error.
pub fn run(body: &mut dyn FnMut()) -> SysResult<(i32, OwnedFd)> {
    extern "C" fn enter(body: *mut libc::c_void) -> libc::c_int {
        // SAFETY: this is the reference below; the parent sleeps while it is used.
        let body = unsafe { &mut *body.cast::<&mut dyn FnMut()>() };
        body();
        exit_now(127)
    }
    let mut body = body;
    let mut stack = Stack::new(STACK);
    // SAFETY: with CLONE_VFORK this function goes on only when the child uses neither stack nor body any more. It has one
    // thread, so nothing else sees the memory while the child changes it.
    unsafe { clone(libc::CLONE_VFORK, &mut stack, enter, std::ptr::from_mut(&mut body).cast()) }
}

/// A child that was born in new namespaces and only waits to end. Dropping it lets it end, and waits for that.
#[derive(Debug)]
pub struct Waiting {
    /// Its number as the caller sees it.
    pub pid: i32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    /// The child ends when this end of a pipe is closed.
    release: Option<OwnedFd>,
    _told: Box<(RawFd, RawFd)>,
    _stack: Stack,
}

impl Waiting {
    /// Makes it; `namespaces` are `CLONE_NEW*` bits.
    ///
    /// # Errors
    /// `EBUSY` when the process has more than one thread; otherwise the kernel's.
    pub fn new(namespaces: libc::c_int) -> SysResult<Waiting> {
        extern "C" fn wait(told: *mut libc::c_void) -> libc::c_int {
            // SAFETY: `Waiting` keeps what was told until this process has ended.
            let (read_end, write_end) = unsafe { *told.cast::<(RawFd, RawFd)>() };
            // SAFETY: the child has a descriptor table of its own, in which these two are open and nobody else's.
            let (read_end, write_end) =
                unsafe { (OwnedFd::from_raw_fd(read_end), OwnedFd::from_raw_fd(write_end)) };
            drop(write_end);
            // Ends at end of file: when the parent closes its end, or dies.
            while rustix::io::read(&read_end, &mut [0u8; 1]) == Err(Errno::INTR) {}
            exit_now(0)
        }
        let (rx, tx) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut told = Box::new((rx.as_raw_fd(), tx.as_raw_fd()));
        let mut stack = Stack::new(STACK / 16);
        // SAFETY: stack and what is told live in the value that is returned, whose drop waits for the child. The child
        // writes to its own stack alone.
        let (pid, pidfd) =
            unsafe { clone(namespaces, &mut stack, wait, std::ptr::from_mut(told.as_mut()).cast()) }?;
        Ok(Waiting { pid, pidfd, release: Some(tx), _told: told, _stack: stack })
    }
}

impl Waiting {
    /// Lets it end, and does not wait for that.
    pub fn release(&mut self) {
        self.release = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.release();
        let _ = super::wait::wait_pidfd(&self.pidfd);
    }
}
