//! Two connections made into one: each side hears all that the other one said, also where that has left meanwhile.

use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink, split};
use tokio::time::timeout;

/// How long a side may take to end when the other one is gone. A connection that is closed while something of it is unread loses what is
/// still on its way to the other end.
const ENDS: Duration = Duration::from_secs(2);

/// How long the last words of a side that takes none of the other's may take: it is gone, or does not read, and so may the other.
const LAST_WORDS: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// How the words of one side ended.
enum Over {
    /// It said that nothing follows, and the other side was told so.
    Said,
    /// The other side takes nothing any more.
    Unheard,
    /// It is lost.
    Lost(io::Error),
}

/// Carries what each side says to the other one, `size` bytes at a time, until both have ended or one is lost.
///
/// `tokio::io::copy_bidirectional` ends both directions as soon as one fails. That lost the last word of a client that left before it had
/// read ours, and with it the supervisor's reason to go.
///
/// # Errors
/// One of the connections was lost.
pub async fn splice<A, B>(a: A, b: B, size: usize) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((from_a, to_a), (from_b, to_b)) = (split(a), split(b));
    let (mut there, mut back) = (pin!(pass(from_a, to_b, size)), pin!(pass(from_b, to_a, size)));
    tokio::select! {
        first = &mut there => rest(first, back).await,
        first = &mut back => rest(first, there).await,
    }
}

/// What is left when one side's words have ended.
async fn rest<A: AsyncRead + Unpin, B: AsyncRead + Unpin>(
    first: (Over, A),
    other: impl Future<Output = (Over, B)>,
) -> io::Result<()> {
    match first {
        (Over::Lost(e), _) => {
            let _ = timeout(ENDS, async { drain(other.await).await }).await;
            Err(e)
        }
        first => {
            let other = async {
                match first.0 {
                    Over::Unheard => {
                        timeout(LAST_WORDS, other).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
                    }
                    _ => Ok(other.await),
                }
            };
            let second = match other.await? {
                (Over::Lost(e), _) => return Err(e),
                second => second,
            };
            let _ = timeout(ENDS, async { tokio::join!(drain(first), drain(second)) }).await;
            Ok(())
        }
    }
}

/// Waits for the end of what nobody takes.
async fn drain<R: AsyncRead + Unpin>((over, mut reader): (Over, R)) {
    if matches!(over, Over::Unheard) {
        let _ = copy(&mut reader, &mut sink()).await; // it ends either way
    }
}

/// Carries one side's words to the other side.
async fn pass<R, W>(mut from: R, mut to: W, size: usize) -> (Over, R)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; size];
    let over = loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => break Over::Said,
            Ok(n) => n,
            Err(e) => break Over::Lost(e),
        };
        let read = buffer.get(..n).unwrap_or_default();
        if to.write_all(read).await.is_err() || to.flush().await.is_err() {
            return (Over::Unheard, from);
        }
    };
    // Who has left needs not be told.
    let _ = match over {
        Over::Lost(_) => timeout(ENDS, to.shutdown()).await.unwrap_or(Ok(())),
        _ => to.shutdown().await,
    };
    (over, from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;

    const LONG: usize = 4096;

    /// A client's socket and a wire on which hardly anything fits, made into one.
    fn spliced() -> (UnixStream, DuplexStream, JoinHandle<io::Result<()>>) {
        let (client, near) = UnixStream::pair().unwrap();
        let (wire, far) = duplex(16);
        (client, far, tokio::spawn(splice(near, wire, 64)))
    }

    #[tokio::test]
    async fn each_side_hears_the_other_to_its_end() {
        let (mut client, mut far, splicing) = spliced();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        far.write_all(b"answer").await.unwrap();
        drop(far);
        heard.clear();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"answer");
        drop(client);
        splicing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_last_words_of_a_side_that_left_without_reading_ours_arrive() {
        let (mut client, mut far, splicing) = spliced();
        client.write_all(&[7; LONG]).await.unwrap();
        // It has not taken all of that by far when this finds nobody.
        drop(client);
        far.write_all(b"unheard").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, [7; LONG]);
        drop(far);
        splicing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_last_words_of_the_far_side_arrive_where_it_left_without_reading_ours() {
        let (mut client, mut far, splicing) = spliced();
        far.write_all(b"end").await.unwrap();
        drop(far);
        client.write_all(&[7; LONG]).await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"end");
        drop(client);
        splicing.await.unwrap().unwrap();
    }

    /// The unread bytes make the client's end an error for who reads it.
    #[tokio::test]
    async fn a_far_side_that_reads_nothing_is_not_waited_for_when_the_client_has_left() {
        let (client, wire) = (duplex(LONG), duplex(16));
        let splicing = tokio::spawn(splice(client.1, wire.0, 64));
        let (mut client, mut far) = (client.0, wire.1);
        client.write_all(&[7; LONG / 2]).await.unwrap();
        drop(client);
        far.write_all(b"unheard").await.unwrap();
        let end = timeout(LAST_WORDS * 2, splicing).await.unwrap().unwrap();
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_side_that_is_lost_ends_the_other_one() {
        let (client, mut far, splicing) = spliced();
        far.write_all(b"unread").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(client);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"");
        drop(far);
        assert_eq!(splicing.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
