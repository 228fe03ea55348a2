//! For whom an image is brought: whose logins and environment count, where what fetches it runs, and as whom.

use super::STORE_ID;
use crate::cgroups::Cgroups;
use crate::confine::Fetchers;
use crate::imports::Place;
use berth_images::{Credentials, Helpers, PROXY_VARIABLES, Registries, RunAs};
use berth_model::ByteStr;
use berth_model::admission::Asked;
use berth_model::ids::StepKey;
use berth_model::launch::StepLaunch;
use berth_model::spec::Identity;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Gives places to what asks registries for names, of which few do at the same time.
pub(crate) trait Placing {
    /// Waits for one.
    ///
    /// # Errors
    /// Nobody wants it any more.
    fn place(&self) -> berth_images::Result<Place<'_>>;
}

/// For whom an image is made present.
#[derive(Clone, Copy)]
pub(crate) struct For<'a> {
    /// The step, where it is a job's.
    pub(crate) step: Option<StepKey>,
    /// The same, where the job is on this node.
    pub(super) here: Option<&'a StepLaunch>,
    pub(super) user: &'a Identity,
    /// The submitter's environment.
    pub(super) env: &'a [ByteStr],
    pub(crate) directory: &'a Path,
    /// What the site's rules judge.
    pub(crate) asked: Asked<'a>,
    /// Where what asks a registry for a name has to have a place.
    pub(super) placing: Option<&'a dyn Placing>,
}

impl<'a> For<'a> {
    pub(crate) fn step(launch: &'a StepLaunch) -> For<'a> {
        For {
            step: Some(launch.key),
            here: Some(launch),
            user: &launch.identity,
            env: &launch.env,
            directory: launch.work_dir.as_path(),
            asked: Asked::Job(launch.job.account.as_deref()),
            placing: None,
        }
    }

    /// Of a step whose job is on another node, or on none yet: it has no cores and no devices of this one.
    pub(crate) fn elsewhere(launch: &'a StepLaunch) -> For<'a> {
        For { here: None, ..For::step(launch) }
    }

    /// The right to ask a registry for a name, where that is needed: whoever waits for others to find it has none.
    pub(crate) fn placed(self) -> berth_images::Result<Option<Place<'a>>> {
        self.placing.map(Placing::place).transpose()
    }

    /// Where what fetches for it runs.
    pub(crate) fn fetchers(self, cgroups: &Arc<Cgroups>) -> Fetchers {
        match self.here {
            Some(launch) => Fetchers::of_job(cgroups, launch),
            None => Fetchers::of_user(cgroups, self.user.uid),
        }
    }
}

/// Variables of the submitter's that say where logins of registries are kept.
const LOGIN_VARIABLES: [&str; 3] = ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"];

/// The one that says it of Enroot's.
const ENROOT: &str = "ENROOT_CONFIG_PATH";

/// Those that say where engines keep images, and where a large temporary file is welcome.
const ENGINE_VARIABLES: [&str; 3] = ["DOCKER_HOST", "CONTAINERS_STORAGE_CONF", "TMPDIR"];

/// The value that a variable had where the step was submitted.
fn submitted(of: For<'_>, name: &str) -> Option<OsString> {
    let value = |text: &ByteStr| text.0.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
    of.env.iter().find_map(value).filter(|v| !v.is_empty()).map(OsString::from_vec)
}

/// Where the submitter keeps Enroot's configuration, if not where it is anyway.
fn enroot(of: For<'_>) -> Option<OsString> {
    let own = || Some(PathBuf::from(submitted(of, "XDG_CONFIG_HOME")?).join("enroot").into_os_string());
    submitted(of, ENROOT).or_else(own)
}

/// The logins that the submitter had in mind; the agent's own environment is another one, even where both are one user.
pub(super) fn credentials(of: For<'_>) -> Credentials {
    let [docker, file, runtime] = LOGIN_VARIABLES.map(|name| submitted(of, name).map(PathBuf::from));
    let home = of.user.home.as_path();
    Credentials::from_parts(docker.as_deref(), file.as_deref(), runtime.as_deref(), Some(home))
        .with_enroot(enroot(of).as_deref().map(Path::new))
}

pub(super) fn helpers(program: &Path, registries: &Registries, of: For<'_>, system: bool) -> Helpers {
    let user = of.user;
    let own = |text: &ByteStr| OsString::from_vec(text.0.clone());
    let mut environment: Vec<(OsString, OsString)> = vec![
        ("HOME".into(), own(&user.home)),
        ("USER".into(), (&user.user).into()),
        ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()),
    ];
    for name in LOGIN_VARIABLES.into_iter().chain(ENGINE_VARIABLES) {
        if let Some(value) = submitted(of, name) {
            environment.push((name.into(), value));
        }
    }
    environment.extend(enroot(of).map(|value| (ENROOT.into(), value)));
    for name in PROXY_VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            environment.push((name.into(), value));
        }
    }
    Helpers {
        user: system.then(|| RunAs {
            uid: user.uid.0,
            gid: user.gid.0,
            groups: user.groups.iter().map(|g| g.0).collect(),
        }),
        environment,
        store: system.then(|| RunAs { uid: STORE_ID.0, gid: STORE_ID.1, groups: Vec::new() }),
        ..Helpers::new(program.to_path_buf(), registries.clone())
    }
}
