//! Reading config.json.

use super::error::{Naming, Result, invalid};
use super::plan::process::capability;
use oci_spec::runtime::Spec;
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// A configuration is at most this long.
const MAX_LENGTH: u64 = 16 << 20;

/// Reads a JSON file.
pub fn read_json(path: &Path) -> Result<Value> {
    let file = std::fs::File::open(path).named_at("open", path)?;
    let mut text = Vec::new();
    file.take(MAX_LENGTH + 1).read_to_end(&mut text).named_at("read", path)?;
    if u64::try_from(text.len()).is_ok_and(|n| n > MAX_LENGTH) {
        return Err(invalid(
            format!("{} is longer than {MAX_LENGTH} bytes", path.display()),
            "it is no configuration",
        ));
    }
    serde_json::from_slice(&text)
        .map_err(|e| invalid(format!("{} is not valid JSON: {e}", path.display()), "correct it"))
}

/// What was read as one of the specification's types, where it can be.
pub fn typed<T>(read: serde_json::Result<T>, what: &str) -> Result<T> {
    read.map_err(|e| invalid(format!("{what} is not valid: {e}"), "correct it"))
}

/// The specification of a configuration. What the kernel does not know as a capability is taken out with a
/// warning, as the specification wants.
pub fn spec(mut value: Value, warnings: &mut Vec<String>) -> Result<Spec> {
    if let Some(process) = value.get_mut("process") {
        clean_capabilities(process, warnings);
    }
    typed(berth_oci_json::spec(&value), "config.json")
}

/// Takes unknown capabilities out of a process.
pub fn clean_capabilities(process: &mut Value, warnings: &mut Vec<String>) {
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else { return };
    let mut unknown = Vec::new();
    for list in sets.values_mut().filter_map(Value::as_array_mut) {
        list.retain(|name| {
            let Some(text) = name.as_str() else { return true };
            let known = capability(text).is_some();
            if !known && !unknown.contains(&text.to_string()) {
                unknown.push(text.to_string());
            }
            known
        });
    }
    if !unknown.is_empty() {
        // In the words of other runtimes, which are looked for.
        warnings.push(format!(
            "process.capabilities: ignoring unknown or unavailable capabilities: [{}]",
            unknown.join(" ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_capabilities_are_left_out_with_a_warning() {
        let config = serde_json::json!({"ociVersion": "1.0.2", "root": {"path": "r"}, "process": {
            "cwd": "/", "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": ["CAP_KILL", "CAP_NONE", "CAP_CAP_KILL"]}}});
        let mut warnings = Vec::new();
        let spec = spec(config, &mut warnings).unwrap();
        let process = spec.process().clone().unwrap();
        let bounding = process.capabilities().clone().unwrap().bounding().clone().unwrap();
        assert_eq!((bounding.len(), warnings.len()), (1, 1), "{warnings:?}");
        assert!(super::spec(serde_json::json!({"ociVersion": 1}), &mut warnings).is_err());
    }
}
