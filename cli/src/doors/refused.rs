//! What people say to the real tools and these doors do not do: the word, where it stands, and what to use instead.

/// One refused option or command.
#[derive(Debug)]
pub struct Row {
    /// The command whose option it is; empty for any of them, and for a command itself.
    pub place: &'static str,
    /// The option with its dashes, or the command.
    pub word: &'static str,
    /// What to use instead.
    pub instead: &'static str,
}

impl Row {
    /// Whether it is about this word at this place.
    pub fn is(&self, place: &str, word: &str) -> bool {
        self.word == word && (self.place.is_empty() || self.place == place)
    }
}

const fn at(place: &'static str, word: &'static str, instead: &'static str) -> Row {
    Row { place, word, instead }
}

const fn any(word: &'static str, instead: &'static str) -> Row {
    Row { place: "", word, instead }
}

const ALLOCATION: &str = "cores and memory are the job's: ask for them with srun or sbatch (-c 4 --mem=8G)";
const BACKGROUND: &str =
    "a container ends with the command that runs it: submit it with sbatch, or put & behind it";
const NETWORK: &str = "a container has the node's network and its names: leave it out";
const NAMED: &str =
    "a running container is found with 'docker ps'; end it with 'kill PID', a job's step with scancel";
const BUILD: &str = "images are built elsewhere (podman build, buildah, kaniko) and pushed to a registry";
const NO_PASSWORD: &str =
    "everybody on the machine sees a command's words: use --password-stdin, or type it when asked";
const CAPS: &str =
    "there is no privilege to add or drop: --user 0 gives root inside, which suffices for apt-get";

/// What `docker` refuses.
pub const DOCKER: &[Row] = &[
    at("run", "-d", BACKGROUND),
    at("run", "--detach", BACKGROUND),
    at("run", "--privileged", CAPS),
    at("run", "--cap-add", CAPS),
    at("run", "--cap-drop", CAPS),
    at("run", "-m", ALLOCATION),
    at("run", "--memory", ALLOCATION),
    at("run", "--memory-swap", ALLOCATION),
    at("run", "--memory-reservation", ALLOCATION),
    at("run", "--cpus", ALLOCATION),
    at("run", "-c", ALLOCATION),
    at("run", "--cpu-shares", ALLOCATION),
    at("run", "--cpuset-cpus", ALLOCATION),
    at("run", "--cpuset-mems", ALLOCATION),
    at("run", "--pids-limit", ALLOCATION),
    at("run", "--cgroup-parent", ALLOCATION),
    at("run", "--cgroupns", ALLOCATION),
    at("run", "--oom-kill-disable", ALLOCATION),
    at("run", "--oom-score-adj", ALLOCATION),
    at(
        "run",
        "--device-cgroup-rule",
        "devices are the job's: ask for them with --gres, or name one with --device",
    ),
    at("run", "--restart", "a job that may run again is submitted with 'sbatch --requeue'"),
    at("run", "-P", NETWORK),
    at("run", "--publish-all", NETWORK),
    at("run", "--expose", NETWORK),
    at("run", "--link", NETWORK),
    at("run", "--dns", NETWORK),
    at("run", "--dns-search", NETWORK),
    at("run", "--add-host", NETWORK),
    at("run", "--ip", NETWORK),
    at("run", "--mac-address", NETWORK),
    at("run", "--network-alias", NETWORK),
    at("run", "--pid", "a container sees the processes of its own; those of the node stay hidden"),
    at("run", "--uts", "use --hostname for a name of its own; without it the name is the node's"),
    at("run", "--userns", "the mapping is fixed: you inside, or root with --user 0"),
    at("run", "--group-add", "your groups are kept as they are: leave it out"),
    at(
        "run",
        "--label",
        "containers are not kept, so labels are not either: use --name, or sbatch --comment",
    ),
    at("run", "-l", "containers are not kept, so labels are not either: use --name, or sbatch --comment"),
    at("run", "--log-driver", "output goes where the command's goes: redirect it, or use sbatch --output"),
    at("run", "--log-opt", "output goes where the command's goes: redirect it, or use sbatch --output"),
    at("run", "--volumes-from", "containers are not kept: mount the directory itself with --volume"),
    at("run", "--volume-driver", "use --volume with a directory of yours"),
    at("run", "--storage-opt", "the writable layer is memory of the job: ask for more with --mem"),
    at("run", "--cidfile", "use --name, and 'docker ps --format {{.ID}}'"),
    at("run", "-a", "all streams are connected; -i passes standard input on"),
    at("run", "--attach", "all streams are connected; -i passes standard input on"),
    at("run", "--detach-keys", BACKGROUND),
    at("run", "--sig-proxy", "signals are passed on: leave it out"),
    at("run", "--stop-signal", "send the signal itself with kill or 'scancel --signal'"),
    at("run", "--stop-timeout", "the time between SIGTERM and SIGKILL is the cluster's KillWait"),
    at("run", "--health-cmd", "checks of health are not run: leave it out"),
    at("run", "--no-healthcheck", "checks of health are never run: leave it out"),
    at("run", "--isolation", "it is for another operating system: leave it out"),
    at("run", "--sysctl", "the kernel's settings are the node's: ask its administrator"),
    at("run", "--blkio-weight", ALLOCATION),
    at("run", "--disable-content-trust", "images are always checked by their digest: leave it out"),
    at("pull", "-a", "name the tags that you need, one by one"),
    at("pull", "--all-tags", "name the tags that you need, one by one"),
    at("pull", "--disable-content-trust", "images are always checked by their digest: leave it out"),
    at("images", "-f", "name a repository, or use --format and grep"),
    at("images", "--filter", "name a repository, or use --format and grep"),
    at("images", "--tree", "'berth image inspect' shows the layers"),
    at("push", "-a", "push the tags that you need, one by one"),
    at("push", "--all-tags", "push the tags that you need, one by one"),
    at("push", "--platform", "the store has the images of this machine's architecture alone: leave it out"),
    at("push", "--disable-content-trust", "images are always checked by their digest: leave it out"),
    at("save", "--platform", "the store has the images of this machine's architecture alone: leave it out"),
    at("history", "-H", "times and sizes are as they are: leave it out"),
    at("history", "--human", "times and sizes are as they are: leave it out"),
    at("rmi", "--no-prune", "layers that no image needs go with the image: leave it out"),
    at("ps", "-a", "a container that ended leaves nothing: sacct lists the jobs and steps that ended"),
    at("ps", "--all", "a container that ended leaves nothing: sacct lists the jobs and steps that ended"),
    at("ps", "-f", "use --format and grep"),
    at("ps", "--filter", "use --format and grep"),
    at("ps", "-n", "a container that ended leaves nothing: sacct lists the jobs and steps that ended"),
    at("ps", "--last", "a container that ended leaves nothing: sacct lists the jobs and steps that ended"),
    at("ps", "-l", "a container that ended leaves nothing: sacct lists the jobs and steps that ended"),
    at("ps", "--latest", "a container that ended leaves nothing: sacct lists the jobs and steps that ended"),
    at("ps", "-s", "the writable layer is memory of the job: sacct's MaxRSS has it"),
    at("ps", "--size", "the writable layer is memory of the job: sacct's MaxRSS has it"),
    at("system", "--volumes", "there are no volumes: leave it out"),
    at("system", "--filter", "'berth image prune --older-than DAYS' removes by age"),
    at("image", "--filter", "'berth image prune --older-than DAYS' removes by age"),
    at("login", "-p", NO_PASSWORD),
    at("login", "--password", NO_PASSWORD),
    at("exec", "-d", BACKGROUND),
    at("exec", "--detach", BACKGROUND),
    at("exec", "-u", "commands run as the container does: leave it out"),
    at("exec", "--user", "commands run as the container does: leave it out"),
    at("exec", "--privileged", CAPS),
    at("exec", "--env-file", "name the variables with --env"),
    any("-H", "there is no daemon to speak to: leave it out"),
    any("--host", "there is no daemon to speak to: leave it out"),
    any("--context", "there is no daemon to speak to: leave it out"),
    any("-D", "set BERTH_LOG=debug for the cluster's daemons"),
    any("--debug", "set BERTH_LOG=debug for the cluster's daemons"),
    any("--config", "set DOCKER_CONFIG to the directory with your logins"),
    any("-l", "set BERTH_LOG for the cluster's daemons"),
    any("--log-level", "set BERTH_LOG for the cluster's daemons"),
    any("attach", "keep the command that runs the container in tmux or screen"),
    any("build", BUILD),
    any("buildx", BUILD),
    any("commit", BUILD),
    any("compose", "submit the parts as jobs, or as steps of one job with srun"),
    any("cp", "mount a directory with --volume and copy in it"),
    any(
        "create",
        "containers are made when they run: use 'docker run', or 'enroot create' for one that is kept",
    ),
    any("diff", "what a container writes is gone with it: mount a directory with --volume"),
    any("events", "squeue shows what happens to jobs"),
    any("export", "have the container copy what you need into a directory mounted with --volume"),
    any("import", "an OCI layout or archive is run by its path: 'docker run ./FILE.tar'"),
    any("info", "use 'berth doctor' and 'berth status'"),
    any("inspect", "use 'berth image inspect' for images, 'scontrol show step' for steps"),
    any("kill", NAMED),
    any("load", "an OCI archive is run by its path: 'docker run ./FILE.tar'"),
    any("logs", "output is where the command's went; of a batch job in its slurm-JOB.out"),
    any("network", NETWORK),
    any("pause", "use 'scancel --signal=STOP' and CONT"),
    any("port", NETWORK),
    any("rename", NAMED),
    any("restart", "use 'scontrol requeue' for jobs"),
    any("rm", "a container that ended leaves nothing: there is nothing to remove"),
    any("search", "registries are searched with a browser"),
    any("start", "containers are not kept: use 'docker run', or 'enroot start' for one that is"),
    any("stats", "sacct shows what jobs use"),
    any("stop", NAMED),
    any("swarm", "Berth is the cluster: submit with sbatch"),
    any("service", "Berth is the cluster: submit with sbatch"),
    any("node", "sinfo and 'scontrol show node' show the nodes"),
    any("tag", "'berth image push IMAGE REGISTRY/NAME:TAG' pushes an image under another name"),
    any("top", "use 'ps' in the container, or 'enroot list -f'"),
    any("unpause", "use 'scancel --signal=CONT'"),
    any("update", ALLOCATION),
    any("volume", "volumes do not exist here: mount a directory of yours with --volume"),
    any("wait", "'docker run' waits; 'sbatch --wait' waits for a job"),
];

const NO_OVERLAY: &str = "mount a directory of yours with --bind, or use --writable-tmpfs";
const NO_SIGNING: &str = "images are pinned by digest: name them NAME@sha256:…";
const LOGINS: &str =
    "log in with 'berth image login'; logins are those of ~/.docker/config.json (DOCKER_CONFIG)";
const NO_DEFINITION: &str = "definition files are not read from images: 'apptainer exec IMAGE cat /.singularity.d/Singularity' shows it, \
                             where there is one";
const NO_INSTANCE: &str = "a service is a job: submit it with sbatch, or put & behind exec";

/// What `apptainer` and `singularity` refuse.
pub const APPTAINER: &[Row] = &[
    any("--overlay", NO_OVERLAY),
    any("-o", NO_OVERLAY),
    any("--net", "a container has the node's network: leave it out"),
    any("-n", "a container has the node's network: leave it out"),
    any("--network", "a container has the node's network: leave it out"),
    any("--network-args", "a container has the node's network: leave it out"),
    any("--dns", "a container has the node's network: leave it out"),
    any("--uts", "use --hostname for a name of its own"),
    any(
        "--workdir",
        "with --contain, /tmp and home are empty and in memory; mount a directory with --bind DIR:/tmp",
    ),
    any(
        "-W",
        "with --contain, /tmp and home are empty and in memory; mount a directory with --bind DIR:/tmp",
    ),
    any("--add-caps", "there is no privilege to add or drop: --fakeroot gives root inside"),
    any("--drop-caps", "there is no privilege to add or drop: leave it out"),
    any("--keep-privs", "there is no privilege to keep: leave it out"),
    any("--allow-setuid", "setuid programs gain nothing: --fakeroot gives root inside"),
    any("--security", "the filter leaves debuggers, profilers and nested engines alone: leave it out"),
    any("--apply-cgroups", ALLOCATION),
    any("--cpus", ALLOCATION),
    any("--cpu-shares", ALLOCATION),
    any("--cpuset-cpus", ALLOCATION),
    any("--cpuset-mems", ALLOCATION),
    any("--memory", ALLOCATION),
    any("--memory-reservation", ALLOCATION),
    any("--memory-swap", ALLOCATION),
    any("--oom-kill-disable", ALLOCATION),
    any("--pids-limit", ALLOCATION),
    any("--blkio-weight", ALLOCATION),
    any("--nvccli", "--nv shows the job's devices"),
    any("--app", "apps of SCIF are not known: name the program with exec"),
    any("--no-init", "processes are always reaped: leave it out"),
    any("--no-umask", "the umask is always yours: leave it out"),
    any("--no-compat", "leave it out"),
    any("--oci", "images of registries are always run as such: leave it out"),
    any("--no-oci", "leave it out"),
    any("--sharens", "the tasks of one step share a container: use srun -n with --container-image"),
    any("--dmtcp-launch", "checkpoints are not made"),
    any("--dmtcp-restart", "checkpoints are not made"),
    any("--fusemount", "mount it on the node, and show the directory with --bind"),
    any("--unsquash", "squashfs files are read as they are: leave it out"),
    any("--pem-path", "encrypted images are not read"),
    any("--passphrase", "encrypted images are not read"),
    any("--docker-login", LOGINS),
    any("--docker-username", LOGINS),
    any("--docker-password", LOGINS),
    any("--docker-host", "there is no daemon to ask: name the registry's image"),
    any("--authfile", "set DOCKER_CONFIG to the directory of that file, as config.json"),
    at("exec", "--disable-cache", "'berth image rm' removes an image from your store"),
    at("run", "--disable-cache", "'berth image rm' removes an image from your store"),
    at("shell", "--disable-cache", "'berth image rm' removes an image from your store"),
    at(
        "pull",
        "--arch",
        "the image for this machine's architecture is taken: pull on a machine of the other one",
    ),
    at(
        "pull",
        "--platform",
        "the image for this machine's architecture is taken: pull on a machine of the other one",
    ),
    at("pull", "--library", "Sylabs library images are not supported: use a registry's"),
    at("pull", "-U", NO_SIGNING),
    at("pull", "--allow-unsigned", NO_SIGNING),
    at("registry", "-p", NO_PASSWORD),
    at("registry", "--password", NO_PASSWORD),
    at("inspect", "-d", NO_DEFINITION),
    at("inspect", "--deffile", NO_DEFINITION),
    at(
        "inspect",
        "--helpfile",
        "help is not read from images: 'apptainer exec IMAGE cat /.singularity.d/runscript.help' shows it, where there is one",
    ),
    at(
        "inspect",
        "--test",
        "tests are not read from images: 'apptainer exec IMAGE cat /.singularity.d/test' shows them, where there are any",
    ),
    at("inspect", "--all", "'berth image inspect' shows all there is"),
    any("--debug", "messages name thing, reason and next step without it: leave it out"),
    any("-d", "messages name thing, reason and next step without it: leave it out"),
    any("--verbose", "messages name thing, reason and next step without it: leave it out"),
    any("-v", "messages name thing, reason and next step without it: leave it out"),
    any("--nocolor", "messages have no colours: leave it out"),
    any("--config", "there is no configuration file: leave it out"),
    any("build", BUILD),
    any("cache", "use 'berth image ls', 'rm', 'prune' and 'df'"),
    any("capability", "there is no privilege to give: --fakeroot gives root inside"),
    any("checkpoint", "checkpoints are not made"),
    any("config", "there is nothing to configure: 'berth doctor' says what the machine lacks"),
    any("delete", "Sylabs library images are not supported"),
    any("instance", NO_INSTANCE),
    any("key", NO_SIGNING),
    any("keyserver", NO_SIGNING),
    any("oci", "use 'berth run'"),
    any("overlay", NO_OVERLAY),
    any("plugin", "there are no plug-ins"),
    any(
        "push",
        "SIF files are not written: 'berth image push IMAGE REGISTRY/NAME:TAG' pushes an image of your store",
    ),
    any("remote", LOGINS),
    any("search", "registries are searched with a browser"),
    any("sif", "SIF files are read and not made: 'berth image inspect' shows what is in one"),
    any("sign", NO_SIGNING),
    any("test", "'apptainer exec IMAGE sh /.singularity.d/test' runs the image's tests, where it has any"),
    any("verify", NO_SIGNING),
];

const NO_CONFIG: &str = "say it with options: --env, --mount, --root and --rw";
const NAMESPACES: &str = "a container has its own processes and the node's network: leave it out";

/// What `enroot` refuses.
pub const ENROOT: &[Row] = &[
    at(
        "import",
        "-a",
        "the image for this machine's architecture is taken: import on a machine of the other one",
    ),
    at(
        "import",
        "--arch",
        "the image for this machine's architecture is taken: import on a machine of the other one",
    ),
    at("load", "-a", "the image for this machine's architecture is taken"),
    at("load", "--arch", "the image for this machine's architecture is taken"),
    at("start", "-c", NO_CONFIG),
    at("start", "--conf", NO_CONFIG),
    at("start", "--rc", "name the program behind the container"),
    at("start", "--pid", NAMESPACES),
    at("start", "--net", NAMESPACES),
    at("start", "--ipc", NAMESPACES),
    at("start", "--uts", NAMESPACES),
    any("batch", NO_CONFIG),
    any("bundle", "there are no self-extracting images: 'enroot import' writes one file"),
    any("info", "use 'berth doctor' and 'berth status'"),
];
