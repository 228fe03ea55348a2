//! What runs as a user has no terminal of whoever started it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_images::{LayerForm, Registries};

use crate::concurrency::program;
use crate::support::registry::{PASSWORD, RealRegistry, USER};
use crate::support::{Bench, ImageBuilder, Tar};

/// The process that wrote its number there, once it did.
fn written(file: &Path) -> String {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Some(pid) = text.strip_suffix('\n') {
            return pid.to_owned();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing was asked for a login");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Root repairs an image at a terminal, and a user's settings name what runs for it.
#[test]
fn what_runs_as_a_user_has_no_terminal_of_whoever_started_it_as_root() {
    assert!(rustix::process::geteuid().is_root(), "only root can act for several users");
    let dir = tempfile::Builder::new().prefix("berth-test-").tempdir_in("/var/tmp").unwrap();
    let bench = Bench { dir, form: LayerForm::Directory };
    let registry = RealRegistry::with_login();
    ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&bench.layout());
    registry.push_as_user(&bench.layout().display().to_string(), "private:1");
    let at = |name: &str| bench.path().join(name);
    let open = |name: &str, mode| {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for directory in ["bin", "docker", "seen"] {
        std::fs::create_dir(at(directory)).unwrap();
        open(directory, 0o755);
    }
    open("", 0o711);
    open("seen", 0o777);
    let config = serde_json::json!({"credHelpers": {&registry.address: "looking"}});
    std::fs::write(at("docker/config.json"), config.to_string()).unwrap();
    open("docker/config.json", 0o644);
    // Says who started it, and goes on when it was looked at.
    let seen = at("seen");
    let seen = seen.display();
    let helper = format!(
        "#!/bin/sh\nread -r server\necho $PPID > {seen}/$(id -u)\nwhile [ ! -e {seen}/go-$(id -u) ]; do sleep 0.05; done\n\
         echo '{{\"ServerURL\":\"\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
    );
    std::fs::write(at("bin/docker-credential-looking"), helper).unwrap();
    open("bin/docker-credential-looking", 0o755);
    let registries = Registries::default().without_tls(&registry.address);
    let registries = serde_json::to_string(&registries).unwrap();
    for (uid, identity, terminal) in [(0, "", true), (54_001, "--as 54001:54001:", false)] {
        // The shell stays, so that the program leads no group of processes, as where root starts it.
        let line = format!(
            "{} internal-fetch {identity} --resolve {} --registries '{registries}' < /dev/null > {}; true",
            program().display(),
            registry.name("private:1"),
            at("answer").display()
        );
        let mut script = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("DOCKER_CONFIG", at("docker"))
            // One that both may look into.
            .env("HOME", bench.path())
            .env("PATH", format!("{}:/usr/bin:/bin", at("bin").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run script: {e}; install the Debian package bsdutils"));
        let pid = written(&at(&format!("seen/{uid}")));
        let errors = std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // Behind the name: state, parent, group, session, and the terminal.
        let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(4).unwrap();
        std::fs::write(at(&format!("seen/go-{uid}")), "").unwrap();
        assert!(script.wait().unwrap().success());
        assert_eq!(
            (errors.starts_with("/dev/pts"), session != "0"),
            (terminal, terminal),
            "{errors:?} {stat}"
        );
        let answer = std::fs::read_to_string(at("answer")).unwrap();
        assert!(answer.contains("manifest"), "{answer}");
    }
    // What it has to say is heard all the same: here that what is to be joined is not there.
    let answer = Command::new(program())
        .args(["internal-fetch", "--as", "54001:54001:", "--resolve", "x", "--join", "/nonexistent/list"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(!answer.status.success() && said.contains("/nonexistent/list"), "{said}");
}
