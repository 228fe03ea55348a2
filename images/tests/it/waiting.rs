//! Layers that wait for memory which others have: given up when nobody wants them any more, while who has it goes on.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_images::{
    BlobKind, BlobSource, Credentials, Digest, Error, ErrorKind, Registries, ResolvedManifest, Result,
    open_source,
};

use crate::support::{Bench, Compression, ImageBuilder, Tar, blob_path, resolve_text};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(20);
/// The sizes of layers, so that they are told apart from one another and from what is no layer.
const SMALL: usize = 100 << 10;
const MIDDLE: usize = 300 << 10;
const LARGE: usize = 3 << 20;

/// A blob of a layer as it comes.
type Blob = Box<dyn Read + Send>;

/// The source of a bench's image, which hands each blob to `opened` with its size.
struct Watched<F> {
    inner: Box<dyn BlobSource>,
    layout: PathBuf,
    opened: F,
}

impl<F: Fn(usize, Blob) -> Result<Blob> + Send + Sync> BlobSource for Watched<F> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Blob> {
        let size = std::fs::metadata(blob_path(&self.layout, digest)).unwrap().len();
        (self.opened)(usize::try_from(size).unwrap(), self.inner.open(kind, digest, offset)?)
    }
}

/// An image of layers of these sizes, of which nothing compresses.
fn image<F: Fn(usize, Blob) -> Result<Blob> + Send + Sync>(
    bench: &Bench,
    layers: &[(usize, Compression)],
    opened: F,
) -> (ResolvedManifest, Watched<F>) {
    let noise = |bytes: usize| -> Vec<u8> {
        let mut state = bytes as u64;
        let step = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        step.take(bytes).collect()
    };
    let mut builder = ImageBuilder::new(Vec::new());
    let tar = |bytes: usize| Tar::new().file("noise", &noise(bytes)).end();
    builder.layers = layers.iter().map(|(bytes, compression)| (tar(*bytes), *compression)).collect();
    builder.write(&bench.layout());
    let anonymous = Credentials::anonymous();
    let pinned = resolve_text(&format!("oci:{}", bench.layout().display()), &anonymous, false).unwrap();
    let inner = open_source(&pinned, &Registries::default(), &anonymous).unwrap();
    (pinned, Watched { inner, layout: bench.layout(), opened })
}

/// Gives so many bytes, says so, and goes on when nobody holds it up any more.
struct Held {
    blob: Blob,
    left: usize,
    reached: Sender<()>,
    held: Receiver<()>,
}

impl Read for Held {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            // Who does not listen any more need not know, and who is gone holds nothing up.
            let _ = self.reached.send(());
            let _ = self.held.recv();
            self.left = usize::MAX;
        }
        let most = buffer.len().min(self.left);
        let read = self.blob.read(&mut buffer[..most])?;
        self.left -= read;
        Ok(read)
    }
}

#[test]
fn a_layer_that_waits_is_given_up_when_another_failed_or_nobody_wants_it() {
    // One has the turn of those that need much memory, and keeps it. So much of it has come by then that it has been inflated in part:
    // no queue of the import takes as much.
    let (first, second, third) = (Bench::new(), Bench::new(), Bench::new());
    let (reached, has_turn) = channel();
    let (hold, held) = channel::<()>();
    let once = Mutex::new(Some((reached, held)));
    let (of_first, from_first) = image(&first, &[(LARGE, Compression::ZstdWide)], move |size, blob| {
        let held = once.lock().unwrap().take_if(|_| size > LARGE / 2);
        let Some((reached, held)) = held else { return Ok(blob) };
        Ok(Box::new(Held { blob, left: LARGE * 2 / 3, reached, held }))
    });

    // Of two layers one waits for that turn, and the other fails when that has begun.
    let (begun, begins) = channel();
    let begins = Mutex::new(begins);
    let layers = [(MIDDLE, Compression::ZstdWide), (SMALL, Compression::Plain)];
    let (of_second, from_second) = image(&second, &layers, move |size, blob| {
        if size > (SMALL + MIDDLE) / 2 {
            let _ = begun.send(());
        } else if size > SMALL / 2 {
            let _ = begins.lock().unwrap().recv_timeout(LONG);
            return Err(Error::new(ErrorKind::NotFound, "the other layer", "is gone"));
        }
        Ok(blob)
    });

    // And one that waits alone.
    let (begun, third_begins) = channel();
    let (of_third, from_third) = image(&third, &[(MIDDLE, Compression::ZstdWide)], move |size, blob| {
        if size > MIDDLE / 2 {
            let _ = begun.send(());
        }
        Ok(blob)
    });
    let stopped = Arc::new(AtomicBool::new(false));

    let (first_store, second_store) = (first.store(), second.store());
    let third_store = third.store().wanted_until(Arc::clone(&stopped));
    let ((said_second, second_ended), (said_third, third_ended)) = (channel(), channel());
    std::thread::scope(|scope| {
        let has_it = scope.spawn(|| first_store.ensure(&of_first, &from_first, &()));
        has_turn.recv_timeout(LONG).unwrap();
        scope.spawn(|| said_second.send(second_store.ensure(&of_second, &from_second, &())).unwrap());
        let error = second_ended.recv_timeout(LONG).expect("it waits for the turn").unwrap_err();
        assert!(error.to_string().contains("is gone"), "{error}");
        second.assert_no_work();

        scope.spawn(|| said_third.send(third_store.ensure(&of_third, &from_third, &())).unwrap());
        third_begins.recv_timeout(LONG).unwrap();
        assert!(third_ended.recv_timeout(Duration::from_millis(300)).is_err(), "it did not wait");
        stopped.store(true, Ordering::Relaxed);
        let error = third_ended.recv_timeout(LONG).expect("it waits for the turn").unwrap_err();
        assert!(error.to_string().contains("not wanted any more"), "{error}");
        third.assert_no_work();

        // Who has the turn is none the worse.
        assert!(!has_it.is_finished());
        drop(hold);
        has_it.join().unwrap().unwrap();
    });
    third.store().ensure(&of_third, &from_third, &()).unwrap();
}
