//! The administrator's OCI hooks: read from hook directories in the format of oci-hooks(5), version 1.0.0, when the agent
//! starts, and chosen for a step's container by what the cluster knows of it.

use berth_model::ByteStr;
use berth_model::launch::StepLaunch;
use berth_model::spec::ResolvedImage;
use berth_runtime::hooks::{ContainerHooks, HookPlan, Hooks as ByKind, unchangeable};
use berth_step::spool::{ContainerDefaults, PreparedImage};
use regex::Regex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// One file of a hook directory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: String,
    hook: HookEntry,
    when: When,
    stages: Vec<String>,
}

/// As the runtime specification has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HookEntry {
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    timeout: Option<u32>,
}

/// Conditions, all of which must hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct When {
    #[serde(default)]
    always: Option<bool>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    commands: Vec<String>,
    #[serde(default)]
    has_bind_mounts: Option<bool>,
}

/// A hook that was read and judged.
#[derive(Debug)]
struct Configured {
    hook: HookPlan,
    stages: Vec<String>,
    always: Option<bool>,
    annotations: Vec<(Regex, Regex)>,
    commands: Vec<Regex>,
    has_bind_mounts: Option<bool>,
}

/// All hooks of the site, in the order of their files' names.
#[derive(Debug, Default)]
pub struct Hooks {
    all: Vec<Configured>,
    owner: u32,
}

/// What conditions look at.
struct Container<'a> {
    annotations: &'a BTreeMap<String, String>,
    command: &'a str,
    bind_mounts: bool,
}

impl Hooks {
    /// Reads the directories; a file in a later one takes the place of one of the same name. Directories, files and
    /// programs must belong to root or `owner` and be closed to the writes of others.
    ///
    /// # Errors
    /// The first file that cannot be meant or trusted, with what to do.
    pub fn load(dirs: &[ByteStr], owner: u32) -> Result<Hooks, String> {
        let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for dir in dirs {
            let dir = unchangeable(dir.as_path(), owner)?;
            let entries = fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            for entry in entries {
                let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
                if let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|e| e == "json"))
                {
                    files.insert(name.to_owned(), path.clone());
                }
            }
        }
        let all = files.iter().map(|(name, path)| {
            read(path, owner)
                .map(|hook| Configured {
                    hook: HookPlan { file: Some(name.to_string_lossy().into_owned()), ..hook.hook },
                    ..hook
                })
                .map_err(|why| format!("{}: {why}", path.display()))
        });
        Ok(Hooks { all: all.collect::<Result<_, _>>()?, owner })
    }

    /// Those for the container that this step makes; `None` when there is none. `dir`: the step's own directory on the node.
    pub fn of_step(
        &self,
        launch: &StepLaunch,
        image: Option<&PreparedImage>,
        defaults: ContainerDefaults,
        dir: &Path,
    ) -> Option<ContainerHooks> {
        // Without any this is all that a start pays.
        if self.all.is_empty() {
            return None;
        }
        let container = launch.container.as_ref()?;
        if container.image.resolved == Some(ResolvedImage::Host) {
            return None;
        }
        let annotations = annotations(launch);
        let command = command(launch, image, container.entrypoint.unwrap_or(defaults.entrypoint));
        let about = Container {
            annotations: &annotations,
            command: &command,
            bind_mounts: !container.mounts.is_empty() || container.mount_home.unwrap_or(defaults.mount_home),
        };
        let mut hooks = ByKind::default();
        for configured in self.all.iter().filter(|configured| configured.matches(&about)) {
            for stage in &configured.stages {
                if let Some(list) = hooks.of_kind(stage) {
                    list.push(configured.hook.clone());
                }
            }
        }
        if hooks.is_empty() {
            return None;
        }
        Some(ContainerHooks {
            hooks,
            bundle: ByteStr::from(dir.join("bundle").as_path()),
            id: format!("berth-{}", launch.key),
            env: environment(launch),
            annotations,
            owner: self.owner,
        })
    }
}

impl Configured {
    fn matches(&self, about: &Container<'_>) -> bool {
        let annotated = |(key, value): &(Regex, Regex)| {
            about.annotations.iter().any(|(k, v)| key.is_match(k) && value.is_match(v))
        };
        self.always != Some(false)
            && self.has_bind_mounts.is_none_or(|wanted| wanted && about.bind_mounts)
            && self.annotations.iter().all(annotated)
            && (self.commands.is_empty() || self.commands.iter().any(|c| c.is_match(about.command)))
    }
}

fn read(path: &Path, owner: u32) -> Result<Configured, String> {
    let text = fs::read_to_string(unchangeable(path, owner)?).map_err(|e| e.to_string())?;
    let file: File = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    if file.version != "1.0.0" {
        return Err(format!("version '{}' is not known; write version 1.0.0 of oci-hooks(5)", file.version));
    }
    let mut kinds = ByKind::default();
    if file.stages.is_empty() {
        return Err(format!("it names no stage; 'stages' takes {}", names()));
    }
    if let Some(stage) = file.stages.iter().find(|stage| kinds.of_kind(stage).is_none()) {
        return Err(format!("there is no stage '{stage}'; 'stages' takes {}", names()));
    }
    let HookEntry { path, mut args, env, timeout } = file.hook;
    let only_inside = file.stages.iter().all(|stage| stage == "startContainer");
    if !path.is_absolute() {
        return Err(format!("hook.path '{}' is not absolute", path.display()));
    }
    // In the container there is whatever its image has.
    if !only_inside {
        let program = unchangeable(&path, owner).map_err(|why| format!("hook.path: {why}"))?;
        use std::os::unix::fs::PermissionsExt;
        let runs = fs::metadata(&program).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        if !runs {
            return Err(format!(
                "hook.path: {} is no program: chmod a+x it, or name another",
                program.display()
            ));
        }
    }
    if timeout == Some(0) {
        return Err("hook.timeout is 0; write the seconds that it may take".into());
    }
    if let Some(wrong) = env.iter().flatten().find(|v| v.find('=').is_none_or(|at| at == 0)) {
        return Err(format!("hook.env has '{wrong}'; each is NAME=value"));
    }
    if args.is_empty() {
        args.push(path.to_string_lossy().into_owned());
    }
    let When { always, annotations, commands, has_bind_mounts } = file.when;
    if always.is_none() && annotations.is_empty() && commands.is_empty() && has_bind_mounts.is_none() {
        return Err("'when' has no condition; write \"always\": true for every container".into());
    }
    let pattern =
        |text: &str| Regex::new(text).map_err(|e| format!("'{text}' is no regular expression: {e}"));
    let annotations: Result<_, String> =
        annotations.iter().map(|(key, value)| Ok((pattern(key)?, pattern(value)?))).collect();
    let commands: Result<_, String> = commands.iter().map(|text| pattern(text)).collect();
    Ok(Configured {
        hook: HookPlan { path, args, env, timeout, file: None },
        stages: file.stages,
        always,
        annotations: annotations?,
        commands: commands?,
        has_bind_mounts,
    })
}

fn names() -> String {
    ByKind::default().kinds().map(|(name, _)| name).join(", ")
}

/// What the cluster says of a container. Nothing here is a word of the image's or of the user's choice, but for the
/// partition, which is one of those that take the user's jobs.
fn annotations(launch: &StepLaunch) -> BTreeMap<String, String> {
    let mut gres: BTreeMap<String, u32> = BTreeMap::new();
    for device in &launch.share.gres {
        let name = device.kind.iter().fold(device.name.clone(), |name, kind| format!("{name}:{kind}"));
        *gres.entry(name).or_default() += 1;
    }
    let gres: Vec<String> = gres.iter().map(|(name, count)| format!("{name}:{count}")).collect();
    let pairs = [
        ("berth.cluster", launch.job.cluster.clone()),
        ("berth.node", launch.node.to_string()),
        ("berth.job", launch.key.job.to_string()),
        ("berth.step", launch.key.step.to_string()),
        ("berth.partition", launch.job.partition.clone()),
        ("berth.user", launch.identity.user.clone()),
        ("berth.uid", launch.identity.uid.to_string()),
        ("berth.gid", launch.identity.gid.to_string()),
        ("berth.gres", gres.join(",")),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// What `config.json` shows as the environment. Hooks of NVIDIA's look there for the devices: those of the allocation,
/// whatever image and user wrote.
fn environment(launch: &StepLaunch) -> Vec<String> {
    let gpus: Vec<String> = launch
        .share
        .gres
        .iter()
        .flat_map(|device| &device.files)
        .filter_map(|file| file.as_path().to_str()?.strip_prefix("/dev/nvidia").map(str::to_string))
        .filter(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    let gpus = if gpus.is_empty() { "void".to_string() } else { gpus.join(",") };
    vec![
        format!("SLURM_JOB_ID={}", launch.key.job),
        format!("SLURM_STEP_ID={}", launch.key.step),
        format!("NVIDIA_VISIBLE_DEVICES={gpus}"),
    ]
}

/// The container's first program: `process.args[0]`.
fn command(launch: &StepLaunch, image: Option<&PreparedImage>, entrypoint: bool) -> String {
    let own = berth_step::supervisor::program(launch);
    let images = image.and_then(|image| image.entrypoint.first());
    let first = match own {
        Some(own) => images.filter(|_| entrypoint).cloned().unwrap_or(own),
        None => images.or_else(|| image?.cmd.first()).cloned().unwrap_or_default(),
    };
    first.display().into_owned()
}
