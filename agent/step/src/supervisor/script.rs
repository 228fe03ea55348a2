//! A batch script as a sealed file in memory: it reaches the container by descriptor and is never written
//! to any filesystem of the container's.

use berth_model::ByteStr;
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::io;

/// Why a script cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// No interpreter.
    #[error("the batch script does not start with '#!': add a first line such as '#!/bin/bash'")]
    NoInterpreter,
}

/// The interpreter of the script's first line and its one argument, split as the kernel does it.
pub fn interpreter(text: &[u8]) -> Result<Vec<ByteStr>, ScriptError> {
    let rest = text.strip_prefix(b"#!").ok_or(ScriptError::NoInterpreter)?;
    let line = rest.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = line.trim_ascii();
    let end = line.iter().position(|b| *b == b' ' || *b == b'\t').unwrap_or(line.len());
    let (program, argument) = line.split_at(end);
    if program.is_empty() {
        return Err(ScriptError::NoInterpreter);
    }
    let mut argv = vec![ByteStr::from(program)];
    let argument = argument.trim_ascii();
    if !argument.is_empty() {
        argv.push(ByteStr::from(argument));
    }
    Ok(argv)
}

/// Puts the script into a file that nobody can change any more.
pub fn sealed(text: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create("batch-script", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = text;
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest)?;
        rest = &rest[n..];
    }
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0))?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_are_split_as_the_kernel_does() {
        let argv = |text: &str| {
            interpreter(text.as_bytes())
                .map(|v| v.iter().map(|a| a.display().into_owned()).collect::<Vec<_>>())
        };
        assert_eq!(argv("#!/bin/sh\necho").unwrap(), ["/bin/sh"]);
        assert_eq!(argv("#! /usr/bin/env  -S bash -l \n").unwrap(), ["/usr/bin/env", "-S bash -l"]);
        assert_eq!(argv("#!/bin/sh").unwrap(), ["/bin/sh"]);
        assert_eq!(argv("echo hello\n"), Err(ScriptError::NoInterpreter));
        assert_eq!(argv("#!  \n/bin/sh"), Err(ScriptError::NoInterpreter));
    }

    #[test]
    fn a_sealed_script_cannot_be_changed() {
        let fd = sealed(b"#!/bin/sh\n").unwrap();
        let mut back = [0u8; 32];
        assert_eq!(rustix::io::read(&fd, &mut back).unwrap(), 10);
        assert_eq!(rustix::io::pwrite(&fd, b"x", 0), Err(rustix::io::Errno::PERM));
    }
}
