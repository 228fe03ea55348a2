//! JSON of the OCI specifications into their types. A package of its own, because the compiler writes a reader for each of
//! their hundred types where it is asked for one: optimised like the rest of the runtime they were half of its build.
#![forbid(unsafe_code)]

use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::Deserialize;
use serde_json::{Result, Value};

/// A bundle's configuration, config.json.
///
/// # Errors
/// What a field has that its type cannot hold.
pub fn spec(value: &Value) -> Result<Spec> {
    Spec::deserialize(value)
}

/// The process of a configuration.
///
/// # Errors
/// As [`spec`].
pub fn process(value: &Value) -> Result<Process> {
    Process::deserialize(value)
}

/// A container's limits.
///
/// # Errors
/// As [`spec`].
pub fn resources(value: &Value) -> Result<LinuxResources> {
    LinuxResources::deserialize(value)
}

/// An image's index. Repeated keys are refused.
///
/// # Errors
/// As [`spec`], and text that is no JSON.
pub fn index(text: &[u8]) -> Result<ImageIndex> {
    serde_json::from_slice(text)
}

/// An image's manifest. Repeated keys are refused.
///
/// # Errors
/// As [`index`].
pub fn manifest(text: &[u8]) -> Result<ImageManifest> {
    serde_json::from_slice(text)
}

/// An image's configuration. Repeated keys are refused.
///
/// # Errors
/// As [`index`].
pub fn configuration(text: &[u8]) -> Result<ImageConfiguration> {
    serde_json::from_slice(text)
}
