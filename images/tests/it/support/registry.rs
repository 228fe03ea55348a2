//! A real registry: Debian's docker-registry on a free loopback port, with files of its own.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_images::{Credentials, Registries};

use super::tool;

pub struct RealRegistry {
    child: Child,
    pub address: String,
    pub dir: tempfile::TempDir,
}

pub const USER: &str = "alice";
pub const PASSWORD: &str = "correct horse";

impl RealRegistry {
    /// A registry that anyone may use.
    pub fn open() -> Self {
        Self::start(false, None, None)
    }

    /// A registry that wants a login.
    pub fn with_login() -> Self {
        Self::start(true, None, None)
    }

    /// A registry with TLS that anyone may use, or who shows a certificate of these `clients`' authority.
    pub fn with_tls(certificate: &(PathBuf, PathBuf), clients: Option<&Authority>) -> Self {
        Self::start(false, Some(certificate), clients)
    }

    /// A cache of another registry, which it asks for what it does not have.
    pub fn cache_of(other: &RealRegistry) -> Self {
        Self::launch(false, None, None, Some(other))
    }

    fn start(login: bool, tls: Option<&(PathBuf, PathBuf)>, clients: Option<&Authority>) -> Self {
        Self::launch(login, tls, clients, None)
    }

    fn launch(
        login: bool,
        tls: Option<&(PathBuf, PathBuf)>,
        clients: Option<&Authority>,
        cache_of: Option<&RealRegistry>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The port is free now; nobody else takes it in the moment until the registry does.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp:\n  addr: {address}\n",
            dir.path().join("data").display()
        );
        if let Some((certificate, key)) = tls {
            config += &format!("  tls: {{certificate: {}, key: {}", certificate.display(), key.display());
            if let Some(clients) = clients {
                config += &format!(", clientcas: [{}]", clients.pem().display());
            }
            config += "}\n";
        }
        if let Some(other) = cache_of {
            config += &format!("proxy: {{remoteurl: 'http://{}'}}\n", other.address);
        }
        if login {
            let file = dir.path().join("htpasswd");
            let output = tool("apache2-utils", "htpasswd", &["-Bbn", USER, PASSWORD]);
            std::fs::write(&file, output.stdout).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display());
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .env_remove("REGISTRY_AUTH_FILE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("cannot run docker-registry: {e}; install the Debian package docker-registry")
            });
        let registry = Self { child, address, dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen on {}", registry.address);
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Pushes an image of an OCI layout (`dir[:name]`).
    pub fn push(&self, layout: &str, name: &str) {
        self.push_with(layout, name, &["--dest-no-creds"], false);
    }

    pub fn push_as_user(&self, layout: &str, name: &str) {
        self.push_with(layout, name, &["--dest-creds", &format!("{USER}:{PASSWORD}")], false);
    }

    pub fn push_with(&self, layout: &str, name: &str, login: &[&str], all: bool) {
        let source = format!("oci:{layout}");
        let target = format!("docker://{}/{name}", self.address);
        let policy = self.dir.path().join("policy.json");
        std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
        let policy = policy.display().to_string();
        let mut arguments =
            vec!["--policy", &policy, "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"];
        arguments.extend(login);
        if all {
            arguments.push("--all");
        }
        arguments.extend([source.as_str(), target.as_str()]);
        tool("skopeo", "skopeo", &arguments);
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// A docker configuration with a login for this registry.
    pub fn login(&self, user: &str, password: &str) -> Credentials {
        use base64::Engine;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        self.docker_config(&serde_json::json!({"auths": {&self.address: {"auth": auth}}}))
    }

    pub fn docker_config(&self, config: &serde_json::Value) -> Credentials {
        let home: PathBuf = self.dir.path().join("docker");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("config.json"), config.to_string()).unwrap();
        Credentials::from_parts(Some(&home), None, None, None)
    }
}

/// An authority that nobody knows, and what it signed.
pub struct Authority(PathBuf);

impl Authority {
    /// Makes one in this directory.
    pub fn new(directory: &Path) -> Self {
        let (key, ca) = (directory.join("ca.key"), directory.join("ca.pem"));
        let subject = format!("req -x509 {CURVE} -days 2 -subj /CN=authority");
        openssl(&subject, &[("-keyout", &key), ("-out", &ca)]);
        Self(directory.to_path_buf())
    }

    pub fn pem(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// A certificate of 127.0.0.1, which a client can show too, and its key.
    pub fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let at = |end: &str| self.0.join(format!("{name}.{end}"));
        let (key, request, certificate, names) = (at("key"), at("request"), at("cert"), at("names"));
        openssl(&format!("req {CURVE} -subj /CN={name}"), &[("-keyout", &key), ("-out", &request)]);
        std::fs::write(&names, "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
        let (ca, ca_key) = (self.pem(), self.0.join("ca.key"));
        let files = [
            ("-in", &request),
            ("-CA", &ca),
            ("-CAkey", &ca_key),
            ("-extfile", &names),
            ("-out", &certificate),
        ];
        openssl("x509 -req -days 2 -CAcreateserial", &files);
        (certificate, key)
    }

    /// Registries as a configuration reaches them that names it.
    pub fn registries(&self) -> Registries {
        Registries { certificate_authorities: vec![self.pem()], ..Registries::default() }
    }
}

const CURVE: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn openssl(words: &str, files: &[(&str, &PathBuf)]) {
    let files = files.iter().flat_map(|(option, file)| [(*option).to_owned(), file.display().to_string()]);
    let all: Vec<String> = words.split(' ').map(str::to_owned).chain(files).collect();
    tool("openssl", "openssl", &all.iter().map(String::as_str).collect::<Vec<_>>());
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
