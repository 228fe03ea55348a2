//! The signals that a command which follows a step passes on, or acts on.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// All of them, heard from now on.
pub struct Signals {
    all: Vec<(i32, Signal)>,
}

impl Signals {
    /// Begins to hear them.
    ///
    /// # Errors
    /// The system gives no handler.
    pub fn new() -> std::io::Result<Signals> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::alarm(),
            SignalKind::window_change(),
        ];
        let all =
            kinds.into_iter().map(|k| Ok((k.as_raw_value(), signal(k)?))).collect::<std::io::Result<_>>()?;
        Ok(Signals { all })
    }

    /// The number of the next one.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, signal) in &mut self.all {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
