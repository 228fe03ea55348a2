//! The address at which a step's tasks look for PMIx, which was theirs before the library was loaded: connections that came to it
//! go on to where the library listens.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::Builder;
use std::time::Duration;

/// A thread that does nothing but copy needs no more.
const STACK: usize = 128 << 10;

/// Passes on what comes, for as long as the process lives.
pub fn open(gate: TcpListener, server: SocketAddr) -> io::Result<()> {
    let pass = move || {
        for task in gate.incoming() {
            match task {
                // A task whose connection cannot be passed on sees it closed.
                Ok(task) => drop(join(task, server)),
                // There is room for no more descriptors now, most likely.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    };
    Builder::new().name("gate".into()).stack_size(STACK).spawn(pass).map(drop)
}

fn join(task: TcpStream, server: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    // Short words are answered one by one.
    task.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, to) = (task.try_clone()?, server.try_clone()?);
    Builder::new().stack_size(STACK).spawn(move || copy(&from, &to))?;
    Builder::new().stack_size(STACK).spawn(move || copy(&server, &task)).map(drop)
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

    #[test]
    fn both_sides_hear_one_another_to_the_end() {
        let [gate, server] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let at = gate.local_addr().unwrap();
        let mut task = TcpStream::connect(at).unwrap();
        task.write_all(b"before there was a server").unwrap();
        open(gate, server.local_addr().unwrap()).unwrap();
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
