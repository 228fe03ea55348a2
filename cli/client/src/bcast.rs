//! Sending a file to the nodes of a job: a step whose tasks receive it, one on each node, with the rights of the job's user.

use crate::error::{Failure, Kind, Outcome};
use crate::site::Site;
use crate::step::follow::{self, Voice};
use crate::{enter, out, submit};
use berth_model::distribution::Distribution;
use berth_model::login::SealedLogin;
use berth_model::receive::Receive;
use berth_model::record::JobInfo;
use berth_model::request::Response;
use berth_model::spec::{ContainerSpec, EnterSpec, StepSpec};
use berth_model::{ByteStr, NodeName, StepId};
use berth_rpc::Client;
use berth_stream::{ALL_TASKS, MAX_PAYLOAD};
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// When the job's record is asked after: most copies are over by then.
const LATER: Duration = Duration::from_millis(250);
/// What the step is called in records.
const NAME: &str = "sbcast";

/// A file that is to be sent.
#[derive(Debug)]
pub struct Source {
    file: File,
    name: PathBuf,
    size: u64,
    mode: u32,
    times: Option<(i64, i64)>,
}

impl Source {
    /// Opens it. `preserve`: it is to have its times on the nodes, too.
    ///
    /// # Errors
    /// It cannot be read, or is no regular file.
    pub fn open(path: &Path, preserve: bool) -> Result<Source, Failure> {
        let bad = |why: String| Failure::user(format!("{}: {why}", path.display()));
        // Who opens a pipe waits for its writer otherwise.
        let opened = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let file = opened.map_err(|e| bad(format!("cannot be read: {e}")))?;
        let about = file.metadata().map_err(|e| bad(e.to_string()))?;
        if !about.is_file() {
            return Err(bad("is no regular file, and others are not sent".to_string()));
        }
        let time = |seconds: i64, more: i64| seconds.saturating_mul(1_000_000_000).saturating_add(more);
        let times = (time(about.atime(), about.atime_nsec()), time(about.mtime(), about.mtime_nsec()));
        Ok(Source {
            file,
            name: path.to_path_buf(),
            size: about.len(),
            mode: about.mode() & 0o777,
            times: preserve.then_some(times),
        })
    }

    /// Bytes that it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Starts reading it.
    fn read(self) -> std::io::Result<mpsc::Receiver<Vec<u8>>> {
        let (chunks, queue) = mpsc::channel(2);
        std::thread::Builder::new().name("source".to_string()).spawn(move || {
            // What was added since the beginning is not sent; of one that became shorter the nodes keep nothing.
            let mut source = self.file.take(self.size);
            loop {
                let mut chunk = vec![0; MAX_PAYLOAD];
                match source.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(n) => {
                        chunk.truncate(n);
                        if chunks.blocking_send(chunk).is_err() {
                            return;
                        }
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        out::complain(&format!(
                            "sbcast: error: {}: cannot be read: {e}",
                            self.name.display()
                        ));
                        return;
                    }
                }
            }
        })?;
        Ok(queue)
    }
}

/// Where it is to go.
#[derive(Debug)]
pub struct Target<'a> {
    /// To the nodes of this job, or of its step.
    pub job: &'a JobInfo,
    /// Into the container of this step, which runs.
    pub step: Option<StepId>,
    /// These of the job's nodes alone; empty: all.
    pub nodes: Vec<NodeName>,
    /// Into a container of its own; absent: where a step of the job is that says nothing else.
    pub container: Option<ContainerSpec>,
    /// The login with which its image is fetched.
    pub login: Option<SealedLogin>,
    /// The file's name there.
    pub path: ByteStr,
    /// What is there is replaced.
    pub force: bool,
}

/// Sends it. Nodes say themselves what went wrong; the exit code is 0 when it is on all of them.
///
/// # Errors
/// The step that receives it cannot be made.
pub async fn send(site: &Site, client: &Client, file: Source, to: Target<'_>) -> Outcome {
    let job = to.job.id;
    let nodes = if to.nodes.is_empty() { to.job.layout.nodes.len() } else { to.nodes.len() };
    let nodes = Some(u32::try_from(nodes.max(1)).unwrap_or(u32::MAX));
    let path = to.path.clone();
    let receive =
        Receive { path: path.clone(), size: file.size, mode: file.mode, times: file.times, force: to.force };
    let spec = StepSpec {
        tasks: nodes,
        nodes,
        tasks_per_node: Some(1),
        node_list: to.nodes,
        distribution: Some(Distribution::Block),
        container: to.container,
        enter: to.step.map(|step| EnterSpec { step, node: None }),
        login: to.login,
        receive: Some(receive),
        ..enter::beside(NAME, vec![NAME.into(), path])?
    };
    let spec = &spec;
    let created = client.persist(None, |client| async move { client.create_step(job, spec).await }).await;
    let what = format!("Unable to create step for job {job}");
    let Response::StepCreated { key, layout, .. } = created.map_err(|e| submit::refused(&what, e))? else {
        return Err(Failure::new(Kind::Internal, format!("{what}: unexpected answer from the controller")));
    };
    let feed = file
        .read()
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot start a thread for the file: {e}")))?;
    let followed = follow::Step {
        input: Some(ALL_TASKS),
        feed: Some(feed),
        ..enter::followed(Voice::Sbcast, site, client, key, layout)
    };
    follow::follow(followed, submit::records_after(client, job, LATER)).await
}
