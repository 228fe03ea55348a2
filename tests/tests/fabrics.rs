//! Fast networks: device files of InfiniBand and EFA in containers, what a step is without, and what is missing said by name.

use berth_tests::own_dev::OWN_DEV;
use berth_tests::{Cmd, Sandbox, Who, each_user, images};

/// Begins a node that has one InfiniBand device and one of EFA, as the kernel would show them. Their device files are real ones, of
/// other drivers that anybody may open where the file lets him.
const NODE: &str = r#"
own_dev
mkdir "$dev/infiniband"
mknod -m 666 "$dev/infiniband/uverbs0" c 10 229
mknod -m 666 "$dev/infiniband/uverbs1" c 10 200
mknod -m 600 "$dev/infiniband/umad0" c 10 257
mknod -m 666 "$dev/infiniband/rdma_cm" c 10 237
use_dev
device() { # name, driver, vendor, type, layer, number
    local dir="/sys/class/infiniband/$1"
    mkdir -p "$dir/device" "$dir/ports/1" "/sys/class/infiniband_verbs/uverbs$6"
    ln -s "/sys/bus/pci/drivers/$2" "$dir/device/driver"
    echo "$3" > "$dir/device/vendor"; echo "$4" > "$dir/node_type"
    echo "$5" > "$dir/ports/1/link_layer"; echo '4: ACTIVE' > "$dir/ports/1/state"
    echo "$1" > "/sys/class/infiniband_verbs/uverbs$6/ibdev"
}
device mlx5_0 mlx5_core 0x15b3 '1: CA' InfiniBand 0
device rdmap0s6 efa 0x1d0f '7: <unspecified>' Unspecified 1
cp -r /sys/class/infiniband "$1"
mount --bind "$1/infiniband" /sys/class/infiniband
exec berth up --detach
"#;

fn node() -> (Sandbox, Who) {
    let mut sandbox = Sandbox::empty(Who::root());
    let script = format!("{OWN_DEV}{NODE}");
    let words = ["-m", "bash", "-c", &script, "node"].map(str::to_string).to_vec();
    let words = [words, vec![sandbox.work().display().to_string()]].concat();
    sandbox.up_by("unshare", &words);
    (sandbox, Who::user())
}

/// Says of each device file whether it is there and can be opened.
const LOOK: &str = "for f in uverbs0 uverbs1 rdma_cm umad0; do f=/dev/infiniband/$f; \
     if [ ! -e $f ]; then echo absent; elif (exec 3<>$f) 2>/dev/null; then echo open; else echo refused; fi; done";

fn look(sandbox: &Sandbox, who: &Who, options: &[&str]) -> String {
    let command = sandbox.cmd_as(who, "srun").dir("/").args(options).args(["sh", "-c", LOOK]).ok();
    command.text().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn limited(sandbox: &Sandbox, who: &Who, kib: u32, options: &[&str]) -> Cmd {
    let text = format!("ulimit -l {kib} && exec srun \"$@\"");
    sandbox.cmd_as(who, "sh").dir("/").args(["-c", &text, "sh", "--propagate=MEMLOCK"]).args(options)
}

#[test]
fn steps_have_the_fabrics_that_they_chose_as_root() {
    let (sandbox, who) = node();
    let image = format!("--container-image={}", images::busybox().display());
    let contained = |options: &[&str]| look(&sandbox, &who, &[options, &[image.as_str()]].concat());
    assert_eq!(contained(&[]), "open open open absent", "what manages the fabric is in no container");
    assert_eq!(contained(&["--fabric=ib"]), "open absent open absent");
    assert_eq!(contained(&["--fabric=efa"]), "absent open absent absent");
    assert_eq!(contained(&["--fabric=none"]), "absent absent absent absent");
    // On the node's own filesystem the files are there, and the kernel refuses them.
    assert_eq!(look(&sandbox, &who, &[]), "open open open refused");
    assert_eq!(look(&sandbox, &who, &["--fabric=efa"]), "refused open refused refused");
    assert_eq!(look(&sandbox, &who, &["--fabric=none"]), "refused refused refused refused");
    // Nobody comes to them by number either.
    let by_number = "mknod /tmp/u c 10 229 2>/dev/null; if [ -c /tmp/u ] && (exec 3<>/tmp/u) 2>/dev/null; then echo open; else echo no; fi";
    let made =
        sandbox.cmd_as(&who, "srun").dir("/").args(["--fabric=none", &image, "sh", "-c", by_number]).ok();
    assert_eq!(made.text(), "no");
    // A step has its job's, and may have another.
    let script = format!("srun {image} sh -c '{LOOK}'; srun --fabric=auto {image} sh -c '{LOOK}'");
    let said = sandbox.cmd_as(&who, "salloc").dir("/").args(["--fabric=efa", "sh", "-c", &script]).ok();
    let said = said.text().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(said, "absent open absent absent open open open absent");

    // Too little memory that may be locked: said, or refused where the fabric was asked for.
    limited(&sandbox, &who, 64, &[&image, "true"]).ok().says(&[
        "64 KiB",
        "mlx5_0, rdmap0s6",
        "ulimit -l unlimited",
    ]);
    let refused = limited(&sandbox, &who, 64, &["--fabric=ib", &image, "true"]).fails();
    refused.says(&["--fabric=ib", "64 KiB", "mlx5_0", "65536 KiB", &sandbox.node()]);
    let state = sandbox.work().join("infiniband/mlx5_0/ports/1/state");
    std::fs::write(&state, "1: DOWN\n").unwrap();
    let down = sandbox.cmd_as(&who, "srun").dir("/").args(["--fabric=ib", &image, "true"]).fails();
    down.says(&["--fabric=ib", "no port is up of mlx5_0 (InfiniBand)"]);
}

each_user! {
    fn what_a_node_lacks_is_said_before_anything_runs(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        for command in [&["srun", "--fabric=efa", &image, "true"][..], &["sbatch", "--fabric=efa", "--wrap=true"]] {
            sandbox.cmd(command[0]).args(&command[1..]).fails().says(&["--fabric=efa", "EFA device", &sandbox.node()]);
        }
        sandbox.srun(["--fabric=fast", "true"]).fails().says(&["fast", "auto, ib, efa or none"]);
        // What the environment asks libfabric for is not there: programs would fail one by one, and this says why.
        let told = sandbox.srun([&image, "true"]).env("FI_PROVIDER", "efa").ok();
        told.says(&["FI_PROVIDER=efa", "no EFA device"]);
        sandbox.srun([&image, "true"]).env("BERTH_FABRIC", "none").ok();
    }
}
