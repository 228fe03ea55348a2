//! What is sampled goes to its step, to the next agent, and on record.

use super::*;
use berth_model::ids::StepId;

/// What samples: a file, whatever is in it at the moment.
struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        Rig { dir: tempfile::tempdir().unwrap() }
    }

    fn does(&self, json: &str) {
        std::fs::write(self.dir.path().join("sample"), format!("use {json}\n")).unwrap();
    }

    fn used(&self) -> Arc<Used> {
        let script = format!("while read -r line; do cat {}; done", self.dir.path().join("sample").display());
        // By hand: no thread looks.
        Used::new(Path::new("/bin/sh"), vec!["-c".into(), script], 0)
    }

    fn step(&self, number: u32) -> (StepKey, StepDir) {
        let key = StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Number(number) };
        let dir = StepDir::of(self.dir.path(), key);
        dir.create().unwrap();
        (key, dir)
    }
}

fn share(uuid: &str) -> NodeShare {
    let device = GresDevice {
        name: "gpu".into(),
        uuid: Some(uuid.into()),
        vendor: Vendor::Nvidia,
        ..GresDevice::default()
    };
    NodeShare { gres: vec![device], ..NodeShare::default() }
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn what_is_seen_of_a_step_goes_on_with_the_next_agent_and_into_its_exit() {
    let rig = Rig::new();
    let (key, dir) = rig.step(0);
    let used = rig.used();
    used.begin(key, &share("GPU-1"), None, &dir);
    assert!(used.live().is_empty() && used.busy().is_empty(), "nobody has looked");
    rig.does(r#"{"devices":[{"uuid":"GPU-1","busy":60,"used":4096},{"uuid":"GPU-2","busy":100,"used":1}]}"#);
    used.look(LONG);
    let gpu = used.live()[0].1.gpu.unwrap();
    assert_eq!((gpu.peak, gpu.max_memory), (60, 4096));
    assert_eq!(used.busy(), [GpusBusy { job: JobId(1), attempt: Attempt(0), percent: 60 }]);
    assert!(used.busy().is_empty(), "it was asked for");
    // The agent is killed, and another one goes on.
    drop(used);
    let used = rig.used();
    used.begin(key, &share("GPU-1"), None, &dir);
    rig.does(r#"{"devices":[{"uuid":"GPU-1","busy":10,"used":9000}]}"#);
    used.look(LONG);
    let gpu = used.end(key).unwrap();
    assert_eq!((gpu.peak, gpu.max_memory), (60, 9000));
    assert!(gpu.watched_us >= gpu.busy_us);
    assert_eq!(Used::kept(&dir), Some(gpu), "for an agent that comes after its end");
    assert_eq!(used.end(key), None);
}

#[test]
fn what_nobody_says_of_a_gpu_counts_as_busy() {
    let rig = Rig::new();
    let ((batch, batch_dir), (inner, inner_dir)) = (rig.step(0), rig.step(1));
    let used = rig.used();
    let mut both = share("GPU-1");
    both.gres.extend(share("MIG-2").gres);
    used.begin(batch, &both, None, &batch_dir);
    used.begin(inner, &share("GPU-1"), None, &inner_dir);
    let percent = |devices: &str| {
        rig.does(&format!("{{\"devices\":[{devices}]}}"));
        used.look(LONG);
        used.busy()[0].percent
    };
    let idle = r#"{"uuid":"GPU-1","busy":0,"processes":[]}"#;
    assert_eq!(percent(&format!(r#"{idle},{{"uuid":"MIG-2","busy":3}}"#)), 3);
    assert_eq!(percent(idle), 100, "the other one was not looked at");
    let part = r#"{"uuid":"MIG-2","processes":[{"pid":4000000000,"memory":9}]}"#;
    assert_eq!(percent(&format!("{idle},{part}")), 100, "the driver does not say it of parts");
    let draws = r#"{"uuid":"MIG-2","busy":90,"processes":[]}"#;
    assert_eq!(percent(&format!("{idle},{draws}")), 90, "nobody computes there");
    // A step of which some GPUs are of a maker whom nobody can ask.
    let mut other = share("GPU-1");
    other.gres.push(GresDevice { vendor: Vendor::Intel, ..other.gres[0].clone() });
    used.end(batch);
    used.begin(inner, &other, None, &inner_dir);
    assert_eq!(percent(idle), 100);
}

#[test]
fn a_look_that_hangs_holds_no_other_one_up() {
    let rig = Rig::new();
    let (key, dir) = rig.step(0);
    let used = rig.used();
    used.begin(key, &share("GPU-1"), None, &dir);
    rig.does(r#"{"devices":[{"uuid":"GPU-1","busy":60,"used":4096}]}"#);
    let hangs = used.sampler.lock().unwrap();
    used.look(Duration::from_millis(50));
    assert!(used.live().is_empty(), "there was none");
    drop(hangs);
    used.look(LONG);
    assert_eq!(used.live().len(), 1);
}

#[test]
fn what_the_driver_counted_is_asked_for_once_more_when_a_step_ends() {
    let rig = Rig::new();
    let (key, dir) = rig.step(0);
    let used = rig.used();
    used.begin(key, &share("GPU-1"), None, &dir);
    assert!(!used.looks_again(key));
    rig.does(r#"{"devices":[{"uuid":"GPU-1","accounting":true,"processes":[]}]}"#);
    used.look(LONG);
    assert!(used.looks_again(key));
    let account = r#"{"pid":7,"began_us":99999999999999999,"took_us":2000000,"busy":50,"memory":77}"#;
    rig.does(&format!(
        r#"{{"devices":[{{"uuid":"GPU-1","accounting":true,"processes":[],"ended":[{account}]}}]}}"#
    ));
    used.look(LONG);
    let gpu = used.end(key).unwrap();
    assert_eq!((gpu.busy_us, gpu.peak, gpu.max_memory), (1_000_000, 50, 77));
}

#[test]
fn processes_of_a_supervisor_without_a_control_group_are_found_by_their_parents() {
    let me = std::process::id();
    let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
    assert_eq!(parent(child.id()), Some(me));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(parent(child.id()), None);
}

#[test]
fn steps_are_looked_at_soon_after_they_begin_and_then_in_every_period() {
    let began = Instant::now();
    let mut step = Watched {
        devices: vec![],
        blind: false,
        cgroup: None,
        file: PathBuf::new(),
        tally: Tally::default(),
        began,
        began_us: 0,
        last: began,
    };
    let mut due = Vec::new();
    for _ in 0..6 {
        step.last = step.due(Duration::from_secs(10));
        due.push(step.last.duration_since(began).as_secs());
    }
    assert_eq!(due, [1, 3, 6, 16, 26, 36]);
}

#[test]
fn a_driver_that_fails_costs_samples_and_nothing_else() {
    let rig = Rig::new();
    let (key, dir) = rig.step(0);
    let used = Used::new(Path::new("/bin/false"), Vec::new(), 0);
    used.begin(key, &share("GPU-1"), None, &dir);
    used.look(LONG);
    assert_eq!((used.end(key), Used::kept(&dir)), (None, None));
}
