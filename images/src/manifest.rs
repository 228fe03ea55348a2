//! Manifests, indexes and configurations, read by one strict parser; and the choice of a platform.

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::unpack::Limits;

/// Docker's names for what OCI calls index, manifest and configuration.
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// What stands for a configuration in an artifact that has none.
const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// What we accept when we ask for a manifest.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// An operating system and architecture, in the words of the image specification (Go's GOARCH).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Architecture, such as `amd64` or `arm64`. The operating system is always `linux`.
    pub architecture: String,
}

impl Default for Platform {
    /// The platform of this machine.
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { architecture: architecture.to_owned() }
    }
}

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `NAME=VALUE` in the image's order.
    pub env: Vec<String>,
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Working directory; empty means `/`.
    pub workdir: String,
    /// `user[:group]`, by name or number; empty means root.
    pub user: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Architecture, in Go's words.
    pub arch: String,
    /// Signal that asks the program to end; empty means SIGTERM.
    pub stop_signal: String,
    /// When the image was made, RFC 3339; empty where unknown.
    pub created: String,
}

/// One layer as manifest and configuration together describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Digest of the uncompressed tar stream; names the unpacked layer in the store.
    pub diff_id: Digest,
    /// Digest of the blob as it is transferred.
    pub digest: Digest,
    /// Bytes of that blob.
    pub size: u64,
    /// Whether its makers have it distributed by themselves alone, so that a registry need not have it. It is fetched from nowhere
    /// else: an address in a manifest is anybody's to write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign: bool,
}

/// A manifest or an index.
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// Reads a manifest or index, of which a registry said that it is `content_type`.
pub(crate) fn parse_document(what: &str, bytes: &[u8], content_type: Option<&str>) -> Result<Document> {
    let bad = |reason: String| {
        Error::new(ErrorKind::Refused, format!("manifest of {what}"), reason)
            .next("push the image again with a current tool")
    };
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("is not JSON: {e}")))?;
    let Some(fields) = value.as_object() else {
        return Err(bad("is not a JSON object".to_owned()));
    };
    const KEYS: [&str; 6] = ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"];
    for key in fields.keys() {
        // Some readers ignore case, so that they would see another document.
        if KEYS.iter().any(|known| key.eq_ignore_ascii_case(known) && key != known) {
            return Err(bad(format!("has the ambiguous key {key:?}")));
        }
    }
    if fields.contains_key("fsLayers")
        || fields.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1)
    {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("manifest of {what}"),
            "has Docker's schema 1, which is obsolete and cannot be verified",
        )
        .next("push the image again with a current tool, for example `skopeo copy`"));
    }
    let (index, manifest) =
        (fields.contains_key("manifests"), fields.contains_key("layers") || fields.contains_key("config"));
    // An artifact may carry neither, and a document that carries both is read differently by different tools.
    if index == manifest {
        let reason =
            if index { "is an index and a manifest at once" } else { "is neither an index nor a manifest" };
        return Err(bad(reason.to_owned()));
    }
    let declared = fields.get("mediaType").and_then(serde_json::Value::as_str);
    let expected: [&str; 2] = if index { [OCI_INDEX, DOCKER_INDEX] } else { [OCI_MANIFEST, DOCKER_MANIFEST] };
    let announced = content_type.map(|t| t.split(';').next().unwrap_or_default().trim());
    let known = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];
    for given in [declared, announced.filter(|t| known.contains(t))].into_iter().flatten() {
        if !expected.contains(&given) {
            return Err(bad(format!("says that it is {given:?} and has the content of {:?}", expected[0])));
        }
    }
    // From the bytes again: the first reading joins repeated keys, this one refuses them.
    let parsed = if index {
        berth_oci_json::index(bytes).map(|index| Document::Index(Box::new(index)))
    } else {
        berth_oci_json::manifest(bytes).map(|manifest| Document::Manifest(Box::new(manifest)))
    };
    parsed.map_err(|e| bad(format!("is malformed: {e}")))
}

/// What a manifest says that it is, which was judged when it came.
pub(crate) fn media_type(bytes: &[u8]) -> &'static str {
    let declared = serde_json::from_slice(bytes).unwrap_or(serde_json::Value::Null);
    match declared["mediaType"].as_str() {
        Some(DOCKER_MANIFEST) => DOCKER_MANIFEST,
        _ => OCI_MANIFEST,
    }
}

/// Takes a descriptor's digest, in our stricter type.
pub(crate) fn descriptor_digest(what: &str, descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().to_string().parse().map_err(|e: Error| e.within(what))
}

/// The entry of an index for `platform`.
pub(crate) fn choose<'a>(what: &str, index: &'a ImageIndex, platform: &Platform) -> Result<&'a Descriptor> {
    let image = |d: &&Descriptor| {
        matches!(d.media_type(), MediaType::ImageManifest | MediaType::ImageIndex)
            || matches!(d.media_type(), MediaType::Other(t) if t == DOCKER_MANIFEST || t == DOCKER_INDEX)
    };
    let candidates: Vec<&Descriptor> = index.manifests().iter().filter(image).collect();
    let rank = |d: &&&Descriptor| -> Option<u32> {
        let Some(p) = d.platform() else { return None };
        if *p.os() != Os::Linux || arch_name(p.architecture()) != platform.architecture {
            return None;
        }
        // Without a variant, or the lowest one, runs everywhere.
        Some(match p.variant().as_deref() {
            None | Some("") => 0,
            Some(v) => v.trim_start_matches('v').parse().unwrap_or(99),
        })
    };
    if let Some(best) = candidates.iter().filter(|d| rank(d).is_some()).min_by_key(|d| rank(d)) {
        return Ok(best);
    }
    let unnamed: Vec<_> = candidates.iter().filter(|d| d.platform().is_none()).collect();
    if let [only] = unnamed[..] {
        return Ok(only);
    }
    if unnamed.len() > 1 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            what,
            "its index has several images and does not say for which platforms",
        )
        .next("name one of them by digest (NAME@sha256:…)"));
    }
    let mut offered: Vec<String> = candidates
        .iter()
        .filter_map(|d| d.platform().as_ref())
        .filter(|p| *p.os() != Os::Other("unknown".to_owned()))
        .map(|p| format!("{}/{}", p.os(), arch_name(p.architecture())))
        .collect();
    offered.sort();
    offered.dedup();
    let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
    Err(wrong_platform(what, &offered, platform))
}

fn wrong_platform(what: &str, offered: &str, platform: &Platform) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        what,
        format!("there is no image for linux/{} (the image offers: {offered})", platform.architecture),
    )
    .next("choose an image that is built for this machine's architecture, or a node that fits the image")
}

fn arch_name(arch: &Arch) -> String {
    arch.to_string()
}

/// Reads an image configuration and joins it to the layers of its manifest, bottom first.
pub(crate) fn read_config(
    what: &str,
    manifest: &ImageManifest,
    bytes: &[u8],
    platform: &Platform,
    limits: &Limits,
) -> Result<(ImageConfig, Vec<LayerInfo>)> {
    let bad = |reason: String| {
        Error::new(ErrorKind::Refused, format!("configuration of {what}"), reason)
            .next("push the image again with a current tool")
    };
    let config = berth_oci_json::configuration(bytes).map_err(|e| bad(format!("is malformed: {e}")))?;
    if *config.os() != Os::Linux || arch_name(config.architecture()) != platform.architecture {
        let offered = format!("{}/{}", config.os(), arch_name(config.architecture()));
        return Err(wrong_platform(what, &offered, platform));
    }
    let diff_ids = config.rootfs().diff_ids();
    let layers = manifest.layers();
    if diff_ids.len() != layers.len() {
        return Err(bad(format!("names {} layers and the manifest {}", diff_ids.len(), layers.len())));
    }
    if layers.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            what,
            "the image has no layers, so there is nothing in it to run",
        ));
    }
    if layers.len() > limits.layers {
        return Err(bad(format!("has {} layers, and at most {} are taken", layers.len(), limits.layers)));
    }
    let mut infos = Vec::with_capacity(layers.len());
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        check_layer_type(what, layer.media_type())?;
        infos.push(LayerInfo {
            diff_id: diff_id.parse().map_err(|e: Error| bad(e.to_string()))?,
            digest: descriptor_digest(what, layer)?,
            size: layer.size(),
            foreign: is_foreign(layer.media_type()),
        });
    }
    let run = config.config().clone().unwrap_or_default();
    let parsed = ImageConfig {
        env: run.env().clone().unwrap_or_default(),
        entrypoint: run.entrypoint().clone().unwrap_or_default(),
        cmd: run.cmd().clone().unwrap_or_default(),
        workdir: run.working_dir().clone().unwrap_or_default(),
        user: run.user().clone().unwrap_or_default(),
        labels: run.labels().clone().unwrap_or_default().into_iter().collect(),
        arch: arch_name(config.architecture()),
        stop_signal: run.stop_signal().clone().unwrap_or_default(),
        created: config.created().clone().unwrap_or_default(),
    };
    if parsed
        .env
        .iter()
        .chain(&parsed.entrypoint)
        .chain(&parsed.cmd)
        .chain([&parsed.workdir, &parsed.user])
        .any(|s| s.contains('\0'))
    {
        return Err(
            bad("has a NUL in a variable, an argument, the working directory or the user".to_owned()),
        );
    }
    Ok((parsed, infos))
}

/// Refuses what is not a container image before its configuration is read.
pub(crate) fn check_config_type(what: &str, manifest: &ImageManifest) -> Result<()> {
    let config = manifest.config().media_type().to_string();
    if config == OCI_CONFIG || config == DOCKER_CONFIG {
        return Ok(());
    }
    let kind = match manifest.artifact_type() {
        Some(kind) if config == OCI_EMPTY => kind.to_string(),
        _ => config,
    };
    let next = match kind.contains(".sif.") {
        true => "get the SIF file in it with `oras pull` or `apptainer pull`, and name that file",
        false => "name a container image",
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        what,
        format!("it is not a container image but an artifact of type {kind:?}"),
    )
    .next(next))
}

/// Whether registries need not have the layer (image specification, "Non-Distributable Layers"; Docker's foreign ones).
fn is_foreign(media_type: &MediaType) -> bool {
    let name = media_type.to_string();
    name.contains(".nondistributable.") || name.contains(".foreign.")
}

fn check_layer_type(what: &str, media_type: &MediaType) -> Result<()> {
    let name = media_type.to_string();
    let tar = name.starts_with("application/vnd.oci.image.layer.")
        || name.starts_with("application/vnd.docker.image.rootfs.");
    if name.contains("+encrypted") {
        return Err(Error::new(
            ErrorKind::Unsupported,
            what,
            "its layers are encrypted, which is not supported",
        )
        .next("use an image that is not encrypted"));
    }
    if !tar {
        return Err(Error::new(
            ErrorKind::Unsupported,
            what,
            format!("it has a layer of type {name:?}, which is not a tar archive"),
        )
        .next("use an image with tar layers (plain, gzip or zstd)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn doc(text: &str, content_type: Option<&str>) -> Result<Document> {
        parse_document("x", text.replace("$D", D).as_bytes(), content_type)
    }

    fn error(text: &str, content_type: Option<&str>) -> String {
        doc(text, content_type).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("accepted: {text}"))
    }

    #[test]
    fn ambiguous_manifests_are_refused() {
        let config =
            r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"$D","size":1}"#;
        let good = format!(r#"{{"schemaVersion":2,{config},"layers":[]}}"#);
        assert!(matches!(doc(&good, Some(OCI_MANIFEST)), Ok(Document::Manifest(_))));
        assert!(matches!(doc(&good, Some("application/json")), Ok(Document::Manifest(_))));
        assert!(error(&good, Some(OCI_INDEX)).contains("says that it is"));
        let both = format!(r#"{{"schemaVersion":2,{config},"layers":[],"manifests":[]}}"#);
        assert!(error(&both, None).contains("at once"));
        assert!(error(r#"{"schemaVersion":2}"#, None).contains("neither"));
        let twice = format!(r#"{{"schemaVersion":2,{config},"layers":[],"layers":[]}}"#);
        assert!(error(&twice, None).contains("duplicate"));
        let case = format!(r#"{{"schemaVersion":2,{config},"layers":[],"Layers":[]}}"#);
        assert!(error(&case, None).contains("ambiguous"));
        let lie = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}",{config},"layers":[]}}"#);
        assert!(error(&lie, None).contains("says that it is"));
        assert!(error(r#"{"schemaVersion":1,"fsLayers":[]}"#, None).contains("schema 1"));
        assert!(error("[]", None).contains("object"));
        assert!(error("nonsense", None).contains("JSON"));
        let weak = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":1}]}"#;
        let accepted = doc(weak, None);
        if let Ok(Document::Index(index)) = accepted {
            assert!(descriptor_digest("x", &index.manifests()[0]).is_err());
        }
    }

    fn index(entries: &[(&str, &str, &str)]) -> ImageIndex {
        let entries: Vec<String> = entries
            .iter()
            .enumerate()
            .map(|(n, (os, arch, variant))| {
                let variant =
                    if variant.is_empty() { String::new() } else { format!(r#","variant":"{variant}""#) };
                let platform = if os.is_empty() {
                    String::new()
                } else {
                    format!(r#","platform":{{"os":"{os}","architecture":"{arch}"{variant}}}"#)
                };
                format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{n:064x}","size":{n}{platform}}}"#)
            })
            .collect();
        serde_json::from_str(&format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(",")))
            .unwrap()
    }

    #[test]
    fn platform_choice() {
        let amd64 = Platform { architecture: "amd64".to_owned() };
        let arm = Platform { architecture: "arm".to_owned() };
        let many = index(&[
            ("linux", "arm64", "v8"),
            ("linux", "amd64", "v3"),
            ("linux", "amd64", ""),
            ("unknown", "unknown", ""),
        ]);
        assert_eq!(choose("x", &many, &amd64).unwrap().size(), 2);
        let error = choose("img", &many, &arm).unwrap_err().to_string();
        assert!(error.contains("linux/arm ") && error.contains("linux/amd64, linux/arm64"), "{error}");
        assert!(!error.contains("unknown"), "{error}");
        assert_eq!(choose("x", &index(&[("", "", "")]), &amd64).unwrap().size(), 0);
        assert!(choose("x", &index(&[("", "", ""), ("", "", "")]), &amd64).is_err());
        assert!(choose("x", &index(&[("windows", "amd64", "")]), &amd64).is_err());
    }
}
