//! What Apptainer and Singularity write into an image's root, `/.singularity.d`: variables, labels, and what `run` starts.

use std::collections::BTreeMap;

/// Files of variables, in the order in which they count. The first has those of the OCI image that it was made from, the second
/// those of the definition file (`%environment`), the third those that its `%post` wrote to `$APPTAINER_ENVIRONMENT`.
pub(crate) const VARIABLES: [&str; 3] = [
    ".singularity.d/env/10-docker2singularity.sh",
    ".singularity.d/env/90-environment.sh",
    ".singularity.d/env/91-environment.sh",
];
/// Labels, as a JSON object.
pub(crate) const LABELS: &str = ".singularity.d/labels.json";
/// What `run` starts.
pub(crate) const RUNSCRIPT: &str = ".singularity.d/runscript";

/// Labels; none where the file is no object of texts.
pub(crate) fn labels(text: &[u8]) -> BTreeMap<String, String> {
    serde_json::from_slice(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_texts() {
        assert_eq!(labels(br#"{"a": "b"}"#), BTreeMap::from([("a".to_string(), "b".to_string())]));
        assert!(labels(br#"{"a": 1}"#).is_empty() && labels(b"[").is_empty());
    }
}
