//! How long the texts of a submission may be: records of all jobs travel in lists, which no single job may make too
//! large to be read.

use berth_model::ByteStr;
use berth_model::distribution::Distribution;
use berth_model::ids::NodeName;
use berth_model::listing::size;
use berth_model::request::{Refusal, RefusalCode};
use berth_model::spec::{ContainerSpec, IoSpec, JobSpec, ResolvedImage, StepSpec};

/// Most bytes of a name or a comment, as in Slurm.
const NAME: usize = 1024;
/// Most bytes of a path: no kernel takes a longer one.
const PATH: usize = 4096;
/// Most bytes of a job's specification as stored, script and environment apart.
const ALL: usize = 2 << 20;

/// Most bytes of the names of nodes that a step gives.
const NODES: usize = 2 << 20;

/// What, how long it is, and how long it may be.
type Length = (&'static str, usize, usize);

/// Checks the texts of a job.
pub(super) fn check_job(spec: &JobSpec) -> Result<(), Refusal> {
    let name = |what, text: Option<&String>| (what, text.map_or(0, String::len), NAME);
    let own = [
        name("--job-name", Some(&spec.name)),
        name("--comment", spec.comment.as_ref()),
        name("--account", spec.account.as_ref()),
        name("--partition", spec.partition.as_ref()),
        ("the submit directory", spec.submit_dir.0.len(), PATH),
        ("the command", spec.command.0.len(), PATH),
        ("what was submitted, script and environment apart,", size(spec), ALL),
    ];
    printable(spec.container.as_ref())?;
    fits(own.into_iter().chain(places(&spec.work_dir, &spec.io, spec.container.as_ref())))
}

/// Checks the texts of a step.
pub(super) fn check_step(spec: &StepSpec) -> Result<(), Refusal> {
    let name = ("--job-name", spec.name.len(), NAME);
    let display = ("the display of --x11", spec.x11.as_ref().map_or(0, |x11| x11.display.len()), NAME);
    let host = ("the machine of --x11", spec.x11.as_ref().map_or(0, |x11| x11.host.len()), NAME);
    let before = ("--task-prolog", spec.task_prolog.0.len(), PATH);
    let after = ("--task-epilog", spec.task_epilog.0.len(), PATH);
    let listed: &[NodeName] = match &spec.distribution {
        Some(Distribution::Arbitrary(list)) => list,
        _ => &[],
    };
    let named = spec.node_list.iter().chain(&spec.exclude).chain(listed).map(|node| node.0.len() + 1).sum();
    let named = ("the lists of nodes together", named, NODES);
    printable(spec.container.as_ref())?;
    fits(
        places(&spec.work_dir, &spec.io, spec.container.as_ref())
            .chain([name, display, host, before, after, named]),
    )
}

fn places<'a>(
    work_dir: &'a ByteStr,
    io: &'a IoSpec,
    container: Option<&'a ContainerSpec>,
) -> impl Iterator<Item = Length> + 'a {
    let files = [("--input", &io.stdin), ("--output", &io.stdout), ("--error", &io.stderr)];
    let files = files.into_iter().map(|(what, name)| (what, name.as_ref().map_or(0, |n| n.0.len()), PATH));
    let typed = container.map(|c| ("--container-image", c.image.typed.len(), PATH));
    let found = container.and_then(|c| c.image.resolved.as_ref()).map(|resolved| match resolved {
        ResolvedImage::Manifest { source, .. } => source.len(),
        ResolvedImage::RootDir { path } => path.0.len(),
        ResolvedImage::Host | ResolvedImage::Kept => 0,
    });
    let found = found.map(|length| ("what --container-image means", length, PATH));
    [("--chdir", work_dir.0.len(), PATH)].into_iter().chain(files).chain(typed).chain(found)
}

/// Clients of ours read image references, which have no control characters; a client may be anybody's.
fn printable(container: Option<&ContainerSpec>) -> Result<(), Refusal> {
    let Some(image) = container.map(|c| &c.image) else { return Ok(()) };
    let source = match &image.resolved {
        Some(ResolvedImage::Manifest { source, .. }) => source.as_str(),
        _ => "",
    };
    if [image.typed.as_str(), source].iter().any(|text| text.chars().any(char::is_control)) {
        let text = "--container-image: the image's name or source has control characters: give the file or directory \
                    another name";
        return Err(Refusal::new(RefusalCode::Invalid, text));
    }
    Ok(())
}

fn fits(lengths: impl Iterator<Item = Length>) -> Result<(), Refusal> {
    for (what, length, most) in lengths {
        if length > most {
            let text = format!(
                "Pathname of a file, directory or other parameter too long: {what} has {length} bytes, of which \
                 {most} are allowed"
            );
            return Err(Refusal::new(RefusalCode::Invalid, text));
        }
    }
    Ok(())
}
