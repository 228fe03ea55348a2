//! What supervisors of earlier versions left, as `tests/recorded` has it, is adopted by this one.

use super::*;
use berth_model::state::ExitStatus;
use berth_runtime::cgroup::CgroupFacts;
use berth_step::control::ToSupervisor;
use berth_step::spool::StateFile;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Where the state directory was when it was recorded.
const STATE: &str = "/var/lib/berth";

/// All of one version's.
struct Recorded {
    from: PathBuf,
    dir: tempfile::TempDir,
    paths: Paths,
}

fn versions() -> Vec<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let mut versions: Vec<PathBuf> = fs::read_dir(all).unwrap().map(|e| e.unwrap().path()).collect();
    versions.sort();
    assert!(versions.iter().any(|v| v.ends_with("0.1")), "nothing is recorded of version 0.1");
    versions
}

impl Recorded {
    /// As an agent finds it that starts. The supervisors are this process.
    fn lay(from: &Path) -> Recorded {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        let recorded = Recorded { from: from.into(), paths, dir };
        for below in ["spool", "jobs"] {
            for entry in fs::read_dir(from.join(below)).unwrap() {
                let entry = entry.unwrap();
                let to = recorded.dir.path().join(below).join(entry.file_name());
                fs::create_dir_all(&to).unwrap();
                for file in fs::read_dir(entry.path()).unwrap() {
                    let name = file.unwrap().file_name();
                    let text = recorded.read(&entry.path().join(&name));
                    if name.to_string_lossy().ends_with(".json") && name != "exited.json" {
                        fs::write(to.join(&name), text).unwrap();
                    }
                }
            }
        }
        fs::create_dir(recorded.dir.path().join("scratch")).unwrap();
        recorded
    }

    /// A file with this machine's places, and of a state with a process that lives.
    fn read(&self, path: &Path) -> String {
        let text = fs::read_to_string(path).unwrap().replace(STATE, self.dir.path().to_str().unwrap());
        match serde_json::from_str::<Value>(&text) {
            Ok(mut state) if state.get("phase").is_some() => {
                let pid = i32::try_from(std::process::id()).unwrap();
                state["pid"] = json!(pid);
                state["start_ticks"] = json!(berth_step::spool::start_ticks(pid).unwrap());
                state.to_string()
            }
            _ => text,
        }
    }

    fn steps(&self) -> Vec<StepDir> {
        spool::scan(&self.paths.spool()).unwrap().into_iter().map(|(_, dir)| dir).collect()
    }

    fn of(&self, step: &StepDir, name: &str) -> PathBuf {
        self.from.join("spool").join(step.path().file_name().unwrap()).join(name)
    }

    fn boot_id(&self) -> String {
        self.steps()[0].read_state().unwrap().unwrap().boot_id
    }

    /// The end that its supervisor wrote down.
    fn end(&self, step: &StepDir) {
        fs::write(step.state(), self.read(&self.of(step, "exited.json"))).unwrap();
    }
}

/// Whether everything that is recorded is still there once it was read and written again: a field that another name has now would
/// be read as its default.
fn keeps(recorded: &Value, now: &Value, at: &str) {
    match (recorded, now) {
        (Value::Object(recorded), Value::Object(now)) => {
            for (key, value) in recorded {
                keeps(value, now.get(key).unwrap_or(&Value::Null), &format!("{at}.{key}"));
            }
        }
        (Value::Array(recorded), Value::Array(now)) if recorded.len() == now.len() => {
            recorded.iter().zip(now).for_each(|(r, n)| keeps(r, n, &format!("{at}[]")));
        }
        _ => assert_eq!(recorded, now, "{at}"),
    }
}

#[test]
fn nothing_that_earlier_versions_wrote_is_lost_in_reading() {
    for version in versions() {
        let recorded = Recorded::lay(&version);
        for step in recorded.steps() {
            let read = |name: &str| -> Value {
                serde_json::from_str(&recorded.read(&recorded.of(&step, name))).unwrap()
            };
            let launch = serde_json::to_value(step.read_launch().unwrap()).unwrap();
            keeps(&read("launch.json"), &launch, "launch");
            for name in ["state.json", "exited.json"] {
                let state: StateFile = serde_json::from_value(read(name)).unwrap();
                keeps(&read(name), &serde_json::to_value(state).unwrap(), name);
            }
            let timers: Kept = serde_json::from_value(read("timers.json")).unwrap();
            keeps(&read("timers.json"), &serde_json::to_value(timers).unwrap(), "timers");
        }
        for record in jobs::scan(&recorded.paths).unwrap() {
            let path = recorded.from.join(format!("jobs/{}/job.json", record.job));
            let then: Value = serde_json::from_str(&recorded.read(&path)).unwrap();
            keeps(&then, &serde_json::to_value(record).unwrap(), "job");
        }
    }
}

/// The part of a supervisor: its socket, and a connection of the agent's.
struct Supervisor(OwnedFd);

impl Supervisor {
    fn listen(step: &StepDir) -> Supervisor {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(step.socket()).unwrap()).unwrap();
        rustix::net::listen(&socket, 8).unwrap();
        Supervisor(socket)
    }

    /// The agent's connection, to which it says what was recorded.
    fn accept(&self, first: &[u8]) -> OwnedFd {
        let connection = rustix::net::accept(&self.0).unwrap();
        rustix::net::send(&connection, first, SendFlags::NOSIGNAL).unwrap();
        connection
    }
}

fn packet(connection: &OwnedFd) -> Value {
    let mut bytes = [0; 4096];
    let (length, _) = rustix::net::recv(connection.as_fd(), &mut bytes, RecvFlags::empty()).unwrap();
    serde_json::from_slice(&bytes[..length]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supervisors_of_earlier_versions_are_adopted_obeyed_and_heard() {
    for version in versions() {
        let recorded = Recorded::lay(&version);
        let boot = recorded.boot_id();
        let listening: Vec<(StepDir, Supervisor)> =
            recorded.steps().into_iter().map(|step| (step.clone(), Supervisor::listen(&step))).collect();
        let firsts: Vec<Vec<u8>> =
            listening.iter().map(|(step, _)| fs::read(recorded.of(step, "first-packet")).unwrap()).collect();
        // As many agents may come as do: each connection is told.
        let accepting = std::thread::spawn(move || {
            let all = listening.into_iter().zip(firsts);
            all.map(|((step, supervisor), first)| (step, supervisor.accept(&first), supervisor))
                .collect::<Vec<_>>()
        });
        let (registry, (events, mut told)) = (Registry::default(), mpsc::unbounded_channel());
        let found = adopt(&recorded.paths, &boot, &registry, &events).await.unwrap();
        let connections = accepting.join().unwrap();
        assert_eq!(found.steps.len(), connections.len());
        assert_eq!(found.jobs.len(), 1, "{version:?}");
        for step in &found.steps {
            assert_eq!(step.phase, AdoptedPhase::Running, "{version:?}");
        }
        for (step, connection, _listens) in connections {
            let key = step.key().unwrap();
            // The words that it knows.
            let signal = ToSupervisor::Signal { signal: 10, leaders_only: true, number: None };
            assert!(registry.command(key, signal));
            assert!(registry.command(key, ToSupervisor::Kill));
            assert_eq!(packet(&connection), json!({"signal": {"signal": 10, "leaders_only": true}}));
            assert_eq!(packet(&connection), json!("kill"));
            recorded.end(&step);
            rustix::net::send(&connection, b"\"exited\"", SendFlags::NOSIGNAL).unwrap();
            let event = tokio::time::timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap();
            let (SupervisorEvent::Exited(exit), true) = (&event.1, event.0 == key) else {
                panic!("{event:?}")
            };
            assert_eq!(exit.status, ExitStatus { code: code(&step), signal: 0 }, "{version:?}");
        }
    }
}

/// With what its script and its tasks ended when it was recorded.
fn code(step: &StepDir) -> u8 {
    if step.key().unwrap().step == berth_model::ids::StepId::Batch { 3 } else { 7 }
}

#[tokio::test]
async fn ends_that_supervisors_of_earlier_versions_left_are_found() {
    for version in versions() {
        let recorded = Recorded::lay(&version);
        let boot = recorded.boot_id();
        recorded.steps().iter().for_each(|step| recorded.end(step));
        let (events, _told) = mpsc::unbounded_channel();
        let found = adopt(&recorded.paths, &boot, &Registry::default(), &events).await.unwrap();
        assert_eq!(found.steps.len(), recorded.steps().len());
        for step in &found.steps {
            let AdoptedPhase::Exited(exit) = &step.phase else { panic!("{:?}", step.phase) };
            let dir = StepDir::of(&recorded.paths.spool(), step.launch.key);
            assert_eq!(exit.status.code, code(&dir), "{version:?}");
        }
        // After a reboot nothing of it is left.
        let again = Recorded::lay(&version);
        let found = adopt(&again.paths, "another boot", &Registry::default(), &events).await.unwrap();
        assert!(found.steps.is_empty() && found.jobs.is_empty() && again.steps().is_empty());
    }
}

#[test]
fn a_deadline_that_cannot_be_read_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let job = JobId(7);
    assert_eq!(deadline(job, dir.path()), None);
    let group = Cgroup::named(&CgroupFacts::default(), "job-7");
    let until = Time::from_secs(1234);
    Deadline { boot_id: "boot".into(), until, group }.keep(dir.path()).unwrap();
    assert_eq!(deadline(job, dir.path()), Some(until));
    std::fs::write(Deadline::file(dir.path()), "{").unwrap();
    assert_eq!(deadline(job, dir.path()), Some(Time(0)));
    // What is no file at all cannot be read either.
    std::fs::remove_file(Deadline::file(dir.path())).unwrap();
    std::fs::create_dir(Deadline::file(dir.path())).unwrap();
    assert_eq!(deadline(job, dir.path()), Some(Time(0)));
}
