//! Throws bytes at the reader of image configurations.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;

/// A manifest with one layer.
const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":
"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
"size":1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":
"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1}]}"#;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((config, layers)) = berth_images::fuzzing::config(MANIFEST.as_bytes(), bytes) {
        assert_eq!(layers.len(), 1);
        assert!(config.env.iter().chain(&config.entrypoint).chain(&config.cmd).all(|s| !s.contains('\0')));
    }
    let split = bytes.len() / 2;
    let _ = berth_images::fuzzing::config(&bytes[..split], &bytes[split..]);
});
