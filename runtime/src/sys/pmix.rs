//! The system's libpmix as a server of one step's tasks, opened at run time: the few functions of it that a server needs, in
//! the types of the PMIx Standard 4 (`pmix_common.h`, `pmix_server.h`), which its versions 4 and 5 share.
//!
//! The library runs a thread of its own, which calls what [`callbacks`] has. Those copy what they are given, put it where
//! [`Server::events`] takes it from, and leave; nothing of the library's is read after they have returned. What the library
//! waits for is answered by its ticket, once, from any thread.

mod callbacks;
mod layout;

use callbacks::Hub;
pub use callbacks::{Event, NOT_FOUND};
use layout::{Arrays, Name, Proc, WILDCARD};
pub use layout::{Info, Value};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::ptr;

/// By which name the library is looked for, as programs that are linked with it have it.
const NAME: &CStr = c"libpmix.so.2";
/// What Debian and its kin call the package that has it.
pub const PACKAGE: &str = "libpmix2 (Debian, Ubuntu) or pmix (Fedora, RHEL, SUSE)";
/// Major versions whose types are the ones of [`layout`].
const VERSIONS: [u32; 2] = [4, 5];

/// A status of the library: 0 and [`DONE`] are well.
type Status = c_int;
/// `PMIX_OPERATION_SUCCEEDED`: done at once, and nothing is called back.
const DONE: Status = -157;

type Init = unsafe extern "C" fn(*mut layout::Module, *mut layout::RawInfo, usize) -> Status;
type Made = unsafe extern "C" fn(*const c_char, *mut *mut c_char) -> Status;
type RegisterNamespace = unsafe extern "C" fn(
    *const c_char,
    c_int,
    *mut layout::RawInfo,
    usize,
    Option<layout::OpDone>,
    *mut c_void,
) -> Status;
type RegisterClient = unsafe extern "C" fn(
    *const Proc,
    libc::uid_t,
    libc::gid_t,
    *mut c_void,
    Option<layout::OpDone>,
    *mut c_void,
) -> Status;
type SetupFork = unsafe extern "C" fn(*const Proc, *mut *mut *mut c_char) -> Status;
type Fetch = unsafe extern "C" fn(*const Proc, layout::Fetched, *mut c_void) -> Status;
type Text = unsafe extern "C" fn() -> *const c_char;
type StatusText = unsafe extern "C" fn(Status) -> *const c_char;

/// The library, open. It is never closed: its thread would go on in what is no longer there.
#[derive(Clone, Copy)]
pub struct Library {
    init: Init,
    generate_regex: Made,
    generate_ppn: Made,
    register_nspace: RegisterNamespace,
    register_client: RegisterClient,
    setup_fork: SetupFork,
    dmodex_request: Fetch,
    error_string: StatusText,
    version: [u32; 2],
}

/// Finds a function. `None` where the library has none of this name.
fn symbol(handle: *mut c_void, name: &CStr) -> Option<ptr::NonNull<c_void>> {
    // SAFETY: `handle` came from dlopen and was not closed; the name is a C string that lives across the call.
    ptr::NonNull::new(unsafe { libc::dlsym(handle, name.as_ptr()) })
}

impl Library {
    /// Opens it.
    ///
    /// # Errors
    /// It is not there, or of a version that is not known: what is to be done.
    pub fn open() -> Result<Library, String> {
        // SAFETY: the name is a C string. What the library's own constructors do is the system's matter, as for every
        // program that is linked with it; the caller's process has but this purpose.
        let handle = unsafe { libc::dlopen(NAME.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if handle.is_null() {
            return Err(format!("{}: install the package {PACKAGE}", failure()));
        }
        macro_rules! function {
            ($name:literal as $kind:ty) => {{
                let Some(at) = symbol(handle, $name) else {
                    return Err(format!(
                        "{} has no function {}: install a newer one, version 4 or 5",
                        NAME.to_string_lossy(),
                        $name.to_string_lossy()
                    ));
                };
                // SAFETY: the Standard gives the function of this name this type, and a function's address is never null.
                unsafe { std::mem::transmute::<*mut c_void, $kind>(at.as_ptr()) }
            }};
        }
        let version = function!(c"PMIx_Get_version" as Text);
        // SAFETY: the function takes nothing and gives a constant C string.
        let text = unsafe { text(version()) };
        let version = numbers(&text).filter(|[major, _]| VERSIONS.contains(major)).ok_or_else(|| {
            format!(
                "{} is '{text}', and versions 4 and 5 are known: install one of them",
                NAME.to_string_lossy()
            )
        })?;
        Ok(Library {
            init: function!(c"PMIx_server_init" as Init),
            generate_regex: function!(c"PMIx_generate_regex" as Made),
            generate_ppn: function!(c"PMIx_generate_ppn" as Made),
            register_nspace: function!(c"PMIx_server_register_nspace" as RegisterNamespace),
            register_client: function!(c"PMIx_server_register_client" as RegisterClient),
            setup_fork: function!(c"PMIx_server_setup_fork" as SetupFork),
            dmodex_request: function!(c"PMIx_server_dmodex_request" as Fetch),
            error_string: function!(c"PMIx_Error_string" as StatusText),
            version,
        })
    }

    /// Its major and minor version.
    pub fn version(&self) -> [u32; 2] {
        self.version
    }

    fn done(&self, doing: &str, status: Status) -> Result<(), String> {
        if status == 0 || status == DONE {
            return Ok(());
        }
        // SAFETY: the function takes any number and gives a constant C string.
        let why = unsafe { text((self.error_string)(status)) };
        Err(format!("libpmix {}.{} cannot {doing}: {why} ({status})", self.version[0], self.version[1]))
    }
}

/// `OpenPMIx 4.2.2, repo rev: …`: the first two numbers.
fn numbers(text: &str) -> Option<[u32; 2]> {
    let from = text.find(|c: char| c.is_ascii_digit())?;
    let mut parts = text[from..].split(|c: char| !c.is_ascii_digit());
    Some([parts.next()?.parse().ok()?, parts.next()?.parse().ok()?])
}

/// What the last dlopen said.
fn failure() -> String {
    // SAFETY: dlerror gives null or a C string that lives until this thread's next call of its kind.
    let said = unsafe { text(libc::dlerror()) };
    if said.is_empty() { NAME.to_string_lossy().into_owned() } else { said }
}

/// A copy of a C string; nothing for null.
///
/// # Safety
/// `at` is null or a C string that lives across the call.
unsafe fn text(at: *const c_char) -> String {
    if at.is_null() {
        return String::new();
    }
    // SAFETY: the caller's word.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

/// The library as the server of a namespace. There is one in a process.
pub struct Server {
    library: Library,
    namespace: CString,
    name: Name,
    hub: &'static Hub,
}

impl Server {
    /// Has the library serve. `about`: what it is told of the server itself.
    ///
    /// # Errors
    /// It will not, or there is a server already.
    pub fn start(library: Library, namespace: &str, about: &[Info]) -> Result<Server, String> {
        let wrong = || format!("'{namespace}' is no name for a namespace of PMIx");
        let name = layout::name(namespace).ok_or_else(wrong)?;
        let hub = Hub::install(name).map_err(|e| format!("cannot make the server's wake-up: {e}"))?;
        let mut arrays = Arrays::default();
        let (infos, number) = arrays.of(about);
        // It lives on: whether the library copies it is not written anywhere.
        let module = Box::leak(Box::new(callbacks::module()));
        // SAFETY: the module is whole, zero where nothing is served, larger than any version's, and lives for ever; the infos
        // are `number` whole ones that `arrays` keeps across the call, in which the library copies them.
        let status = unsafe { (library.init)(module, infos, number) };
        library.done("start a server", status)?;
        drop(arrays);
        let namespace = CString::new(namespace).map_err(|_| wrong())?;
        Ok(Server { library, namespace, name, hub })
    }

    /// The text by which the names of nodes, separated by commas, are told to tasks.
    pub fn node_map(&self, names: &str) -> Result<String, String> {
        self.made("put the nodes' names in order", self.library.generate_regex, names)
    }

    /// The text by which the ranks of each node, separated by commas and nodes by semicolons, are told to tasks.
    pub fn rank_map(&self, ranks: &str) -> Result<String, String> {
        self.made("put the ranks of the nodes in order", self.library.generate_ppn, ranks)
    }

    fn made(&self, doing: &str, make: Made, of: &str) -> Result<String, String> {
        let of =
            CString::new(of).map_err(|_| format!("libpmix cannot {doing}: there is a NUL among them"))?;
        let mut out: *mut c_char = ptr::null_mut();
        // SAFETY: both pointers live across the call; the library allocates what it puts in `out`.
        let status = unsafe { make(of.as_ptr(), &raw mut out) };
        self.library.done(doing, status)?;
        // SAFETY: on success `out` is a C string from malloc, which is ours to free.
        let made = unsafe { text(out) };
        // SAFETY: as above; it is not used afterwards. free takes null.
        unsafe { libc::free(out.cast()) };
        Ok(made)
    }

    /// Tells of the namespace, of whose tasks so many are on this node.
    pub fn register(&self, here: usize, infos: &[Info]) -> Result<(), String> {
        let mut arrays = Arrays::default();
        let (infos, number) = arrays.of(infos);
        let here = c_int::try_from(here).map_err(|_| "there are too many tasks on this node".to_string())?;
        // SAFETY: the name is a C string in the 256 bytes of `self.name`; the infos are whole and `arrays` keeps them across the
        // call, which lasts until the library has taken them over, as there is nothing for it to call back.
        let status = unsafe {
            (self.library.register_nspace)(self.name.as_ptr(), here, infos, number, None, ptr::null_mut())
        };
        drop(arrays);
        self.library.done("take the step's layout", status)
    }

    /// Tells of a task on this node, and as whom it will come.
    pub fn client(&self, rank: u32, uid: u32, gid: u32) -> Result<(), String> {
        let proc = Proc { name: self.name, rank };
        // SAFETY: `proc` lives across the call, which lasts until it is done, as there is nothing to call back.
        let status = unsafe {
            (self.library.register_client)(&raw const proc, uid, gid, ptr::null_mut(), None, ptr::null_mut())
        };
        self.library.done(&format!("take task {rank}"), status)
    }

    /// What this task is to have in its environment: `NAME=value`.
    pub fn environment(&self, rank: u32) -> Result<Vec<Vec<u8>>, String> {
        let proc = Proc { name: self.name, rank };
        let mut env: *mut *mut c_char = ptr::null_mut();
        // SAFETY: both pointers live across the call; an environment that is null is an empty one, to which the library adds by
        // an array and strings of malloc.
        let status = unsafe { (self.library.setup_fork)(&raw const proc, &raw mut env) };
        self.library.done(&format!("say what task {rank} is to have in its environment"), status)?;
        let mut all = Vec::new();
        if env.is_null() {
            return Ok(all);
        }
        for at in 0.. {
            // SAFETY: the array ends with a null, at which the loop ends; what comes before it are C strings.
            let entry = unsafe { *env.add(at) };
            if entry.is_null() {
                break;
            }
            // SAFETY: as above.
            all.push(unsafe { CStr::from_ptr(entry) }.to_bytes().to_vec());
            // SAFETY: it came from malloc, and nobody else has it.
            unsafe { libc::free(entry.cast()) };
        }
        // SAFETY: as for its strings.
        unsafe { libc::free(env.cast()) };
        Ok(all)
    }

    /// Readable when [`Server::events`] has something.
    pub fn fd(&self) -> BorrowedFd<'static> {
        self.hub.fd()
    }

    /// What happened since the last call.
    pub fn events(&self) -> Vec<Event> {
        self.hub.take()
    }

    /// Gives what the library waits for under this ticket, or a status that says why not. A ticket is good once.
    pub fn answer(&self, ticket: u64, what: Result<Vec<u8>, i32>) {
        self.hub.answer(ticket, what);
    }

    /// Asks for what a task of this node has told, or will tell: it comes as [`Event::Fetched`] with this number.
    pub fn fetch(&self, rank: u32, number: u64) -> Result<(), String> {
        let proc = Proc { name: self.name, rank };
        // SAFETY: `proc` is copied in the call; the last argument is a number that `callbacks::fetched` reads as one.
        let status =
            unsafe { (self.library.dmodex_request)(&raw const proc, callbacks::fetched, ticket(number)) };
        self.library.done(&format!("ask for what task {rank} told"), status)
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &CStr {
        &self.namespace
    }
}

/// A number in the place of a pointer that nobody follows.
fn ticket(number: u64) -> *mut c_void {
    ptr::without_provenance_mut(usize::try_from(number).unwrap_or(usize::MAX))
}

/// The rank that stands for all of a namespace.
pub fn is_all(rank: u32) -> bool {
    rank == WILDCARD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_library_says_of_itself() {
        assert_eq!(numbers("OpenPMIx 4.2.2, repo rev: gitunknown"), Some([4, 2]));
        assert_eq!(numbers("OpenPMIx 5.0.7 (PMIx Standard: 4.2)"), Some([5, 0]));
        assert_eq!(numbers("4.1"), Some([4, 1]));
        assert_eq!(numbers("no number"), None);
    }
}
