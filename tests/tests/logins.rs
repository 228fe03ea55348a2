//! `berth image login` and `logout`: checked by a real registry, found by other tools, other content left alone.

use berth_tests::registry::LOGIN;
use berth_tests::{Cmd, Registry, Sandbox, Who, each_user, images};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

/// A person with a home directory of their own in the sandbox.
struct Person {
    sandbox: Sandbox,
    home: PathBuf,
}

impl Person {
    fn new(who: Who) -> Person {
        let sandbox = Sandbox::empty(who);
        sandbox.cmd("mkdir").args(["-p", "home", "tmp"]).ok();
        let home = sandbox.work().join("home");
        Person { sandbox, home }
    }

    fn cmd(&self, program: &str) -> Cmd {
        let path = format!("{}/tools", self.sandbox.work().display());
        let tmp = self.sandbox.work().join("tmp");
        let cmd =
            self.sandbox.cmd(program).env("HOME", &self.home).env("TMPDIR", &tmp).env("XDG_RUNTIME_DIR", tmp);
        let usual = format!(
            "{path}:{}:{}/bin:/usr/local/bin:/usr/bin:/bin",
            berth_tests::machine::programs().display(),
            self.sandbox.work().parent().unwrap().display()
        );
        cmd.env("PATH", usual)
    }

    fn login(&self, words: &[&str], password: &str) -> Cmd {
        self.cmd("berth")
            .args(["image", "login", "--insecure", "--password-stdin"])
            .args(words)
            .stdin(password)
    }

    fn config(&self) -> PathBuf {
        self.home.join(".docker/config.json")
    }

    /// What skopeo, which knows nothing of us, says of the image.
    fn skopeo(&self, image: &str) -> Cmd {
        let skopeo = self.cmd("skopeo").args(["inspect", "--tls-verify=false", "--format={{.Digest}}"]);
        skopeo.arg(format!("docker://{image}"))
    }
}

each_user! {
    fn a_login_is_checked_kept_and_found_by_other_tools(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "private:1", &[]);
        let host = registry.host();
        let person = Person::new(who.clone());
        person.skopeo(&image).fails();
        // A wrong one is told and not kept.
        person.login(&[&host, "-u", LOGIN.0], "wrong").fails().says(&[&host, LOGIN.0, "401", "password"]);
        assert!(!person.config().exists());
        std::fs::create_dir(person.home.join(".docker")).unwrap();
        std::fs::write(person.config(), "{\n\t\"psFormat\": \"a \\u00e4\",\n\t\"auths\": {\"other.io\": {\"auth\":  \"a2VwdDprZXB0\"}}\n}").unwrap();
        berth_tests::machine::give(&person.home.join(".docker"), &who);
        berth_tests::machine::give(&person.config(), &who);
        let told = person.login(&[&host, "-u", LOGIN.0], &format!("{}\n", LOGIN.1)).ok();
        assert_eq!(told.text(), format!("logged in to {host} as {}", LOGIN.0));
        assert!(!format!("{told}").contains(LOGIN.1), "the password is printed");
        let file = std::fs::metadata(person.config()).unwrap();
        assert_eq!((file.permissions().mode() & 0o777, file.uid()), (0o600, who.uid));
        let text = std::fs::read_to_string(person.config()).unwrap();
        assert!(text.contains("\"psFormat\": \"a \\u00e4\"") && text.contains("{\"auth\":  \"a2VwdDprZXB0\"}"), "{text}");
        person.skopeo(&image).ok();
        for other in ["podman", "skopeo"].iter().filter(|tool| who.is_root() || **tool != "podman") {
            // An ordinary user's podman leaves a process behind.
            assert_eq!(person.cmd(other).args(["login", "--get-login", &host]).ok().text(), LOGIN.0);
        }
        person.cmd("berth").args(["image", "pull", "--insecure", "--quiet", &image]).ok();
        let left: Vec<_> = std::fs::read_dir(person.home.join(".docker")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["config.json"], "something is left beside the file");

        person.cmd("berth").args(["image", "logout", &host]).ok();
        person.skopeo(&image).fails();
        let text = std::fs::read_to_string(person.config()).unwrap();
        assert!(!text.contains(&host) && text.contains("other.io"), "{text}");
        person.cmd("berth").args(["image", "logout", &host]).fails().says(&[&host, "config.json"]);
    }

    fn podmans_own_file_is_told_of(who) {
        let registry = Registry::with_login();
        let host = registry.host();
        let person = Person::new(who);
        let earlier = person.home.join(".config/containers/auth.json");
        let skopeo = person.cmd("skopeo").args(["login", "--tls-verify=false", "--authfile"]).arg(&earlier);
        skopeo.args(["-u", LOGIN.0, "--password-stdin", &host]).stdin(LOGIN.1).ok();
        let told = person.login(&[&host, "-u", LOGIN.0], LOGIN.1).ok();
        assert!(told.err().contains("auth.json") && told.err().contains("podman logout"), "{told}");
        let told = person.cmd("berth").args(["image", "logout", &host]).ok();
        assert!(told.err().contains("auth.json"), "{told}");
        // A file that is named is the one that is written.
        let named = person.sandbox.work().join("named.json");
        person.login(&[&host, "-u", LOGIN.0], LOGIN.1).env("REGISTRY_AUTH_FILE", &named).ok();
        assert!(std::fs::read_to_string(&named).unwrap().contains(&host));
        let image = registry.push(&images::busybox(), "private:1", &[]);
        let pull = person.cmd("berth").args(["image", "pull", "--insecure", "--quiet", &image]);
        pull.env("REGISTRY_AUTH_FILE", &named).env("HOME", person.sandbox.work()).ok();
    }

    fn a_file_that_is_new_or_broken_beside_it_does_not_stop_a_login(who) {
        let registry = Registry::with_login();
        let host = registry.host();
        let person = Person::new(who);
        // A home under a symbolic link, and a directory that is named from where one is.
        std::os::unix::fs::symlink(&person.home, person.sandbox.work().join("link")).unwrap();
        let linked = person.login(&[&host, "-u", LOGIN.0], LOGIN.1).env("HOME", person.sandbox.work().join("link")).ok();
        assert!(!linked.err().contains("used before"), "{linked}");
        let relative = person.login(&[&host, "-u", LOGIN.0], LOGIN.1).env("DOCKER_CONFIG", "other").ok();
        assert!(!relative.err().contains("used before"), "{relative}");
        assert!(person.sandbox.work().join("other/config.json").exists());
        person.cmd("berth").args(["image", "logout", &host]).env("DOCKER_CONFIG", "other").ok();
        // Another tool's file that nobody can read is not what is changed.
        person.sandbox.cmd("mkdir").args(["-p", "home/.config/containers"]).ok();
        person.sandbox.write("home/.config/containers/auth.json", "{");
        person.login(&[&host, "-u", LOGIN.0], LOGIN.1).ok();
        person.cmd("berth").args(["image", "logout", &host]).ok();
        assert!(!std::fs::read_to_string(person.config()).unwrap().contains(&host));
    }

    fn a_helper_keeps_the_login_in_place_of_the_file(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "private:1", &[]);
        let host = registry.host();
        let person = Person::new(who.clone());
        let kept = person.sandbox.work().join("kept");
        person.sandbox.cmd("mkdir").args(["-p", "tools", "kept", "home/.docker"]).ok();
        // The protocol of docker-credential-helpers, with a file for each address.
        let helper = format!(
            "#!/bin/sh\ncd {}\ncase $1 in\nstore) cat > new; name=$(sed 's/.*\"ServerURL\":\"\\([^\"]*\\)\".*/\\1/' new | tr '/:@' '___'); mv new \"$name\";;\n\
             get) name=$(tr '/:@' '___'); [ -e \"$name\" ] || {{ echo credentials not found in native keychain; exit 1; }}; cat \"$name\";;\n\
             erase) name=$(tr '/:@' '___'); rm \"$name\";;\nesac\n",
            kept.display()
        );
        person.sandbox.write("tools/docker-credential-testing", helper);
        // The one that docker uses for all, and the one for a registry, which podman and skopeo ask, too.
        for config in ["{\"credsStore\": \"testing\"}".to_string(), format!("{{\"credHelpers\": {{\"{host}\": \"testing\"}}}}")] {
            std::fs::write(person.config(), &config).unwrap();
            berth_tests::machine::give(&person.config(), &who);
            person.login(&[&host, "-u", LOGIN.0], LOGIN.1).ok();
            let text = std::fs::read_to_string(person.config()).unwrap();
            assert!(text.contains(&format!("\"{host}\": {{}}")) && text.contains("testing") && !text.contains("auth\""), "{text}");
            assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
        }
        person.skopeo(&image).ok();
        person.cmd("berth").args(["image", "pull", "--insecure", "--quiet", &image]).ok();
        // A further login of the same registry, for references that name it.
        let further = format!("{}@{host}", LOGIN.0);
        person.login(&[&further], LOGIN.1).ok();
        person.cmd("berth").args(["image", "logout", &host]).ok();
        assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
        let named = format!("{further}#private:1");
        person.cmd("berth").args(["image", "pull", "--insecure", "--quiet", &named]).ok();
        person.cmd("berth").args(["image", "logout", &further]).ok();
        assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 0);
        std::fs::write(person.config(), "{\"credsStore\": \"not-there\"}").unwrap();
        person.login(&[&host, "-u", LOGIN.0], LOGIN.1).fails().says(&["docker-credential-not-there"]);
    }

    fn several_identities_of_one_registry(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "private:1", &[]);
        let host = registry.host();
        let person = Person::new(who);
        let further = format!("{}@{host}", LOGIN.0);
        person.login(&[&further], LOGIN.1).ok();
        let pull = |image: &str| person.cmd("berth").args(["image", "pull", "--insecure", "--quiet", image]);
        pull(&image).fails().says(&["anonymous", "berth image login"]);
        pull(&format!("{further}#private:1")).ok();
        pull(&format!("bob@{host}#private:1")).fails().says(&["bob", &format!("berth image login bob@{host}")]);
        person.login(&[&format!("bob@{host}"), "-u", LOGIN.0], LOGIN.1).fails().says(&["bob", LOGIN.0]);
    }

    fn a_password_is_asked_for_and_not_shown(who) {
        let registry = Registry::with_login();
        let host = registry.host();
        let person = Person::new(who);
        let line = format!("berth image login --insecure {host}");
        let mut asked = person.cmd("script").args(["-q", "-e", "-c", &line, "/dev/null"]).stdin_open().spawn();
        asked.wait_for("User name", 30);
        asked.write(format!("{}\n", LOGIN.0).as_bytes());
        asked.wait_for("Password of", 30);
        // Mistyped, and taken back.
        asked.write(format!("nonsense\u{15}{}x\u{7f}\r", LOGIN.1).as_bytes());
        let told = asked.finish();
        assert_eq!(told.rc, 0, "{told}");
        assert!(told.text().contains("logged in to") && !told.text().contains(LOGIN.1), "{told}");
        assert!(std::fs::read_to_string(person.config()).unwrap().contains(&host));
        // Interrupted, and the terminal as it was.
        let line = format!("berth image login --insecure -u x {host}; echo code $?; stty -a");
        let mut asked = person.cmd("script").args(["-q", "-c", &line, "/dev/null"]).stdin_open().spawn();
        asked.wait_for("Password of", 30);
        asked.write(b"secret\x03");
        let told = asked.finish();
        let text = told.text();
        assert!(text.contains("code 130") && text.contains(" echo ") && text.contains(" icanon"), "{told}");
        // Without a terminal nobody is asked.
        person.cmd("berth").args(["image", "login", "--insecure", &host]).fails().says(&["--username", "--password-stdin"]);
    }

    fn what_cannot_be_a_login(who) {
        let person = Person::new(who.clone());
        let open = Registry::open();
        let told = person.login(&[&open.host(), "-u", "x"], "y").ok();
        assert!(told.err().contains("could not be checked"), "{told}");
        person.login(&[&open.host(), "-u", "x"], "\n").fails().says(&["password is empty"]);
        person.login(&[&format!("{}/team", open.host()), "-u", "x"], "y").fails().says(&["path", "HOST"]);
        person.login(&["-u", "a:b", &open.host()], "y").fails().says(&["a:b"]);
        let closed = format!("127.0.0.1:{}", berth_tests::registry::closed_port());
        person.login(&[&closed, "-u", "x"], "y").fails().says(&[&closed, "connection refused"]);
        std::fs::write(person.config(), "{").unwrap();
        person.login(&[&open.host(), "-u", "x"], "y").fails().says(&["config.json", "is not a login file"]);
        assert_eq!(std::fs::read_to_string(person.config()).unwrap(), "{");
        if who.is_root() {
            // A user's file and directory are not taken over by root.
            std::os::unix::fs::chown(person.config(), Some(1), None).unwrap();
            person.login(&[&open.host(), "-u", "x"], "y").fails().says(&["config.json", "uid 1"]);
            std::os::unix::fs::chown(&person.home, Some(1), None).unwrap();
            std::fs::remove_dir_all(person.home.join(".docker")).unwrap();
            person.login(&[&open.host(), "-u", "x"], "y").fails().says(&["work/home", "uid 1"]);
            assert!(!person.home.join(".docker").exists());
        }
    }

    fn doors_log_in(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "private:1", &[]);
        let host = registry.host();
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let doors = sandbox.work().join("doors");
        sandbox.cmd("berth").args(["install-links", "--front-doors"]).arg(&doors).ok();
        let docker = |words: &[&str]| {
            sandbox.cmd(doors.join("docker")).args(words).env("DOCKER_CONFIG", sandbox.work().join("docker"))
        };
        docker(&["login", "-u", LOGIN.0, "-p", LOGIN.1, &host]).fails().says(&["-p", "--password-stdin"]);
        let told = docker(&["login", "-u", LOGIN.0, "--password-stdin", &host]).stdin(LOGIN.1).ok();
        assert_eq!(told.text(), "Login Succeeded");
        docker(&["pull", &image]).ok();
        assert!(docker(&["logout", &host]).ok().text().contains("Removing login credentials"));
        assert!(docker(&["logout", &host]).ok().text().contains("Not logged in"));
        let apptainer = |words: &[&str]| {
            sandbox.cmd(doors.join("apptainer")).args(words).env("DOCKER_CONFIG", sandbox.work().join("docker"))
        };
        let uri = format!("docker://{host}");
        apptainer(&["registry", "login", "-p", LOGIN.1, &uri]).fails().says(&["-p", "--password-stdin"]);
        apptainer(&["registry", "login", "-u", LOGIN.0, "--password-stdin", &uri]).stdin(LOGIN.1).ok();
        docker(&["pull", &image]).ok();
        apptainer(&["registry", "logout", &uri]).ok();
        apptainer(&["registry", "logout", &uri]).fails().says(&[&host]);
    }
}
