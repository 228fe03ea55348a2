//! What `--container-mounts` asks for, as planned mounts.

use super::PlanError;
use super::mounts::{Attrs, MountKind, NONE, PlannedMount};
use super::paths::{clean_absolute, join, lexical};
use crate::facts::HostFacts;
use crate::request::ContainerRequest;
use berth_model::ByteStr;
use berth_model::mount::{MakeTarget, MountFlags, MountWhat, mount_flags};
use berth_model::spec::MountSpec;

/// The mount of one entry.
pub(super) fn user_mount(request: &ContainerRequest, spec: &MountSpec) -> Result<PlannedMount, PlanError> {
    let source = &spec.source.0;
    let what = MountWhat::of(source);
    if what == MountWhat::Bind && !matches!(source.first(), Some(b'/' | b'.')) {
        return Err(PlanError::MountSource(spec.source.display().into_owned()));
    }
    let target = target(request, spec, what)?;
    let flags = mount_flags(spec)
        .map_err(|reason| PlanError::MountFlag { target: target.display().into_owned(), reason })?;
    let kind = match what {
        MountWhat::Umount => MountKind::Umount,
        MountWhat::Tmpfs => MountKind::Tmpfs { size: flags.size, mode: flags.mode.unwrap_or(0o755) },
        MountWhat::Bind => MountKind::Bind {
            source: absolute_source(request, source),
            recursive: flags.recursive.unwrap_or(true),
            slave: flags.slave == Some(true),
        },
    };
    let create_dir = match (what, flags.make) {
        (MountWhat::Umount, _) => None,
        (MountWhat::Tmpfs, _) | (_, Some(MakeTarget::Directory)) => Some(true),
        (_, Some(MakeTarget::File)) => Some(false),
        (_, Some(MakeTarget::Auto) | None) => None,
    };
    Ok(PlannedMount {
        attrs: attrs(what, &kind, &flags),
        kind,
        target,
        create_dir,
        required: !flags.optional,
        silent: flags.silent,
        origin: "--container-mounts".into(),
    })
}

/// Whether an entry's source is known to be absent, and the path that is looked for.
pub(super) fn missing(facts: &HostFacts, mount: &PlannedMount) -> Option<String> {
    match &mount.kind {
        MountKind::Bind { source, .. } if facts.missing_sources.contains(source) => {
            Some(source.display().into_owned())
        }
        _ => None,
    }
}

fn target(request: &ContainerRequest, spec: &MountSpec, what: MountWhat) -> Result<ByteStr, PlanError> {
    let shown = || PlanError::MountTarget(spec.target.display().into_owned());
    let target = match spec.target.0.first() {
        Some(b'/') => spec.target.clone(),
        Some(b'.') if what == MountWhat::Bind => lexical(&join(&request.base_dir, &spec.target.0)),
        _ => return Err(shown()),
    };
    let target = clean_absolute(&target, "the mount target").map_err(|_| shown())?;
    if target.0 == b"/" {
        return Err(PlanError::MountFlag {
            target: "/".into(),
            reason: "the root cannot be mounted over; give the directory as the image instead".into(),
        });
    }
    Ok(target)
}

fn absolute_source(request: &ContainerRequest, source: &[u8]) -> ByteStr {
    if source.first() == Some(&b'/') {
        lexical(&ByteStr(source.to_vec()))
    } else {
        lexical(&join(&request.base_dir, source))
    }
}

fn attrs(what: MountWhat, kind: &MountKind, flags: &MountFlags) -> Attrs {
    if what == MountWhat::Umount {
        return NONE;
    }
    // Devices come in through the allocation; only a mount from /dev itself is meant to bring one.
    let from_dev = match kind {
        MountKind::Bind { source, .. } => source.0 == b"/dev" || source.0.starts_with(b"/dev/"),
        _ => false,
    };
    Attrs {
        read_only: flags.read_only == Some(true),
        nosuid: true,
        nodev: !flags.dev.unwrap_or(from_dev),
        noexec: flags.exec == Some(false),
    }
}
