//! A filesystem whose server reads requests and answers none, as one on the network whose server is away. Only root can mount it.

use crate::sandbox::wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{File, OpenOptions, create_dir_all, read_dir, read_to_string};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `FUSE_INIT` of linux/fuse.h.
const INIT: u32 = 26;

/// A mounted filesystem of which every question but the first stays unanswered. Who asks and is killed waits in state D: a question that was
/// read cannot be taken back. Dropping it lets them go.
pub struct Hanging {
    at: PathBuf,
    device: Option<Arc<File>>,
    unanswered: Arc<AtomicUsize>,
}

impl Hanging {
    /// At this place, for all who see it.
    pub fn mounted(at: PathBuf) -> Hanging {
        Hanging::by(at, mount_it)
    }

    /// At this place, and only in the mount namespace of a process.
    pub fn mounted_for(at: PathBuf, pid: i32) -> Hanging {
        let namespace = File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
        Hanging::by(at, |at, device| {
            // A thread that shares nothing of the kind with others may enter it.
            let there = || {
                unshare(CloneFlags::CLONE_FS).unwrap();
                setns(&namespace, CloneFlags::CLONE_NEWNS).unwrap();
                mount_it(at, device);
            };
            std::thread::scope(|scope| scope.spawn(there).join().unwrap());
        })
    }

    fn by(at: PathBuf, mount: impl FnOnce(&Path, &File)) -> Hanging {
        create_dir_all(&at).unwrap();
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        mount(&at, &device);
        let device = Arc::new(device);
        let served = Arc::downgrade(&device);
        let unanswered = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&unanswered);
        std::thread::spawn(move || {
            let mut question = vec![0u8; 1 << 17];
            loop {
                // The thread ends with the device: it must not keep it open while it waits.
                let Some(device) = served.upgrade() else { return };
                let mut polled = [PollFd::new((*device).as_fd(), PollFlags::POLLIN)];
                if poll(&mut polled, 50u16) != Ok(1) {
                    continue;
                }
                let Ok(n) = (&*device).read(&mut question) else { return };
                let word = |at: usize| u32::from_ne_bytes(question[at..at + 4].try_into().unwrap());
                if n >= 16 && word(4) == INIT {
                    let mut answer = vec![0u8; 16 + 64];
                    answer[..4].copy_from_slice(&80u32.to_ne_bytes());
                    answer[8..16].copy_from_slice(&question[8..16]);
                    // Version 7.31; at most one page at once.
                    answer[16..20].copy_from_slice(&7u32.to_ne_bytes());
                    answer[20..24].copy_from_slice(&31u32.to_ne_bytes());
                    answer[24..28].copy_from_slice(&4096u32.to_ne_bytes());
                    answer[36..40].copy_from_slice(&4096u32.to_ne_bytes());
                    (&*device).write_all(&answer).unwrap();
                } else {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Hanging { at, device: Some(device), unanswered }
    }

    /// How many questions were read that have no answer.
    pub fn asked(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// The process of this name that waits for such a filesystem, as the node numbers it.
    pub fn waiting(program: &str) -> i32 {
        let found = |entry: &Path| {
            let read = |name: &str| read_to_string(entry.join(name)).unwrap_or_default();
            (read("comm").trim() == program && read("wchan").contains("request_wait")).then_some(())?;
            entry.file_name()?.to_str()?.parse().ok()
        };
        let look = || read_dir("/proc").unwrap().find_map(|entry| found(&entry.unwrap().path()));
        wait(20, look).unwrap_or_else(|| panic!("no process {program} hangs"))
    }

    /// Nobody answers any more, which the kernel tells those who wait.
    pub fn let_go(&mut self) {
        self.device = None;
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.let_go();
        // What only others see goes with their namespace.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

fn mount_it(at: &Path, device: &File) {
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    mount(Some("hanging"), at, Some("fuse.hanging"), MsFlags::empty(), Some(options.as_str())).unwrap();
}
