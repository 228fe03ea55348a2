//! The address at which a step's tasks look for PMIx, which was theirs before the library was loaded: connections that came to it
//! go on to where the library listens.

use super::callers;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

/// A thread that does nothing but copy needs no more.
const STACK: usize = 128 << 10;

/// Passes on what comes of the user `uid`, for as long as the process lives, at most so many connections at once.
pub fn open(gate: TcpListener, server: SocketAddr, uid: u32, most: usize) -> io::Result<()> {
    let open = Arc::new(());
    let pass = move || {
        for task in gate.incoming() {
            match task {
                Ok(task) if Arc::strong_count(&open) <= most && callers::is_of(&task, uid) => {
                    // A task whose connection cannot be passed on sees it closed.
                    drop(join(task, server, &open));
                }
                // Somebody else on the node, or a step that comes without end.
                Ok(_) => {}
                // There is room for no more descriptors now, most likely.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    };
    Builder::new().name("gate".into()).stack_size(STACK).spawn(pass).map(drop)
}

/// `open` is held for as long as the connection is.
fn join(task: TcpStream, server: SocketAddr, open: &Arc<()>) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    // Short words are answered one by one.
    task.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, to, held) = (task.try_clone()?, server.try_clone()?, Arc::clone(open));
    let whole = task.try_clone()?;
    let first = move || {
        copy(&from, &to);
        drop(held);
    };
    Builder::new().stack_size(STACK).spawn(first)?;
    let back = Builder::new().stack_size(STACK).spawn(move || copy(&server, &task));
    if back.is_err() {
        // The thread that was begun ends with it.
        let _ = whole.shutdown(Shutdown::Both);
    }
    back.map(drop)
}

/// Copies until one side is done, and says so to the other.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn own() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn nobody_elses_connections_are_passed_on_and_no_more_than_a_step_needs() {
        let [gate, server] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let at = gate.local_addr().unwrap();
        open(gate, server.local_addr().unwrap(), own() + 1, 10).unwrap();
        let mut text = Vec::new();
        let of_another = TcpStream::connect(at).unwrap();
        assert_eq!((&of_another).read_to_end(&mut text).unwrap(), 0, "it is closed");
        server.set_nonblocking(true).unwrap();
        assert!(server.accept().is_err(), "and the library hears nothing of it");

        let [gate, server] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let at = gate.local_addr().unwrap();
        open(gate, server.local_addr().unwrap(), own(), 2).unwrap();
        let two = [(), ()].map(|()| (TcpStream::connect(at).unwrap(), server.accept().unwrap()));
        assert_eq!(TcpStream::connect(at).unwrap().read_to_end(&mut text).unwrap(), 0, "a third is too many");
        drop(two);
        // As those two are over, others may come.
        let room = |_| {
            let mut next = TcpStream::connect(at).unwrap();
            next.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let closed = next.read(&mut [0; 1]).is_ok();
            std::thread::sleep(Duration::from_millis(10));
            !closed
        };
        assert!((0..500).any(room));
    }

    #[test]
    fn both_sides_hear_one_another_to_the_end() {
        let [gate, server] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let at = gate.local_addr().unwrap();
        let mut task = TcpStream::connect(at).unwrap();
        task.write_all(b"before there was a server").unwrap();
        open(gate, server.local_addr().unwrap(), own(), 10).unwrap();
        let (mut heard, mut text) = (server.accept().unwrap().0, [0; 25]);
        heard.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"before there was a server");
        heard.write_all(b"yes").unwrap();
        heard.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        task.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "yes");
        task.write_all(b"!").unwrap();
        drop(task);
        let mut rest = String::new();
        heard.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "!");
    }
}
