//! The node's fast networks: which devices of InfiniBand, RoCE and EFA there are, by what the kernel shows of them, and what a
//! step gets of them. They are not allocated; every look is fresh, because links go up and down.

use berth_model::ByteStr;
use berth_model::fabric::{FabricChoice, FabricDevice, FabricKind};
use berth_model::launch::StepLaunch;
use berth_model::spec::ResolvedImage;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Amazon's, as PCI knows it.
const AMAZON: &str = "0x1d0f";
/// Needed beside the devices' own files: connections are made by it.
const CONNECTIONS: &str = "infiniband/rdma_cm";

/// A device and whether a port of it is up.
struct Seen {
    device: FabricDevice,
    up: bool,
}

/// What a step has of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fabric {
    /// Device files that its containers show.
    pub(crate) files: Vec<ByteStr>,
    /// Device files that it does without.
    pub(crate) denied: Vec<ByteStr>,
    /// Devices that it has, by name.
    pub(crate) names: Vec<String>,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
}

/// The devices of this machine.
pub(crate) fn devices() -> Vec<FabricDevice> {
    look(Path::new("/")).into_iter().map(|seen| seen.device).collect()
}

/// What a step has. `confined`: device files that it is to do without can be kept from it.
///
/// # Errors
/// What it needs is not there, or down.
pub(crate) fn of_step(launch: &StepLaunch, confined: bool) -> Result<Fabric, String> {
    let choice = launch.fabric.unwrap_or_default();
    // What libfabric is to use, by the step's environment: the last word counts.
    let wanted = launch.env.iter().rev().find_map(|text| text.0.strip_prefix(b"FI_PROVIDER="));
    let mut fabric = judge(Path::new("/"), choice, wanted == Some(b"efa"))?;
    let host = launch.container.as_ref().is_none_or(|c| c.image.resolved == Some(ResolvedImage::Host));
    if host && !confined && !fabric.denied.is_empty() {
        fabric.notes.push(format!(
            "--fabric={choice}: without root the node's own device files cannot be kept from a step without a container"
        ));
    }
    Ok(fabric)
}

fn judge(root: &Path, choice: FabricChoice, wants_efa: bool) -> Result<Fabric, String> {
    let all = look(root);
    let devices: Vec<FabricDevice> = all.iter().map(|seen| seen.device.clone()).collect();
    if let Some(lacking) = choice.lacks(&devices) {
        return Err(format!("--fabric={choice}: this node has {lacking}"));
    }
    let (has, without): (Vec<&Seen>, Vec<&Seen>) =
        all.iter().partition(|seen| choice.takes(seen.device.kind));
    let named = |seen: &[&Seen]| -> Vec<String> {
        seen.iter().map(|seen| format!("{} ({})", seen.device.name, seen.device.kind)).collect()
    };
    let needs = matches!(choice, FabricChoice::Ib | FabricChoice::Efa);
    if needs && !has.iter().any(|seen| seen.up) {
        return Err(format!(
            "--fabric={choice}: no port is up of {}; look at its link",
            named(&has).join(", ")
        ));
    }
    let files = |seen: &[&Seen]| -> Vec<ByteStr> {
        let own = seen.iter().flat_map(|seen| seen.device.files.iter().cloned());
        let shared = root.join("dev").join(CONNECTIONS);
        // Whoever has one device makes connections by it, and EFA has none.
        let connects = seen.iter().any(|seen| seen.device.kind != FabricKind::Efa) && shared.exists();
        own.chain(connects.then(|| ByteStr::from(format!("/dev/{CONNECTIONS}")))).collect()
    };
    let mut fabric = Fabric {
        files: files(&has),
        denied: files(&without),
        names: has.iter().map(|seen| seen.device.name.clone()).collect(),
        notes: Vec::new(),
    };
    fabric.denied.retain(|file| !fabric.files.contains(file));
    // Where it was not asked for, the agent says it once.
    for seen in has.iter().filter(|seen| needs && seen.device.files.is_empty()) {
        fabric.notes.push(format!(
            "{} ({}) has no device file, and programs cannot use it: load the kernel's module ib_uverbs on the node",
            seen.device.name, seen.device.kind
        ));
    }
    if wants_efa && !has.iter().any(|seen| seen.device.kind == FabricKind::Efa) {
        let why = match choice {
            FabricChoice::None | FabricChoice::Ib => format!("--fabric={choice} leaves EFA out"),
            _ => "this node has no EFA device".to_string(),
        };
        fabric.notes.push(format!("FI_PROVIDER=efa is set, and {why}: libfabric will find no provider"));
    }
    Ok(fabric)
}

/// Devices below a root directory, ordered by name.
fn look(root: &Path) -> Vec<Seen> {
    let class = root.join("sys/class/infiniband");
    let mut verbs = by_device(root, "infiniband_verbs");
    let mut all: Vec<Seen> = entries(&class)
        .into_iter()
        .map(|dir| {
            let name = file_name(&dir);
            let files = verbs.remove(&name).unwrap_or_default();
            let numa = text(&dir.join("device/numa_node")).and_then(|node| node.parse().ok());
            Seen { up: is_up(&dir), device: FabricDevice { kind: kind(&dir), name, numa, files } }
        })
        .collect();
    all.sort_by(|a, b| a.device.name.cmp(&b.device.name));
    all
}

/// Device files of a class, by the device whose they are. Those by which a fabric is managed (`umad`, `issm`) are none of them:
/// they configure what belongs to everybody.
fn by_device(root: &Path, class: &str) -> BTreeMap<String, Vec<ByteStr>> {
    let mut all: BTreeMap<String, Vec<ByteStr>> = BTreeMap::new();
    for dir in entries(&root.join("sys/class").join(class)) {
        let file = format!("infiniband/{}", file_name(&dir));
        if let Some(device) = text(&dir.join("ibdev")).filter(|_| root.join("dev").join(&file).exists()) {
            all.entry(device).or_default().push(ByteStr::from(format!("/dev/{file}")));
        }
    }
    all
}

fn kind(dir: &Path) -> FabricKind {
    let driver = fs::read_link(dir.join("device/driver")).ok();
    if driver.is_some_and(|driver| file_name(&driver) == "efa") {
        return FabricKind::Efa;
    }
    let (vendor, node_type) = (text(&dir.join("device/vendor")), text(&dir.join("node_type")));
    match node_type.as_deref().and_then(|text| text.split(':').next()) {
        Some("4") => FabricKind::Iwarp,
        // The driver may be another, the vendor has made no other kind.
        _ if vendor.as_deref() == Some(AMAZON) => FabricKind::Efa,
        _ => {
            match ports(dir).iter().any(|port| text(&port.join("link_layer")).as_deref() == Some("Ethernet"))
            {
                true => FabricKind::Roce,
                false => FabricKind::Infiniband,
            }
        }
    }
}

fn ports(dir: &Path) -> Vec<PathBuf> {
    entries(&dir.join("ports"))
}

fn is_up(dir: &Path) -> bool {
    ports(dir).iter().any(|port| text(&port.join("state")).is_some_and(|state| state.starts_with("4:")))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel shows of one device: name, driver, vendor, type, link layer, state, and the number of its file.
    type Told<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str, &'a str, Option<u32>);

    fn machine(devices: &[Told<'_>]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: String, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        };
        for (name, driver, vendor, node_type, layer, state, file) in devices {
            let dir = format!("sys/class/infiniband/{name}");
            write(format!("{dir}/node_type"), node_type);
            write(format!("{dir}/device/vendor"), vendor);
            write(format!("{dir}/device/numa_node"), if *driver == "efa" { "-1" } else { "1" });
            std::os::unix::fs::symlink(
                format!("../../../bus/pci/drivers/{driver}"),
                root.path().join(format!("{dir}/device/driver")),
            )
            .unwrap();
            write(format!("{dir}/ports/1/link_layer"), layer);
            write(format!("{dir}/ports/1/state"), state);
            if let Some(n) = file {
                write(format!("sys/class/infiniband_verbs/uverbs{n}/ibdev"), name);
                write(format!("sys/class/infiniband_mad/umad{n}/ibdev"), name);
                write(format!("dev/infiniband/uverbs{n}"), "");
                write(format!("dev/infiniband/umad{n}"), "");
            }
        }
        write("sys/class/infiniband_verbs/abi_version".into(), "6");
        write("dev/infiniband/rdma_cm".into(), "");
        root
    }

    const IB: Told<'_> = ("mlx5_0", "mlx5_core", "0x15b3", "1: CA", "InfiniBand", "4: ACTIVE", Some(0));
    const ROCE: Told<'_> = ("mlx5_bond_0", "mlx5_core", "0x15b3", "1: CA", "Ethernet", "1: DOWN", Some(2));
    const EFA: Told<'_> =
        ("rdmap16s27", "efa", "0x1d0f", "7: <unspecified>", "Unspecified", "4: ACTIVE", Some(1));
    const CHELSIO: Told<'_> = ("cxgb4_0", "iw_cxgb4", "0x1425", "4: RNIC", "Ethernet", "4: ACTIVE", None);

    fn files(files: &[ByteStr]) -> Vec<String> {
        files.iter().map(|file| file.display().into_owned()).collect()
    }

    #[test]
    fn each_kind_is_told_from_what_the_kernel_shows() {
        let root = machine(&[IB, ROCE, EFA, CHELSIO]);
        let seen: Vec<String> = look(root.path())
            .iter()
            .map(|Seen { device: d, up }| {
                format!("{} {} up:{up} numa:{:?} {:?}", d.name, d.kind, d.numa, files(&d.files))
            })
            .collect();
        assert_eq!(
            seen,
            [
                r#"cxgb4_0 iWARP up:true numa:Some(1) []"#,
                r#"mlx5_0 InfiniBand up:true numa:Some(1) ["/dev/infiniband/uverbs0"]"#,
                r#"mlx5_bond_0 RoCE up:false numa:Some(1) ["/dev/infiniband/uverbs2"]"#,
                r#"rdmap16s27 EFA up:true numa:None ["/dev/infiniband/uverbs1"]"#,
            ]
        );
        assert!(look(tempfile::tempdir().unwrap().path()).is_empty());
    }

    #[test]
    fn a_step_has_what_it_chose_and_never_what_manages_the_fabric() {
        let root = machine(&[IB, ROCE, EFA]);
        let of = |choice| judge(root.path(), choice, false).unwrap();
        let all = ["/dev/infiniband/uverbs0", "/dev/infiniband/uverbs2", "/dev/infiniband/uverbs1"];
        let auto = of(FabricChoice::Auto);
        assert_eq!(files(&auto.files), [&all[..], &["/dev/infiniband/rdma_cm"]].concat());
        assert_eq!((auto.denied, auto.notes), (vec![], vec![]));
        let ib = of(FabricChoice::Ib);
        assert_eq!(files(&ib.files), [all[0], all[1], "/dev/infiniband/rdma_cm"]);
        assert_eq!(files(&ib.denied), [all[2]]);
        let efa = of(FabricChoice::Efa);
        assert_eq!(files(&efa.files), [all[2]]);
        assert_eq!(files(&efa.denied), [all[0], all[1], "/dev/infiniband/rdma_cm"]);
        let none = of(FabricChoice::None);
        assert_eq!((none.files.len(), none.names.len(), none.denied.len()), (0, 0, 4));
    }

    #[test]
    fn what_is_missing_is_named() {
        let root = machine(&[ROCE, CHELSIO]);
        let of = |choice, wants_efa| judge(root.path(), choice, wants_efa);
        assert_eq!(of(FabricChoice::Efa, false).unwrap_err(), "--fabric=efa: this node has no EFA device");
        assert_eq!(
            judge(machine(&[ROCE]).path(), FabricChoice::Ib, false).unwrap_err(),
            "--fabric=ib: no port is up of mlx5_bond_0 (RoCE); look at its link"
        );
        let notes = of(FabricChoice::Ib, false).unwrap().notes;
        assert!(notes[0].starts_with("cxgb4_0 (iWARP) has no device file"), "{notes:?}");
        assert_eq!(
            of(FabricChoice::Auto, true).unwrap().notes,
            ["FI_PROVIDER=efa is set, and this node has no EFA device: libfabric will find no provider"]
        );
        let notes = judge(machine(&[EFA]).path(), FabricChoice::None, true).unwrap().notes;
        assert!(notes[0].contains("--fabric=none leaves EFA out"), "{notes:?}");
        assert!(judge(machine(&[EFA]).path(), FabricChoice::Auto, true).unwrap().notes.is_empty());
    }
}
