//! `docker run`: from its options to a container of ours.

use super::{Exec, Run};
use crate::commands::run::{device, image_and_command, own_gpus};
use crate::doors::{self, refusal};
use crate::local::allocation::Given;
use crate::local::{self, Container, Entry, Inherit, Pull, RootInside, Tty};
use berth_client::error::{Failure, Outcome};
use berth_model::ByteStr;
use berth_model::limits::{LimitValue, Limits, Resource};
use berth_model::spec::MountSpec;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Runs it to its end.
pub fn run(args: Run) -> Outcome {
    let (image, command) = image_and_command(args.words)?;
    platform(args.platform.as_deref())?;
    network(args.network.as_deref())?;
    args.publish.iter().try_for_each(|p| same_port(p))?;
    if let Some(mode) = args.ipc.as_deref().filter(|m| !["host", "private", "shareable"].contains(m)) {
        return Err(refusal(
            &format!("--ipc={mode}"),
            "containers of one job step share theirs: use srun with -n",
        ));
    }
    for option in &args.security_opt {
        if !["no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"]
            .contains(&option.as_str())
        {
            return Err(refusal(
                &format!("--security-opt {option}"),
                "the filter leaves debuggers, profilers and nested engines alone: run it without the option",
            ));
        }
    }
    let mut env = Vec::new();
    for file in &args.env_file {
        env.extend(local::variables_of("--env-file", file)?);
    }
    for text in &args.env {
        env.extend(local::variable("--env", text)?);
    }
    let mut devices = args.device.iter().map(|d| of_device(d)).collect::<Result<Vec<_>, _>>()?;
    let nvidia = match args.runtime.as_deref() {
        None | Some("runc") => None,
        Some("nvidia") => Some("all".to_string()),
        Some(other) => {
            return Err(refusal(&format!("--runtime={other}"), "Berth is the runtime: leave it out"));
        }
    };
    if let Some(which) = args.gpus.or(nvidia) {
        let (files, names) = gpus(&which)?;
        devices.extend(files);
        env.splice(0..0, names);
    }
    let mut mounts = Vec::new();
    for text in &args.volume {
        mounts.push(volume(text)?);
    }
    for text in &args.mount {
        mounts.push(mount(text)?);
    }
    for text in &args.tmpfs {
        mounts.push(tmpfs(text)?);
    }
    let entry = match args.entrypoint {
        None => Entry::Image,
        Some(none) if none.is_empty() => Entry::Command,
        Some(program) => Entry::Own(program),
    };
    local::run(Container {
        door: "docker",
        image,
        pull: match args.pull.as_deref() {
            None | Some("missing") => Pull::Missing,
            Some("always") => Pull::Always,
            Some("never") => Pull::Never,
            Some(other) => {
                return Err(Failure::usage(format!("--pull: '{other}': write always, missing or never")));
            }
        },
        quiet: args.quiet,
        notes: true,
        command,
        entry,
        inherit: Inherit::Job,
        env,
        mounts,
        workdir: args.workdir.map(|d| (d, "--workdir")),
        root: user(args.user.as_deref())?,
        writable: args.read_only.then_some(false),
        tty: if args.tty { Tty::Yes } else { Tty::No },
        input: args.interactive,
        shm_size: args.shm_size.as_deref().map(|s| local::size("--shm-size", s)).transpose()?,
        hostname: args.hostname,
        devices,
        limits: limits(&args.ulimit)?,
        name: args.name,
        ..Container::default()
    })
}

/// Runs a command in a running container.
pub fn exec(args: Exec) -> Outcome {
    doors::exec("docker", args.words, &args.env, args.workdir, args.tty)
}

/// `--user`: oneself, or root inside.
fn user(text: Option<&str>) -> Result<RootInside, Failure> {
    let Some(text) = text else { return Ok(RootInside::AsImage) };
    let who = berth_client::users::own_identity()?;
    let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
    let own_group = group.is_none_or(|g| {
        g == who.group || who.groups.iter().chain([&who.gid]).any(|own| own.0.to_string() == g)
    });
    if (user == who.user || user == who.uid.0.to_string()) && own_group {
        return Ok(RootInside::No);
    }
    if matches!(user, "0" | "root") && matches!(group, None | Some("0" | "root")) {
        return Ok(RootInside::Yes);
    }
    Err(refusal(
        &format!("--user {text}"),
        "a container runs as you: leave it out, or use --user $(id -u):$(id -g), or --user 0 for root inside",
    ))
}

/// `--platform`: this machine's own alone.
pub fn platform(text: Option<&str>) -> Result<(), Failure> {
    let own = berth_images::Platform::default().architecture;
    match text {
        None => Ok(()),
        Some(p) if p == format!("linux/{own}") || p == own => Ok(()),
        Some(other) => Err(refusal(
            &format!("--platform {other}"),
            &format!("this machine runs linux/{own}: use a node of that architecture"),
        )),
    }
}

fn network(text: Option<&str>) -> Result<(), Failure> {
    match text {
        None | Some("host") => Ok(()),
        Some(other) => Err(refusal(
            &format!("--network={other}"),
            "a container has the node's network: leave it out, or write --network=host",
        )),
    }
}

/// `-p`: what the container listens on is a port of the node.
fn same_port(text: &str) -> Result<(), Failure> {
    let plain = text.split('/').next().unwrap_or(text);
    let parts: Vec<&str> = plain.split(':').collect();
    match parts[..] {
        [host, inside] if host == inside => Ok(()),
        _ => Err(refusal(
            &format!("--publish {text}"),
            "the container has the node's network: have the program listen on the port itself, and write PORT:PORT \
             with the same number or nothing",
        )),
    }
}

fn of_device(text: &str) -> Result<ByteStr, Failure> {
    let mut parts = text.split(':');
    let path = parts.next().unwrap_or_default();
    match (parts.next(), parts.next()) {
        (Some(inside), _) if inside != path && inside.starts_with('/') => Err(refusal(
            &format!("--device {text}"),
            "a device keeps its path in the container: name it alone",
        )),
        _ => device("--device", OsStr::new(path)),
    }
}

/// `--gpus`: some of those that the job has.
fn gpus(which: &str) -> Result<Given, Failure> {
    use local::allocation::{Gpus, given};
    let which = which.trim_matches('"');
    // Looks first: that there is no job is said in one way.
    let all = own_gpus("--gpus", None)?;
    let (Gpus::Job(have) | Gpus::Machine(Ok(have))) = local::allocation::gpus(None)? else { return Ok(all) };
    let wanted: Vec<_> = if which == "all" {
        return Ok(all);
    } else if let Some(list) = which.strip_prefix("device=") {
        let mut picked = Vec::new();
        for text in list.split(',') {
            let found = have.iter().find(|(index, _)| index.to_string() == text);
            picked.push(found.cloned().ok_or_else(|| {
                let own: Vec<String> = have.iter().map(|(i, _)| i.to_string()).collect();
                Failure::user(format!(
                    "--gpus: GPU {text} is none of those that are there: {}",
                    own.join(",")
                ))
            })?);
        }
        picked
    } else {
        let count: usize = which
            .parse()
            .map_err(|_| Failure::usage(format!("--gpus: '{which}': write all, a number, or device=0,1")))?;
        if count > have.len() {
            return Err(Failure::user(format!(
                "--gpus: {count} asked for, and there are {}: in a job ask for them with --gres=gpu:{count} when you submit it",
                have.len()
            )));
        }
        have[..count].to_vec()
    };
    Ok(given(&wanted))
}

/// `SRC:DST[:FLAGS]`.
fn volume(text: &OsStr) -> Result<MountSpec, Failure> {
    let parts: Vec<&[u8]> = text.as_bytes().splitn(3, |b| *b == b':').collect();
    let shown = text.to_string_lossy();
    let [source, target, ref rest @ ..] = parts[..] else {
        return Err(refusal(
            &format!("--volume {shown}"),
            "volumes without a source are not kept: use --tmpfs, or SRC:DST with a directory of yours",
        ));
    };
    if !source.starts_with(b"/") && !source.starts_with(b".") && !source.starts_with(b"~") {
        return Err(refusal(
            &format!("--volume {shown}"),
            "named volumes do not exist here: make a directory and write its path before the colon",
        ));
    }
    let mut flags = Vec::new();
    for flag in rest.iter().flat_map(|r| r.split(|b| *b == b',')) {
        match std::str::from_utf8(flag).unwrap_or_default() {
            // Labels of SELinux and caches of other systems change nothing about the content.
            "z" | "Z" | "cached" | "delegated" | "consistent" | "nocopy" => {}
            flag @ ("ro" | "rw" | "rprivate" | "private" | "rslave" | "slave") => {
                flags.push(flag.to_string())
            }
            other => {
                return Err(refusal(
                    &format!("--volume …:{other}"),
                    "known flags are ro, rw, rprivate and rslave",
                ));
            }
        }
    }
    local::bind("--volume", OsStr::from_bytes(source), OsStr::from_bytes(target), flags)
}

/// `type=bind,src=…,dst=…`.
fn mount(text: &str) -> Result<MountSpec, Failure> {
    let (mut kind, mut source, mut target, mut flags) = ("volume", None, None, Vec::new());
    for field in text.split(',') {
        match field.split_once('=').unwrap_or((field, "")) {
            ("type", value) => kind = value,
            ("src" | "source", value) => source = Some(value),
            ("dst" | "destination" | "target", value) => target = Some(value),
            ("readonly" | "ro", "" | "true" | "1") => flags.push("ro".to_string()),
            ("readonly" | "ro", "false" | "0") => {}
            ("bind-propagation", value) => flags.push(value.to_string()),
            ("tmpfs-size", value) => flags.push(format!("size={value}")),
            ("tmpfs-mode", value) => flags.push(format!("mode={value}")),
            (other, _) => {
                return Err(refusal(
                    &format!("--mount …,{other}"),
                    "known fields are type, src, dst and readonly",
                ));
            }
        }
    }
    let target = target
        .ok_or_else(|| Failure::usage(format!("--mount {text}: it names no destination: add dst=PATH")))?;
    match (kind, source) {
        ("bind", Some(source)) => local::bind("--mount", OsStr::new(source), OsStr::new(target), flags),
        ("tmpfs", None) => Ok(MountSpec { source: "tmpfs".into(), target: target.into(), flags }),
        ("bind", None) => Err(Failure::usage(format!("--mount {text}: it names no source: add src=PATH"))),
        (other, _) => Err(refusal(
            &format!("--mount type={other}"),
            "volumes do not exist here: use type=bind with a directory of yours, or type=tmpfs",
        )),
    }
}

/// `DST[:OPTIONS]`.
fn tmpfs(text: &str) -> Result<MountSpec, Failure> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') {
        return Err(Failure::usage(format!("--tmpfs {text}: write an absolute path")));
    }
    let flags = options.split(',').filter(|o| !o.is_empty()).map(str::to_string).collect();
    Ok(MountSpec { source: "tmpfs".into(), target: target.into(), flags })
}

/// `memlock=-1:-1`.
fn limits(list: &[String]) -> Result<Limits, Failure> {
    let mut limits = Limits::default();
    for text in list {
        let bad = || Failure::usage(format!("--ulimit {text}: write NAME=SOFT[:HARD], such as nofile=4096"));
        let (name, values) = text.split_once('=').ok_or_else(bad)?;
        let resource = match name {
            "core" => Resource::Core,
            "cpu" => Resource::Cpu,
            "data" => Resource::Data,
            "fsize" => Resource::Fsize,
            "memlock" => Resource::Memlock,
            "msgqueue" => Resource::Msgqueue,
            "nice" => Resource::Nice,
            "nofile" => Resource::Nofile,
            "nproc" => Resource::Nproc,
            "rss" => Resource::Rss,
            "rtprio" => Resource::Rtprio,
            "rttime" => Resource::Rttime,
            "sigpending" => Resource::Sigpending,
            "stack" => Resource::Stack,
            _ => return Err(bad()),
        };
        let value = match values.split(':').next().unwrap_or_default() {
            "-1" | "unlimited" => LimitValue::Unlimited,
            number => LimitValue::At(number.parse().map_err(|_| bad())?),
        };
        limits.soft.insert(resource, value);
        limits.required.push(resource);
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_the_nodes() {
        for good in ["8888:8888", "80:80/tcp"] {
            assert!(same_port(good).is_ok(), "{good}");
        }
        for bad in ["8080:80", "80", "127.0.0.1:80:80"] {
            assert!(same_port(bad).is_err(), "{bad}");
        }
    }
}
