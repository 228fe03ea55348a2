//! The container options, with Pyxis's meaning; none of them is ever ignored.

use crate::bytes::ByteStr;
use crate::options::layer::parse_layer;
use crate::options::mounts::parse_mounts;
use crate::options::named::{parse_name, parse_scope, parse_unshare};
use crate::options::resolve::{Bad, Given};
use crate::options::row::{Commands, OptionRow, row};

/// Sets a pair of opposite options; both from the same source contradict each other.
fn either(slot: &mut Option<bool>, given: &Given<'_>, on: bool, names: [&str; 2]) -> Result<(), Bad> {
    if !given.first && *slot == Some(!on) {
        let [one, other] = names;
        return Err(Bad::Own(vec![
            format!("both --{one} and --{other} were specified"),
            "leave one of them out".to_string(),
        ]));
    }
    *slot = Some(on);
    Ok(())
}

/// A value that may be given twice only if it is the same.
fn once<T: PartialEq>(slot: &mut Option<T>, given: &Given<'_>, value: T) -> Result<(), Bad> {
    let long = given.row.long;
    if given.bytes().is_empty() {
        return Err(Bad::Own(vec![format!("--{long}: argument required")]));
    }
    if !given.first && slot.as_ref().is_some_and(|there| *there != value) {
        return Err(Bad::Own(vec![
            format!("--{long} specified multiple times"),
            "give one value".to_string(),
        ]));
    }
    *slot = Some(value);
    Ok(())
}

const HOME: [&str; 2] = ["container-mount-home", "no-container-mount-home"];
const ROOT: [&str; 2] = ["container-remap-root", "no-container-remap-root"];
const SUBIDS: [&str; 2] = ["container-subids", "no-container-subids"];
const ENTRY: [&str; 2] = ["container-entrypoint", "no-container-entrypoint"];
const WRITE: [&str; 2] = ["container-writable", "container-readonly"];

pub(super) static ROWS: &[OptionRow] = &[
    row("container-image", Commands::ABR)
        .takes("IMAGE")
        .env(&["PYXIS_CONTAINER_IMAGE"])
        .help(
            "Image to run in: debian:12, registry.example#team/name:tag, name@sha256:..., docker://..., \
             oci:/layout[:tag], oci-archive:/file.tar, docker-archive:/file.tar, podman://NAME, dockerd://NAME, a \
             root directory (/path), or host: for the node's own filesystem. It is resolved when the job is submitted. Of a job, it is also its steps' image.",
        )
        .set(|o, g| once(&mut o.container.image, g, g.text()?.to_string())),
    row("container-mounts", Commands::ABR)
        .takes("SOURCE[:TARGET[:FLAGS]],...")
        .env(&["PYXIS_CONTAINER_MOUNTS"])
        .help(
            "Directories and files of the node to show in the container; the option may be repeated. SOURCE alone \
             is its own target; tmpfs:TARGET makes an empty one, umount:TARGET takes one away. FLAGS are joined \
             by +, such as ro+noexec; of a path they are ro, noexec, dev, bind, rslave and nofail, of tmpfs also size=1g \
             and mode=1777. A source that does not exist is an error, unless nofail.",
        )
        .set(|o, g| {
            if g.first {
                o.container.mounts.clear();
            }
            for mount in parse_mounts(g.bytes()).map_err(|e| Bad::Own(vec![e.to_string()]))? {
                if !o.container.mounts.contains(&mount) {
                    o.container.mounts.push(mount);
                }
            }
            Ok(())
        }),
    row("container-workdir", Commands::ABR)
        .takes("DIRECTORY")
        .env(&["PYXIS_CONTAINER_WORKDIR"])
        .help("Working directory in the container, an absolute path. By default the image's.")
        .set(|o, g| {
            if !g.bytes().is_empty() && !g.bytes().starts_with(b"/") {
                let shown = ByteStr::from(g.bytes());
                return Err(Bad::Own(vec![format!(
                    "--container-workdir: '{}' is not an absolute path",
                    shown.display()
                )]));
            }
            once(&mut o.container.workdir, g, ByteStr::from(g.bytes()))
        }),
    row("container-mount-home", Commands::ABR)
        .switch()
        .env(&["PYXIS_CONTAINER_MOUNT_HOME"])
        .help("Mount the home directory into the container.")
        .set(|o, g| either(&mut o.container.mount_home, g, g.is_on(), HOME)),
    row("no-container-mount-home", Commands::ABR)
        .key("container-mount-home")
        .help("Do not mount the home directory, whatever the site's default.")
        .set(|o, g| either(&mut o.container.mount_home, g, false, HOME)),
    row("container-remap-root", Commands::ABR)
        .switch()
        .env(&["PYXIS_CONTAINER_REMAP_ROOT"])
        .help("Be root inside the container: uid 0 there is the user outside, with no more rights on files than the user's own.")
        .set(|o, g| either(&mut o.container.remap_root, g, g.is_on(), ROOT)),
    row("no-container-remap-root", Commands::ABR)
        .key("container-remap-root")
        .help("Keep the user's own uid inside, whatever the site's default.")
        .set(|o, g| either(&mut o.container.remap_root, g, false, ROOT)),
    row("container-subids", Commands::ABR)
        .switch()
        .help(
            "Be root inside the container, as with --container-remap-root, with 65536 ids that are real there: chown, su and \
             daemons that change to a user of their own work. The other ids are of the ranges that /etc/subuid and /etc/subgid \
             give to the user. In a cluster that an ordinary user started, it must be given when the job is submitted.",
        )
        .set(|o, g| either(&mut o.container.subids, g, g.is_on(), SUBIDS)),
    row("no-container-subids", Commands::ABR)
        .key("container-subids")
        .help("Do without the ranges of ids in a step of a job that has them.")
        .set(|o, g| either(&mut o.container.subids, g, false, SUBIDS)),
    row("container-writable", Commands::ABR)
        .switch()
        .env(&["PYXIS_CONTAINER_WRITABLE"])
        .help("Let the container's root directory be written (the default); what is written goes with the step.")
        .set(|o, g| either(&mut o.container.writable, g, g.is_on(), WRITE)),
    row("container-readonly", Commands::ABR)
        .key("container-writable")
        .switch()
        .env(&["PYXIS_CONTAINER_READONLY"])
        .help("Mount the container's root directory read-only.")
        .set(|o, g| either(&mut o.container.writable, g, !g.is_on(), WRITE)),
    row("container-writable-layer", Commands::ABR)
        .takes("tmpfs|disk[:SIZE]")
        .help(
            "What holds what the container writes to its root: memory that is charged to the job (tmpfs, the default), or \
             the node's disk. SIZE bounds it, in MiB or with K, M, G or T: a program that writes more gets 'No space left on \
             device'. A bound on disk needs a cluster that root started.",
        )
        .set(|o, g| {
            let text = g.text()?;
            let layer = parse_layer(text).map_err(|why| {
                Bad::Own(vec![
                    format!("--container-writable-layer: '{text}': {why}"),
                    "write tmpfs, disk, tmpfs:SIZE or disk:SIZE, such as tmpfs:2G".to_string(),
                ])
            })?;
            once(&mut o.container.layer, g, layer)
        }),
    row("container-name", Commands::ABR)
        .takes("NAME[:auto|create|exec|no_exec]")
        .env(&["PYXIS_CONTAINER_NAME"])
        .help(
            "Keep the container's filesystem under a name. auto (the default): join the container if it runs in the job, \
             start it if it is there, else make it of --container-image; create: one that is there is an error; exec: it \
             must run; no_exec: one that runs is an error. What is written to it stays, as long as --container-scope says.",
        )
        .set(|o, g| {
            let named = parse_name(g.text()?).map_err(Bad::Own)?;
            once(&mut o.container.name, g, named)
        }),
    row("container-scope", Commands::ABR)
        .takes("job|user")
        .choices(&["job", "user"])
        .help(
            "For whom --container-name is kept on the node: job (the default: it goes with the job), or user (your later \
             jobs there find it; see 'berth container').",
        )
        .set(|o, g| {
            let scope = parse_scope(g.text()?).map_err(Bad::Own)?;
            once(&mut o.container.scope, g, scope)
        }),
    row("container-save", Commands::BR)
        .takes("PATH")
        .env(&["PYXIS_CONTAINER_SAVE"])
        .help(
            "When the tasks have ended, save the container's filesystem as an image: to an archive that docker and OCI tools \
             read (PATH ends in .tar), an OCI layout directory (.oci, or a slash) or squashfs (everything else). A relative \
             PATH is below the working directory. What is mounted is left out; of several nodes the first one saves.",
        )
        .set(|o, g| once(&mut o.container.save, g, ByteStr::from(g.bytes()))),
    row("no-container-login", Commands::ABR)
        .switch()
        .env(&["BERTH_NO_CONTAINER_LOGIN"])
        .help(
            "Keep the registry's login here: it does not go with the job, and the node fetches the image with the logins in your \
             files there.",
        )
        .set(|o, g| {
            o.container.no_login = g.is_on();
            Ok(())
        }),
    row("container-unshare", Commands::ABR)
        .takes("net|ipc|uts,...")
        .env(&["PYXIS_CONTAINER_UNSHARE"])
        .help(
            "Namespaces of the container's own: net (only the loopback device), ipc (with /dev/shm) and uts (host name). \
             By default it has the node's network and host name, and its job's ipc.",
        )
        .set(|o, g| {
            let unshare = parse_unshare(g.text()?).map_err(Bad::Own)?;
            if g.first {
                o.container.unshare.clear();
            }
            o.container.unshare.extend(unshare);
            o.container.unshare.sort();
            o.container.unshare.dedup();
            Ok(())
        }),
    row("container-env", Commands::ABR)
        .takes("NAME,...")
        .env(&["PYXIS_CONTAINER_ENV"])
        .help("Environment variables whose value outside wins over the image's; the option may be repeated.")
        .set(|o, g| {
            if g.first {
                o.container.env.clear();
            }
            for name in g.text()?.split(',') {
                if name.is_empty() || name.contains(['=', '\0']) {
                    return Err(Bad::Own(vec![
                        format!("--container-env: invalid format: {}", g.text()?),
                        "write names of variables separated by commas, without values".to_string(),
                    ]));
                }
                if !o.container.env.iter().any(|n| n == name) {
                    o.container.env.push(name.to_string());
                }
            }
            Ok(())
        }),
    row("container-entrypoint", Commands::ABR)
        .switch()
        .env(&["PYXIS_CONTAINER_ENTRYPOINT"])
        .help("Run the image's entrypoint, with the command as its arguments.")
        .set(|o, g| either(&mut o.container.entrypoint, g, g.is_on(), ENTRY)),
    row("no-container-entrypoint", Commands::ABR)
        .key("container-entrypoint")
        .help("Do not run the image's entrypoint, whatever the site's default.")
        .set(|o, g| either(&mut o.container.entrypoint, g, false, ENTRY)),
];
