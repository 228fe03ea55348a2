//! A branch is read as the controller signed it by those whom it is for, and by nobody else; whatever who carries it does to it is seen.

use super::*;
use crate::direct::Arrival;
use crate::peers::PeerIdentity;
use crate::wire::tests::{Arbitrary, Source};
use berth_model::carry::Registration;
use berth_model::launch::NodeShare;
use berth_model::{ByteStr, Session, Time};
use berth_trust::{Authority, PrivateKey};
use proptest::prelude::*;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const DAY: Duration = Duration::from_secs(86_400);

fn authority() -> Authority {
    let dir = tempfile::tempdir().unwrap();
    Authority::open_or_make(dir.path(), "c", SystemTime::now()).unwrap()
}

fn member(authority: &Authority, name: &str, role: &str) -> Identity {
    let key = PrivateKey::make().unwrap();
    let certificate = authority.issue(&key.public(), name, role, SystemTime::now(), DAY).unwrap();
    Identity { key, certificate }
}

/// The Start of a step on n0, whatever it is.
fn start(seed: u64) -> Start {
    let mut start = Start::arbitrary(&mut Source(seed));
    start.launch.node = "n0".into();
    start.launch.job.mem_per_node = Some(start.launch.job.share.memory);
    start
}

fn part(at: u32) -> CarriedPart {
    let share = |memory| NodeShare { cpus: vec![at], memory, gres: vec![] };
    let lease = (at == 2).then_some(Time(77));
    let part = StartPart {
        node: NodeName(format!("n{at}")),
        node_index: at,
        share: share(5),
        job_share: share(9),
        lease,
    };
    let session = Session(100 + u64::from(at));
    CarriedPart { part, to: Registration { session, asked: Time(7), boot_id: "boot".into() } }
}

/// A branch of n0, which carries, n1 and n2.
fn branch(own: &Identity, seed: u64) -> Carry {
    let to = |at| CarriedTo { address: format!("h{at}:7818"), key: format!("k{at}"), part: part(at) };
    seal(own, &start(seed), vec![to(1), to(2)]).unwrap().unwrap()
}

/// What a node makes of these bytes.
fn read(
    authority: &Authority,
    node: &str,
    [opening, common, part]: [&[u8]; 3],
) -> Result<Carried, Unbelieved> {
    let node = NodeName(node.into());
    let expected = Expected::open(authority.certificate(), &node, opening, SystemTime::now())?;
    expected.read(&node, common, part)
}

fn brought(carry: &Carry, to: usize) -> [&[u8]; 3] {
    [&carry.opening.0, &carry.common.0, &carry.to[to].part.0]
}

#[test]
fn each_node_reads_its_own_start_as_if_it_had_been_sent_it() {
    let cluster = authority();
    let controller = member(&cluster, "head", "controller");
    for seed in 0..50 {
        let carry = branch(&controller, seed);
        assert_eq!(own_start(&carry).unwrap(), start(seed));
        for at in [1, 2] {
            let CarriedPart { part, to } = part(at);
            let mut own = start(seed);
            part.give(&mut own);
            assert_eq!(own.launch.job.mem_per_node, Some(9));
            let place = usize::try_from(at).unwrap() - 1;
            let carried = read(&cluster, &format!("n{at}"), brought(&carry, place)).unwrap();
            assert_eq!(carried, Carried { to, start: own });
        }
    }
}

#[test]
fn what_is_altered_or_for_another_node_is_not_believed() {
    let cluster = authority();
    let controller = member(&cluster, "head", "controller");
    let (carry, other) = (branch(&controller, 1), branch(&controller, 2));
    let [opening, common, own] = brought(&carry, 0);
    // Each byte of what is signed, and of the signature.
    for at in 0..opening.len() {
        let mut bent = opening.to_vec();
        bent[at] ^= 1;
        assert!(read(&cluster, "n1", [&bent, common, own]).is_err(), "byte {at} of the opening");
    }
    assert!(read(&cluster, "n1", [&opening[..opening.len() - 1], common, own]).is_err());
    for at in [0, common.len() / 2, common.len() - 1] {
        let mut bent = common.to_vec();
        bent[at] ^= 1;
        let read = read(&cluster, "n1", [opening, &bent, own]);
        assert!(matches!(read, Err(Unbelieved::Altered("what is the same for all nodes"))), "{read:?}");
    }
    let mut bent = own.to_vec();
    bent[0] ^= 1;
    for own in [&bent, &carry.to[1].part.0, &Vec::new()] {
        let read = read(&cluster, "n1", [opening, common, own]);
        assert!(matches!(read, Err(Unbelieved::Altered("what is this node's alone"))), "{read:?}");
    }
    // Of another step of this controller's.
    let mixed = read(&cluster, "n1", [opening, &other.common.0, own]);
    assert!(matches!(mixed, Err(Unbelieved::Altered(_))), "{mixed:?}");
    for (node, own) in [("n0", &carry.own.0), ("n3", &carry.to[0].part.0), ("", &carry.to[0].part.0)] {
        let misdirected = read(&cluster, node, [opening, common, own]);
        assert!(matches!(misdirected, Err(Unbelieved::NotForUs)), "{node}: {misdirected:?}");
    }
}

#[test]
fn what_a_node_signs_itself_is_not_believed_nor_what_another_clusters_controller_signs() {
    let (cluster, others) = (authority(), authority());
    for (own, why) in [
        (member(&cluster, "n0", "compute"), "the other side is no controller of this cluster"),
        (member(&cluster, "n0", "login"), "the other side is no controller of this cluster"),
        (member(&others, "head", "controller"), "not signed by this cluster's authority"),
    ] {
        let carry = branch(&own, 1);
        let forged = read(&cluster, "n1", brought(&carry, 0)).unwrap_err().to_string();
        assert!(forged.contains(why), "{forged}");
    }
    // With the controller's certificate, which everybody sees.
    let (node, controller) = (member(&cluster, "n0", "compute"), member(&cluster, "head", "controller"));
    let carry = branch(&Identity { certificate: controller.certificate, ..node }, 1);
    let forged = read(&cluster, "n1", brought(&carry, 0));
    assert!(matches!(forged, Err(Unbelieved::Trust(TrustError::Signature))), "{forged:?}");
}

#[test]
fn what_is_too_much_for_one_message_is_sealed_for_nobody() {
    let controller = member(&authority(), "head", "controller");
    let to = || CarriedTo { address: String::new(), key: String::new(), part: part(1) };
    let mut large = start(1);
    large.launch.env = vec![ByteStr(vec![b'x'; MAX_CARRY])];
    assert_eq!(seal(&controller, &large, vec![to()]).unwrap(), None);
    let mut most = to();
    most.part.part.node = NodeName("x".repeat(255));
    let all = usize::try_from(berth_model::carry::MOST_CARRIED).unwrap();
    assert!(seal(&controller, &start(1), vec![most.clone(); all]).unwrap().is_some());
    assert_eq!(seal(&controller, &start(1), vec![most; 2 * all]).unwrap(), None);
}

proptest! {
    #[test]
    fn no_opening_makes_a_node_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let node = NodeName("n1".into());
        prop_assert!(Expected::open(&[], &node, &bytes, SystemTime::now()).is_err());
    }
}

/// Two nodes, the second with a port, and what comes there when the first does this.
async fn meets(
    cluster: &Authority,
    come: impl AsyncFnOnce(&PeerIdentity, String, String),
) -> std::io::Result<Arrival> {
    let authority = cluster.certificate().to_vec();
    let one = PeerIdentity::new(&member(cluster, "n0", "compute"), authority.clone()).unwrap();
    let two = PeerIdentity::new(&member(cluster, "n1", "compute"), authority).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let key = two.key().to_string();
    let arrives = async {
        let (socket, _) = listener.accept().await.unwrap();
        two.arrive(socket).await
    };
    tokio::join!(arrives, come(&one, address, key)).0
}

#[tokio::test]
async fn a_start_goes_from_node_to_node() {
    let cluster = authority();
    let carry = branch(&member(&cluster, "head", "controller"), 3);
    let arrived = meets(&cluster, async |one, address, key| {
        let hand = Hand { address, key, ..carry.to[0].clone() };
        one.hand_over(&carry, &hand, None).await.unwrap();
    });
    let Arrival::Start(bringer) = arrived.await.unwrap() else { panic!("it came for something else") };
    let carried = bringer.take(&NodeName("n1".into())).await.unwrap();
    assert_eq!((carried.to.session, carried.start.launch.node.0.as_str()), (Session(101), "n1"));
}

#[tokio::test]
async fn it_is_handed_to_nobody_else_and_what_is_cut_off_starts_nothing() {
    let cluster = authority();
    let carry = branch(&member(&cluster, "head", "controller"), 3);
    let _ = meets(&cluster, async |one, address, _| {
        let hand = Hand { address, key: "another".into(), ..carry.to[0].clone() };
        let why = one.hand_over(&carry, &hand, None).await.unwrap_err();
        assert_eq!(why.to_string(), "another node answers there");
    })
    .await;
    let arrived = meets(&cluster, async |one, address, key| {
        let mut wire = one.dial(&address, &key, crate::peers::STARTS).await.unwrap();
        wire.write_u32(u32::try_from(carry.opening.0.len()).unwrap()).await.unwrap();
        wire.write_all(&carry.opening.0).await.unwrap();
        wire.write_all(&carry.common.0[1..]).await.unwrap();
        wire.shutdown().await.unwrap();
    });
    let Arrival::Start(bringer) = arrived.await.unwrap() else { panic!("it came for something else") };
    let cut = bringer.take(&NodeName("n1".into())).await;
    assert!(matches!(cut, Err(Unbelieved::Io(_))), "{cut:?}");
    let arrived = meets(&cluster, async |one, address, key| {
        let mut wire = one.dial(&address, &key, crate::peers::STARTS).await.unwrap();
        wire.write_u32(u32::MAX).await.unwrap();
        wire.flush().await.unwrap();
    });
    let Arrival::Start(bringer) = arrived.await.unwrap() else { panic!("it came for something else") };
    let long = bringer.take(&NodeName("n1".into())).await;
    assert!(matches!(long, Err(Unbelieved::Malformed(_))), "{long:?}");
    // A way on the controller's machine needs its host.
    let one = PeerIdentity::new(&member(&cluster, "n0", "compute"), cluster.certificate().to_vec()).unwrap();
    let hand = Hand { address: ":7818".into(), ..carry.to[0].clone() };
    let why = one.hand_over(&carry, &hand, None).await.unwrap_err();
    assert_eq!(why.to_string(), "its host is not known");
    // Nor is it taken of a machine on which users work.
    let login = PeerIdentity::new(&member(&cluster, "l1", "login"), cluster.certificate().to_vec()).unwrap();
    let two = PeerIdentity::new(&member(&cluster, "n1", "compute"), cluster.certificate().to_vec()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let hand = Hand { address, key: two.key().to_string(), ..carry.to[0].clone() };
    let arrives = async {
        let (socket, _): (TcpStream, _) = listener.accept().await.unwrap();
        two.arrive(socket).await
    };
    let (arrived, _) = tokio::join!(arrives, login.hand_over(&carry, &hand, None));
    assert!(arrived.is_err());
}
