//! Links the compiler's unwinder into the program: to load it as a library of its own takes a third of a millisecond at each
//! start of a command. Where the C compiler has no static one the program is linked as usual. And lets the program that tests
//! drive be loaded at a fixed address.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("gnu") {
        return;
    }
    // Its 200,000 relocations touched 600 pages at each start, and tests start it tens of thousands of times. What is released
    // is compiled for it, too (see xtask).
    if std::env::var("PROFILE").as_deref() == Ok("debug") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let Ok(out) = Command::new(compiler).arg("-print-file-name=libgcc_eh.a").output() else { return };
    // A compiler that has none answers with the bare name.
    if !Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_absolute() {
        return;
    }
    let Some(dir) = std::env::var_os("OUT_DIR") else { return };
    // The standard library asks for libgcc_s; the linker finds this first.
    let script = Path::new(&dir).join("libgcc_s.so");
    if std::fs::write(&script, "GROUP ( -lgcc_eh -lgcc )\n").is_ok() {
        println!("cargo::rustc-link-search=native={}", Path::new(&dir).display());
    }
}
