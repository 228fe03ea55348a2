//! Every source of images in both forms of layers, for root and for ordinary users: a container sees the file tree that umoci unpacks
//! of the same image, to its times, links and attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::engine_stores::{Daemon, Podman};
use berth_tests::layout::{self, Layer};
use berth_tests::{Cmd, Registry, Sandbox, Who, each_user, images, machine, sandbox::wait, sif};
use serde_json::Value;

/// Tells of everything below the working directory. The container's own file systems are left out. b2sum, because a file of the image is
/// a hole of 96 MiB, for which sha256sum takes three times as long.
const LOOK: &str = r"look() { find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev \) -prune -o $1 ; }
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev \) -prune -o -printf '%P\0%y\0%m\0%s\0%T@\0%n\0%D:%i\0%l\0%U:%G\0'
printf 'PART\0'
look '-type f -size +0 -print0' | xargs -0 b2sum -z
printf 'PART\0'
look -print0 | xargs -0 getfattr -h -d -m - -e hex --absolute-names";

/// A file as a tree has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    kind: String,
    mode: String,
    size: u64,
    /// Seconds, and what stands behind the point.
    time: (i64, String),
    links: u64,
    /// Other names in the tree, this one among them, where there are any.
    names: BTreeSet<String>,
    target: String,
    sum: String,
    attributes: Vec<String>,
}

type Tree = BTreeMap<String, Seen>;

/// Bytes as text that tells any two apart.
fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// What was told, and whose everything is.
fn tree(told: &[u8]) -> (Tree, BTreeMap<String, String>) {
    let parts: Vec<&[u8]> = told.split(|b| *b == 0).collect();
    let mut parts = parts.split(|word| *word == b"PART");
    let mut next = || parts.next().expect("a part of what was told is missing");
    let (files, sums, attributes) = (next(), next(), next());
    let (mut tree, mut owners) = (Tree::new(), BTreeMap::new());
    let mut inodes = BTreeMap::<String, BTreeSet<String>>::new();
    for words in files.chunks_exact(9) {
        let words: Vec<String> = words.iter().map(|word| text(word)).collect();
        let [name, kind, mode, size, time, links, inode, target, owner] = words.try_into().unwrap();
        let (seconds, fraction) = time.split_once('.').unwrap();
        let mut seen = Seen {
            mode,
            time: (seconds.parse().unwrap(), fraction.trim_end_matches('0').to_string()),
            target,
            ..Seen::default()
        };
        // How large a directory is and how many links it has is each file system's own affair.
        if kind != "d" {
            (seen.size, seen.links) = (size.parse().unwrap(), links.parse().unwrap());
            inodes.entry(inode).or_default().insert(name.clone());
        }
        seen.kind = kind;
        owners.insert(name.clone(), owner);
        tree.insert(name, seen);
    }
    for names in inodes.into_values().filter(|names| names.len() > 1) {
        for name in &names {
            tree.get_mut(name).unwrap().names = names.clone();
        }
    }
    for line in sums.iter().filter(|line| !line.is_empty()) {
        let line = text(line);
        let (sum, name) = line.split_once("  ./").unwrap();
        tree.get_mut(name).unwrap_or_else(|| panic!("{name} has a sum and is nowhere")).sum = sum.to_string();
    }
    // getfattr writes names with escapes of its own, in octal.
    for block in text(&attributes.concat()).split("# file: ./").skip(1) {
        let mut lines = block.split("\\n").filter(|line| !line.is_empty()).map(str::to_string);
        let name = lines.next().unwrap();
        tree.get_mut(&name).unwrap_or_else(|| panic!("{name} has attributes and is nowhere")).attributes =
            lines.collect();
    }
    (tree, owners)
}

/// What carries an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Archives of layers.
    Layers,
    /// The file tree that umoci unpacked, in one squashfs.
    Squashfs,
    /// The file tree of a container, in the squashfs that `berth image export` makes of it.
    Exported,
    /// The directory itself in which umoci left the file tree.
    Directory,
}

/// What a container sees otherwise than umoci leaves it, and why.
struct Difference {
    of: &'static [Kind],
    reason: &'static str,
    /// Makes of what umoci left what a container sees, which is there, too, for what is not looked at; fails where they do not differ so.
    change: fn(&mut Tree, &Tree),
}

/// What an exported file has of its own, as enroot keeps it: a script that starts the image, and its environment.
const ADDED: [(&str, &str); 2] = [("etc/rc", "755"), ("etc/environment", "644")];

const DIFFERENCES: [Difference; 8] = [
    Difference {
        of: &[Kind::Layers, Kind::Exported],
        reason: "for an ordinary user, umoci writes owners down in an attribute of its own",
        change: |tree, _| {
            tree.values_mut()
                .for_each(|seen| seen.attributes.retain(|line| !line.starts_with("user.rootlesscontainers=")))
        },
    },
    Difference {
        of: &[Kind::Layers, Kind::Exported],
        reason: "umoci leaves out attributes without a value, which Linux allows and the archive has",
        change: |tree, _| {
            let empty = "user.empty=0x".to_string();
            let attributes = &mut tree.get_mut("odd/attributes").unwrap().attributes;
            assert!(!attributes.contains(&empty), "umoci keeps it");
            attributes.push(empty);
            attributes.sort();
        },
    },
    Difference {
        of: &[Kind::Layers],
        reason: "overlayfs tells of a file's links what its layer has, also where a layer above hides one of the names",
        change: |tree, _| tree.get_mut("odd/hard/away/symlink").unwrap().links = 2,
    },
    Difference {
        of: &[Kind::Squashfs, Kind::Exported],
        reason: "squashfs keeps times as whole seconds",
        change: |tree, _| {
            assert!(tree.values().any(|seen| !seen.time.1.is_empty()), "all are whole");
            tree.values_mut().for_each(|seen| seen.time.1.clear());
        },
    },
    Difference {
        of: &[Kind::Squashfs],
        reason: "squashfs keeps seconds in 32 bits, which it (and the kernel) reads without a sign: 1969 becomes 2106",
        change: |tree, _| {
            assert!(tree.values().any(|seen| seen.time.0 < 0), "no file is from before 1970");
            tree.values_mut().for_each(|seen| seen.time.0 = seen.time.0.rem_euclid(1 << 32));
        },
    },
    Difference {
        of: &[Kind::Exported],
        reason: "squashfs has no time before 1970; what is older is exported as of its beginning, which is nearer than 2106",
        change: |tree, _| {
            assert!(tree.values().any(|seen| seen.time.0 < 0), "no file is from before 1970");
            tree.values_mut().for_each(|seen| seen.time.0 = seen.time.0.max(0));
        },
    },
    Difference {
        of: &[Kind::Directory],
        reason: "a directory keeps its owners, and root in a container reads no file that an owner who is not there keeps to themselves",
        change: |tree, ours| {
            // For an ordinary user umoci made all of it theirs.
            if ours["odd/kept"].sum.is_empty() {
                let kept = tree.get_mut("odd/kept").unwrap();
                assert!(
                    kept.mode == "640" && !kept.sum.is_empty(),
                    "{kept:?} can be read by nobody, or by all"
                );
                kept.sum.clear();
            }
        },
    },
    Difference {
        of: &[Kind::Exported],
        reason: "an export has what enroot starts an image by, in etc/rc and etc/environment",
        change: |tree, ours| {
            for (name, mode) in ADDED {
                assert!(!tree.contains_key(name), "the image has {name}");
                let added = ours.get(name).unwrap_or_else(|| panic!("{name} is missing"));
                let plain = Seen {
                    kind: "f".to_string(),
                    mode: mode.to_string(),
                    links: 1,
                    // What is in it goes by the configuration, and is judged where it is written.
                    size: added.size,
                    sum: added.sum.clone(),
                    ..Seen::default()
                };
                tree.insert(name.to_string(), plain);
            }
        },
    },
];

/// What a container of such a source has to see, where umoci left this tree and the container saw `ours`.
fn expected(of: Kind, reference: &Tree, ours: &Tree) -> Tree {
    let mut expected = reference.clone();
    let known = DIFFERENCES.iter().filter(|difference| difference.of.contains(&of));
    known.for_each(|difference| (difference.change)(&mut expected, ours));
    expected
}

/// Leaves out of both what the container brings: its mounts, its user's home directory, directories on the way to them that the
/// image does not have, and the times of those that it has.
fn without_own(places: &str, ours: &mut Tree, reference: &mut Tree) {
    ours.get_mut("").unwrap().time = Default::default();
    reference.get_mut("").unwrap().time = Default::default();
    for mount in places.lines().map(|line| line.trim_start_matches('/')).filter(|mount| !mount.is_empty()) {
        ours.remove(mount);
        reference.remove(mount);
        for parent in Path::new(mount).ancestors().skip(1).map(|parent| parent.display().to_string()) {
            match reference.get_mut(&parent) {
                Some(known) => {
                    known.time = Default::default();
                    ours.get_mut(&parent).unwrap_or_else(|| panic!("{parent} is missing")).time =
                        Default::default();
                }
                None => drop(ours.remove(&parent)),
            }
        }
    }
}

fn compare(source: &str, ours: &Tree, reference: &Tree) {
    let mut wrong = Vec::new();
    for name in ours.keys().chain(reference.keys()).collect::<BTreeSet<_>>() {
        match (ours.get(name), reference.get(name)) {
            (Some(ours), Some(other)) if ours != other => {
                wrong.push(format!("{name}:\n  {ours:?}, and not\n  {other:?}"))
            }
            (Some(_), None) => wrong.push(format!("{name} is there, and should not be")),
            (None, Some(_)) => wrong.push(format!("{name} is missing")),
            _ => {}
        }
    }
    let count = wrong.len();
    wrong.truncate(20);
    let known: Vec<&str> = DIFFERENCES.iter().map(|difference| difference.reason).collect();
    assert!(
        count == 0,
        "{source}: {count} files are not what umoci unpacks:\n{}\nknown differences: {}",
        wrong.join("\n"),
        known.join("; ")
    );
}

/// Makes of `docker.tar` what crane, kaniko and Bazel write: its layers are compressed.
const COMPRESS: &str = r#"set -e
mkdir crane; tar -xf docker.tar -C crane; cd crane
gzip -1n *.tar; sed -i 's/\.tar"/.tar.gz"/g' manifest.json
tar -cf ../docker-gzip.tar *.json *.tar.gz"#;

/// The types that the manifest of a registry's image has: its own, and those of its layers.
fn types(sandbox: &Sandbox, image: &str) -> BTreeSet<String> {
    let image = format!("docker://{image}");
    let inspect = sandbox.cmd("skopeo").args(["inspect", "--raw", "--tls-verify=false", &image]);
    // Where it looks for logins.
    let told = inspect.env("XDG_RUNTIME_DIR", sandbox.work()).ok();
    let manifest: Value = serde_json::from_slice(&told.stdout).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let described = std::iter::once(&manifest).chain(layers);
    described.map(|part| part["mediaType"].as_str().unwrap().to_string()).collect()
}

/// Pushes one image with layers that are compressed in two ways and with such as are not, and by a manifest of Docker's; gives their
/// names.
fn pushed(sandbox: &Sandbox, registry: &Registry) -> [String; 4] {
    let push = |layout: &Path, name: &str, options: &[&str], expected: [&str; 2]| {
        let image = registry.push(layout, &format!("odd:{name}"), options);
        let expected = expected.map(|kind| format!("application/vnd.{kind}"));
        assert_eq!(types(sandbox, &image), BTreeSet::from(expected), "{image}");
        image
    };
    let (odd, work) = (images::odd(), sandbox.work());
    let (oci, docker) = ("oci.image.manifest.v1+json", "docker.distribution.manifest.v2+json");
    [
        push(&odd, "gzip", &[], [oci, "oci.image.layer.v1.tar+gzip"]),
        // Else skopeo makes gzip of them, as of those that are not compressed.
        push(&work.join("zstd"), "zstd", &["--preserve-digests"], [oci, "oci.image.layer.v1.tar+zstd"]),
        push(&work.join("open"), "plain", &["--preserve-digests"], [oci, "oci.image.layer.v1.tar"]),
        push(&odd, "docker", &["--format", "v2s2"], [docker, "docker.image.rootfs.diff.tar.gzip"]),
    ]
}

/// Makes every kind of source of one image in the working directory; gives their names.
fn sources(sandbox: &Sandbox, registry: &Registry) -> Vec<(String, Kind)> {
    let odd = images::odd();
    let copy = |options: &[&str], from: String, to: &str| {
        let words = [&["--insecure-policy", "copy", "--quiet"], options, &[from.as_str(), to]].concat();
        sandbox.cmd("skopeo").args(words).limit(120).ok();
    };
    let layout = format!("oci:{}:latest", odd.display());
    copy(&["--dest-decompress"], layout.clone(), "dir:decompressed");
    copy(&["--dest-oci-accept-uncompressed-layers"], "dir:decompressed".to_string(), "oci:open:1");
    copy(&[], layout.clone(), "docker-archive:docker.tar:odd:1");
    sandbox.cmd("sh").args(["-c", COMPRESS]).limit(120).ok();
    let docker = || "docker-archive:docker.tar".to_string();
    // Made of a docker-archive, it says of layers as they are that gzip made them: skopeo of Debian 12 does so.
    copy(&["--dest-oci-accept-uncompressed-layers"], docker(), "oci:plain:1");
    copy(&["--dest-compress-format", "zstd"], docker(), "oci:zstd:1");
    copy(&["--dest-oci-accept-uncompressed-layers"], docker(), "oci-archive:plain.tar:1");
    copy(&[], layout, "oci-archive:gzip.tar:1");
    let work = sandbox.work();
    let mut sources = Vec::from(pushed(sandbox, registry).map(|image| (image, Kind::Layers)));
    sources.push((odd.display().to_string(), Kind::Layers));
    let mut here = |name: &str, kind| {
        // Whoever has a job reads it.
        sandbox.cmd("chmod").args(["-R", "a+rX", name]).ok();
        sources.push((format!("./{name}"), kind));
    };
    for name in ["plain", "plain.tar", "gzip.tar", "docker.tar", "docker-gzip.tar"] {
        here(name, Kind::Layers);
    }
    for options in
        ["gzip -Xcompression-level 1", "lzo -Xalgorithm lzo1x_1", "xz", "zstd -Xcompression-level 1"]
    {
        let mut words = options.split(' ').peekable();
        let name = format!("{}.sqsh", words.peek().unwrap());
        // xz takes most of the test's time, and the same tree gives the same file.
        let owners = if sandbox.who().is_root() { "root" } else { "user" };
        let of = odd.file_name().unwrap().display().to_string();
        let kept = machine::cache().join("images").join(format!("{of}-{owners}-{name}"));
        if words.peek() == Some(&"xz") && kept.exists() {
            std::fs::copy(&kept, work.join(&name)).unwrap();
            machine::give(&work.join(&name), sandbox.who());
        } else {
            let fixed = ["bundle/rootfs", &name, "-quiet", "-no-progress", "-comp"];
            sandbox.cmd("mksquashfs").args(fixed.into_iter().chain(words.clone())).limit(120).ok();
        }
        if words.next() == Some("xz") && !kept.exists() {
            let partial = tempfile::NamedTempFile::new_in(kept.parent().unwrap()).unwrap();
            std::fs::copy(work.join(&name), partial.path()).unwrap();
            partial.persist(&kept).unwrap();
        }
        here(&name, Kind::Squashfs);
    }
    let architecture = if cfg!(target_arch = "aarch64") { "4" } else { "2" };
    sandbox.cmd("siftool").args(["new", "image.sif"]).ok();
    let partition =
        ["--datatype", "4", "--parttype", "2", "--partfs", "1", "--partarch", architecture, "--groupid", "1"];
    sandbox.cmd("siftool").args(["add", "image.sif", "zstd.sqsh"]).args(partition).ok();
    here("image.sif", Kind::Squashfs);
    sif::around(&odd, &work.join("layers.sif"));
    sif::squashed(&work.join("zstd.sqsh"), &work.join("squashed.sif"));
    for (name, kind) in [("layers.sif", Kind::Layers), ("squashed.sif", Kind::Squashfs)] {
        machine::give(&work.join(name), sandbox.who());
        // It is one to the format's own tool.
        sandbox.cmd("siftool").args(["list", name]).ok();
        here(name, kind);
    }
    // What we write ourselves. The archive is an OCI layout, too: it is read as that where nobody says otherwise.
    let own = [("own.sqsh", Kind::Exported), ("own.oci", Kind::Layers), ("own.tar", Kind::Layers)];
    let whole = odd.display().to_string();
    let berth = |words: &[&str]| drop(sandbox.cmd("berth").arg("image").args(words).limit(180).ok());
    berth(&["pull", "--quiet", &whole]);
    for (name, kind) in own {
        berth(&["export", "--quiet", &whole, name]);
        here(name, kind);
    }
    remove(sandbox, &whole);
    if let Some((archive, _)) = sources.last_mut() {
        *archive = format!("docker-archive:{}", work.join("own.tar").display());
    }
    // As umoci left it: nobody else gets rights on it.
    sources.push(("./bundle/rootfs".to_string(), Kind::Directory));
    sources
}

/// The forms that the layers of an image have in the store.
fn forms(sandbox: &Sandbox, image: &str) -> BTreeSet<String> {
    let shown: Value =
        serde_json::from_str(&sandbox.cmd("berth").args(["image", "inspect", image]).ok().text()).unwrap();
    shown["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["form"].as_str().unwrap().to_string())
        .collect()
}

/// What umoci unpacks of the image, in `bundle` of the working directory.
fn reference(sandbox: &Sandbox, who: &Who, layout: &Path) -> Tree {
    let rootless: &[&str] = if who.is_root() { &[] } else { &["--rootless"] };
    let image = format!("{}:latest", layout.display());
    let unpack = [&["--log=error", "unpack"], rootless, &["--image", &image, "bundle"]].concat();
    sandbox.cmd("umoci").args(unpack).limit(120).ok();
    let rootfs = sandbox.work().join("bundle/rootfs");
    let told = sandbox.cmd("sh").dir(&rootfs).args(["-c", LOOK]).limit(120).ok();
    let (reference, _) = tree(&told.stdout);
    assert!(reference.len() > 2500 && reference["odd/suid"].mode == "4755", "{} files", reference.len());
    reference
}

/// Compares what somebody's container of the source sees. `srun` is completed by what there is to run.
fn judge(
    sandbox: &Sandbox,
    who: &Who,
    (source, kind): (&str, Kind),
    form: &str,
    reference: &Tree,
    srun: Cmd,
) {
    let script = format!("{{ cut -d' ' -f5 /proc/self/mountinfo; echo $HOME; }} >&2; cd / && {LOOK}");
    let seen = srun.args([&format!("--container-image={source}"), "sh", "-c", &script]).limit(180).ok();
    let (mut ours, owners) = tree(&seen.stdout);
    let mut expected = expected(kind, reference, &ours);
    without_own(&seen.err(), &mut ours, &mut expected);
    let what = format!("{source}, for {}", who.name);
    compare(&what, &ours, &expected);
    // No store keeps owners: all is whose the container is, but for what that brings itself.
    let owners: BTreeSet<String> =
        owners.into_iter().filter(|(name, _)| ours.contains_key(name)).map(|(_, owner)| owner).collect();
    let mut known = BTreeSet::from([format!("{}:{}", who.uid, who.gid)]);
    if kind == Kind::Directory && who.is_root() {
        // A directory does, and others than its user are nobody in a container.
        known.insert("65534:65534".to_string());
    }
    assert_eq!(owners, known, "{what}");
    if kind == Kind::Directory {
        return;
    }
    assert_eq!(forms(sandbox, source), BTreeSet::from([form.to_string()]), "{what}");
}

/// Removes an image: else the next source finds its layers there.
fn remove(sandbox: &Sandbox, source: &str) {
    let remove = || sandbox.cmd("berth").args(["image", "rm", source]).run();
    assert!(wait(30, || (remove().rc == 0).then_some(())).is_some(), "{source} stays: {}", remove());
}

/// Whose jobs run in somebody's cluster: in root's an ordinary user's, too. In one form of layers it is the user who brings an image, in the
/// other root.
fn jobs(who: &Who, form: &str) -> Vec<Who> {
    match (who.is_root(), form) {
        (false, _) => vec![who.clone()],
        (true, "erofs") => vec![Who::user(), who.clone()],
        (true, _) => vec![who.clone(), Who::user()],
    }
}

fn matrix(who: Who, form: &str) {
    let registry = Registry::open();
    let config = format!("{}layer_form = \"{form}\"\n", registry.without_tls());
    let sandbox = Sandbox::with_config(who.clone(), &config);
    let reference = reference(&sandbox, &who, &images::odd());
    for (source, kind) in sources(&sandbox, &registry) {
        // A directory is run as it is, by whose it is, and no image is made of it.
        let whose = if kind == Kind::Directory { vec![who.clone()] } else { jobs(&who, form) };
        for job in whose {
            judge(&sandbox, &job, (&source, kind), form, &reference, sandbox.cmd_as(&job, "srun"));
        }
        if kind != Kind::Directory {
            remove(&sandbox, &source);
        }
    }
}

/// The stores of podman and, as root, of docker's daemon.
fn engines(who: Who, form: &str) {
    let sandbox = Sandbox::with_config(who.clone(), &format!("[images]\nlayer_form = \"{form}\"\n"));
    let image = images::odd_whole();
    let reference = reference(&sandbox, &who, &image);
    // An ordinary user's storage takes long to fill, and in directories the user's own cluster shows what is in it.
    let podmans = if form == "erofs" { jobs(&who, form) } else { vec![who.clone()] };
    for job in podmans {
        let podman = Podman::empty(&sandbox, job.clone());
        podman.load(&image);
        podman.let_go();
        let source = "podman://localhost/box:1";
        let srun = podman.cmd("srun", &[]);
        judge(&sandbox, &job, (source, Kind::Layers), form, &reference, srun);
        remove(&sandbox, source);
    }
    if !who.is_root() {
        return;
    }
    let daemon = Daemon::start(&sandbox);
    let from = format!("oci:{}:latest", image.display());
    let words = ["--insecure-policy", "copy", "--quiet", &from, "docker-archive:box.tar:box:1"];
    sandbox.cmd("skopeo").args(words).env("TMPDIR", sandbox.work()).limit(120).ok();
    daemon.docker(&["load", "--input", "box.tar"]).ok();
    // Its socket is the user's, as it is that of group docker elsewhere.
    machine::give(&sandbox.work().join("docker.sock"), &Who::user());
    let source = "dockerd://box:1";
    for job in jobs(&who, form) {
        let srun = sandbox.cmd_as(&job, "srun").env("DOCKER_HOST", daemon.host());
        judge(&sandbox, &job, (source, Kind::Layers), form, &reference, srun);
    }
    remove(&sandbox, source);
}

/// The image of the matrix below so many layers that each change it: files that come and go, directories that hide what is below, links
/// among them, and one that takes away again what the lowest layers have.
fn tall(directory: &Path, layers: usize) {
    let all = (0..layers).map(|n| {
        let text = n.to_string();
        let layer =
            Layer::default().directory("tall").file("tall/same", 0o600 + (n % 64) as u32, text.as_bytes());
        let layer = layer.directory("tall/by").file(&format!("tall/by/{n}"), 0o644, text.as_bytes());
        let layer = layer.symlink(&format!("tall/link-{}", n % 7), &text);
        let layer =
            if n % 3 == 2 { layer.file(&format!("tall/by/.wh.{}", n - 2), 0o644, b"") } else { layer };
        match n % 50 {
            10 => layer.directory("tall/hides").file("tall/hides/old", 0o640, text.as_bytes()),
            20 => layer
                .directory("tall/hides")
                .file("tall/hides/.wh..wh..opq", 0o644, b"")
                .fifo("tall/hides/pipe"),
            30 => layer.file("tall/.wh.hides", 0o644, b""),
            40 => layer.file("tall/becomes", 0o644, b"a file"),
            41 => layer.directory("tall/becomes").file("tall/becomes/inside", 0o400, b"a directory"),
            // Of names that are hidden later overlayfs still tells: see the differences.
            5 => layer
                .file(&format!("tall/one-{n}"), 0o644, b"x")
                .hardlink(&format!("tall/two-{n}"), &format!("tall/one-{n}")),
            _ => layer,
        }
    });
    layout::above(&images::odd(), directory, all.collect());
}

/// Of more layers than are mounted at once the lowest are made into one: that changes nothing of what a container sees.
fn taller_than_a_mount(who: Who, form: &str) {
    let sandbox = Sandbox::with_config(who.clone(), &format!("[images]\nlayer_form = \"{form}\"\n"));
    let image = sandbox.work().join("tall");
    tall(&image, 1010);
    let unpack = reference(&sandbox, &who, &image);
    assert!(unpack.contains_key("tall/by/1009") && !unpack.contains_key("tall/by/0"));
    let source = image.display().to_string();
    let script = format!("{{ cut -d' ' -f5 /proc/self/mountinfo; echo $HOME; }} >&2; cd / && {LOOK}");
    let container = format!("--container-image={source}");
    let seen = sandbox.srun([container.as_str(), "sh", "-c", &script]).limit(280).ok();
    let (mut ours, _) = tree(&seen.stdout);
    let mut expected = expected(Kind::Layers, &unpack, &ours);
    // Its layer and the one that hides the other name are one now.
    expected.get_mut("odd/hard/away/symlink").unwrap().links = 1;
    if form == "erofs" {
        // overlayfs gives files of so many filesystems numbers that are not theirs alone.
        ours.values_mut().chain(expected.values_mut()).for_each(|seen| seen.names.clear());
    }
    without_own(&seen.err(), &mut ours, &mut expected);
    compare(&source, &ours, &expected);
    let shown: Value =
        serde_json::from_str(&sandbox.cmd("berth").args(["image", "inspect", &source]).ok().text()).unwrap();
    let (all, merged) = (shown["layers"].as_array().unwrap().len(), shown["merged_layers"].as_u64().unwrap());
    assert!(all > 1010 && merged as usize > all - 999, "{all} layers, of which {merged} are one");
    sandbox.cmd("berth").args(["image", "verify", &source]).limit(120).ok();
    let store = sandbox.state().join("images/layers");
    let one = || {
        std::fs::read_dir(&store)
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("merged-"))
            .count()
    };
    assert_eq!(one(), 1);
    let remove = || sandbox.cmd("berth").args(["image", "rm", &source]).limit(120).run();
    assert!(wait(60, || (remove().rc == 0).then_some(())).is_some(), "{}", remove());
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
}

#[test]
fn an_image_of_more_layers_than_are_mounted_at_once_is_what_umoci_unpacks_as_an_ordinary_user() {
    taller_than_a_mount(Who::user(), "directory");
}

#[test]
fn an_image_of_more_layers_than_are_mounted_at_once_is_what_umoci_unpacks_as_an_image_as_root() {
    taller_than_a_mount(Who::root(), "erofs");
}

each_user! {
    fn every_source_gives_the_tree_that_umoci_unpacks(who) {
        matrix(who, "directory");
    }
}

each_user! {
    fn engines_give_the_tree_that_umoci_unpacks(who) {
        engines(who, "directory");
    }
}

#[test]
fn engines_give_the_tree_that_umoci_unpacks_as_an_image_as_root() {
    engines(Who::root(), "erofs");
}

#[test]
fn every_source_gives_the_tree_that_umoci_unpacks_as_an_image_as_root() {
    matrix(Who::root(), "erofs");
}
