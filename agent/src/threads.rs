//! Threads of their own for what may wait for a user, a registry or a file server as long as these like: the runtime has some hundreds for
//! blocking work, and whoever took all of them would hold up everything else that the agent does.

use std::io;

/// Has a thread do something.
///
/// # Errors
/// There may be no more threads.
pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Barrier, mpsc};

    /// More pulls than the runtime has threads for all wait at once, and its own work goes on.
    #[test]
    fn those_that_wait_leave_the_runtime_its_threads() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(2).build().unwrap();
        let count = 600;
        let (all, (said, heard)) = (Arc::new(Barrier::new(count + 1)), mpsc::channel());
        for _ in 0..count {
            let (all, said) = (Arc::clone(&all), said.clone());
            start("waits", move || {
                said.send(()).unwrap();
                all.wait();
            })
            .unwrap();
        }
        (0..count).for_each(|_| heard.recv().unwrap());
        let answer = runtime.block_on(async { tokio::task::spawn_blocking(|| 7).await });
        assert_eq!(answer.unwrap(), 7);
        all.wait();
    }
}
