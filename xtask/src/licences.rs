//! `cargo xtask licences`: every dependency's licence against deny.toml, and the advisory database where it can be had.

use crate::{cargo, spdx, workspace};
use serde_json::Value;
use std::process::{Command, Stdio};

/// Checks licences, then advisories. Says so plainly when no advisory database could be asked.
pub fn run() -> Result<(), String> {
    let list = allowed_licences()?;
    let packages = packages()?;
    let mut bad = Vec::new();
    let mut checked = 0;
    for package in packages.iter().filter(|p| !p["source"].is_null()) {
        let name = format!("{} {}", text(&package["name"]), text(&package["version"]));
        checked += 1;
        match package["license"].as_str() {
            None => bad.push(format!("{name}: its manifest names no licence")),
            Some(expression) => match spdx::allowed(expression, &list) {
                Ok(true) => {}
                Ok(false) => bad.push(format!("{name}: `{expression}` is not on the list")),
                Err(why) => bad.push(format!("{name}: {why}")),
            },
        }
    }
    if !bad.is_empty() {
        return Err(format!("licences that deny.toml does not allow:\n    {}", bad.join("\n    ")));
    }
    println!("licences: {checked} packages, all on the list in deny.toml");
    advisories()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn allowed_licences() -> Result<Vec<String>, String> {
    let path = workspace().join("deny.toml");
    let source =
        std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let table: toml::Table = source.parse().map_err(|e| format!("{}: {e}", path.display()))?;
    let list = table.get("licenses").and_then(|l| l.get("allow")).and_then(toml::Value::as_array);
    let list = list.ok_or_else(|| format!("{} has no `licenses.allow`", path.display()))?;
    Ok(list.iter().filter_map(|v| v.as_str().map(str::to_string)).collect())
}

fn packages() -> Result<Vec<Value>, String> {
    let output = Command::new(cargo())
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(workspace())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !output.status.success() {
        return Err("cargo metadata failed; is Cargo.lock up to date?".to_string());
    }
    let mut metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata printed no JSON: {e}"))?;
    match metadata["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => Err("cargo metadata lists no packages".to_string()),
    }
}

fn advisories() -> Result<(), String> {
    if quiet(&["deny", "--version"]) {
        if !quiet(&["deny", "fetch", "db"]) {
            println!(
                "advisories: NOT CHECKED: cargo-deny is installed, but its advisory database could not be fetched"
            );
            return Ok(());
        }
        return loud(&["deny", "check", "advisories", "bans", "sources"]);
    }
    if quiet(&["audit", "--version"]) {
        return loud(&["audit"]);
    }
    println!(
        "advisories: NOT CHECKED: neither cargo-deny nor cargo-audit is installed (cargo install cargo-deny)"
    );
    Ok(())
}

fn quiet(arguments: &[&str]) -> bool {
    let mut command = Command::new(cargo());
    command.args(arguments).current_dir(workspace()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

fn loud(arguments: &[&str]) -> Result<(), String> {
    let status = Command::new(cargo()).args(arguments).current_dir(workspace()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("cargo {} found something; its messages are above", arguments.join(" "))),
        Err(e) => Err(format!("cannot run cargo: {e}")),
    }
}
