//! Opens what `docker save` could have written: with any manifest and configuration, and links between members.
#![cfg_attr(fuzzing, no_main)]

use berth_images::ArchiveSource;
use libfuzzer_sys::fuzz_target;
use std::io::Write;

/// With what is wanted most, so that inputs come further than its first field.
const MANIFEST: &[u8] = br#"[{"Config":"c","RepoTags":["a:1"],"Layers":["l","k"]}]"#;
const CONFIG: &str = r#"{"rootfs":{"diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","sha256:"]}}"#;

fuzz_target!(|input: (Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>, Vec<(u8, Vec<u8>)>)| {
    let (manifest, config, layer, links) = input;
    let mut archive = tar::Builder::new(Vec::new());
    let mut member = |name: &[u8], kind: tar::EntryType, link: &[u8], data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        let fields = header.as_old_mut();
        fields.name[..name.len().min(99)].copy_from_slice(&name[..name.len().min(99)]);
        fields.linkname[..link.len().min(99)].copy_from_slice(&link[..link.len().min(99)]);
        header.set_cksum();
        archive.append(&header, data).unwrap();
    };
    let file = tar::EntryType::Regular;
    member(b"manifest.json", file, b"", manifest.as_deref().unwrap_or(MANIFEST));
    member(b"c", file, b"", config.as_deref().unwrap_or(CONFIG.as_bytes()));
    member(b"l", file, b"", &layer);
    for (name, link) in &links {
        member(&[b'k' + name % 4], tar::EntryType::Symlink, link, b"");
    }
    let mut place = tempfile::NamedTempFile::new_in(berth_images::fuzzing::place()).unwrap();
    place.write_all(&archive.into_inner().unwrap()).unwrap();
    // What is refused is told; what is taken is an archive.
    let _ = ArchiveSource::open(place.path());
});
