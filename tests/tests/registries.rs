//! Images from a real registry: logins, compressions, and nothing fetched twice.

use berth_tests::{Cmd, Registry, Sandbox, Who, each_user, images, machine, registry};
use std::io::{BufRead, BufReader, Read, Write, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A proxy that leads every CONNECT to one place; gives its address and how often it was asked.
fn proxy(to: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (to, count) = (to.clone(), Arc::clone(&count));
            std::thread::spawn(move || tunnel(&stream, &to, &count));
        }
    });
    (address, asked)
}

fn tunnel(stream: &TcpStream, to: &str, count: &AtomicUsize) -> Option<()> {
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    if line.starts_with("CONNECT ") {
        count.fetch_add(1, Ordering::Relaxed);
    }
    while line.trim() != "" {
        line.clear();
        input.read_line(&mut line).ok()?;
    }
    let other = TcpStream::connect(to).ok()?;
    let mut out = stream;
    out.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = copy(&mut &other, &mut &*stream);
            let _ = stream.shutdown(Shutdown::Both);
        });
        let _ = copy(&mut input, &mut &other);
        let _ = other.shutdown(Shutdown::Both);
    });
    Some(())
}

/// What stands on the way to a registry: to HEAD it says of every manifest that it is `digest`, and images of `blocked` it refuses with a
/// page for people.
fn meddler(to: String, digest: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (to, digest) = (to.clone(), digest.clone());
            std::thread::spawn(move || meddle(&stream, &to, &digest));
        }
    });
    address
}

/// The lines of a request's head.
fn head_of(stream: &TcpStream) -> Option<String> {
    let mut input = BufReader::new(stream);
    let (mut head, mut line) = (String::new(), String::new());
    while line.trim() != "" || head.is_empty() {
        line.clear();
        input.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line.trim() != "" {
            head += &line;
        }
    }
    Some(head)
}

/// The connection by which a registry answers this request, and then closes it.
fn asked(to: &str, head: &str) -> Option<TcpStream> {
    let mut other = TcpStream::connect(to).ok()?;
    other.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).ok()?;
    Some(other)
}

/// What stands for a registry, and goes away in the middle of the first long answer, and comes back where it was; then it is true.
fn restarting(to: String) -> (String, Arc<AtomicBool>) {
    const LONG: usize = 100_000;
    let mut listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (place, back) = (address.clone(), Arc::new(AtomicBool::new(false)));
    let is_back = Arc::clone(&back);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut answer = Vec::new();
            let other = head_of(&stream).and_then(|head| asked(&to, &head));
            if other.is_none_or(|mut other| other.read_to_end(&mut answer).is_err()) {
                continue;
            }
            let goes = answer.len() > LONG && !is_back.load(Ordering::SeqCst);
            let _ = stream.write_all(&answer[..if goes { LONG } else { answer.len() }]);
            drop(stream);
            if goes {
                drop(listener);
                // For longer than who does not wait for it takes to give it up.
                std::thread::sleep(Duration::from_millis(1500));
                listener = loop {
                    match TcpListener::bind(&place) {
                        Ok(again) => break again,
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                };
                is_back.store(true, Ordering::SeqCst);
            }
        }
    });
    (address, back)
}

/// What stands for a registry, and wants to be left alone for three seconds at the first request.
fn throttling(to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked_before = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (to, asked_before) = (to.clone(), Arc::clone(&asked_before));
            std::thread::spawn(move || {
                let head = head_of(&stream)?;
                let mut out = &stream;
                if asked_before.swap(true, Ordering::SeqCst) {
                    copy(&mut asked(&to, &head)?, &mut out).ok()?;
                } else {
                    let busy = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    out.write_all(busy.as_bytes()).ok()?;
                }
                stream.shutdown(Shutdown::Both).ok()
            });
        }
    });
    address
}

/// What answers each request with this head, and whoever wants more than that with a body that begins so and never ends.
fn strange(head: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let asked = head_of(&stream)?;
                let mut out = &stream;
                out.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).ok()?;
                if !asked.starts_with("HEAD ") && !body.is_empty() {
                    out.write_all(body.as_bytes()).ok()?;
                    while out.write_all(b".").is_ok() {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
                stream.shutdown(Shutdown::Both).ok()
            });
        }
    });
    address
}

/// One request of a connection.
fn meddle(stream: &TcpStream, to: &str, digest: &str) -> Option<()> {
    let head = head_of(stream)?;
    let mut out = stream;
    let (kept, page) =
        ("Content-Length: 0\r\nConnection: close\r\n\r\n", "<p>kept back by the site's filter</p>");
    if head.contains("/blocked/") {
        let length = page.len();
        let answer =
            format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}");
        out.write_all(answer.as_bytes()).ok()?;
    } else if head.starts_with("HEAD ") && head.contains("/manifests/") {
        let answer = format!("HTTP/1.1 200 OK\r\nDocker-Content-Digest: {digest}\r\n{kept}");
        out.write_all(answer.as_bytes()).ok()?;
    } else {
        copy(&mut asked(to, &head)?, &mut out).ok()?;
    }
    let _ = out.shutdown(Shutdown::Both);
    None
}

/// The digest of what a name means at a registry.
fn digest_of(image: &str) -> String {
    let inspect = Cmd::new("skopeo").args(["inspect", "--tls-verify=false", "--format={{.Digest}}"]);
    inspect
        .arg(format!("docker://{image}"))
        .env("HOME", "/tmp")
        .env("XDG_RUNTIME_DIR", "/nonexistent")
        .ok()
        .text()
}

each_user! {
    fn a_step_pulls_its_image_once(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/layers:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        assert_eq!(sandbox.srun_in(&image, ["cat", "/data/kept"]).ok().text(), "kept");
        let fetched = registry.requests("GET", "/blobs/");
        assert!(fetched >= 4, "{fetched} blobs were fetched");
        // Several at once, the docker spelling, and a second tag of the same layers.
        let again = registry.push(&images::layers(), "team/layers:2", &[]);
        let line = format!("for i in 1 2 3; do srun --mem=16M -c1 --container-image=docker://{again} cat /data/replaced & done; wait");
        assert_eq!(sandbox.cmd("sh").args(["-c", &line]).ok().text(), "a file now\na file now\na file now");
        let more = registry.requests("GET", "/blobs/") - fetched;
        assert!(more <= 1, "{more} blobs were fetched again");
        let list = sandbox.cmd("berth").args(["image", "ls"]).ok().text();
        assert!(list.contains("team/layers"), "{list}");
        sandbox.cmd("berth").args(["image", "df"]).ok();
        let host = registry.host();
        let slurm_spelling = format!("{host}#team/layers:1");
        assert_eq!(sandbox.srun_in(slurm_spelling, ["cat", "/data/kept"]).ok().text(), "kept");
    }

    fn forty_steps_that_start_at_once_fetch_once(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/forty:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        // One job, so that nothing but the image holds them back.
        let steps = format!(
            "for i in $(seq 40); do srun --overlap -n1 --mem=0 --container-image={image} sh -c \"cat /data/kept; echo\" & done; wait"
        );
        let text = sandbox.cmd("salloc").args(["-n1", "--mem=400M", "sh", "-c", &steps]).limit(180).ok().text();
        assert_eq!(text.lines().filter(|line| *line == "kept").count(), 40, "{text}");
        // Every blob of the image, each once.
        let log = registry.fetched();
        let mut once = log.clone();
        once.dedup();
        assert_eq!(log, once, "a blob was fetched more than once");
        assert!(log.len() >= 4, "{log:?}");
    }

    fn zstd_layers_and_docker_manifests(who) {
        let registry = Registry::open();
        let zstd = registry.push(&images::layers(), "z:1", &["--dest-compress", "--dest-compress-format=zstd", "--dest-compress-level=3"]);
        let docker = registry.push(&images::layers(), "d:1", &["--format=v2s2"]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        for image in [zstd, docker] {
            let text = sandbox.srun_in(&image, ["sh", "-c", "cat /data/kept /data/emptied/c; ls /data/opaque"]).ok().text();
            assert_eq!(text, "kept\nchanged\nnew", "{image}");
        }
    }

    fn repeated_submissions_and_arrays_take_no_manifests(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "bb:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let cache = sandbox.work().join("cache");
        let submit = |options: &[&str]| {
            let option = format!("--container-image={image}");
            let all = options.iter().copied().chain([option.as_str(), "--wrap=true", "--hold"]);
            sandbox.cmd("sbatch").args(all).env("XDG_CACHE_HOME", &cache).ok();
        };
        submit(&[]);
        let asked = || (registry.requests("HEAD", "/manifests/"), registry.requests("GET", "/manifests/"));
        let (heads, gets) = asked();
        for n in 1..4 {
            submit(&[]);
            assert_eq!(asked(), (heads + n, gets));
        }
        // All tasks of an array are one question.
        submit(&["--array=0-999"]);
        assert_eq!(asked(), (heads + 4, gets));
    }

    fn a_digest_is_a_promise(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "bb:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let digest = digest_of(&image);
        let pinned = format!("{}@{digest}", registry.image("bb"));
        assert_eq!(sandbox.srun_in(&pinned, ["echo", "pinned"]).ok().text(), "pinned");
        let wrong = format!("{}@sha256:{}", registry.image("bb"), "0".repeat(64));
        sandbox.srun_in(&wrong, ["true"]).fails().says(&["sha256:0000"]);
    }

    fn a_digest_is_that_image_whatever_is_said_on_the_way(who) {
        let registry = Registry::open();
        let wanted = digest_of(&registry.push(&images::busybox(), "bb:1", &[]));
        let other = registry.push(&images::layers(), "bb:2", &[]);
        let front = meddler(registry.host(), digest_of(&other));
        let config = format!("[images]\ninsecure_registries = [\"{}\", \"{front}\"]\n", registry.host());
        let sandbox = Sandbox::with_config(who, &config);
        let cache = sandbox.work().join("cache");
        let srun = |image: &str| {
            let line = "test -e /data/kept && echo other || echo wanted";
            sandbox.srun_in(image, ["sh", "-c", line]).env("XDG_CACHE_HOME", &cache).ok().text()
        };
        let pinned = format!("{front}/bb@{wanted}");
        assert_eq!(srun(&pinned), "wanted");
        // Also where what is said instead is known here.
        assert_eq!(srun(&other), "other");
        assert_eq!(srun(&pinned), "wanted");
        // What is on the way, and what it says, is told.
        let blocked = format!("{front}/blocked/x:1");
        sandbox.cmd("berth").args(["image", "pull", &blocked]).fails().says(&["403", "kept back by the site's filter"]);
    }

    fn a_registry_that_begins_anew_in_the_middle_of_a_pull_is_waited_for(who) {
        let registry = Registry::open();
        registry.push(&images::busybox(), "bb:1", &[]);
        let (front, back) = restarting(registry.host());
        let sandbox = Sandbox::with_config(who, &format!("[images]\ninsecure_registries = [\"{front}\"]\n"));
        assert_eq!(sandbox.srun_in(format!("{front}/bb:1"), ["echo", "in"]).ok().text(), "in");
        assert!(back.load(Ordering::SeqCst), "it was not away");
    }

    fn a_login_from_the_users_own_configuration(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "private:1", &[]);
        let sandbox = Sandbox::with_config(who.clone(), &registry.without_tls());
        sandbox.srun_in(&image, ["true"]).fails().says(&["private", "login"]);
        let directory = sandbox.work().join("docker");
        std::fs::create_dir(&directory).unwrap();
        let secret = Cmd::new("base64").arg("-w0").stdin(format!("{}:{}", registry::LOGIN.0, registry::LOGIN.1)).ok().text();
        let file = directory.join("config.json");
        std::fs::write(&file, format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{secret}\"}}}}}}", registry.host())).unwrap();
        machine::give(&directory, &who);
        machine::give(&file, &who);
        let srun = || sandbox.srun_in(&image, ["echo", "in"]).env("DOCKER_CONFIG", &directory);
        assert_eq!(srun().ok().text(), "in");
        // The secret stays the user's.
        for place in ["state/db", "state/log", "state/spool", "state/run"] {
            let found = Cmd::new("grep").args(["-r", "-l", &secret]).arg(sandbox.work().parent().unwrap().join(place)).run();
            assert_eq!(found.text(), "", "the login of the registry is in the cluster's files");
        }
    }

    fn registries_that_lead_nowhere_or_dribble_are_told(who) {
        let to = "HTTP/1.1 307 Temporary Redirect\r\nLocation: ftp://storage.example/x\r\nContent-Length: 0\r\n";
        let (nowhere, dribbles) = (strange(to, ""), strange("HTTP/1.1 403 Forbidden\r\nContent-Length: 60000\r\n", "closed "));
        let sandbox = Sandbox::with_config(who, &format!("[images]\ninsecure_registries = [\"{nowhere}\", \"{dribbles}\"]\n"));
        let sbatch = |registry: &str| {
            let image = format!("--container-image={registry}/x:1");
            sandbox.cmd("sbatch").args([image.as_str(), "--wrap=true"]).limit(60).fails()
        };
        sbatch(&nowhere).says(&[&nowhere, "redirected to", "ftp://storage.example/x"]);
        sbatch(&dribbles).says(&[&dribbles, "403", "closed"]);
    }

    fn who_waits_for_a_registry_that_wants_to_be_left_alone_is_told(who) {
        let registry = Registry::open();
        registry.push(&images::busybox(), "bb:1", &[]);
        let fronts = [throttling(registry.host()), throttling(registry.host())];
        let config = format!("[images]\ninsecure_registries = [\"{}\", \"{}\"]\n", fronts[0], fronts[1]);
        let sandbox = Sandbox::with_config(who, &config);
        let pull = sandbox.cmd("berth").args(["image", "pull", &format!("{}/bb:1", fronts[0])]).ok();
        pull.says(&[&format!("waiting for registry {}, which answered 429", fronts[0]), "asked again in"]);
        let script = format!("--container-image={}/bb:1", fronts[1]);
        let submitted = sandbox.cmd("sbatch").args(["--parsable", &script, "--wrap=true"]).ok();
        assert!(submitted.text().trim().parse::<u32>().is_ok(), "{submitted}");
        submitted.says(&[&format!("waiting for registry {}, which answered 429", fronts[1])]);
    }

    fn a_login_that_enroot_has_is_shown_and_one_that_a_shell_would_make_is_told(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "private:1", &[]);
        let sandbox = Sandbox::with_config(who.clone(), &registry.without_tls());
        let directory = sandbox.work().join("enroot");
        sandbox.cmd("mkdir").arg(&directory).ok();
        let keep = |password: &str| {
            let file = directory.join(".credentials");
            let text = format!("machine {} login {} password {password}\n", registry.host(), registry::LOGIN.0);
            std::fs::write(&file, text).unwrap();
            machine::give(&file, &who);
        };
        keep(registry::LOGIN.1);
        let srun = || sandbox.srun_in(&image, ["echo", "in"]).env("ENROOT_CONFIG_PATH", &directory);
        assert_eq!(srun().ok().text(), "in");
        keep("$(cat secret)");
        srun().fails().says(&["401", "enroot/.credentials", "made by a shell"]);
    }

    fn a_pipe_where_logins_are_read_is_told_and_not_waited_for(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "private:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let directory = sandbox.work().join("docker");
        sandbox.cmd("mkdir").arg(&directory).ok();
        sandbox.cmd("mkfifo").arg(directory.join("config.json")).ok();
        let said = ["docker/config.json", "is not a regular file"];
        sandbox.srun_in(&image, ["true"]).env("DOCKER_CONFIG", &directory).limit(60).fails().says(&said);
        let pull = sandbox.cmd("berth").args(["image", "pull", "--insecure", &image]);
        pull.env("DOCKER_CONFIG", &directory).limit(60).fails().says(&said);
    }

    fn a_certificate_of_the_sites_own_authority(who) {
        let registry = Registry::with_tls();
        let image = registry.push(&images::busybox(), "bb:1", &[]);
        let sandbox = Sandbox::start(who.clone());
        sandbox.cmd("berth").args(["image", "pull", &image]).fails().says(&["certificate", "images.certificate_authorities"]);
        let authority = sandbox.write("ca.pem", std::fs::read(registry.authority()).unwrap());
        let config = format!("[images]\ncertificate_authorities = [\"{}\"]\n", authority.display());
        let told = Sandbox::with_config(who, &config);
        assert_eq!(told.srun_in(&image, ["echo", "in"]).ok().text(), "in");
        // Judged where it is written.
        let check = |text: &str| {
            let file = told.write("check.toml", text);
            told.cmd("berth").args(["config", "check"]).arg(file)
        };
        check(&config).ok();
        std::fs::write(&authority, "no certificate").unwrap();
        check(&config).fails().says(&["images.certificate_authorities", "ca.pem", "has no certificate"]);
        check("[images]\ncertificate_authorities = [\"ca.pem\"]\n").fails().says(&["is not an absolute path"]);
    }

    fn a_node_asks_by_the_proxy_with_which_the_cluster_was_started(who) {
        let registry = Registry::open();
        registry.push(&images::busybox(), "team/bb:1", &[]);
        let (of_node, node_asked) = proxy(registry.host());
        let (of_user, user_asked) = proxy(registry.host());
        let mut sandbox = Sandbox::empty(who);
        // Nobody but a proxy knows the name. That of servers with TLS is none for this one.
        let config = "[images]\ninsecure_registries = [\"registry.invalid:5000\"]\n";
        let path = sandbox.state().join("berth.toml");
        std::fs::write(&path, config).unwrap();
        machine::give(&path, sandbox.who());
        let (of_node, closed) = (format!("HTTP_PROXY={of_node}"), "HTTPS_PROXY=http://127.0.0.1:1".to_owned());
        sandbox.up_by("env", &[of_node, closed, "berth".into(), "up".into(), "--detach".into()]);
        let srun = sandbox.cmd("srun").arg("--container-image=registry.invalid:5000/team/bb:1").args(["echo", "in"]);
        assert_eq!(srun.env("HTTP_PROXY", &of_user).ok().text(), "in");
        let asked = || [&node_asked, &user_asked].map(|asked| asked.load(Ordering::Relaxed) > 0);
        assert_eq!(asked(), [true, true]);
    }

    fn a_cache_in_front_of_a_registry(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "team/bb:1", &[]);
        let cache = Registry::cache_of(&registry);
        let mirror = format!("[[images.mirror]]\nregistry = \"{}\"\nurls = [\"http://{}\"]\n", registry.host(), cache.host());
        let sandbox = Sandbox::with_config(who, &(registry.without_tls() + &mirror));
        assert_eq!(sandbox.srun_in(&image, ["echo", "in"]).ok().text(), "in");
        assert!(cache.asked_by("berth/") >= 3, "the cache was not asked");
        assert_eq!(registry.asked_by("berth/"), 0, "the registry was asked");
        // The tag means something without the registry.
        drop(registry);
        sandbox.cmd("berth").args(["image", "pull", &image]).ok();
        // Without either, all who were asked are named.
        let (host, address) = (image.split('/').next().unwrap().to_owned(), cache.host());
        drop(cache);
        sandbox.cmd("berth").args(["image", "pull", &image]).fails().says(&[
            &format!("registry {host} cannot be reached"),
            &format!("mirror http://{address} cannot be reached"),
        ]);
    }

    fn removal_and_pruning(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "bb:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        sandbox.cmd("berth").args(["image", "pull", "--insecure", &image]).ok();
        assert!(sandbox.cmd("berth").args(["image", "ls"]).ok().text().contains("bb"));
        sandbox.cmd("berth").args(["image", "rm", &image]).ok();
        assert!(!sandbox.cmd("berth").args(["image", "ls"]).ok().text().contains("bb"));
        sandbox.cmd("berth").args(["image", "prune"]).ok();
        sandbox.cmd("berth").args(["image", "rm", &image]).fails().says(&["bb"]);
    }
}

#[test]
fn a_cache_gives_nobody_a_private_image_on_a_shared_node_as_root() {
    let registry = Registry::with_login();
    let image = registry.push(&images::busybox(), "team/bb:1", &[]);
    // A mirror that gives to everyone what it has.
    let cache = Registry::open();
    cache.push(&images::busybox(), "team/bb:1", &[]);
    let mirror = format!(
        "[[images.mirror]]\nregistry = \"{}\"\nurls = [\"http://{}\"]\n",
        registry.host(),
        cache.host()
    );
    let sandbox = Sandbox::with_config(Who::root(), &(registry.without_tls() + &mirror));
    // Root may have it, so it is there.
    sandbox.srun_in(&image, ["true"]).ok();
    let option = format!("--container-image={image}");
    let srun = |who: &Who| sandbox.cmd_as(who, "srun").arg(&option).args(["echo", "in"]);
    let (user, stranger) = (Who::user(), Who::stranger());
    srun(&stranger).fails().says(&["registry", "401", "login"]);
    let secret =
        Cmd::new("base64").arg("-w0").stdin(format!("{}:{}", registry::LOGIN.0, registry::LOGIN.1)).ok();
    let directory = sandbox.work().join("docker");
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("config.json");
    let text = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{}\"}}}}}}", registry.host(), secret.text());
    std::fs::write(&file, text).unwrap();
    machine::give(&directory, &user);
    machine::give(&file, &user);
    assert_eq!(srun(&user).env("DOCKER_CONFIG", &directory).ok().text(), "in");
    srun(&stranger).fails().says(&["401"]);
}
