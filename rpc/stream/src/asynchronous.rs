//! Frames over tokio's readers and writers.

use crate::frame::{Frame, FrameError, HEADER_LEN, Header, encode};
use std::io::ErrorKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Reads one frame and not a byte more; `None` when the connection ended between frames. Not safe to
/// cancel: bytes of a frame begun are lost.
pub async fn read_frame<R: AsyncRead + Unpin>(from: &mut R) -> Result<Option<Frame>, FrameError> {
    let mut head = [0u8; HEADER_LEN];
    let mut have = 0;
    while have < HEADER_LEN {
        match from.read(&mut head[have..]).await {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Truncated),
            Ok(n) => have += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let header = Header::parse(&head)?;
    let mut payload = vec![0u8; header.len];
    from.read_exact(&mut payload).await.map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(e),
    })?;
    Frame::from_parts(header, payload).map(Some)
}

/// Writes one frame with one call where the kernel takes it whole.
pub async fn write_frame<W: AsyncWrite + Unpin>(to: &mut W, frame: &Frame) -> Result<(), FrameError> {
    let mut bytes = Vec::with_capacity(64);
    encode(frame, &mut bytes)?;
    to.write_all(&bytes).await?;
    Ok(())
}
