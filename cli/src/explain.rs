//! `--explain` of a submission: the step planned with the supervisor's and the runtime's own code, and printed.

use crate::images;
use berth_agent::hooks::Hooks;
use berth_agent::{Paths, STORE_ID};
use berth_client::error::{Failure, Kind};
use berth_client::explain::Explained;
use berth_images::{Credentials, SaveForm, describe, layer_place, open_source};
use berth_model::ByteStr;
use berth_model::config::ImagesConfig;
use berth_model::launch::StepLaunch;
use berth_model::options::Explain;
use berth_model::spec::{NamedSpec, ResolvedImage};
use berth_runtime::cgroup::{Cgroup, CgroupFacts};
use berth_runtime::plan::{EnvVar, Origin};
use berth_runtime::{HostFacts, Plan, plan};
use berth_step::kept::KeptPart;
use berth_step::spool::{ContainerDefaults, FORMAT, LaunchFile, PreparedImage, StepDir};
use serde::Serialize;

/// Everything that is said of a submission. Its JSON is what programs read; members are only ever added.
#[derive(Debug, Serialize)]
struct Document {
    partition: String,
    nodes: Vec<String>,
    start: Option<String>,
    tasks: usize,
    image: Option<Image>,
    control_group: ControlGroup,
    /// What only the first task has in its environment.
    task_env: Vec<EnvVar>,
    plan: Plan,
    notes: Vec<String>,
}

/// What the image was resolved to.
#[derive(Debug, Serialize)]
struct Image {
    typed: String,
    resolved: ResolvedImage,
}

/// The limits of the step's control group.
#[derive(Debug, Serialize)]
struct ControlGroup {
    /// False where the node can only bind CPUs by affinity.
    enforced: bool,
    memory_mib: u64,
    cpus: Vec<u32>,
    devices: Vec<String>,
}

/// Plans and prints.
pub fn submission(step: &Explained, format: Explain) -> Result<String, Failure> {
    let document = document(step)?;
    match format {
        Explain::Json => json(&document),
        Explain::Text => Ok(text(&document)),
    }
}

/// A value as a document of its own.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot print the plan: {e}")))
}

fn document(step: &Explained) -> Result<Document, Failure> {
    let mut launch = step.launch.clone();
    let paths = Paths::new(&step.state);
    let container = &step.config.container;
    let defaults = ContainerDefaults {
        mount_home: container.mount_home,
        remap_root: container.remap_root,
        entrypoint: container.entrypoint,
    };
    let mut node = paths.part(launch.key.job, step.system, defaults);
    // Every job has them; which process holds them is known when it runs.
    node.namespaces = Some(berth_runtime::JobNamespaces { pid: 0, start_ticks: 0 });
    node.image = image(&launch, &paths, step.system, &step.config.images)?;
    berth_agent::narrow_gpus(&mut launch, node.image.as_ref());
    let named = launch.container.as_ref().and_then(|c| c.named.as_ref());
    node.kept = named.map(|named| kept(&paths, &launch, named));
    let mut notes = step.notes.clone();
    if let Some(path) = launch.container.as_ref().and_then(|c| c.save.as_ref()) {
        let form = match SaveForm::of(path.as_path()) {
            SaveForm::Squashfs => "squashfs",
            SaveForm::Archive => "an archive",
            SaveForm::Layout => "an OCI layout",
        };
        notes.push(format!(
            "the container is saved as {form} to {} when its tasks have ended",
            path.display()
        ));
    }
    if let Some(named) = named {
        notes.push(format!(
            "the container '{}' is shown as it would be made; one that is there keeps what it holds, and a step joins one \
             that runs in its job as it was started",
            named.name
        ));
    }
    if step.enforced {
        let name = format!("job_{}/step_{}", launch.key.job, launch.key.step);
        node.cgroup = Some(Cgroup::named(&CgroupFacts::detect(), &name));
    }
    // A step that joins a container that runs finds it made.
    let dir = StepDir::of(&paths.spool(), launch.key);
    node.hooks = hooks(step)?.of_step(&launch, node.image.as_ref(), defaults, dir.path());
    let file = LaunchFile { format: FORMAT, launch, node };
    let (request, task_env) = berth_step::supervisor::planned(&file).map_err(Failure::user)?;
    let facts = HostFacts::gather_as(&request, step.system);
    let plan = plan(&request, &facts).map_err(|e| Failure::user(e.to_string()))?;
    let launch = file.launch;
    let mut devices: Vec<String> =
        launch.share.gres.iter().flat_map(|g| &g.files).map(|f| f.display().into_owned()).collect();
    devices.sort();
    Ok(Document {
        partition: launch.job.partition.clone(),
        nodes: launch.layout.nodes.iter().map(|n| n.0.clone()).collect(),
        start: step.start.map(berth_client::fmt::time::iso),
        tasks: launch.layout.tasks.iter().map(Vec::len).sum(),
        image: launch.container.map(|c| {
            let resolved = c.image.resolved.unwrap_or(ResolvedImage::Host);
            Image { typed: c.image.typed, resolved }
        }),
        control_group: ControlGroup {
            enforced: step.enforced,
            memory_mib: launch.share.memory,
            cpus: launch.share.cpus,
            devices,
        },
        task_env: task_env.iter().filter_map(variable).collect(),
        plan,
        notes,
    })
}

/// The hooks of the node.
fn hooks(step: &Explained) -> Result<Hooks, Failure> {
    let owner = if step.system { 0 } else { step.launch.identity.uid.0 };
    Hooks::load(&step.config.container.hooks_dirs, owner)
        .map_err(|why| Failure::new(Kind::Configuration, format!("container.hooks_dirs: {why}")))
}

/// Where the container of a name would be.
fn kept(paths: &Paths, launch: &StepLaunch, named: &NamedSpec) -> KeptPart {
    let (record, written) = paths.kept(named.scope, launch.key.job, launch.identity.uid, &named.name);
    KeptPart {
        name: named.name.clone(),
        record: ByteStr::from(record.as_path()),
        written: ByteStr::from(written.as_path()),
        subids: false,
        fresh: true,
        join: None,
    }
}

fn variable(text: &ByteStr) -> Option<EnvVar> {
    let at = text.0.iter().position(|b| *b == b'=')?;
    Some(EnvVar { name: text.0[..at].into(), value: text.0[at + 1..].into(), origin: Origin::Job })
}

/// The image as the node will have it: its layers need not be there yet.
fn image(
    launch: &StepLaunch,
    paths: &Paths,
    system: bool,
    config: &ImagesConfig,
) -> Result<Option<PreparedImage>, Failure> {
    let resolved = launch.container.as_ref().and_then(|c| c.image.resolved.as_ref());
    let pinned = resolved.map(|resolved| berth_agent::pinned(resolved, None)).transpose();
    let Some(manifest) = pinned.map_err(|e| images::failed(&e))?.flatten() else { return Ok(None) };
    let described = open_source(&manifest, &berth_agent::registries(config), &Credentials::from_env())
        .and_then(|source| describe(&manifest, source.as_ref()));
    let (image, mut layers) = described.map_err(|e| images::failed(&e))?;
    layers.reverse();
    let mut seen = std::collections::HashSet::new();
    layers.retain(|l| seen.insert(l.diff_id.clone()));
    // Who may not look at the directories above it is told what the node was told.
    let root = berth_agent::store_place(config, paths.state())
        .unwrap_or_else(|_| config.path.as_path().to_path_buf());
    let bytes = |all: Vec<String>| all.into_iter().map(ByteStr::from).collect();
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok(Some(PreparedImage {
        layers: layers.iter().map(|l| ByteStr::from(layer_place(&root, &l.diff_id).as_path())).collect(),
        owner: system.then_some(STORE_ID),
        env: bytes(image.env),
        entrypoint: bytes(image.entrypoint),
        cmd: bytes(image.cmd),
        workdir: some(image.workdir).map(ByteStr::from),
        user: some(image.user),
    }))
}

fn text(d: &Document) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("partition: {}", d.partition));
    line(format!("nodes: {}", d.nodes.join(",")));
    line(format!("start: {}", d.start.as_deref().unwrap_or("in the running job")));
    line(format!("tasks: {}", d.tasks));
    match &d.image {
        None => line("image: none, the node's own filesystem".into()),
        Some(Image { typed, resolved: ResolvedImage::Manifest { source, digest, .. } }) => {
            line(format!("image: {typed} is {source}@{digest}"));
        }
        Some(Image { typed, resolved: ResolvedImage::RootDir { path } }) => {
            line(format!("image: {typed} is the directory {}", path.display()));
        }
        Some(Image { typed, resolved: ResolvedImage::Host }) => {
            line(format!("image: {typed} is the node's own filesystem"));
        }
        Some(Image { typed, resolved: ResolvedImage::Kept }) => {
            line(format!("image: that of which the container of {typed} was made"));
        }
    }
    let g = &d.control_group;
    let how = if g.enforced { "enforced" } else { "not enforced in user mode here; CPUs by affinity" };
    let memory = if g.memory_mib > 0 { format!("{} MiB", g.memory_mib) } else { "unlimited".into() };
    line(format!("control group: memory {memory}, CPUs {}, {how}", ranges(&g.cpus)));
    let devices = if g.devices.is_empty() { "none".into() } else { g.devices.join(", ") };
    line(format!("allocated devices: {devices}"));
    let plan = d.plan.to_string();
    plan.lines().for_each(|l| line(l.to_string()));
    for v in &d.task_env {
        line(format!("env of the first task: {}={} (job)", v.name.display(), v.value.display()));
    }
    d.notes.iter().for_each(|n| line(format!("note: {n}")));
    out
}

/// `0-3,6`.
fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *n => *last = *n,
            _ => parts.push((*n, *n)),
        }
    }
    let part = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_numbers_are_joined() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }
}
