//! A real registry on a free port of the loopback, with or without login and TLS, that keeps a log of what was asked of it.

use crate::{Cmd, Hosts};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// User and password of a registry with a login.
pub const LOGIN: (&str, &str) = ("alice", "correct-horse");

/// The running registry; it ends with this value.
pub struct Registry {
    child: Child,
    directory: tempfile::TempDir,
    address: String,
    /// The network namespace that it is in, where it is not the machine's.
    space: Option<PathBuf>,
    login: bool,
}

impl Registry {
    /// Starts one that anybody may read.
    pub fn open() -> Registry {
        Registry::start(false, false, None)
    }

    /// Starts one that asks for [`LOGIN`].
    pub fn with_login() -> Registry {
        Registry::start(true, false, None)
    }

    /// Starts one with TLS, with a certificate of an authority that nobody knows.
    pub fn with_tls() -> Registry {
        Registry::start(false, true, None)
    }

    /// Starts one that asks `other`, which wants no login, for what it does not have.
    pub fn cache_of(other: &Registry) -> Registry {
        Registry::start(false, false, Some(other))
    }

    /// Starts one on a host, where others reach it by this address.
    pub fn on(hosts: &Hosts, host: &str, address: &str, login: bool) -> Registry {
        let directory = tempfile::Builder::new().prefix("bt-reg-").tempdir_in("/tmp").unwrap();
        let (address, space) = (format!("{address}:5000"), hosts.network(host));
        let mut child = launch(directory.path(), (&address, Some(&space)), login, false, None);
        let deadline = Instant::now() + Duration::from_secs(20);
        let reached = || {
            let open = format!(": < /dev/tcp/{}", address.replace(':', "/"));
            hosts.root(host, "bash").args(["-c", &open]).run().rc == 0
        };
        while !reached() {
            let log = || std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline, "{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Registry { child, directory, address, space: Some(space), login }
    }

    /// The authority of a registry with TLS.
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn start(login: bool, tls: bool, cache_of: Option<&Registry>) -> Registry {
        let directory = tempfile::Builder::new().prefix("bt-reg-").tempdir_in("/tmp").unwrap();
        if tls {
            certify(directory.path());
        }
        // The port is free now, and may be taken by someone else before the registry has it: then try another.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let mut child = launch(directory.path(), (&address, None), login, tls, cache_of);
            if answers(&mut child, port) {
                return Registry { child, directory, address, space: None, login };
            }
        }
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("docker-registry does not start:\n{log}");
    }

    /// `127.0.0.1:PORT`, or the address of its host.
    pub fn host(&self) -> String {
        self.address.clone()
    }

    /// Reference of an image here.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// Pushes an OCI layout under a name, with more options for `skopeo copy`.
    pub fn push(&self, layout: &Path, name: &str, options: &[&str]) -> String {
        let copy = match &self.space {
            Some(space) => Cmd::new("nsenter").arg(format!("--net={}", space.display())).arg("skopeo"),
            None => Cmd::new("skopeo"),
        };
        let mut copy = copy.args(["copy", "--quiet", "--dest-tls-verify=false"]);
        if self.login {
            copy = copy.arg("--dest-creds").arg(format!("{}:{}", LOGIN.0, LOGIN.1));
        }
        let home = self.directory.path();
        copy.args(options)
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{}", self.image(name)))
            .env("HOME", home)
            .env("TMPDIR", home)
            // Else skopeo looks for logins below /run/containers, which root's podman closes to others.
            .env("XDG_RUNTIME_DIR", home)
            .limit(180)
            .ok();
        self.image(name)
    }

    /// How many requests of this method had a path that contains this text.
    pub fn requests(&self, method: &str, path: &str) -> usize {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
        let start = format!("\"{method} /v2/");
        log.lines().filter(|l| l.contains(&start) && l.contains(path)).count()
    }

    /// How often manifests of this repository were asked for by HEAD, and how often by GET: names, indexes and images.
    pub fn manifests(&self, repository: &str) -> [usize; 2] {
        ["HEAD", "GET"].map(|method| self.requests(method, &format!("/{repository}/manifests/")))
    }

    /// How many requests were a program's that calls itself so.
    pub fn asked_by(&self, agent: &str) -> usize {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
        log.lines().filter(|line| line.contains(&format!("\"{agent}"))).count()
    }

    /// The paths of blobs that were asked for by GET, sorted.
    pub fn fetched(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
        let lines = log.lines().filter(|l| l.contains("/blobs/"));
        let paths = lines.filter_map(|l| l.split_once("\"GET ")?.1.split(' ').next());
        let mut paths: Vec<String> = paths.map(str::to_owned).collect();
        paths.sort();
        paths
    }

    /// A configuration under which the registry is spoken to without TLS.
    pub fn without_tls(&self) -> String {
        format!("[images]\ninsecure_registries = [\"{}\"]\n", self.host())
    }

    /// From now on the user of [`LOGIN`] has this password.
    pub fn take_only(&self, password: &str) {
        let file = self.directory.path().join("htpasswd");
        let line = Cmd::new("htpasswd").args(["-Bbn", LOGIN.0, password]).ok();
        std::fs::write(&file, line.stdout).unwrap();
        // It reads the file again when its time is another one.
        let later = std::time::SystemTime::now() + Duration::from_secs(60);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    }

    /// From now on it takes connections and says nothing, until [`Registry::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// It goes on where it was frozen.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Files of the blobs as the registry keeps them, largest first.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.directory.path().join("data/docker/registry/v2/blobs")];
        while let Some(path) = left.pop() {
            for entry in std::fs::read_dir(path).unwrap().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    left.push(entry.path());
                } else {
                    found.push((entry.metadata().unwrap().len(), entry.path()));
                }
            }
        }
        found.sort();
        found.into_iter().rev().map(|(_, path)| path).collect()
    }
}

/// Makes an authority and a certificate of the loopback.
fn certify(directory: &Path) {
    let openssl = |words: &str| Cmd::new("openssl").args(words.split(' ')).dir(directory).ok();
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {new} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
    openssl(&format!("req {new} -subj /CN=registry -keyout key.pem -out request.pem"));
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        .unwrap();
    openssl(
        "x509 -req -days 2 -CAcreateserial -in request.pem -CA ca.pem -CAkey ca.key -extfile names -out cert.pem",
    );
}

fn launch(
    directory: &Path,
    (address, space): (&str, Option<&Path>),
    login: bool,
    tls: bool,
    cache_of: Option<&Registry>,
) -> Child {
    let auth = if login {
        let file = directory.join("htpasswd");
        let line = Cmd::new("htpasswd").args(["-Bbn", LOGIN.0, LOGIN.1]).ok();
        std::fs::write(&file, line.stdout).unwrap();
        format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display())
    } else {
        String::new()
    };
    let proxy = cache_of.map(|other| format!("proxy: {{remoteurl: 'http://{}'}}\n", other.host()));
    let proxy = proxy.unwrap_or_default();
    let tls = if tls {
        format!(", tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}", directory.display())
    } else {
        String::new()
    };
    let config = format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: false}}}}\nstorage: {{filesystem: {{rootdirectory: \
         {0}/data}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}\nhttp: {{addr: '{address}'{tls}}}\n{auth}{proxy}",
        directory.display()
    );
    let file = directory.join("config.yml");
    std::fs::write(&file, config).unwrap();
    let mut log = std::fs::File::create(directory.join("log")).unwrap();
    log.flush().unwrap();
    let program = ["/usr/bin/docker-registry", "/usr/local/bin/docker-registry"]
        .into_iter()
        .find(|p| Path::new(p).exists());
    let program = program.expect("docker-registry is not installed (tests/packages.txt)");
    let mut command = match space {
        Some(space) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", space.display())).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.arg("serve").arg(&file).env_clear().stdin(Stdio::null()).process_group(0);
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap()
}

fn answers(child: &mut Child, port: u16) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of the loopback on which nothing listens.
pub fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
