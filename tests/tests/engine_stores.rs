//! Images in the stores of podman and of docker's daemon, named without a registry or a file between.

use berth_tests::{Cmd, Running, Sandbox, Who, each_user, images, leftovers, machine, sandbox::wait};
use std::path::{Path, PathBuf};

const BOX: &str = "localhost/box:1";

fn doors(sandbox: &Sandbox) {
    let bin = sandbox.work().parent().unwrap().join("bin");
    sandbox.cmd("berth").args(["install-links", "--front-doors"]).arg(bin).ok();
}

/// podman with a storage of its own, as a user has it by a file of settings.
pub struct Podman<'a> {
    sandbox: &'a Sandbox,
    who: Who,
    home: PathBuf,
    /// One at a time: podmans of one user share locks, and what is run as a service of theirs.
    _alone: Alone,
}

type Alone = nix::fcntl::Flock<std::fs::File>;

impl Podman<'_> {
    fn new(sandbox: &Sandbox, who: Who) -> Podman<'_> {
        let podman = Podman::empty(sandbox, who);
        podman.load(&images::busybox());
        podman
    }

    pub fn empty(sandbox: &Sandbox, who: Who) -> Podman<'_> {
        let alone = machine::lock(&format!("podman-{}.lock", who.name));
        let home = sandbox.work().join(format!("podman-{}", who.name));
        std::fs::create_dir(&home).unwrap();
        let own = |name: &str| home.join(name).display().to_string();
        let settings = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n",
            own("storage"),
            own("run")
        );
        std::fs::write(home.join("storage.conf"), settings).unwrap();
        for path in [&home, &home.join("storage.conf")] {
            machine::give(path, &who);
        }
        let podman = Podman { sandbox, who, home, _alone: alone };
        podman.forget();
        podman
    }

    /// An ordinary user's podman keeps its database in the home directory whatever the settings say, and goes on
    /// using the directories of its first run: this fixture's, which are gone then, and may be another user's again.
    fn forget(&self) {
        if self.who.is_tests_own() {
            let database = self.who.home.join(".local/share/containers/storage/libpod");
            let _ = std::fs::remove_dir_all(database);
        }
    }

    /// The storage gets an image, in place of what had the name.
    pub fn load(&self, layout: &Path) {
        let id = self.cmd("podman", &["pull", "-q", &format!("oci:{}", layout.display())]).ok().text();
        self.cmd("podman", &["tag", id.trim(), BOX]).ok();
    }

    /// A command that finds the storage; temporary files of its own.
    pub fn cmd(&self, program: &str, words: &[&str]) -> Cmd {
        let dir = &self.home;
        let cmd = self.sandbox.cmd_as(&self.who, program).args(words).limit(120).dir(dir).env("TMPDIR", dir);
        cmd.env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf")).env("XDG_RUNTIME_DIR", dir)
    }

    /// Ends the process that keeps an ordinary user's namespaces between two commands.
    pub fn let_go(&self) {
        if !self.who.is_root() {
            self.cmd("podman", &["system", "migrate"]).ok();
        }
    }

    /// Files beside the storage and the settings.
    fn left(&self) -> String {
        self.cmd("find", &[".", "-name", "*docker-tar*", "-o", "-name", "storage[0-9]*"]).ok().text()
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        if self.who.is_root() {
            let _ = self.cmd("podman", &["rmi", "--force", "--all"]).run();
        } else {
            let storage = self.home.join("storage").display().to_string();
            let _ = self.cmd("podman", &["unshare", "rm", "-rf", &storage]).run();
            let _ = self.cmd("podman", &["system", "migrate"]).run();
            self.forget();
        }
    }
}

each_user! {
    fn podmans_images_run_as_they_are_now(who) {
        let sandbox = Sandbox::empty(who.clone());
        let podman = Podman::new(&sandbox, who);
        doors(&sandbox);
        let run = |image: &str, words: &[&str]| podman.cmd("berth", &[&["run", image], words].concat());
        assert_eq!(run("podman://localhost/box:1", &["echo", "hello"]).ok().text(), "hello");
        assert_eq!(run("containers-storage:localhost/box:1", &["id", "-u"]).ok().text(), run("podman://box:1", &["id", "-u"]).ok().text());
        let listed = podman.cmd("berth", &["image", "ls"]).ok().text();
        assert!(listed.contains("containers-storage:localhost/box:1"), "{listed}");
        let id = podman.cmd("podman", &["image", "inspect", "--format", "{{.Id}}", BOX]).ok().text();
        assert_eq!(run(&format!("containers-storage:@{}", id.trim()), &["echo", "by id"]).ok().text(), "by id");
        podman.cmd("enroot", &["import", "podman://localhost/box:1"]).ok();
        assert_eq!(run("./localhost+box+1.sqsh", &["echo", "from squashfs"]).ok().text(), "from squashfs");
        // A name means what it means now.
        podman.load(&images::configured());
        let config = podman.cmd("podman", &["image", "inspect", "--format", "{{.Config.WorkingDir}}", BOX]).ok().text();
        assert_eq!(run("podman://localhost/box:1", &["pwd"]).ok().text(), config);
        run("podman://localhost/nothing", &["true"]).fails().says(&["localhost/nothing", "no image of that name", "podman images"]);
        podman.cmd("podman", &["rmi", "--force", "--all"]).ok();
        run("podman://localhost/box:1", &["true"]).fails().says(&["no image of that name"]);
        // What was fetched is in the store.
        assert_eq!(run("podman://localhost/box:1", &["--pull=never"]).run().rc, 1);
        // Without podman, but with what runs the command as the user.
        let few = podman.home.join("few");
        std::fs::create_dir(&few).unwrap();
        std::os::unix::fs::symlink("/usr/bin/setpriv", few.join("setpriv")).unwrap();
        run("podman://localhost/box:1", &["true"]).env("PATH", few).fails().says(&["podman", "package podman"]);
        assert_eq!(podman.left(), "");
    }
}

/// A user's job in a cluster of root's: the node asks podman as the user, who needs newuidmap(1) there.
#[test]
fn a_users_job_runs_in_an_image_of_the_users_podman_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let podman = Podman::new(&sandbox, user.clone());
    podman.let_go();
    let image = "--container-image=podman://localhost/box:1";
    let script = sandbox.write("job.sh", "#!/bin/sh\nid -u\nls /bin/busybox\n").display().to_string();
    let submit = |output: &str| {
        let options = ["--parsable", "--hold", &format!("--output={output}"), image, &script];
        let job: u64 = podman.cmd("sbatch", &options).ok().text().parse().unwrap();
        // Else the node's podman would use what the submitter's has left running.
        podman.let_go();
        job
    };
    let release = |job: u64| podman.cmd("scontrol", &["release", &job.to_string()]).ok();
    let job = submit("out");
    release(job);
    sandbox.wait_state(job, "COMPLETED", 120);
    assert_eq!(podman.cmd("cat", &["out"]).ok().text(), format!("{}\n/bin/busybox", user.uid));
    let left = leftovers::processes(&podman.home);
    assert!(left.is_empty(), "it belongs to no job: {left:?}");
    // Others have other storages.
    let stranger = Podman::empty(&sandbox, Who::stranger());
    stranger.cmd("srun", &[image, "true"]).fails().says(&["no image of that name"]);
    drop(stranger);
    // What was pinned when the job was submitted runs, or the job says why not.
    podman.load(&images::configured());
    let job = submit("never");
    podman.cmd("podman", &["rmi", "--force", "--all"]).ok();
    release(job);
    let show = || podman.cmd("scontrol", &["show", "job", &job.to_string()]).run();
    let told = wait(60, || show().text().contains("it was removed since it was named").then_some(()));
    assert!(told.is_some(), "{}", show());
}

/// docker's own daemon, with a store and a socket of its own.
pub struct Daemon<'a> {
    sandbox: &'a Sandbox,
    running: Option<Running>,
}

impl Daemon<'_> {
    pub fn start(sandbox: &Sandbox) -> Daemon<'_> {
        let own = |name: &str| sandbox.work().join(name).display().to_string();
        let running = sandbox
            .cmd("dockerd")
            .args([
                "--data-root",
                &own("docker"),
                "--exec-root",
                &own("run"),
                "--pidfile",
                &own("dockerd.pid"),
            ])
            .args(["--host", &format!("unix://{}", own("docker.sock")), "--storage-driver=vfs"])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .limit(600)
            .spawn();
        let daemon = Daemon { sandbox, running: Some(running) };
        let up = wait(60, || (daemon.docker(&["version"]).run().rc == 0).then_some(()));
        assert!(up.is_some(), "docker's daemon does not answer: {}", daemon.docker(&["version"]).run());
        daemon
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.sandbox.work().join("docker.sock").display())
    }

    /// docker's own client: that of the front doors comes first in the path.
    pub fn docker(&self, words: &[&str]) -> Cmd {
        let client =
            ["/usr/bin/docker", "/usr/local/bin/docker"].into_iter().find(|path| Path::new(path).exists());
        self.sandbox
            .cmd(client.expect("docker's client"))
            .args(words)
            .env("DOCKER_HOST", self.host())
            .limit(120)
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(nix::sys::signal::Signal::SIGTERM);
            let ended = running.finish();
            assert!(std::thread::panicking() || ended.rc == 0, "{ended}");
        }
    }
}

#[test]
fn images_of_dockers_daemon_run_as_root() {
    let sandbox = Sandbox::empty(Who::root());
    doors(&sandbox);
    let daemon = Daemon::start(&sandbox);
    sandbox
        .cmd("skopeo")
        .args(["copy", "--quiet"])
        .arg(format!("oci:{}", images::configured().display()))
        .arg("docker-archive:box.tar:box:1")
        .env("TMPDIR", sandbox.work())
        .ok();
    daemon.docker(&["load", "--input", "box.tar"]).ok();
    let berth =
        |words: &[&str]| sandbox.cmd("berth").args(words).env("DOCKER_HOST", daemon.host()).limit(120);
    let from_file = berth(&["run", "./box.tar", "env"]).ok().text();
    assert_eq!(berth(&["run", "dockerd://box:1", "env"]).ok().text(), from_file);
    let id = daemon.docker(&["image", "inspect", "--format", "{{.Id}}", "box:1"]).ok().text();
    assert_eq!(berth(&["run", &format!("docker-daemon:{id}"), "env"]).ok().text(), from_file);
    // Whatever wrote it, it is one image.
    let shown = berth(&["image", "inspect", "./box.tar"]).ok().text();
    assert!(shown.contains("docker-daemon:box:1"), "{shown}");
    sandbox
        .cmd("apptainer")
        .args(["exec", "docker-daemon:box:1", "true"])
        .env("DOCKER_HOST", daemon.host())
        .ok();
    berth(&["run", "dockerd://nothing", "true"])
        .fails()
        .says(&["docker's daemon has no image", "docker image ls"]);
    // Who may not open the socket is told so.
    sandbox
        .cmd_as(&Who::user(), "berth")
        .args(["run", "dockerd://box:1", "true"])
        .env("DOCKER_HOST", daemon.host())
        .env("BERTH_STATE", "")
        .dir("/")
        .fails()
        .says(&["you may not open its socket", "registry"]);
    berth(&["run", "dockerd://box:1", "true"])
        .env("DOCKER_HOST", "tcp://127.0.0.1:2375")
        .fails()
        .says(&["DOCKER_HOST", "unix:///PATH"]);
    drop(daemon);
    sandbox
        .cmd("berth")
        .args(["run", "dockerd://box:1", "true"])
        .env("DOCKER_HOST", "unix:///nothing.sock")
        .fails()
        .says(&["/nothing.sock", "DOCKER_HOST"]);
}

each_user! {
    /// podman's service speaks docker's interface.
    fn podmans_service_is_a_daemon_like_dockers(who) {
        let sandbox = Sandbox::empty(who.clone());
        let podman = Podman::new(&sandbox, who);
        let socket = format!("unix://{}", podman.home.join("podman.sock").display());
        let service = podman.cmd("podman", &["system", "service", "--time=60", &socket]).spawn();
        let run = |words: &[&str]| podman.cmd("berth", &[&["run", "dockerd://localhost/box:1"], words].concat()).env("DOCKER_HOST", &socket);
        let said = wait(30, || Some(run(&["echo", "hello"]).run()).filter(|said| said.rc == 0));
        assert_eq!(said.expect("podman's service does not answer").text(), "hello");
        service.signal(nix::sys::signal::Signal::SIGTERM);
        service.finish();
    }
}
