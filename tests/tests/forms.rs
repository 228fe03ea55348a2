//! Layers as EROFS images, which root's clusters keep: what containers see, what is left, what is given back. Tests that
//! need a kernel which mounts them say `file_backed` in their name.

use berth_tests::disk::{Disk, store_owner};
use berth_tests::{Cmd, Sandbox, Who, each_user, images, layout, leftovers, sandbox::wait};
use serde_json::{Value, json};
use std::path::Path;

/// Root's, without a cluster so far. Kernels that mount no images refuse to keep layers so.
fn configured(form: &str) -> Sandbox {
    let sandbox = Sandbox::empty(Who::root());
    assert!(
        form != "erofs" || can(&sandbox),
        "this test needs a kernel that mounts EROFS images from files (Linux 6.12); tests/run.sh leaves it out by name"
    );
    std::fs::write(sandbox.state().join("berth.toml"), format!("[images]\nlayer_form = \"{form}\"\n"))
        .unwrap();
    sandbox
}

fn with_form(form: &str) -> Sandbox {
    let mut sandbox = configured(form);
    sandbox.up();
    sandbox
}

/// The forms of an image's layers.
fn forms(sandbox: &Sandbox, image: &Path) -> Vec<String> {
    let text = sandbox.cmd("berth").args(["image", "inspect"]).arg(image).ok().text();
    let details: Value = serde_json::from_str(&text).unwrap();
    details["layers"].as_array().unwrap().iter().map(|l| l["form"].as_str().unwrap().to_string()).collect()
}

/// Whether the kernel mounts images from files.
fn can(sandbox: &Sandbox) -> bool {
    sandbox.cmd("berth").arg("doctor").run().text().contains("a trial one was mounted")
}

#[test]
fn both_forms_are_one_to_a_container_file_backed_as_root() {
    let script = "cd /data && find . | sort | grep -v nnn && cat kept replaced emptied/c && stat -c %h hard1 && ls | grep -c nnnnn; \
                  find /bin /data -exec stat -c '%n %f %u %g' {} + | sort; find /bin /data -not -type d -exec stat -c '%n %Y' {} + | sort";
    let texts = ["directory", "erofs"].map(|form| {
        let sandbox = with_form(form);
        let text = sandbox.srun_in(images::layers(), ["sh", "-c", script]).ok().text();
        assert!(forms(&sandbox, &images::layers()).iter().all(|f| f == form));
        // By an ordinary user, by root's own container, and by many at once.
        let user =
            sandbox.cmd_as(&Who::user(), "srun").dir("/").arg("--container-image").arg(images::layers());
        assert_eq!(user.args(["cat", "/data/kept"]).ok().text(), "kept");
        assert_eq!(
            sandbox
                .cmd("berth")
                .args(["run", "--quiet"])
                .arg(images::layers())
                .args(["cat", "/data/kept"])
                .ok()
                .text(),
            "kept"
        );
        let mounts = Cmd::new("cat").arg("/proc/self/mountinfo").ok().text();
        assert!(!mounts.contains(" erofs "), "a mount of a layer is seen on the node: {mounts}");
        text
    });
    let only = |a: &str, b: &str| -> Vec<String> {
        a.lines().filter(|line| !b.lines().any(|l| l == *line)).map(str::to_string).collect()
    };
    assert_eq!((only(&texts[0], &texts[1]), only(&texts[1], &texts[0])), (Vec::new(), Vec::new()));
}

#[test]
fn the_choice_is_by_size_and_can_be_forced_as_root() {
    let sandbox = Sandbox::start(Who::root());
    sandbox.srun_in(images::busybox(), ["true"]).ok();
    sandbox.srun_in(images::debian(), ["true"]).limit(120).ok();
    assert_eq!(forms(&sandbox, &images::busybox()), ["directory"]);
    assert_eq!(forms(&sandbox, &images::debian()).contains(&"erofs".to_string()), can(&sandbox));
    let mut refused = Sandbox::empty(Who::user());
    std::fs::write(refused.state().join("berth.toml"), "[images]\nlayer_form = \"erofs\"\n").unwrap();
    refused.cmd("berth").args(["up", "--detach"]).fails().says(&[
        "images.layer_form",
        "\"directory\"",
        "as root",
    ]);
    refused.down();
    std::fs::write(refused.state().join("berth.toml"), "[images]\nlayer_form = \"squashfs\"\n").unwrap();
    refused.cmd("berth").args(["config", "check"]).fails().says(&["layer_form", "erofs"]);
}

#[test]
fn images_are_verified_repaired_and_exported_file_backed_as_root() {
    let sandbox = with_form("erofs");
    let image = images::layers();
    let look = || sandbox.srun_in(&image, ["cat", "/data/kept", "/data/replaced"]).limit(60).ok().text();
    let before = look();
    sandbox.cmd("berth").args(["image", "verify"]).arg(&image).ok();
    let text = sandbox.cmd("berth").args(["image", "inspect"]).arg(&image).ok().text();
    let details: Value = serde_json::from_str(&text).unwrap();
    for layer in details["layers"].as_array().unwrap() {
        let place = Path::new(layer["path"].as_str().unwrap());
        let mut bytes = std::fs::read(place).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(place, bytes).unwrap();
    }
    let verify = || sandbox.cmd("berth").args(["image", "verify"]).arg(&image);
    assert!(verify().fails().text().contains("its image was changed"));
    sandbox.cmd("berth").args(["image", "verify", "--repair"]).arg(&image).limit(60).ok();
    verify().ok();
    assert_eq!(look(), before);
    assert!(forms(&sandbox, &image).iter().all(|form| form == "erofs"));
    sandbox.cmd("berth").args(["image", "export"]).arg(&image).arg("whole.oci").ok();
    let whole = sandbox.work().join("whole.oci");
    assert_eq!(
        sandbox.srun_in(&whole, ["cat", "/data/kept", "/data/replaced"]).limit(60).ok().text(),
        before
    );
}

#[test]
fn the_doctor_knows_the_form_before_there_is_a_node_as_root() {
    let sandbox = Sandbox::empty(Who::root());
    let say = |form: &str| {
        std::fs::write(sandbox.state().join("berth.toml"), format!("[images]\nlayer_form = \"{form}\"\n"))
            .unwrap();
        let text = sandbox.cmd("berth").arg("doctor").run().text();
        text.lines()
            .find(|line| line.contains("layers of images"))
            .unwrap_or_else(|| panic!("{text}"))
            .to_string()
    };
    let mounted = say("auto").contains("a trial one was mounted");
    let said = say("directory");
    assert!(said.contains("kept as directories") && said.contains("berth.toml") == mounted, "{said}");
    let said = say("erofs");
    assert!(if mounted { said.contains("kept as EROFS") } else { said.contains("BAD") }, "{said}");
    let said = say("squashfs");
    assert!(said.contains("BAD") && said.contains("configuration"), "{said}");
}

#[test]
fn an_image_that_goes_gives_its_space_back_and_may_come_again_file_backed_as_root() {
    let mut sandbox = configured("erofs");
    // A small filesystem of its own, so that nobody else's files count.
    let disk = Disk::in_file(&sandbox.state().join("images"), store_owner(sandbox.who()), 200);
    sandbox.up();
    let image = sandbox.work().join("large");
    // Nothing that a compressor or a hole makes small.
    let mut state = 1u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    })
    .take(60 << 20)
    .collect();
    layout::write(
        &image,
        vec![layout::busybox(), layout::Layer::default().file("large", 0o644, &content)],
        json!({}),
    );
    let before = disk.free().bytes;
    let look = |words: [&str; 3]| sandbox.srun_in(&image, words).limit(60).ok().text();
    for _ in 0..2 {
        let sum = look(["/bin/busybox", "md5sum", "/large"]);
        assert!(sum.ends_with("/large"), "{sum}");
        assert_eq!(look(["/bin/busybox", "md5sum", "/large"]), sum);
        assert!(disk.free().bytes < before - (50 << 20));
        let mut step =
            sandbox.srun_in(&image, ["sh", "-c", "echo ready; read x"]).stdin_open().limit(90).spawn();
        step.wait_for("ready", 30);
        let remove = || sandbox.cmd("berth").args(["image", "rm", "--force"]).arg(&image);
        // While it is used it stays.
        remove().fails().says(&["is used"]);
        step.write(b"x\n");
        step.close();
        assert!(wait(30, || (remove().run().rc == 0).then_some(())).is_some(), "the image stays in use");
        let after = disk.free().bytes;
        assert!(after > before - (8 << 20), "{before} bytes were free, {after} are");
    }
    assert_eq!(sandbox.down().rc, 0);
    assert_eq!(leftovers::mounts(&sandbox.state()).len(), 1, "the store's own");
    disk.unmount();
}

/// Ends the agent of a cluster under a step, and starts it again.
fn agent_anew(mut sandbox: Sandbox) {
    let image = images::layers();
    assert_eq!(sandbox.srun_in(&image, ["cat", "/data/kept"]).ok().text(), "kept");
    let words = ["sh", "-c", "echo ready; read x; cat /data/kept"];
    let mut step = sandbox.srun_in(&image, words).stdin_open().limit(90).spawn();
    step.wait_for("ready", 30);
    sandbox.kill_9(sandbox.agent());
    sandbox.up();
    assert_eq!(sandbox.srun_in(&image, ["cat", "/data/kept"]).limit(60).ok().text(), "kept");
    step.write(b"x\n");
    step.wait_for("kept", 30);
    step.close();
}

#[test]
fn an_agent_that_comes_anew_mounts_anew_file_backed_as_root() {
    agent_anew(with_form("erofs"));
}

each_user! {
    fn an_agent_that_comes_anew_finds_layers(who) {
        agent_anew(Sandbox::start(who));
    }
}

#[test]
fn before_a_cluster_is_up_its_configuration_counts_file_backed_as_root() {
    // By themselves small layers are directories and large ones are images.
    for (form, image, words) in [
        ("erofs", images::busybox(), &["image", "pull"][..]),
        ("erofs", images::busybox(), &["run"]),
        ("directory", images::debian(), &["image", "pull"]),
    ] {
        let sandbox = configured(form);
        let command = words.iter().copied().chain(["--quiet"]);
        let command = sandbox.cmd("berth").args(command).arg(&image);
        let command = if words == ["run"] { command.arg("true") } else { command };
        command.limit(120).ok();
        assert!(forms(&sandbox, &image).iter().all(|f| f == form));
    }
    let sandbox = configured("squashfs");
    sandbox
        .cmd("berth")
        .args(["image", "pull"])
        .arg(images::busybox())
        .fails()
        .says(&["berth.toml", "layer_form"]);
}

/// An image of so many layers: each has a file of its own and changes one that all have. What the lowest ones have is hidden
/// by their neighbours and by the highest one.
fn tower(directory: &Path, layers: usize) {
    let lowest = layout::busybox().directory("t").directory("o").directory("p");
    let lowest =
        ["t/gone", "t/back", "o/old", "p/old"].iter().fold(lowest, |l, f| l.file(f, 0o644, b"lowest"));
    let mut all = vec![lowest];
    for n in 1..layers {
        let text = n.to_string();
        let mut layer = layout::Layer::default().directory("t");
        layer = layer.file(&format!("t/{n}"), 0o644, text.as_bytes()).file("t/same", 0o644, text.as_bytes());
        if n == 1 {
            layer = layer.file("t/.wh.back", 0o644, b"").directory("o").file("o/.wh..wh..opq", 0o644, b"");
            layer = layer.file("o/new", 0o644, b"");
        }
        if n == layers - 1 {
            layer = layer.file("t/.wh.gone", 0o644, b"").directory("p").file("p/.wh..wh..opq", 0o644, b"");
            layer = layer.file("p/new", 0o644, b"");
        }
        all.push(layer);
    }
    layout::write(directory, all, json!({"Env": ["PATH=/bin"]}));
}

fn towers(sandbox: &Sandbox, form: Option<&str>) {
    let image = |layers: usize| {
        let image = sandbox.work().join(layers.to_string());
        tower(&image, layers);
        image
    };
    for layers in [501, 999] {
        let image = image(layers);
        let script = "cat /t/same /t/1 /t/77 /t/400; ls /t | busybox wc -l; echo $(ls /o /p /t/gone /t/back 2>/dev/null); \
                      echo x > /t/1 && busybox rm /t/77 && busybox rm -r /o && busybox mkdir /o && ls /o && cat /t/1";
        let said = sandbox.srun_in(&image, ["sh", "-c", script]).limit(180).ok().text();
        assert_eq!(said, format!("{}177400{}\n/o: new /p: new\nx", layers - 1, layers), "{layers} layers");
        if let Some(form) = form {
            assert!(forms(sandbox, &image).iter().all(|f| f == form));
        }
    }
    // One more: two of them are one.
    let many = image(1000);
    let said =
        sandbox.srun_in(&many, ["sh", "-c", "cat /t/same; ls /t | busybox wc -l"]).limit(180).ok().text();
    assert_eq!(said, "9991000");
}

#[test]
fn images_have_more_layers_than_one_overlay_takes_as_root() {
    towers(&with_form("directory"), Some("directory"));
}

#[test]
fn images_have_more_layers_than_one_overlay_takes_as_an_ordinary_user() {
    towers(&Sandbox::start(Who::user()), None);
}

#[test]
fn images_have_more_layers_than_one_overlay_takes_file_backed_as_root() {
    towers(&with_form("erofs"), Some("erofs"));
}
