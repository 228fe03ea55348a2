//! Frames between `srun`, the agent and a step's supervisor; no async runtime unless asked for.
//!
//! A connection carries frames in both directions: one byte of type, the task's number (u32, little
//! endian, [`ALL_TASKS`] where it means every task or none), the payload's length (u32, little endian, at
//! most [`MAX_PAYLOAD`]), the payload. A client's first frame is [`Frame::Attach`] or
//! [`Frame::Controller`]; the other side answers an Attach with [`Frame::Accepted`] or
//! [`Frame::Refused`]. With [`Frame::Watch`] instead one hears a step beside the client that started it, and can give its
//! tasks input, and nothing else. Readers never take more bytes than the frame has, so that a descriptor can be
//! handed to another process between two frames.
//!
//! What tasks tell one another at a fence goes up in [`Frame::Fence`]s of one number, the last of which says so, and comes
//! down in the same way with what all nodes told.
//!
//! A client on another machine, whose connections break, asks in its Attach to go on where it was ([`Resume`]). Then both sides count frames and keep
//! what the other has not heard ([`Outbox`]), so that nothing is lost or comes twice.
//!
//! Standard input has a window: a client sends at most [`STDIN_WINDOW`] bytes (each byte counted once, also
//! when it goes to every task) beyond what [`Frame::Credit`] gave back, and so can always send a signal.
//!
//! Connections to a display that a client carries to a node (`--x11`) share the step's connection, each under a number in place of the task's, and
//! each with a window of its own ([`DISPLAY_WINDOW`]) in both directions.
#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
pub mod asynchronous;
pub mod blocking;
mod frame;
mod images;
mod kept;
mod resume;

pub use frame::{
    ALL_TASKS, Attach, DISPLAY_WINDOW, Decoder, FENCE_PART, Frame, FrameError, HEADER_LEN, Header, Kind,
    MAX_PAYLOAD, STDIN_WINDOW, Watch, data_header, encode, fence_frames, peer_frames,
};
pub use images::{ImagesQuery, WholeQuery};
pub use kept::{KeptContainer, KeptQuery, KeptState};
pub use resume::{Hearing, NotKept, Outbox, Resume, UNHEARD_WINDOW};
