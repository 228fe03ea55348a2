//! Layers that come from another node as the read-only images which that has: the same archive makes the same bytes everywhere, what comes
//! is what nodes agree on or is not used, and what is used is as whole as what is made here.

use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Mutex;

use berth_images::{
    Algorithm, BlobKind, BlobSource, Credentials, Digest, Error, ErrorKind, LayerForm, Part, PreparedImage,
    ProgressEvent, Registries, ResolvedManifest, Store,
};
use berth_model::exchange::MadeForm;
use proptest::prelude::*;

use crate::support::{Bench, Compression, ImageBuilder, Tar, only_layer, resolve_text};

/// A store of a node whose images of layers travel.
fn travelling(bench: &Bench) -> Store {
    bench.store().travelling()
}

/// Writes an image and makes it present by itself.
fn import(bench: &Bench, store: &Store, builder: &ImageBuilder) -> (ResolvedManifest, PreparedImage) {
    builder.write(&bench.layout());
    let text = format!("oci:{}", bench.layout().display());
    let image = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
    let source =
        berth_images::open_source(&image, &Registries::default(), &Credentials::anonymous()).unwrap();
    let prepared = store.ensure(&image, source.as_ref(), &()).unwrap();
    (image, prepared)
}

fn content(part: &Part<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    part.copy((0, part.length()), &mut bytes).unwrap();
    bytes
}

/// A layer with all that an image keeps in a place of its own: replaced content, links, holes, names.
fn layer() -> Vec<u8> {
    let mut sparse = vec![0; 200_000];
    sparse[150_000] = 1;
    Tar::new()
        .dir("etc/", 0o755)
        .file("etc/hostname", b"berth\n")
        .file("twice", b"first")
        .file("twice", b"second")
        .file("sparse", &sparse)
        .file("big", &(0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
        .symlink("link", "etc/hostname")
        .hardlink("hard", "big")
        .end()
}

/// Another node, or several: read-only images of layers are one store's, and archives another's, which are directories.
struct Others<'a> {
    images: &'a Store,
    archives: &'a Store,
    image: &'a ResolvedManifest,
    agreed: Vec<MadeForm>,
    /// What becomes of what travels of an image.
    alter: fn(&mut Vec<u8>),
    asked: Mutex<Vec<BlobKind>>,
}

impl<'a> Others<'a> {
    fn new(images: &'a Store, archives: &'a Store, image: &'a ResolvedManifest) -> Others<'a> {
        let agreed = images.made_forms(&image.digest).unwrap();
        Others { images, archives, image, agreed, alter: |_| {}, asked: Mutex::default() }
    }

    fn asked(&self, kind: BlobKind) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| **asked == kind).count()
    }
}

impl BlobSource for Others<'_> {
    fn describe(&self) -> String {
        "other nodes".to_owned()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, _: u64) -> Result<Box<dyn Read + Send>, Error> {
        self.asked.lock().unwrap().push(kind);
        let offer = |store: &'_ Store| -> Result<Option<Vec<u8>>, Error> {
            let offer = store.offer(&self.image.digest, &self.image.source, None)?;
            let part = match kind {
                BlobKind::Form => offer.form(digest)?,
                BlobKind::Manifest | BlobKind::Proof => Some(offer.manifest()?),
                BlobKind::Blob | BlobKind::Archive => offer.blob(digest)?,
                _ => None,
            };
            Ok(part.map(|part| content(&part)))
        };
        let mut bytes = match kind {
            BlobKind::Forms => {
                let of_layer = self.agreed.iter().filter(|form| form.layer == digest.to_string());
                Some(serde_json::to_vec(&of_layer.collect::<Vec<_>>()).unwrap())
            }
            BlobKind::Form => offer(self.images)?,
            _ => offer(self.archives)?,
        };
        if let (BlobKind::Form, Some(bytes)) = (kind, &mut bytes) {
            (self.alter)(bytes);
        }
        let missing = || Error::new(ErrorKind::NotFound, digest.to_string(), "they have nothing of it");
        Ok(Box::new(Cursor::new(bytes.ok_or_else(missing)?)))
    }

    fn is_peers(&self) -> bool {
        true
    }
}

/// Two nodes that have an image of this layer, one as an image and one as a directory, and a third that has nothing.
struct Three {
    images: Bench,
    archives: Bench,
    taker: Bench,
    builder: ImageBuilder,
}

impl Three {
    fn new() -> Three {
        let [images, archives, taker] =
            [LayerForm::Erofs, LayerForm::Directory, LayerForm::Erofs].map(Bench::of);
        Three {
            images,
            archives,
            taker,
            builder: ImageBuilder::new(vec![layer()]).compressed(Compression::Gzip),
        }
    }

    /// Has the third node take the image of the others, which `change` changes; tells why layers come as archives.
    fn take(
        &self,
        store: &Store,
        change: impl FnOnce(&mut Others<'_>),
        check: impl FnOnce(&Others<'_>, &Taken),
    ) {
        let (first, second) = (travelling(&self.images), self.archives.store());
        let (image, given) = import(&self.images, &first, &self.builder);
        import(&self.archives, &second, &self.builder);
        // Where it is from says nothing of whose it is on these stores, which are their owners'.
        let mut others = Others::new(&first, &second, &image);
        change(&mut others);
        let told = Mutex::new(Vec::new());
        let telling = |event: ProgressEvent| {
            if let ProgressEvent::ByArchive { text } = event {
                told.lock().unwrap().push(text);
            }
        };
        let prepared = store.ensure(&image, &others, &telling).unwrap();
        let told = told.into_inner().unwrap();
        check(&others, &Taken { image: image.clone(), given, prepared, told });
    }
}

struct Taken {
    image: ResolvedManifest,
    given: PreparedImage,
    prepared: PreparedImage,
    /// Why layers came as archives.
    told: Vec<String>,
}

/// Files beside a layer's image.
fn beside(image: &Path, name: &str) -> Option<Vec<u8>> {
    std::fs::read(image.with_file_name(name)).ok()
}

#[test]
fn a_layer_on_which_nodes_agree_comes_as_it_is_and_is_as_whole_as_one_that_was_made_here() {
    let three = Three::new();
    let store = travelling(&three.taker);
    three.take(
        &store,
        |_| {},
        |others, taken| {
            assert_eq!((others.asked(BlobKind::Form), others.asked(BlobKind::Archive)), (1, 0));
            assert_eq!(taken.told, Vec::<String>::new());
            let (theirs, ours) = (only_layer(&taken.given), only_layer(&taken.prepared));
            assert!(std::fs::read(theirs).unwrap() == std::fs::read(ours).unwrap(), "another image");
            for name in ["skeleton.zst", "replaced"] {
                assert!(beside(ours, name).is_some() && beside(ours, name) == beside(theirs, name), "{name}");
            }
            assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
            let report = |store: &Store| store.inspect(&taken.image.digest).unwrap().layers[0].report.clone();
            assert_eq!(report(&store), report(others.images));
            // It did not make it, and says so; and gives it on.
            assert_eq!(store.made_forms(&taken.image.digest).unwrap(), []);
            let agreed: Digest = others.agreed[0].digest.parse().unwrap();
            let offer = store.offer(&taken.image.digest, "other nodes", None).unwrap();
            let bytes = content(&offer.form(&agreed).unwrap().unwrap());
            assert_eq!(Digest::of(Algorithm::Sha256, &bytes), agreed);
            assert_eq!(bytes.len() as u64, others.agreed[0].size);
            let other = Digest::of(Algorithm::Sha256, b"other");
            assert!(offer.form(&other).unwrap().is_none());
            // Who has not shown that the image is theirs has nothing of it by this digest either.
            assert!(store.offer(&taken.image.digest, &taken.image.source, Some(54_321)).is_err());
            // Damage is found as in one of one's own.
            let mut damaged = std::fs::read(ours).unwrap();
            *damaged.last_mut().unwrap() ^= 1;
            std::fs::write(ours, damaged).unwrap();
            assert!(store.verify(&[]).unwrap().problems()[0].contains("its image was changed"));
        },
    );
    three.taker.assert_no_work();
}

/// Whichever byte a node alters, adds or leaves out, what it gives is not used.
#[test]
fn what_has_another_digest_than_that_on_which_nodes_agree_is_not_used_and_the_layer_is_made_of_its_archive() {
    let altered: [fn(&mut Vec<u8>); 6] = [
        |bytes| bytes[1] ^= 1,
        |bytes| bytes[4096 + 1024] ^= 1,
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| bytes.truncate(100),
        |bytes| bytes.push(0),
    ];
    for alter in altered {
        let three = Three::new();
        let store = travelling(&three.taker);
        three.take(
            &store,
            |others| others.alter = alter,
            |others, taken| {
                assert_eq!((others.asked(BlobKind::Form), others.asked(BlobKind::Archive)), (1, 1));
                assert!(
                    taken.told.len() == 1 && taken.told[0].contains("comes as its archive"),
                    "{:?}",
                    taken.told
                );
                let (theirs, ours) = (only_layer(&taken.given), only_layer(&taken.prepared));
                assert!(std::fs::read(theirs).unwrap() == std::fs::read(ours).unwrap(), "another image");
                // So it made it by itself, and that agrees.
                assert_eq!(store.made_forms(&taken.image.digest).unwrap(), others.agreed);
            },
        );
        three.taker.assert_no_work();
    }
}

#[test]
fn what_nodes_do_not_agree_on_or_this_node_would_not_make_is_not_even_asked_for() {
    let nobody = |others: &mut Others<'_>| others.agreed.clear();
    let writer = |others: &mut Others<'_>| others.agreed[0].writer.push('x');
    let layer = |others: &mut Others<'_>| others.agreed[0].layer = format!("sha256:{:064x}", 1);
    for change in [&nobody as &dyn Fn(&mut Others<'_>), &writer, &layer] {
        let three = Three::new();
        let store = travelling(&three.taker);
        three.take(&store, change, |others, taken| {
            let asked = (others.asked(BlobKind::Form), others.asked(BlobKind::Archive), taken.told.len());
            assert_eq!(asked, (0, 1, 0));
        });
    }
    // Nor by one that keeps directories, or whose images do not travel.
    let three = Three::new();
    let store = three.taker.store();
    three.take(
        &store,
        |_| {},
        |others, taken| {
            assert_eq!((others.asked(BlobKind::Forms), others.asked(BlobKind::Archive)), (0, 1));
            assert_eq!(store.made_forms(&taken.image.digest).unwrap(), []);
        },
    );
    let directories = Bench::of(LayerForm::Directory);
    let store = travelling(&directories);
    three.take(&store, |_| {}, |others, _| assert_eq!(others.asked(BlobKind::Forms), 0));
}

#[test]
fn what_was_made_of_an_image_is_looked_at_again_when_a_layer_was_made_anew_and_not_before() {
    let bench = Bench::of(LayerForm::Erofs);
    let store = travelling(&bench);
    let builder = ImageBuilder::new(vec![layer(), Tar::new().file("upper", b"upper").end()]);
    let (image, prepared) = import(&bench, &store, &builder);
    let first = store.made_forms_since(&image.digest, None).unwrap();
    assert_eq!(first.forms(), store.made_forms(&image.digest).unwrap());
    assert_eq!(first.forms().len(), 2);
    let since = |before| store.made_forms_since(&image.digest, Some(before)).unwrap();
    assert_eq!(since(first.clone()), first);
    // Another process makes a layer anew, in a form that does not travel.
    let layers: Vec<Digest> = first.forms().iter().map(|form| form.layer.parse().unwrap()).collect();
    let source =
        berth_images::open_source(&image, &Registries::default(), &Credentials::anonymous()).unwrap();
    let other = bench.store().with_form(LayerForm::Directory);
    other.repair(&image, &layers[..1], source.as_ref(), &()).unwrap();
    let second = since(first);
    assert_eq!(second.forms(), store.made_forms(&image.digest).unwrap());
    assert_eq!(second.forms().len(), 1);
    assert_eq!(second.forms()[0].layer, layers[1].to_string());
    // And the other one goes by hand.
    let place = bench.path().join("store/layers").join(layers[1].to_string().replace(':', "-"));
    std::fs::remove_dir_all(place).unwrap();
    assert_eq!(since(second).forms(), []);
    // What was known of an image without a record is nothing.
    assert_eq!(since(berth_images::MadeForms::default()).forms(), []);
    drop(prepared);
}

const NAMES: [&str; 8] = ["a", "b", "d/", "d/a", "d/e/", "d/e/c", "z", "d/.wh.a"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However it came, and wherever it is unpacked: names in hash tables, threads, chunks and clocks leave no trace.
    #[test]
    fn the_same_archive_makes_the_same_bytes_on_every_node(
        entries in proptest::collection::vec((0usize..8, 0usize..8, 0usize..7, 0u32..0o7777, 0usize..70_000), 0..14)
    ) {
        let mut tar = Tar::new();
        for (name, link, kind, mode, size) in entries {
            let kind = b"0123456"[kind];
            let mode = if kind == b'5' { mode | 0o700 } else { mode };
            let data = if kind == b'0' { vec![size as u8; size] } else { Vec::new() };
            tar = tar.entry(NAMES[name], kind, mode, NAMES[link], &data);
        }
        let layer = tar.end();
        let made = [Compression::Gzip, Compression::Plain].map(|compression| {
            let bench = Bench::of(LayerForm::Erofs);
            let store = travelling(&bench);
            let builder = ImageBuilder::new(vec![layer.clone()]).compressed(compression);
            builder.write(&bench.layout());
            let text = format!("oci:{}", bench.layout().display());
            let image = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
            let source = berth_images::open_source(&image, &Registries::default(), &Credentials::anonymous()).unwrap();
            let prepared = store.ensure(&image, source.as_ref(), &()).ok()?;
            Some((std::fs::read(only_layer(&prepared)).unwrap(), store.made_forms(&image.digest).unwrap()))
        });
        let [first, second] = made;
        prop_assert!(first == second);
    }
}
