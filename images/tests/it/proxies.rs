//! Registries behind a proxy, with a login for it in its address.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::{Bench, ImageBuilder, Tar};

/// A proxy that takes CONNECT from who shows this header, and leads everything to one place.
fn proxy(to: String, login: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    crate::support::front(move |stream, log| tunnel(stream, &to, login, log))
}

fn tunnel(stream: &TcpStream, to: &str, login: &str, log: &Mutex<Vec<String>>) -> Option<()> {
    let mut input = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    log.lock().unwrap().push(head[0].clone());
    let mut out = stream;
    let shown = head.iter().any(|line| {
        let (name, value) = line.split_once(':').unwrap_or_default();
        name.eq_ignore_ascii_case("proxy-authorization") && value.trim() == login
    });
    if !shown {
        out.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n").ok()?;
        return None;
    }
    let other = TcpStream::connect(to).ok()?;
    out.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut &other, &mut &*stream);
            let _ = stream.shutdown(Shutdown::Both);
        });
        let _ = std::io::copy(&mut input, &mut &other);
        let _ = other.shutdown(Shutdown::Both);
    });
    Some(())
}

/// Imports an image of a registry without TLS that only a proxy knows, in a process with these variables.
fn import(bench: &Bench, variables: &[(&str, &str)]) -> Output {
    run(bench, &["--insecure"], variables)
}

fn run(bench: &Bench, options: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(crate::concurrency::program());
    command.args(options).arg("--store").arg(bench.path().join("store")).arg("registry.invalid:5000/x:1");
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn a_registry_is_asked_by_the_proxy_of_the_environment() {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour::default());
    // "alice:secret"
    let (address, log) = proxy(fake.address.clone(), "Basic YWxpY2U6c2VjcmV0");
    let with_login = format!("http://alice:secret@{address}");
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let output = import(&bench, &[(name, &with_login)]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(log.lock().unwrap().iter().all(|line| line.starts_with("CONNECT registry.invalid:5000 ")));
    let said = |variables: &[(&str, &str)]| {
        let output = import(&bench, variables);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // Without its login the proxy refuses, and is named.
    let text = said(&[("HTTP_PROXY", &format!("http://{address}"))]);
    assert!(text.contains(&format!("by the proxy {address}")) && text.contains("407"), "{text}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let text = said(&[("HTTP_PROXY", &format!("http://alice:secret@{closed}"))]);
    assert!(text.contains(&format!("by the proxy {closed}")) && !text.contains("secret"), "{text}");
    // One that cannot be asked is named, and not passed over in silence; it hides none that can.
    let text = said(&[("ALL_PROXY", "socks5://alice:secret@127.0.0.1:1")]);
    assert!(text.contains("ALL_PROXY") && text.contains("SOCKS") && !text.contains("secret"), "{text}");
    let output = import(&bench, &[("ALL_PROXY", "socks5://127.0.0.1:1"), ("HTTP_PROXY", &with_login)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // NO_PROXY names what is asked without it, in any of its forms.
    let asked = log.lock().unwrap().len();
    for named in ["registry.invalid", "10.0.0.0/8, Invalid", ".invalid", "registry.invalid:5000", "*"] {
        let text = said(&[("HTTP_PROXY", &with_login), ("NO_PROXY", named)]);
        assert!(text.contains("cannot be reached: ") && !text.contains("by the proxy"), "{named}: {text}");
        assert_eq!(log.lock().unwrap().len(), asked, "{named}");
    }
    for named in ["gistry.invalid", "registry.invalid:6000", "10.0.0.0/8", ".registry.invalid"] {
        let output = import(&bench, &[("HTTP_PROXY", &with_login), ("NO_PROXY", named)]);
        assert!(output.status.success(), "{named}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(log.lock().unwrap().len() > asked);
}

#[test]
fn the_proxy_of_another_scheme_is_not_asked() {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour::default());
    // Each takes another login than it is shown, and so tells that it was asked and no more.
    let ((secure, of_secure), (plain, of_plain)) =
        (proxy(fake.address.clone(), "Basic x"), proxy(fake.address.clone(), "Basic x"));
    let (secure, plain) = (format!("http://{secure}"), format!("http://{plain}"));
    let both = [
        ("HTTPS_PROXY", secure.as_str()),
        ("http_proxy", plain.as_str()),
        ("ALL_PROXY", "http://127.0.0.1:1"),
    ];
    let asked = || [&of_secure, &of_plain].map(|log| log.lock().unwrap().len());
    let said = |options: &[&str], variables: &[(&str, &str)]| {
        let output = run(&bench, options, variables);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (options, own, count) in
        [(&["--insecure"][..], "http_proxy", [0, 1]), (&[][..], "HTTPS_PROXY", [1, 1])]
    {
        let text = said(options, &both);
        assert!(text.contains("407") && text.contains(&format!("the proxy of {own}")), "{text}");
        assert_eq!(asked(), count, "{text}");
        // Where only that of the other scheme is named, there is none.
        let others: Vec<_> = both[..2].iter().copied().filter(|(name, _)| *name != own).collect();
        let text = said(options, &others);
        assert!(text.contains("cannot be reached: ") && !text.contains("by the proxy"), "{text}");
        assert_eq!(asked(), count, "{text}");
    }
}
