//! Finding a program inside the container, and saying exactly why it cannot be run.

use crate::setup::errno_text;
use crate::sys::Errno;
use crate::sys::exec::{ExecVectors, execve};
use berth_model::ByteStr;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fmt;
use std::io::Read;

/// Why a task's program did not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecError {
    /// Nothing to run: neither the task nor the image names a command.
    NoCommand,
    /// No such file, by path or in PATH.
    NotFound {
        /// As typed.
        command: String,
        /// The PATH that was searched; absent for a path.
        path: Option<String>,
        /// A directory of it that the user cannot enter.
        #[serde(default)]
        closed: Option<String>,
    },
    /// The file lacks its execute permission.
    NotExecutable(String),
    /// A directory.
    IsDirectory(String),
    /// A script or program whose interpreter or loader is missing.
    NoInterpreter {
        /// The file.
        file: String,
        /// What it names.
        interpreter: String,
    },
    /// A script with DOS line ends: the kernel looks for an interpreter with a carriage return in its name.
    DosLineEnds(String),
    /// Neither a program for this machine nor a script with a `#!` line.
    BadFormat {
        /// The file.
        file: String,
        /// It is text.
        text: bool,
    },
    /// Arguments and environment exceed the kernel's limit.
    TooLong,
    /// The task's working directory cannot be entered.
    Workdir {
        /// The directory.
        path: String,
        /// The kernel's error.
        errno: i32,
        /// What to do.
        hint: String,
    },
    /// A program that runs before the task failed.
    Around {
        /// What it is, and its path.
        program: String,
        /// What is wrong.
        why: String,
        /// What counts as the task's exit code.
        code: u8,
    },
    /// Anything else, with what was tried.
    Other {
        /// What was tried.
        action: String,
        /// The kernel's error.
        errno: i32,
    },
}

impl ExecError {
    /// The exit code that shells use: 127 for what is not there, 126 for what cannot be run.
    pub fn exit_code(&self) -> i32 {
        match self {
            ExecError::NoCommand | ExecError::NotFound { .. } => 127,
            ExecError::Around { code, .. } => (*code).into(),
            _ => 126,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecError::NoCommand => {
                write!(f, "no command: the image names none (ENTRYPOINT, CMD); give one after the image")
            }
            ExecError::NotFound { command, path: Some(path), closed } => {
                write!(f, "command not found: {command}: no such program in PATH ({path})")?;
                match closed {
                    Some(dir) => write!(f, "; {dir} in PATH cannot be entered"),
                    None => Ok(()),
                }
            }
            ExecError::NotFound { command, path: None, .. } => {
                write!(f, "command not found: {command}: no such file")
            }
            ExecError::NotExecutable(p) => {
                write!(f, "{p}: not executable: give it execute permission (chmod +x)")
            }
            ExecError::IsDirectory(p) => write!(f, "{p}: is a directory, not a program"),
            ExecError::NoInterpreter { file, interpreter } => write!(
                f,
                "{file}: its interpreter {interpreter} does not exist here: install it, or run {file} with \
                 another"
            ),
            ExecError::DosLineEnds(p) => write!(
                f,
                "{p}: its first line ends in a carriage return (DOS line ends): convert it (sed -i \
                 's/\\r$//' {p})"
            ),
            ExecError::BadFormat { file, text: true } => {
                write!(f, "{file}: no #! line: start it with one, such as #!/bin/sh")
            }
            ExecError::BadFormat { file, text: false } => {
                write!(f, "{file}: not a program for this machine's architecture")
            }
            ExecError::TooLong => {
                write!(f, "arguments and environment are longer than the kernel allows: shorten them")
            }
            ExecError::Workdir { path, errno, hint } => {
                write!(f, "cannot enter the working directory {path}: {}; {hint}", errno_text(*errno))
            }
            ExecError::Around { program, why, .. } => {
                write!(f, "{program} failed: {why}; the task was not started")
            }
            ExecError::Other { action, errno } => write!(f, "cannot {action}: {}", errno_text(*errno)),
        }
    }
}

/// The files to try for a command, in order.
pub(crate) fn candidates(command: &ByteStr, path: Option<&[u8]>) -> Vec<ByteStr> {
    if command.0.contains(&b'/') {
        return vec![command.clone()];
    }
    path.unwrap_or(b"/usr/bin:/bin")
        .split(|b| *b == b':')
        .map(|dir| {
            let mut file = if dir.is_empty() { b".".to_vec() } else { dir.to_vec() };
            file.push(b'/');
            file.extend_from_slice(&command.0);
            ByteStr(file)
        })
        .collect()
}

/// Why none of the candidates ran, as far as only who was to run them sees it.
#[derive(Clone, Copy)]
pub(crate) struct Refused {
    pub(crate) errno: Errno,
    /// Which of them that is about.
    at: usize,
    /// The first whose directory cannot be entered.
    closed: Option<usize>,
}

impl Refused {
    pub(crate) fn of(errno: Errno) -> Refused {
        Refused { errno, at: 0, closed: None }
    }
}

/// Replaces the program by the first of the candidates that runs; returns only where none does. `by_path`: it is one file that was named, and
/// not searched for.
pub(crate) fn execute(files: &[CString], vectors: &ExecVectors, by_path: bool) -> Refused {
    for (at, file) in files.iter().enumerate() {
        match execve(file, vectors) {
            // As execvp(3): look on.
            Errno::NOENT | Errno::NOTDIR | Errno::ACCESS => {}
            errno => return Refused { at, ..Refused::of(errno) },
        }
    }
    let (mut refused, mut there) = (Refused::of(Errno::NOENT), false);
    for (at, file) in files.iter().enumerate() {
        match rustix::fs::stat(file.as_c_str()) {
            // What is in it nobody knows here: the kernel's answer to execve is no word of a file that is there.
            Err(Errno::ACCESS) => {
                refused.closed.get_or_insert(at);
            }
            Ok(stat) if by_path || FileType::from_raw_mode(stat.st_mode).is_file() => {
                let errno = execve(file, vectors);
                if errno == Errno::ACCESS || !there {
                    (refused.errno, refused.at, there) = (errno, at, true);
                }
                if errno == Errno::ACCESS {
                    break;
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
    if by_path && refused.closed.is_some() {
        refused.errno = Errno::ACCESS;
    }
    refused
}

/// Says why none of the candidates ran, after the fact.
pub(crate) fn diagnose(
    command: &ByteStr,
    shown: Option<&str>,
    candidates: &[ByteStr],
    path: Option<&[u8]>,
    refused: Refused,
) -> ExecError {
    let Refused { errno, at, closed } = refused;
    let shown = shown.map_or_else(|| command.display().into_owned(), str::to_string);
    let by_path = command.0.contains(&b'/');
    let file = |candidate: &ByteStr| {
        if by_path { shown.clone() } else { candidate.display().into_owned() }
    };
    let Some(candidate) = candidates.get(at) else {
        return ExecError::Other { action: format!("run {shown}"), errno: errno.raw_os_error() };
    };
    match errno {
        Errno::NOENT | Errno::NOTDIR => {
            let present = Some(candidate).filter(|c| closed != Some(at) && c.as_path().is_file());
            match present.and_then(|c| interpreter(c).map(|i| (c, i))) {
                Some((c, i)) if i.ends_with('\r') => ExecError::DosLineEnds(file(c)),
                Some((c, interpreter)) => ExecError::NoInterpreter { file: file(c), interpreter },
                None => {
                    let path = path.filter(|_| !by_path);
                    let path = path.map(|p| String::from_utf8_lossy(p).into_owned());
                    let closed = closed.and_then(|at| candidates.get(at)?.as_path().parent());
                    let closed = closed.map(|dir| dir.display().to_string());
                    ExecError::NotFound { command: shown, path, closed }
                }
            }
        }
        Errno::ACCESS if by_path && closed.is_some() => {
            ExecError::Other { action: format!("reach {shown}"), errno: errno.raw_os_error() }
        }
        Errno::ACCESS if candidate.as_path().is_dir() => ExecError::IsDirectory(file(candidate)),
        Errno::ACCESS => ExecError::NotExecutable(file(candidate)),
        Errno::NOEXEC => {
            let head = head(candidate);
            let text = !head.starts_with(b"\x7fELF") && !head.contains(&0);
            ExecError::BadFormat { file: file(candidate), text }
        }
        Errno::TOOBIG => ExecError::TooLong,
        e => ExecError::Other { action: format!("run {shown}"), errno: e.raw_os_error() },
    }
}

fn head(path: &ByteStr) -> Vec<u8> {
    let mut out = Vec::new();
    if let Ok(file) = std::fs::File::open(path.as_path()) {
        let _ = file.take(4096).read_to_end(&mut out);
    }
    out
}

/// What a script's `#!` line or a program's loader entry names.
fn interpreter(path: &ByteStr) -> Option<String> {
    let head = head(path);
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?;
        let start = line.iter().position(|b| !matches!(b, b' ' | b'\t'))?;
        let name: Vec<u8> =
            line[start..].iter().copied().take_while(|b| !matches!(b, b' ' | b'\t')).collect();
        return Some(String::from_utf8_lossy(&name).into_owned());
    }
    elf_loader(&head)
}

/// The path in a 64-bit little-endian ELF file's PT_INTERP segment, when it lies in the file's first page.
fn elf_loader(head: &[u8]) -> Option<String> {
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(len)?)?;
        let mut n = 0u64;
        for b in bytes.iter().rev() {
            n = n << 8 | u64::from(*b);
        }
        usize::try_from(n).ok()
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for n in 0..count {
        let at = table.checked_add(n.checked_mul(size)?)?;
        if number(at, 4)? == 3 {
            let (offset, length) = (number(at.checked_add(8)?, 8)?, number(at.checked_add(32)?, 8)?);
            let name = head.get(offset..offset.checked_add(length)?)?;
            let name = name.split(|b| *b == 0).next()?;
            return Some(String::from_utf8_lossy(name).into_owned());
        }
    }
    None
}
