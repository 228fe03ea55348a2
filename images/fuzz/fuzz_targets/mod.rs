//! The fuzz targets of what strangers wrote as tests: each is called with its first inputs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a target tells what it found

use libfuzzer_sys::Seeds;

mod answers;
mod archive;
mod challenge;
mod config;
mod docker;
mod erofs;
mod fetcher;
mod layer;
mod listing;
mod manifest;
mod records;
mod reference;
mod sif;
mod skeleton;
mod squashfs;

macro_rules! digest {
    () => {
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    };
}

macro_rules! manifest {
    () => {
        concat!(
            r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":""#,
            digest!(),
            r#"","size":1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":""#,
            digest!(),
            r#"","size":1}]}"#
        )
    };
}

macro_rules! index {
    () => {
        concat!(
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":""#,
            digest!(),
            r#"","size":1,"platform":{"architecture":"amd64","os":"linux"}},"#,
            r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":""#,
            digest!(),
            r#"","size":1,"platform":{"architecture":"arm64","os":"linux"}}]}"#
        )
    };
}

/// A member of an archive, without a checksum: the target makes it. Of less than 64 bytes.
const fn member(kind: u8, data: &[u8]) -> [u8; 1024] {
    let mut blocks = [0; 1024];
    // Mode, owner, group, size and time are numbers with a byte behind them.
    let mut at = 100;
    while at < 147 {
        blocks[at] = if matches!(at, 107 | 115 | 123 | 135) { 0 } else { b'0' };
        at += 1;
    }
    blocks[0] = b'a';
    blocks[133] = b"01234567"[data.len() / 8];
    blocks[134] = b"01234567"[data.len() % 8];
    blocks[156] = kind;
    blocks[157] = b'b';
    let magic = b"ustar\x0000";
    at = 0;
    while at < magic.len() {
        blocks[257 + at] = magic[at];
        at += 1;
    }
    at = 0;
    while at < data.len() {
        blocks[512 + at] = data[at];
        at += 1;
    }
    blocks
}

const fn text(member: &[u8; 1024]) -> &str {
    match std::str::from_utf8(member) {
        Ok(text) => text,
        Err(_) => panic!("a member is not ASCII"),
    }
}

static MEMBERS: [[u8; 1024]; 6] = [
    member(b'0', b"content"),
    member(b'1', b""),
    member(b'2', b""),
    member(b'5', b""),
    member(b'x', b"18 path=some/name\n"),
    member(b'L', b"a/long/name\0"),
];

const SEEDS: Seeds = Seeds {
    words: &[
        text(&MEMBERS[0]),
        text(&MEMBERS[1]),
        text(&MEMBERS[2]),
        text(&MEMBERS[3]),
        text(&MEMBERS[4]),
        text(&MEMBERS[5]),
        "18 path=some/name\n",
        "20 mtime=1.50000000\n",
        "22 GNU.sparse.major=1\n",
        manifest!(),
        index!(),
        // The length of the type, which a manifest comes with, stands at the end.
        concat!(manifest!(), "\0\0"),
        concat!(index!(), "\0\0"),
        concat!("application/vnd.oci.image.manifest.v1+json", manifest!(), "\0*"),
        concat!("application/vnd.oci.image.index.v1+json", index!(), "\0'"),
        concat!(
            r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Entrypoint":["/a"],"Cmd":["b"],"#,
            r#""User":"1:2","WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":[""#,
            digest!(),
            r#""]}}"#
        ),
        concat!(
            r#"{"version":1,"digest":""#,
            digest!(),
            r#"","names":["a"],"config_digest":""#,
            digest!(),
            r#"","config":{},"layers":[],"bytes":1,"created":1}"#
        ),
        concat!(r#"{"layers":[""#, digest!(), r#""],"config_digest":""#, digest!(), r#""}"#),
        concat!(r#"{"version":1,"diff_id":""#, digest!(), r#"","report":{"entries":1},"boot":"b"}"#),
        concat!(
            r#"{"writer":"a","layer":""#,
            digest!(),
            r#"","image":1,"skeleton":1,"replaced":0,"report":{"bytes":1}}"#
        ),
        "debian",
        "debian:12",
        "docker.io/library/debian:12",
        concat!("localhost:5000/team/app@", digest!()),
        "alice@registry.test#team/app:1",
        "docker://registry.test/a/b:c",
        "oci:/srv/layout:tag",
        "oci-archive:/srv/layout.tar",
        "docker-archive:/srv/saved.tar",
        "containers-storage:debian:12",
        "docker-daemon:debian:12",
        "/srv/image.sqsh",
        "./image.sif",
        "host:",
        r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull""#,
        r#"Basic realm="Registry", charset="UTF-8""#,
        "./a\0mode 40755\0",
        "./a/b\0mode 100644\0",
    ],
    slow: &["docker", "erofs", "layer", "listing", "sif", "skeleton", "squashfs"],
};
