//! Attacks from inside a container and beside it, run and not mocked: each must fail. `docs/security.md` lists them with
//! their defences; `tests/escape/mutations.sh` shows that each fails when its defence is taken out.

mod helpers;
mod node;
mod people;
mod sockets;
mod store;
mod supervisor;
