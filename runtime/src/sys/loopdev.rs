//! Loop devices: a file as a block device, for as long as something has it mounted.

use super::{Errno, SysResult, check};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
/// The device lets go of its file when the last user of the device does.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// What is read is cached once, by whoever has mounted the device; where the file cannot do that, the kernel leaves it.
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Major number of loop devices (`linux/major.h`).
const LOOP_MAJOR: u32 = 7;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// How often another process may take the device that was free a moment ago.
const TRIES: usize = 64;

/// What can be done with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    Full,
    /// Read only, without a second copy in memory.
    ReadOnly,
}

/// Makes a file a block device. The descriptor keeps it until something has mounted the device at the path. Whatever ends the
/// process, the device is free when the last descriptor and the last mount are gone.
///
/// # Errors
/// No loop device is free, or none may be used.
pub fn attach(file: BorrowedFd<'_>, access: Access) -> SysResult<(OwnedFd, String)> {
    let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (mode, flags) = match access {
        Access::Full => (OFlags::RDWR, LO_FLAGS_AUTOCLEAR),
        Access::ReadOnly => (OFlags::RDONLY, LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY | LO_FLAGS_DIRECT_IO),
    };
    for _ in 0..TRIES {
        // SAFETY: the request takes no argument; the descriptor is open.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }.into())?;
        let path = format!("/dev/loop{number}");
        let device = open(&path, u32::try_from(number).map_err(|_| Errno::NODEV)?, mode)?;
        let config = LoopConfig {
            fd: u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?,
            block_size: 0,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                sizelimit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: `config` has the layout of struct loop_config, and lives across the call, which reads it.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(&config)) };
        match check(done.into()) {
            Ok(_) => return Ok((device, path)),
            Err(Errno::BUSY) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::BUSY)
}

/// Opens a device, whose node is made where `/dev` is no devtmpfs and lacks it: as the kernel would make it, for root alone.
fn open(path: &str, number: u32, mode: OFlags) -> SysResult<OwnedFd> {
    let opened = || rustix::fs::open(path, mode | OFlags::CLOEXEC, Mode::empty());
    if let Err(Errno::NOENT) = opened() {
        let device = rustix::fs::makedev(LOOP_MAJOR, number);
        let owner = Mode::RUSR | Mode::WUSR;
        match rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::BlockDevice, owner, device) {
            // Another process may have made it meanwhile.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    opened()
}
