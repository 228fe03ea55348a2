//! Layers that wait for memory which others have: given up when nobody wants them any more, while who has it goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_images::{Error, ErrorKind};

use crate::support::watched::{Held, Watched};
use crate::support::{Bench, Compression, ImageBuilder, Tar};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(20);
/// The sizes of layers, so that they are told apart from one another and from what is no layer.
const SMALL: usize = 100 << 10;
const MIDDLE: usize = 300 << 10;
const LARGE: usize = 3 << 20;

/// A bench with an image of layers of these sizes, of which nothing compresses.
fn image(layers: &[(usize, Compression)]) -> Bench {
    let noise = |bytes: usize| -> Vec<u8> {
        let mut state = bytes as u64;
        let step = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        step.take(bytes).collect()
    };
    let tar = |bytes: usize| Tar::new().file("noise", &noise(bytes)).end();
    let mut builder = ImageBuilder::new(Vec::new());
    builder.layers = layers.iter().map(|(bytes, compression)| (tar(*bytes), *compression)).collect();
    let bench = Bench::new();
    builder.write(&bench.layout());
    bench
}

#[test]
fn a_layer_that_waits_is_given_up_when_another_failed_or_nobody_wants_it() {
    // One has the turn of those that need much memory, and keeps it. So much of it has come by then that it has been inflated in part:
    // no queue of the import takes as much.
    let first = image(&[(LARGE, Compression::ZstdWide)]);
    let (reached, has_turn) = channel();
    let (hold, held) = channel::<()>();
    let once = Mutex::new(Some((reached, held)));
    let (of_first, from_first) = Watched::new(&first, move |size, blob| {
        let held = once.lock().unwrap().take_if(|_| size > LARGE / 2);
        let Some((reached, held)) = held else { return Ok(blob) };
        Ok(Box::new(Held { blob, left: LARGE * 2 / 3, reached, held, read: Arc::default() }))
    });

    // Of two layers one waits for that turn, and the other fails when that has begun.
    let second = image(&[(MIDDLE, Compression::ZstdWide), (SMALL, Compression::Plain)]);
    let (begun, begins) = channel();
    let begins = Mutex::new(begins);
    let (of_second, from_second) = Watched::new(&second, move |size, blob| {
        if size > (SMALL + MIDDLE) / 2 {
            let _ = begun.send(());
        } else if size > SMALL / 2 {
            let _ = begins.lock().unwrap().recv_timeout(LONG);
            return Err(Error::new(ErrorKind::NotFound, "the other layer", "is gone"));
        }
        Ok(blob)
    });

    // And one that waits alone.
    let third = image(&[(MIDDLE, Compression::ZstdWide)]);
    let (begun, third_begins) = channel();
    let (of_third, from_third) = Watched::new(&third, move |size, blob| {
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
