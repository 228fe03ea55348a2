//! Whose a connection over the loopback is: the kernel's list of them has the user of each side's socket. Whoever is on the node can
//! connect to a port of it, and the tasks of a step are its user's.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};

/// The kernel's list of the sockets of the own network.
const LIST: &str = "/proc/net/tcp";

/// Whether the other side of a connection is a socket of this user's. What cannot be found out is nobody's.
pub fn is_of(connection: &TcpStream, uid: u32) -> bool {
    let (Ok(SocketAddr::V4(there)), Ok(SocketAddr::V4(here))) =
        (connection.peer_addr(), connection.local_addr())
    else {
        return false;
    };
    std::fs::read_to_string(LIST).is_ok_and(|list| has(&list, Some(there), here, uid))
}

/// Whether a socket of this user's is connected to this address.
pub fn any_of(here: SocketAddrV4, uid: u32) -> bool {
    std::fs::read_to_string(LIST).is_ok_and(|list| has(&list, None, here, uid))
}

/// Whether the list has a socket of the user's that is connected to `here`, from `there` if that is asked for.
fn has(list: &str, there: Option<SocketAddrV4>, here: SocketAddrV4, uid: u32) -> bool {
    let (there, here, uid) = (there.map(hexadecimal), hexadecimal(here), uid.to_string());
    list.lines().skip(1).any(|line| {
        // sl, local_address, rem_address, st, queues, timer, retrnsmt, uid (proc_pid_net(5)).
        let mut words = line.split_ascii_whitespace().skip(1);
        let (own, other) = (words.next(), words.next());
        let user = words.nth(4);
        there.as_deref().is_none_or(|there| own == Some(there))
            && other == Some(here.as_str())
            && user == Some(uid.as_str())
    })
}

/// As the list has it: the address as a number of the machine's, the port as it is read.
fn hexadecimal(address: SocketAddrV4) -> String {
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_connection_is_its_makers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(here) = listener.local_addr().unwrap() else { unreachable!() };
        let own = rustix::process::getuid().as_raw();
        assert!(!any_of(here, own), "nobody has come");
        let _client = TcpStream::connect(here).unwrap();
        assert!(any_of(here, own) && !any_of(here, own + 1));
        let accepted = listener.accept().unwrap().0;
        assert!(is_of(&accepted, own) && !is_of(&accepted, own + 1));
    }

    #[test]
    fn lines_that_say_something_else_do_not_count() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1\n\
            \x20  1: 0100007F:C001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 2 1\n\
            \x20  2: 0100007F\n\n";
        let at = |port| SocketAddrV4::new([127, 0, 0, 1].into(), port);
        if cfg!(target_endian = "little") {
            assert!(has(list, Some(at(0xC001)), at(0x1F90), 1000) && has(list, None, at(0x1F90), 1000));
            assert!(
                !has(list, Some(at(0xC001)), at(0x1F90), 0) && !has(list, Some(at(0xC002)), at(0x1F90), 1000)
            );
            assert!(!has(list, None, at(0x1F91), 1000));
        }
    }
}
