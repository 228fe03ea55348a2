//! `cargo xtask build`: the dynamic `berth` and the static `berth-step`, from one build of what they share.

use crate::{cargo, elf, workspace};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of cargo's profiles is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Optimised; into `target/release`.
    Release,
    /// For tests; into `target/debug`.
    Debug,
}

impl Profile {
    fn directory(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Debug => "debug",
        }
    }
}

/// In images of any distribution the client has no C library but its own, and a supervisor is forked from a small program
/// without a loader. The flags are those of the last crate alone: everything before it serves both programs.
const STATIC: [&str; 2] = ["-C", "target-feature=+crt-static"];

/// The programs are loaded at a fixed address: every command is a process of its own, and a third of what starting one took
/// was relocating 44,000 pointers and copying the pages that hold them, once more in each fork. Libraries, stack and heap
/// stay where chance puts them.
const FIXED: [&str; 2] = ["-C", "relocation-model=static"];

/// Builds both artefacts and prints where they are.
pub fn run(profile: Profile) -> Result<(), String> {
    require_static_library()?;
    let root = target_directory().join(profile.directory());
    let (berth, step) = (root.join("berth"), root.join("berth-step"));
    match profile {
        Profile::Release => build(&["rustc", "--release"], "berth", &FIXED)?,
        // As cargo itself builds it for the tests, or each would undo the other's work.
        Profile::Debug => build(&["build"], "berth", &[])?,
    }
    let release = if profile == Profile::Release { &["--release"][..] } else { &[] };
    build(&[&["rustc"], release].concat(), "berth-step", &[&FIXED[..], &STATIC].concat())?;
    elf::require_static(&step)?;
    // Linkers write through a mapping, page by page, and that is how the kernel then keeps the file in memory: each
    // start of a program has to map these pages one at a time. A file that was copied is kept in large pieces; with it a
    // container starts in a fifth less time.
    let step = match profile {
        Profile::Release => {
            publish(&berth, &berth)?;
            publish(&step, &step)?;
            step
        }
        // A plain `cargo build` puts a dynamic one in its place.
        Profile::Debug => {
            let kept = root.join("static/berth-step");
            publish(&step, &kept)?;
            kept
        }
    };
    println!("{}\n{}", berth.display(), step.display());
    Ok(())
}

/// Builds a program of package `berth`, with flags for its own crate.
fn build(how: &[&str], program: &str, flags: &[&str]) -> Result<(), String> {
    let mut command = Command::new(cargo());
    command.args(how).args(["--package", "berth", "--bin", program]).current_dir(workspace());
    if !flags.is_empty() {
        command.arg("--").args(flags);
    }
    // What cargo told this program of its own package would make build scripts that look at it run again, here and
    // at the next plain `cargo build`: half of the dependencies twice.
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"CARGO_PKG_") || bytes.starts_with(b"CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let status = command.status().map_err(|e| format!("cannot run cargo: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("the build failed; the compiler's messages are above".to_string())
    }
}

fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => workspace().join(path),
        None => workspace().join("target"),
    }
}

/// Fails where the C library has no static form.
fn require_static_library() -> Result<(), String> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let output = Command::new(&compiler).arg("-print-file-name=libc.a").output().map_err(|e| {
        format!("cannot run the C compiler {compiler}: {e}; Debian's package is build-essential")
    })?;
    // A compiler that has none answers with the bare name.
    if Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_absolute() {
        return Ok(());
    }
    Err("the C library has no static form (libc.a) here, which berth-step needs; it is in libc6-dev of Debian and Ubuntu, \
         and in glibc-static of Fedora and Red Hat"
        .to_string())
}

/// Copies beside the target and renames, because the old file may be running. The time is kept: by it the tests know what
/// they have seen.
fn publish(from: &Path, to: &Path) -> Result<(), String> {
    // Tests that find it old may all make it at once.
    let fresh = to.with_extension(format!("new.{}", std::process::id()));
    let copied = (|| {
        to.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::copy(from, &fresh)?;
        std::fs::File::options()
            .append(true)
            .open(&fresh)?
            .set_modified(std::fs::metadata(from)?.modified()?)?;
        std::fs::rename(&fresh, to)
    })();
    copied.map_err(|e| format!("cannot put {} in place: {e}", to.display()))
}
