//! Attacks from inside a container and beside it, run and not mocked: each must fail. `docs/security.md` lists them with
//! their defences; `tests/escape/mutations.sh` takes defences out, one at a time, to see the attacks succeed.

mod filesystems;
mod helpers;
mod node;
mod people;
mod sockets;
mod store;
mod supervisor;
