//! `cargo xtask build`: the dynamic `berth` and the static `berth-step`, side by side in one directory.

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

/// A supervisor is forked from a small static zygote: non-PIE, so that nothing is relocated on the way to a task.
const STATIC_FLAGS: &str = "-C relocation-model=static -C target-feature=+crt-static";

/// The program is loaded at a fixed address: every command is a process of its own, and a third of what starting one took
/// was relocating 44,000 pointers and copying the pages that hold them, once more in each fork. Libraries, stack and heap
/// stay where chance puts them.
const FIXED: [&str; 2] = ["-C", "relocation-model=static"];

/// Builds both artefacts and prints where they are.
pub fn run(profile: Profile) -> Result<(), String> {
    let target = static_target()?;
    require_target(&target)?;

    let mut berth = Command::new(cargo());
    match profile {
        Profile::Release => {
            berth.args(["rustc", "--release", "--package", "berth", "--bin", "berth", "--"]).args(FIXED)
        }
        // As cargo itself builds it for the tests, or each would undo the other's work.
        Profile::Debug => berth.args(["build", "--package", "berth", "--bin", "berth"]),
    };
    build(berth)?;

    let mut step = Command::new(cargo());
    step.args(["build", "--package", "berth-step", "--bin", "berth-step", "--target", &target]);
    if profile == Profile::Release {
        step.arg("--release");
    }
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    step.env(variable, STATIC_FLAGS);
    build(step)?;

    let root = target_directory();
    let built = root.join(&target).join(profile.directory()).join("berth-step");
    elf::require_static(&built)?;
    let directory = root.join(profile.directory());
    let step = directory.join("berth-step");
    publish(&built, &step)?;
    let berth = directory.join("berth");
    if profile == Profile::Release {
        // Linkers write through a mapping, page by page, and that is how the kernel then keeps the file in memory: each
        // start of a program has to map these pages one at a time. A file that was copied is kept in large pieces; with it a
        // container starts in a fifth less time.
        publish(&berth, &berth)?;
    }
    println!("{}\n{}", berth.display(), step.display());
    Ok(())
}

fn build(mut command: Command) -> Result<(), String> {
    command.current_dir(workspace());
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

/// The static target of this machine's architecture.
fn static_target() -> Result<String, String> {
    match std::env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => Ok(format!("{arch}-unknown-linux-musl")),
        other => Err(format!("berth-step is built for x86_64 and aarch64; this machine is {other}")),
    }
}

fn require_target(target: &str) -> Result<(), String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_string());
    let output = Command::new(&rustc)
        .args(["--print", "target-libdir", "--target", target])
        .current_dir(workspace())
        .output()
        .map_err(|e| format!("cannot run {rustc}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let directory = Path::new(text.trim());
    let installed = std::fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("libstd-")))
    });
    if installed {
        return Ok(());
    }
    let has_rustup = Command::new("rustup").arg("--version").output().is_ok_and(|o| o.status.success());
    Err(if has_rustup {
        format!("the static target {target} is not installed; add it with\n    rustup target add {target}")
    } else {
        format!(
            "the static target {target} is not installed, and this Rust was not installed by rustup, which could \
             add it. Install rustup (https://rustup.rs) and then run\n    rustup target add {target}\nor add your \
             distribution's package of Rust's standard library for {target}"
        )
    })
}

/// Copies beside the target and renames, because the old file may be running.
fn publish(from: &Path, to: &Path) -> Result<(), String> {
    let fresh = to.with_extension("new");
    let copied = std::fs::copy(from, &fresh).and_then(|_| std::fs::rename(&fresh, to));
    copied.map_err(|e| format!("cannot put {} in place: {e}", to.display()))
}
