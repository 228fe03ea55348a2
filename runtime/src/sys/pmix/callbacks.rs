//! What the library calls, in its own thread: everything is copied, put down for the program's thread, and that is woken.

use super::layout::{ModexDone, Module, Name, OpDone, Proc, RawInfo, WILDCARD};
use super::{DONE, text};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{c_char, c_int, c_void};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// `PMIX_ERR_NOT_FOUND`.
pub const NOT_FOUND: i32 = -46;
/// `PMIX_ERR_BAD_PARAM`.
const BAD: c_int = -27;

/// What happened to the tasks, or was asked by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All tasks of this node that are to come to a fence are there. It ends by the ticket's answer: what all nodes told.
    Fence {
        /// For [`super::Server::answer`].
        ticket: u64,
        /// Ranks that meet there; none stands for all.
        members: Vec<u32>,
        /// What this node's tell.
        data: Vec<u8>,
    },
    /// A task of this node wants what one of another told.
    Fetch {
        /// For [`super::Server::answer`].
        ticket: u64,
        /// Which.
        rank: u32,
    },
    /// What came of [`super::Server::fetch`].
    Fetched {
        /// Its number.
        number: u64,
        /// What the task told, or a status.
        result: Result<Vec<u8>, i32>,
    },
    /// A task came.
    Connected(u32),
    /// A task is done; it waits for the ticket's answer, so that nobody sees it end before this was heard.
    Finalized {
        /// For [`super::Server::answer`].
        ticket: u64,
        /// Which.
        rank: u32,
    },
    /// A task ends the step; it waits for the ticket's answer.
    Abort {
        /// For [`super::Server::answer`].
        ticket: u64,
        /// Which.
        rank: u32,
        /// With this exit code.
        status: i32,
        /// What it says.
        message: String,
    },
}

/// What the library waits for.
enum Waiting {
    Modex(ModexDone, Mark),
    Op(OpDone, Mark),
}

/// The library's own mark of a question, which is handed back and never followed.
struct Mark(*mut c_void);

// SAFETY: the pointer is the library's and is only handed back to it; its functions may be called from any thread.
unsafe impl Send for Mark {}

#[derive(Default)]
struct Held {
    events: VecDeque<Event>,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
}

/// Between the library's thread and ours.
pub struct Hub {
    name: Name,
    held: Mutex<Held>,
    woken: UnixStream,
    wakes: UnixStream,
}

static HUB: OnceLock<Hub> = OnceLock::new();

impl Hub {
    /// The one of this process.
    pub fn install(name: Name) -> io::Result<&'static Hub> {
        let (woken, wakes) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wakes.set_nonblocking(true)?;
        let hub = Hub { name, held: Mutex::default(), woken, wakes };
        HUB.set(hub).map_err(|_| io::Error::other("there is a server in this process already"))?;
        HUB.get().ok_or_else(|| io::Error::other("it is gone"))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // What is held is whole between any two of our lines.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(&self) -> Vec<Event> {
        let mut piece = [0; 64];
        while matches!((&self.woken).read(&mut piece), Ok(n) if n > 0) {}
        self.held().events.drain(..).collect()
    }

    fn put(&self, event: Event) {
        self.held().events.push_back(event);
        // Full means woken.
        let _ = (&self.wakes).write(&[0]);
    }

    fn wait(&self, waiting: Waiting) -> u64 {
        let mut held = self.held();
        held.next += 1;
        let ticket = held.next;
        held.waiting.insert(ticket, waiting);
        ticket
    }

    pub fn answer(&self, ticket: u64, what: Result<Vec<u8>, i32>) {
        let Some(waiting) = self.held().waiting.remove(&ticket) else { return };
        match (waiting, what) {
            (Waiting::Op(done, mark), what) => {
                let status = what.err().unwrap_or(0);
                // SAFETY: the library's function, with the mark that came with it, for the first time.
                unsafe { done(status, mark.0) };
            }
            (Waiting::Modex(done, mark), Err(status)) => {
                // SAFETY: as above; no data is null with a length of 0, of which nothing is to be released.
                unsafe { done(status, ptr::null(), 0, mark.0, None, ptr::null_mut()) };
            }
            (Waiting::Modex(done, mark), Ok(data)) => {
                let data = Box::new(data);
                let (at, len) = (data.as_ptr().cast::<c_char>(), data.len());
                // SAFETY: as above. The data lives until the library calls `released` with its box.
                unsafe { done(0, at, len, mark.0, Some(released), Box::into_raw(data).cast()) };
            }
        }
    }
}

/// The library has read an answer.
unsafe extern "C" fn released(data: *mut c_void) {
    if !data.is_null() {
        // SAFETY: it is the box that `Hub::answer` gave along with this function, which is called once.
        drop(unsafe { Box::from_raw(data.cast::<Vec<u8>>()) });
    }
}

/// The functions that are served.
pub fn module() -> Module {
    Module {
        client_connected: Some(connected),
        client_finalized: Some(finalized),
        abort: Some(abort),
        fence: Some(fence),
        direct_modex: Some(direct_modex),
        none: [ptr::null(); 6],
        register_events: Some(register_events),
        deregister_events: Some(deregister_events),
        rest: [ptr::null(); 51],
    }
}

/// The rank of a process of our namespace.
///
/// # Safety
/// `proc` is null or a process that lives across the call.
unsafe fn rank_of(hub: &Hub, proc: *const Proc) -> Option<u32> {
    // SAFETY: the caller's word.
    let proc = unsafe { proc.as_ref() }?;
    // Names end at the first NUL; what is behind it is nobody's.
    let word = |name: &Name| -> Vec<c_char> { name.iter().take_while(|c| **c != 0).copied().collect() };
    (word(&proc.name) == word(&hub.name)).then_some(proc.rank)
}

/// A copy of bytes; nothing for null.
///
/// # Safety
/// `at` is null or has `len` bytes that live across the call.
unsafe fn bytes(at: *const c_char, len: usize) -> Vec<u8> {
    if at.is_null() || len == 0 {
        return Vec::new();
    }
    // SAFETY: the caller's word.
    unsafe { std::slice::from_raw_parts(at.cast::<u8>(), len) }.to_vec()
}

unsafe extern "C" fn connected(
    proc: *const Proc,
    _: *mut c_void,
    _: Option<OpDone>,
    _: *mut c_void,
) -> c_int {
    let Some(hub) = HUB.get() else { return BAD };
    // SAFETY: the library's process, which lives across this call.
    let Some(rank) = (unsafe { rank_of(hub, proc) }) else { return BAD };
    hub.put(Event::Connected(rank));
    DONE
}

unsafe extern "C" fn finalized(
    proc: *const Proc,
    _: *mut c_void,
    done: Option<OpDone>,
    mark: *mut c_void,
) -> c_int {
    let Some(hub) = HUB.get() else { return BAD };
    // SAFETY: as in `connected`.
    let rank = unsafe { rank_of(hub, proc) };
    let (Some(rank), Some(done)) = (rank, done) else { return BAD };
    let ticket = hub.wait(Waiting::Op(done, Mark(mark)));
    hub.put(Event::Finalized { ticket, rank });
    0
}

unsafe extern "C" fn abort(
    proc: *const Proc,
    _: *mut c_void,
    status: c_int,
    message: *const c_char,
    _: *mut Proc,
    _: usize,
    done: Option<OpDone>,
    mark: *mut c_void,
) -> c_int {
    let Some(hub) = HUB.get() else { return BAD };
    // SAFETY: as in `connected`; the message is null or a C string that lives across this call.
    let (rank, message) = unsafe { (rank_of(hub, proc), text(message)) };
    let (Some(rank), Some(done)) = (rank, done) else { return BAD };
    let ticket = hub.wait(Waiting::Op(done, Mark(mark)));
    hub.put(Event::Abort { ticket, rank, status, message });
    0
}

unsafe extern "C" fn fence(
    procs: *const Proc,
    number: usize,
    _: *const RawInfo,
    _: usize,
    data: *mut c_char,
    len: usize,
    done: Option<ModexDone>,
    mark: *mut c_void,
) -> c_int {
    let (Some(hub), Some(done)) = (HUB.get(), done) else { return BAD };
    let mut members = Vec::with_capacity(number);
    for at in 0..number {
        // SAFETY: there are `number` of them, which live across this call.
        match unsafe { rank_of(hub, procs.add(at)) } {
            Some(rank) => members.push(rank),
            None => return BAD,
        }
    }
    if members.contains(&WILDCARD) {
        members.clear();
    }
    // SAFETY: the library's bytes, which live across this call. Whether they are ours afterwards differs between its
    // versions: they are left to it, a few kilobytes for each of the few fences of a program.
    let data = unsafe { bytes(data, len) };
    let ticket = hub.wait(Waiting::Modex(done, Mark(mark)));
    hub.put(Event::Fence { ticket, members, data });
    0
}

unsafe extern "C" fn direct_modex(
    proc: *const Proc,
    _: *const RawInfo,
    _: usize,
    done: Option<ModexDone>,
    mark: *mut c_void,
) -> c_int {
    let (Some(hub), Some(done)) = (HUB.get(), done) else { return BAD };
    // SAFETY: as in `connected`.
    let Some(rank) = (unsafe { rank_of(hub, proc) }) else { return NOT_FOUND };
    let ticket = hub.wait(Waiting::Modex(done, Mark(mark)));
    hub.put(Event::Fetch { ticket, rank });
    0
}

/// Events of the environment are told by ending the step; whoever asks for them may have them in vain.
unsafe extern "C" fn register_events(
    _: *mut c_int,
    _: usize,
    _: *const RawInfo,
    _: usize,
    _: Option<OpDone>,
    _: *mut c_void,
) -> c_int {
    DONE
}

unsafe extern "C" fn deregister_events(_: *mut c_int, _: usize, _: Option<OpDone>, _: *mut c_void) -> c_int {
    DONE
}

/// What a task of this node told, for [`super::Server::fetch`].
pub unsafe extern "C" fn fetched(status: c_int, data: *mut c_char, len: usize, mark: *mut c_void) {
    let Some(hub) = HUB.get() else { return };
    // SAFETY: the library's bytes, which live across this call and are its own to free.
    let result = if status == 0 { Ok(unsafe { bytes(data, len) }) } else { Err(status) };
    hub.put(Event::Fetched { number: mark.addr() as u64, result });
}
