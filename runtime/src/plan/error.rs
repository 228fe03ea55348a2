//! Why a container cannot be planned.

/// Each message names the option or the part of the image, the reason, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum PlanError {
    #[error("{option} has no effect without --container-image: add --container-image, or leave {option} out")]
    NeedsImage { option: &'static str },
    #[error("--container-mounts: source path does not exist: {0}; correct it, or make it first")]
    MountSourceMissing(String),
    #[error(
        "--container-mounts: the source '{0}' must be an absolute path, a path that starts with '.', \
         'tmpfs' or 'umount'"
    )]
    MountSource(String),
    #[error("--container-mounts: the mount on {target}: {reason}")]
    MountFlag { target: String, reason: String },
    #[error("--container-mounts: '{0}' is not an absolute path in the container")]
    MountTarget(String),
    #[error("--container-writable-layer: {0}")]
    Layer(&'static str),
    #[error(
        "a running container is entered only by steps of its own job, and the job's steps share no namespaces here: \
         'berth doctor' says why"
    )]
    NotOfOneJob,
    #[error("{what} '{path}' must be an absolute path without '..'")]
    Path { what: String, path: String },
    #[error("the root directory is '/': use host: to run on the node's own filesystem")]
    RootIsHost,
    #[error("the image has no layers: it holds no filesystem that could be run")]
    NoLayers,
    #[error(
        "the image has {count} layers and the kernel takes {most}: rebuild it with fewer (docker build --squash)"
    )]
    TooManyLayers { count: usize, most: usize },
    #[error(
        "the image's USER '{text}' {reason}: rebuild the image with USER name, uid, name:group or uid:gid"
    )]
    ImageUser { text: String, reason: String },
    #[error("the user name '{0}' cannot stand in /etc/passwd: it holds ':', a line end or nothing")]
    UserName(String),
    #[error("{origin}: '{text}' is not a variable of the form NAME=value")]
    EnvFormat { origin: String, text: String },
    #[error("--container-env: '{0}' is not the name of a variable")]
    EnvName(String),
    #[error("--container-subids: {0}")]
    SubIds(String),
    #[error("device {0} must be a path below /dev")]
    DevicePath(String),
    #[error(
        "only root can run a container for another user: this process runs as uid {uid}, the container is \
         for uid {wanted}"
    )]
    OtherUser { uid: u32, wanted: u32 },
    #[error("the host name '{0}' is not one: 1 to 64 letters, digits, '-' and '.'")]
    Hostname(String),
}
