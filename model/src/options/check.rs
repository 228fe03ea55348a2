//! Options that contradict one another or need one another.

use super::resolve::OptionError;
use super::submit::{ContainerOptions, SubmitOptions};
use crate::spec::{ImageRef, LayerKind, NameFlag, ResolvedImage};

impl ContainerOptions {
    /// The options given other than the image, by name.
    pub fn given(&self) -> Vec<&'static str> {
        let named = [
            (!self.mounts.is_empty(), "--container-mounts"),
            (self.workdir.is_some(), "--container-workdir"),
            (self.mount_home == Some(true), "--container-mount-home"),
            (self.mount_home == Some(false), "--no-container-mount-home"),
            (self.remap_root == Some(true), "--container-remap-root"),
            (self.remap_root == Some(false), "--no-container-remap-root"),
            (self.subids == Some(true), "--container-subids"),
            (self.subids == Some(false), "--no-container-subids"),
            (self.writable == Some(true), "--container-writable"),
            (self.writable == Some(false), "--container-readonly"),
            (!self.env.is_empty(), "--container-env"),
            (self.entrypoint == Some(true), "--container-entrypoint"),
            (self.entrypoint == Some(false), "--no-container-entrypoint"),
            (self.layer.is_some(), "--container-writable-layer"),
            (!self.unshare.is_empty(), "--container-unshare"),
            (self.scope.is_some(), "--container-scope"),
            (self.save.is_some(), "--container-save"),
            (self.no_login, "--no-container-login"),
        ];
        named.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect()
    }
}

/// Refuses what no source alone shows: two options that exclude each other, from the same source.
pub(super) fn contradictions(options: &SubmitOptions) -> Result<(), OptionError> {
    let memory = ["mem", "mem-per-cpu", "mem-per-gpu"];
    let mut given: Vec<super::Source> = memory.iter().filter_map(|long| options.source(long)).collect();
    given.sort_by_key(|source| source.rank());
    if let Some(pair) = given.windows(2).find(|pair| pair[0].rank() == pair[1].rank()) {
        return Err(OptionError::fatal(match pair[0] {
            super::Source::Environment(name) if name.starts_with("SLURM_") => {
                "SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually exclusive."
            }
            _ => "--mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.",
        }));
    }
    super::devices::contradictions(options)?;
    if options.quiet && options.verbose > 0 {
        let (quiet, verbose) = (options.source("quiet"), options.source("verbose"));
        if quiet.map(|s| s.rank()) == verbose.map(|s| s.rank()) {
            return Err(OptionError::fatal("don't specify both --verbose (-v) and --quiet (-Q)"));
        }
    }
    if options.container.writable == Some(false) && options.container.layer.is_some() {
        let lines = vec![
            "both --container-readonly and --container-writable-layer were specified".to_string(),
            "leave one of them out: a read-only container has nothing to write to".to_string(),
        ];
        return Err(OptionError::error(255, lines));
    }
    if options.container.subids == Some(true) && options.container.remap_root == Some(false) {
        let lines = vec![
            "both --container-subids and --no-container-remap-root were specified".to_string(),
            "leave one of them out: only root in the container can use other ids".to_string(),
        ];
        return Err(OptionError::error(255, lines));
    }
    if let (Some(_), None) = (options.container.scope, &options.container.name) {
        let lines = vec![
            "--container-scope was given without --container-name".to_string(),
            "add --container-name=NAME: only a container that has a name is kept".to_string(),
        ];
        return Err(OptionError::error(255, lines));
    }
    if let (Some(layer), Some((name, _))) = (options.container.layer, &options.container.name)
        && (layer.kind == LayerKind::Tmpfs || layer.size.is_some())
    {
        let lines = vec![
            format!(
                "--container-writable-layer cannot be that of --container-name={name}, which is kept on the node's disk"
            ),
            "leave --container-writable-layer out, or write --container-writable-layer=disk".to_string(),
        ];
        return Err(OptionError::error(255, lines));
    }
    if let (super::Command::Salloc, Some((name, flag))) = (options.command, &options.container.name)
        && let Some(flag) = [(NameFlag::Create, "create"), (NameFlag::NoExec, "no_exec")]
            .iter()
            .find_map(|(known, word)| (known == flag).then_some(word))
    {
        let lines = vec![
            format!("--container-name={name}:{flag}: salloc makes no container itself, its steps do"),
            format!(
                "write --container-name={name}, and give the flag to the first step: srun --container-name={name}:{flag}"
            ),
        ];
        return Err(OptionError::error(255, lines));
    }
    nodes(options)
}

/// Refuses a node that is asked for and left out.
pub(super) fn nodes(options: &SubmitOptions) -> Result<(), OptionError> {
    if options.nodelist.iter().any(|node| options.exclude.contains(node)) {
        let line = format!(
            "{}: Invalid node name specified: a node stands both in --nodelist and in --exclude; leave it out of one of them",
            options.command.failed()
        );
        return Err(OptionError::error(1, vec![line]));
    }
    Ok(())
}

/// Refuses container options where there is no image. They are never ignored.
pub(super) fn container_needs_image(options: &SubmitOptions) -> Result<(), OptionError> {
    let given = options.container.given();
    let Some(first) = given.first() else { return Ok(()) };
    let key = first.trim_start_matches("--");
    let source = options
        .source(key.strip_prefix("no-").unwrap_or(key))
        .or_else(|| options.source("container-writable"))
        .filter(|source| *source != super::Source::CommandLine)
        .map_or_else(String::new, |source| format!(" ({source})"));
    Err(OptionError::error(
        255,
        vec![
            format!("{first}{source} was given, but --container-image is not set"),
            format!(
                "add --container-image=IMAGE or --container-name=NAME, or leave out {}",
                given.join(", ")
            ),
        ],
    ))
}

/// Refuses container options of a step that is to run on the node's own filesystem.
pub(super) fn not_of_host(options: &ContainerOptions, image: Option<&ImageRef>) -> Result<(), OptionError> {
    if image.is_none_or(|image| image.resolved != Some(ResolvedImage::Host)) {
        return Ok(());
    }
    let mut given = options.given();
    if options.name.is_some() {
        given.push("--container-name");
    }
    let Some(first) = given.first() else { return Ok(()) };
    Err(OptionError::error(
        255,
        vec![
            format!(
                "{first} was given, but --container-image=host: is the node's own filesystem and no container"
            ),
            format!("name an image, or leave out {}", given.join(", ")),
        ],
    ))
}
