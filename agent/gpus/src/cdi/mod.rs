//! CDI, the Container Device Interface (its specification, versions 0.3.0 to 1.0.0): what a container needs for a device, as files of
//! the administrator say it and as we say it of GPUs ourselves.

pub mod hooks;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Versions that are read. What a version adds is judged by field, as unknown fields are an error.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// A specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// `cdiVersion`.
    #[serde(rename = "cdiVersion")]
    pub version: String,
    /// `vendor.com/class`.
    pub kind: String,
    /// Notes of whoever wrote it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Devices.
    pub devices: Vec<Device>,
    /// What each container with any of them gets.
    #[serde(rename = "containerEdits", default)]
    pub edits: Edits,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its name within the kind.
    pub name: String,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What a container with it gets.
    #[serde(rename = "containerEdits", default)]
    pub edits: Edits,
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Edits {
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    /// Mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Programs to run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Groups that the processes are in.
    #[serde(rename = "additionalGids", skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
    /// Classes of caches and memory bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<serde_json::Value>,
    /// Network interfaces that move into the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<serde_json::Value>,
}

/// A device file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the node, where that is another path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// `c` or `b`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Major number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Permission bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// `rwm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Mount {
    /// On the node.
    pub host_path: String,
    /// In the container.
    pub container_path: String,
    /// As of mount(8).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// `bind`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// A hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Hook {
    /// `createContainer` and its like.
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// Its words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

impl Spec {
    /// Reads and judges a file of JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Spec, String> {
        let spec: Spec = serde_json::from_str(text).map_err(|e| e.to_string())?;
        spec.judge()?;
        Ok(spec)
    }

    /// Reads and judges a file of YAML.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_yaml(text: &str) -> Result<Spec, String> {
        let spec: Spec = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
        spec.judge()?;
        Ok(spec)
    }

    fn judge(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.version.as_str()) {
            return Err(format!(
                "cdiVersion '{}' is not known; known are {}",
                self.version,
                VERSIONS.join(", ")
            ));
        }
        let (vendor, class) = self.kind.split_once('/').unwrap_or((&self.kind, ""));
        if !is_word(vendor, true) || !is_word(class, true) {
            return Err(format!("kind '{}' is not of the form vendor.com/class", self.kind));
        }
        if self.devices.is_empty() {
            return Err("it has no device".into());
        }
        for (n, device) in self.devices.iter().enumerate() {
            if !is_word(&device.name, false) {
                return Err(format!("'{}' cannot be a device's name", device.name));
            }
            if self.devices[..n].iter().any(|d| d.name == device.name) {
                return Err(format!("device '{}' is there twice", device.name));
            }
        }
        Ok(())
    }

    /// What a container with these of its devices gets: what all get, then what belongs to each, nothing twice.
    ///
    /// # Errors
    /// A device that it does not have.
    pub fn edits_for(&self, names: &[&str]) -> Result<Edits, String> {
        let mut all = self.edits.clone();
        for name in names {
            let device = self.devices.iter().find(|d| d.name == *name);
            let device = device.ok_or_else(|| format!("{} has no device '{name}'", self.kind))?;
            all.add(&device.edits);
        }
        Ok(all)
    }

    /// What a container with all of its devices gets.
    pub fn all_edits(&self) -> Edits {
        let mut all = self.edits.clone();
        self.devices.iter().for_each(|d| all.add(&d.edits));
        all
    }
}

impl Edits {
    /// Takes over what is not there yet.
    pub fn add(&mut self, other: &Edits) {
        fn take<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
            for one in from {
                if !to.contains(one) {
                    to.push(one.clone());
                }
            }
        }
        take(&mut self.env, &other.env);
        take(&mut self.device_nodes, &other.device_nodes);
        take(&mut self.mounts, &other.mounts);
        take(&mut self.hooks, &other.hooks);
        take(&mut self.additional_gids, &other.additional_gids);
        take(&mut self.net_devices, &other.net_devices);
        self.intel_rdt = self.intel_rdt.take().or_else(|| other.intel_rdt.clone());
    }
}

/// Letters, digits, `_`, `-`, `.`, and `:` in names of devices; the first of a vendor or class a letter, the last no sign.
fn is_word(text: &str, letter_first: bool) -> bool {
    let signs = |c: char| matches!(c, '_' | '-' | '.') || (!letter_first && c == ':');
    let first = |c: char| if letter_first { c.is_ascii_alphabetic() } else { c.is_ascii_alphanumeric() };
    text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || signs(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/net","devices":[
        {"name":"a","containerEdits":{"deviceNodes":[{"path":"/dev/a"},{"path":"/dev/ctl"}]}},
        {"name":"b:1","containerEdits":{"deviceNodes":[{"path":"/dev/b"},{"path":"/dev/ctl"}],"env":["B=1"]}}],
        "containerEdits":{"mounts":[{"hostPath":"/x","containerPath":"/y","options":["ro","bind"]}]}}"#;

    #[test]
    fn a_file_is_read_and_what_devices_share_comes_once() {
        let spec = Spec::parse(FILE).unwrap();
        let edits = spec.edits_for(&["a", "b:1"]).unwrap();
        let nodes: Vec<&str> = edits.device_nodes.iter().map(|n| n.path.as_str()).collect();
        assert_eq!(nodes, ["/dev/a", "/dev/ctl", "/dev/b"]);
        assert_eq!((edits.env, edits.mounts.len()), (vec!["B=1".to_string()], 1));
        assert!(spec.edits_for(&["c"]).unwrap_err().contains("no device 'c'"));
        let again = Spec::parse(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
    }

    /// As `nvidia-ctk cdi generate` writes it.
    #[test]
    fn a_file_of_yaml_says_the_same_as_one_of_json() {
        let text = "---\ncdiVersion: 0.6.0\ncontainerEdits:\n  mounts:\n  - containerPath: /y\n    hostPath: /x\n    options:\n    - ro\n    - bind\n\
            devices:\n- containerEdits:\n    deviceNodes:\n    - path: /dev/a\n    - path: /dev/ctl\n  name: a\n\
            - containerEdits:\n    deviceNodes:\n    - path: /dev/b\n    - path: /dev/ctl\n    env:\n    - B=1\n  name: \"b:1\"\nkind: vendor.com/net\n";
        assert_eq!(Spec::parse_yaml(text).unwrap(), Spec::parse(FILE).unwrap());
        assert!(Spec::parse_yaml("kind: x").unwrap_err().contains("missing field"));
        assert!(Spec::parse_yaml("- 1").is_err() && Spec::parse_yaml("").is_err());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (from, to, said) in [
            ("0.6.0", "9.0.0", "cdiVersion '9.0.0'"),
            ("vendor.com/net", "vendor", "kind 'vendor'"),
            ("vendor.com/net", "../x", "kind '../x'"),
            ("\"a\"", "\"b:1\"", "there twice"),
            ("\"a\"", "\"-a\"", "'-a' cannot be"),
            ("hostPath", "hostpath", "unknown field"),
        ] {
            let wrong = Spec::parse(&FILE.replacen(from, to, 1)).unwrap_err();
            assert!(wrong.contains(said), "{wrong}");
        }
    }
}
