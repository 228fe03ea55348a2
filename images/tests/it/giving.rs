//! Images are given to other nodes as they were fetched, and to clients that know the standard alone with layers that nobody compressed.

use berth_images::{Algorithm, Digest, Part};

use crate::support::{Bench, Compression, ImageBuilder, Tar};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn content(part: &Part<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    part.copy((0, part.length()), &mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, part.length());
    bytes
}

fn digest(descriptor: &serde_json::Value) -> Digest {
    descriptor["digest"].as_str().unwrap().parse().unwrap()
}

#[test]
fn all_that_a_manifest_of_uncompressed_layers_names_is_given_and_is_the_image() {
    for (algorithm, docker) in
        [(Algorithm::Sha256, false), (Algorithm::Sha256, true), (Algorithm::Sha512, false)]
    {
        let bench = Bench::new();
        let layers = vec![
            Tar::new().file("below", b"below").end(),
            Tar::new()
                .dir("etc/", 0o755)
                .file("etc/hostname", b"berth\n")
                .file("big", &vec![7; 300_000])
                .end(),
        ];
        let builder = ImageBuilder::new(layers.clone()).compressed(Compression::Gzip);
        let image = bench.import_built(&ImageBuilder { algorithm, docker, ..builder }).unwrap();
        let store = bench.store();
        let offer = store.offer(&image.digest, &format!("oci:{}", bench.layout().display()), None).unwrap();
        // As it was fetched: what it names of layers is not kept.
        let fetched = offer.manifest().unwrap();
        assert_eq!(fetched.media_type(), if docker { DOCKER } else { OCI });
        assert_eq!(Digest::of(algorithm, &content(&fetched)), image.digest);
        let original: serde_json::Value = serde_json::from_slice(&content(&fetched)).unwrap();
        assert!(offer.blob(&digest(&original["layers"][0])).unwrap().is_none());
        // And as anybody can take it.
        let (named, plain) = offer.plain_manifest().unwrap();
        assert_eq!(plain.media_type(), OCI);
        let text = content(&plain);
        assert_eq!(Digest::of(Algorithm::Sha256, &text), named);
        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(manifest["mediaType"], OCI);
        let take = |descriptor: &serde_json::Value| {
            let digest = digest(descriptor);
            let bytes = content(&offer.blob(&digest).unwrap().unwrap());
            assert_eq!(Digest::of(digest.algorithm(), &bytes), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let given: Vec<Vec<u8>> = manifest["layers"].as_array().unwrap().iter().map(take).collect();
        assert!(given == layers, "other layers");
        let config: serde_json::Value = serde_json::from_slice(&take(&manifest["config"])).unwrap();
        assert_eq!(manifest["config"]["digest"], original["config"]["digest"]);
        assert_eq!(config["rootfs"]["diff_ids"][1], manifest["layers"][1]["digest"]);
        // By whichever node it is made.
        assert_eq!(offer.plain_manifest().unwrap().0, named);
    }
}
