//! `bpf(2)`: loading a device program, attaching it to a cgroup, and finding it there again by its name.

use super::{Errno, SysResult, check};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One eBPF instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source in the high half.
    pub regs: u8,
    /// Jump or memory offset.
    pub off: i16,
    /// Immediate operand.
    pub imm: i32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// Bytes of a program's name, with the zero at its end.
const NAME: usize = 16;
/// The kernel attaches no more to one group.
const MOST: usize = 64;

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME],
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// What is attached to a group. As long as the kernel's, which writes beyond what is asked for where it is newer.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: [u32; 9],
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of struct bpf_prog_info, up to the name.
#[repr(C)]
#[derive(Default)]
struct Info {
    head: [u64; 8],
    name: [u8; NAME],
}

/// Loads a cgroup device program.
pub fn load_device_program(program: &[Insn]) -> SysResult<OwnedFd> {
    load_named_device_program(program, "")
}

/// Loads one by whose name it is found again: letters, digits, `_` and `.`, 15 of them at most.
pub fn load_named_device_program(program: &[Insn], name: &str) -> SysResult<OwnedFd> {
    let mut attr = LoadAttr {
        prog_name: named(name)?,
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttr::default()
    };
    // SAFETY: `attr` is the head of union bpf_attr for this command with its size given (the kernel treats
    // the rest as zero); the instructions and the licence live across the call and are copied.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            std::ptr::from_mut(&mut attr),
            std::mem::size_of::<LoadAttr>(),
        )
    })?;
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: the kernel returned a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn named(name: &str) -> SysResult<[u8; NAME]> {
    let mut bytes = [0; NAME];
    let place = bytes.get_mut(..name.len()).filter(|_| name.len() < NAME).ok_or(Errno::INVAL)?;
    place.copy_from_slice(name.as_bytes());
    Ok(bytes)
}

/// Attaches a device program to a cgroup; it stays for as long as the cgroup does.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> SysResult<()> {
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF);
    let mut attr = AttachAttr {
        target_fd: number(cgroup)?,
        attach_bpf_fd: number(program)?,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` is the head of union bpf_attr for this command with its size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            std::ptr::from_mut(&mut attr),
            std::mem::size_of::<AttachAttr>(),
        )
    })
    .map(drop)
}

/// The device programs of that name that are attached to a cgroup itself.
pub fn device_programs(cgroup: BorrowedFd<'_>, name: &str) -> SysResult<Vec<OwnedFd>> {
    let wanted = named(name)?;
    let mut ids = [0u32; MOST];
    let mut attr = QueryAttr {
        target_fd: u32::try_from(cgroup.as_raw_fd()).map_err(|_| Errno::BADF)?,
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(MOST).map_err(|_| Errno::OVERFLOW)?,
        ..QueryAttr::default()
    };
    // SAFETY: `attr` is as long as union bpf_attr's part for this command, and the kernel writes no more ids than `prog_cnt` says,
    // for which `ids`, which lives across the call, has room.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            std::ptr::from_mut(&mut attr),
            std::mem::size_of::<QueryAttr>(),
        )
    })?;
    let count = usize::try_from(attr.prog_cnt).unwrap_or(MOST).min(MOST);
    let mut found = Vec::new();
    for id in ids.iter().take(count) {
        let program = match program_of(*id) {
            // It went meanwhile.
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        if name_of(&program)? == wanted {
            found.push(program);
        }
    }
    Ok(found)
}

fn program_of(id: u32) -> SysResult<OwnedFd> {
    let mut attr = IdAttr { prog_id: id, ..IdAttr::default() };
    // SAFETY: `attr` is the head of union bpf_attr for this command with its size given.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_GET_FD_BY_ID,
            std::ptr::from_mut(&mut attr),
            std::mem::size_of::<IdAttr>(),
        )
    })?;
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: the kernel returned a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn name_of(program: &OwnedFd) -> SysResult<[u8; NAME]> {
    let mut info = Info::default();
    let mut attr = InfoAttr {
        bpf_fd: u32::try_from(program.as_raw_fd()).map_err(|_| Errno::BADF)?,
        info_len: u32::try_from(std::mem::size_of::<Info>()).map_err(|_| Errno::OVERFLOW)?,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `attr` is the head of union bpf_attr for this command with its size given; the kernel writes `info_len` bytes into
    // `info`, which is so long, zero (no further buffers are named in it) and lives across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            std::ptr::from_mut(&mut attr),
            std::mem::size_of::<InfoAttr>(),
        )
    })?;
    Ok(info.name)
}

/// Takes a device program from a cgroup.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> SysResult<()> {
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF);
    let mut attr = AttachAttr {
        target_fd: number(cgroup)?,
        attach_bpf_fd: number(program)?,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
    };
    // SAFETY: `attr` is the head of union bpf_attr for this command with its size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_DETACH,
            std::ptr::from_mut(&mut attr),
            std::mem::size_of::<AttachAttr>(),
        )
    })
    .map(drop)
}
