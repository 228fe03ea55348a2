//! What importing an image takes in memory, however large its layer is.

use berth_tests::{Registry, Sandbox, Who};
use serde_json::Value;

/// An image of one layer: what compresses to nothing, and what does not compress at all.
const MAKE: &str = r#"set -e
mkdir root image image/blobs image/blobs/sha256
head -c 300M /dev/urandom > root/noise
yes 'a line that comes again and again' | head -c 2G > root/text
tar -c --owner=0 --group=0 -C root noise text | tee image/tar | zstd -q -1 -o image/layer
id=$(sha256sum image/tar | cut -d' ' -f1)
rm -r image/tar root
put() { digest=$(sha256sum "$1" | cut -d' ' -f1); size=$(stat -c %s "$1"); mv "$1" "image/blobs/sha256/$digest"; }
put image/layer
layer="{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+zstd\",\"digest\":\"sha256:$digest\",\"size\":$size}"
case $(uname -m) in aarch64) machine=arm64 ;; *) machine=amd64 ;; esac
printf '{"architecture":"%s","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' $machine $id > image/config
put image/config
config="{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$digest\",\"size\":$size}"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' "$config" "$layer" > image/manifest
put image/manifest
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s}]}' $digest $size > image/index.json
printf '{"imageLayoutVersion":"1.0.0"}' > image/oci-layout"#;

/// Writable memory of each process, stacks of threads among it. What was promised for all of them together.
const MOST: u64 = 150 << 20;

fn bounded(who: Who, form: &str) {
    let sandbox = Sandbox::empty(who);
    sandbox.cmd("bash").args(["-c", MAKE]).limit(200).ok();
    let registry = Registry::open();
    let image = registry.push(&sandbox.work().join("image"), "heavy:1", &[]);
    std::fs::remove_dir_all(sandbox.work().join("image")).unwrap();
    let pull = |most: u64| {
        let limit = format!("--data={most}");
        sandbox.cmd("prlimit").args([&limit, "berth", "image", "pull", "--insecure", &image]).limit(200)
    };
    // The limit is one: with a tenth of it nothing is pulled.
    pull(MOST / 10).fails();
    pull(MOST).ok();
    let shown = sandbox.cmd("berth").args(["image", "inspect", &image]).ok().text();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["layers"][0]["form"], form);
    sandbox.cmd("berth").args(["image", "rm", &image]).ok();
}

#[test]
fn a_layer_of_gigabytes_is_imported_in_150_megabytes_by_a_user_alone() {
    bounded(Who::user(), "directory");
}

#[test]
fn a_layer_of_gigabytes_becomes_an_image_in_150_megabytes_alone_as_root() {
    bounded(Who::root(), "erofs");
}
