//! Starts one command in a container of plain directories: `start [OPTIONS] LAYER... -- COMMAND...`.
//!
//! The smallest use of the library, and the program that the start benchmark times. Options: `--explain`,
//! `--remap-root`, `--readonly`, `--writable`, `--as UID:GID` (root only), `--owner UID:GID` (of the layers),
//! `--mount SRC:DST[:FLAGS]`, `--device PATH`, `--workdir DIR`, `--env NAME=VALUE`, `--host`, `--dir`.

use berth_model::spec::{Identity, MountSpec};
use berth_model::{ByteStr, Gid, Uid};
use berth_runtime::{
    ContainerRequest, Event, HostFacts, Rootfs, StartOptions, StoreOwner, TaskSpec, TaskStdio, Workdir, plan,
    start_init,
};
use std::os::fd::{AsFd, OwnedFd};

type Failure = Box<dyn std::error::Error>;

fn pair(text: &str) -> Result<(u32, u32), Failure> {
    let (a, b) = text.split_once(':').ok_or("expected UID:GID")?;
    Ok((a.parse()?, b.parse()?))
}

fn main() {
    match run() {
        Ok(code) => std::process::exit(code),
        Err(e) => {
            eprintln!("start: {e}");
            std::process::exit(125);
        }
    }
}

fn run() -> Result<i32, Failure> {
    let mut args = std::env::args().skip(1);
    let mut layers: Vec<ByteStr> = Vec::new();
    let mut who = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let (mut owner, mut explain, mut host, mut dir) = (None, false, false, false);
    let identity = Identity {
        uid: Uid(0),
        gid: Gid(0),
        groups: Vec::new(),
        user: "user".into(),
        group: "user".into(),
        home: "/home/user".into(),
        shell: "/bin/sh".into(),
    };
    let mut request =
        ContainerRequest::new(Rootfs::Host, identity, std::env::current_dir()?.as_os_str().into());
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--explain" => explain = true,
            "--host" => host = true,
            "--dir" => dir = true,
            "--remap-root" => request.remap_root = true,
            "--readonly" => request.writable = Some(false),
            "--writable" => request.writable = Some(true),
            "--as" => who = pair(&value()?)?,
            "--group" => request.identity.groups.push(Gid(value()?.parse()?)),
            "--owner" => owner = Some(pair(&value()?)?).map(|(uid, gid)| StoreOwner { uid, gid }),
            "--device" => request.devices.push(value()?.into()),
            "--env" => request.env.push(value()?.into()),
            "--workdir" => {
                request.workdir = Some(Workdir { path: value()?.into(), origin: "--workdir".into() });
            }
            "--mount" => {
                let text = value()?;
                let mut parts = text.split(':');
                let source = parts.next().unwrap_or_default();
                let target = parts.next().unwrap_or(source);
                let flags = parts.next().map(|f| f.split('+').map(String::from).collect());
                request.mounts.push(MountSpec {
                    source: source.into(),
                    target: target.into(),
                    flags: flags.unwrap_or_default(),
                });
            }
            "--" => break,
            layer => layers.push(layer.into()),
        }
    }
    request.identity.uid = Uid(who.0);
    request.identity.gid = Gid(who.1);
    request.command = args.map(ByteStr::from).collect();
    if dir {
        request.root = Rootfs::Dir(layers.pop().ok_or("--dir needs a directory")?);
    } else if !host {
        request.root = Rootfs::Overlay { layers, owner };
    }
    let plan = plan(&request, &HostFacts::gather(&request))?;
    if explain {
        print!("{plan}");
        return Ok(0);
    }
    let mut init = start_init(&plan, StartOptions::default())?;
    for note in init.notes() {
        eprintln!("start: {note}");
    }
    let own = |fd: std::os::fd::BorrowedFd<'_>| -> std::io::Result<Option<OwnedFd>> {
        fd.try_clone_to_owned().map(Some)
    };
    let stdio = TaskStdio::Fds {
        stdin: own(std::io::stdin().as_fd())?,
        stdout: own(std::io::stdout().as_fd())?,
        stderr: own(std::io::stderr().as_fd())?,
    };
    init.spawn(TaskSpec { stdio, ..TaskSpec::default() })?;
    loop {
        match init.next_event(true)? {
            Some(Event::Exited { status, .. }) => {
                init.finish()?;
                return Ok(status.shell_code());
            }
            Some(Event::ExecFailed { error, .. }) => {
                eprintln!("start: {error}");
                return Ok(error.exit_code());
            }
            _ => {}
        }
    }
}
