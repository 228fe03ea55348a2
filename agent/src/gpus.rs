//! The node's GPUs, and its devices that CDI files name: found when the agent starts and looked at again every minute; what containers
//! with some of them get.

use crate::after::{Before, busy};
use crate::cdi::{self, Given};
use crate::fabrics::Fabric;
use crate::used::{Used, is_known_to_kernel};
use crate::xids::{self, Xids};
use crate::{gres, imex};
use berth_gpus::imex::Imex;
use berth_gpus::inject::{capabilities, missing, specification, without_driver};
use berth_gpus::nvml::helper::Helper;
use berth_gpus::require::{Have, Verdict, is_disabled, judge};
use berth_gpus::{Driver, Found, Tree, drm, mps};
use berth_model::ByteStr;
use berth_model::devices::{GPU, MPS};
use berth_model::elf::NeedsGlibc;
use berth_model::gpus::MPS_PIPES;
use berth_model::hardware::{GresDevice, Vendor};
use berth_model::launch::{NodeShare, StepLaunch};
use berth_model::link::GpuFault;
use berth_model::spec::ResolvedImage;
use berth_runtime::ExtraMount;
use berth_runtime::cgroup::device_of;
use berth_step::spool::{PreparedImage, read_json, write_json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long the driver may take to answer. A GPU whose driver was not in use takes some seconds to wake up.
const DEADLINE: Duration = Duration::from_secs(20);
/// How often it is asked.
const PAUSE: Duration = Duration::from_secs(60);
/// How often while a GPU is fenced that a run did not leave free: that may be over soon.
const SOON: Duration = Duration::from_secs(5);

/// What was found, and what finds it.
pub struct Gpus {
    tree: Tree,
    found: Found,
    configured: Configured,
    /// What containers get with those, by their names.
    given: BTreeMap<String, Given>,
    helper: Mutex<Helper>,
    left: LeftFile,
    xids: Xids,
    /// A run left one unfit.
    unfit: Notify,
}

/// Devices of the configuration, as it says them.
#[derive(Clone, Debug, Default)]
pub struct Configured {
    /// Those that CDI files name.
    pub named: Vec<GresDevice>,
    /// Those with files of their own.
    pub by_file: Vec<GresDevice>,
    /// Directory of the pipes of MPS's control daemon.
    pub mps: String,
}

/// What CDI files add to a container.
#[derive(Debug, Default)]
pub struct ByFiles {
    /// Mounts.
    pub mounts: Vec<ExtraMount>,
    /// `NAME=value`.
    pub env: Vec<ByteStr>,
    /// Groups that the user is not in.
    pub groups: Vec<u32>,
}

/// Why a job does not begin.
#[derive(Debug, PartialEq, Eq)]
pub struct Sick {
    /// The first GPU of its own that does not work, and what is wrong with it.
    pub why: String,
    /// All of the node's that do not.
    pub faults: Vec<GpuFault>,
}

/// A GPU that a run left unfit, kept until it is free again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Left {
    uuid: Option<String>,
    bus: Option<String>,
    why: String,
    /// What was on it before that run; nothing where an earlier agent kept it.
    #[serde(default)]
    before: Before,
}

impl Left {
    fn is_of(&self, device: &GresDevice) -> bool {
        (&self.uuid, &self.bus) == (&device.uuid, &device.bus)
    }
}

/// Where GPUs that runs left unfit are kept.
struct LeftFile {
    file: PathBuf,
    /// Held from the reading of the file to its writing: nobody's change undoes another's.
    changing: Mutex<()>,
}

impl LeftFile {
    fn at(file: PathBuf) -> LeftFile {
        LeftFile { file, changing: Mutex::default() }
    }

    fn read(&self) -> Vec<Left> {
        read_json(&self.file).unwrap_or_default()
    }

    /// Changes what is kept, and says what is kept then.
    fn change(&self, change: impl FnOnce(&mut Vec<Left>)) -> Vec<Left> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.read();
        let mut left = before.clone();
        change(&mut left);
        if left != before
            && let Err(e) = write_json(&self.file, &left)
        {
            tracing::error!("cannot keep which GPUs are not free in {}: {e}", self.file.display());
        }
        left
    }
}

impl Gpus {
    /// Looks at the node. `program`: `berth`; `left`: where it is kept which GPUs runs left unfit; `logged`: and what the kernel's log has said.
    pub fn look(program: &Path, left: PathBuf, logged: PathBuf, configured: Configured) -> Gpus {
        let tree = Tree::here();
        let mut helper = Helper::new(program.to_path_buf(), vec!["internal-gpus".into()], DEADLINE);
        let xids = Xids::at(logged);
        let mut found = berth_gpus::look(&tree, &xids.now(&tree), || helper.ask());
        let left = LeftFile::at(left);
        fence_left(&mut found.devices, &left.read());
        let given = add(&configured, &mut found);
        found.wrong.iter().for_each(|wrong| tracing::warn!("{wrong}"));
        Gpus { tree, found, configured, given, helper: Mutex::new(helper), left, xids, unfit: Notify::new() }
    }

    /// Devices that were well when the agent started and are not any more.
    pub fn new_faults(&self, devices: &[&GresDevice]) -> Vec<GpuFault> {
        let now = {
            let Ok(mut helper) = self.helper.lock() else { return Vec::new() };
            berth_gpus::look(&self.tree, &self.xids.now(&self.tree), || helper.ask())
        };
        let fault = |device: &&&GresDevice| {
            // One that fell off the bus does not say any more who it is.
            let same = |d: &&GresDevice| d.bus == device.bus && (d.uuid == device.uuid || d.uuid.is_none());
            let found = now.devices.iter().find(same);
            let why = match found {
                Some(found) => found.fault.clone(),
                // One that was configured by hand is not among those that are found.
                None => device.bus.as_ref().map(|_| "the node does not find it any more".to_string()),
            };
            Some(GpuFault { index: device.index, why: why? })
        };
        devices.iter().filter(|device| device.fault.is_none()).filter_map(|device| fault(&device)).collect()
    }

    /// The same by what the kernel says alone.
    pub fn faults_by_kernel(&self, devices: &[&GresDevice]) -> Vec<GpuFault> {
        let mut fatal = None;
        let well = devices.iter().filter(|device| device.fault.is_none());
        let found = well.filter_map(|device| {
            let bus = device.bus.as_deref()?;
            let fatal = fatal.get_or_insert_with(|| self.xids.now(&self.tree));
            Some(GpuFault { index: device.index, why: berth_gpus::by_kernel(&self.tree, fatal, bus)? })
        });
        found.collect()
    }

    /// Why a job is not to begin with its GPUs: what the kernel says of them by now. The driver itself, which may take seconds, is asked
    /// every minute and after each job.
    pub fn sick(&self, share: &NodeShare) -> Option<Sick> {
        let devices: Vec<&GresDevice> =
            share.gres.iter().filter(|device| is_known_to_kernel(device)).collect();
        let mut faults = self.faults_by_kernel(&devices);
        let GpuFault { index, why } = faults.first()?;
        let why = format!("GPU {index} does not work any more: {why}; it is given to no other job");
        // Where one is gone others may be, and who is sent to the next one comes back as soon.
        let found = self.found.devices.iter().filter(|device| device.name == GPU);
        let others: Vec<&GresDevice> = found
            .filter(|device| {
                is_known_to_kernel(device) && faults.iter().all(|fault| fault.index != device.index)
            })
            .collect();
        faults.extend(self.faults_by_kernel(&others));
        // It is looked at with the driver, too, which need not be a minute away.
        self.unfit.notify_one();
        Some(Sick { why, faults })
    }

    /// Forgets what the kernel's log has told by now: the administrator says that the node is well. What driver and bus say stands.
    pub fn lift(&self) {
        if self.xids.lift(&self.tree) {
            tracing::info!("fatal errors of GPUs in the kernel's log are over, by the administrator's word");
            self.unfit.notify_one();
        }
    }

    /// Keeps what a run left unfit for the next agent. `before`: what was on GPUs before that run, by their indices.
    pub fn remember(&self, devices: &[&GresDevice], faults: &[GpuFault], before: &BTreeMap<u32, Before>) {
        self.left.change(|left| {
            for fault in faults {
                if let Some(device) = devices.iter().find(|device| device.index == fault.index) {
                    left.retain(|known| !known.is_of(device));
                    left.push(Left {
                        uuid: device.uuid.clone(),
                        bus: device.bus.clone(),
                        why: fault.why.clone(),
                        before: before.get(&device.index).cloned().unwrap_or_default(),
                    });
                }
            }
        });
        self.unfit.notify_one();
    }

    /// Forgets those that are free by now: which ones are not, and whether some are.
    fn review_left(&self, used: &Used) -> (Vec<Left>, bool) {
        let known = self.left.read();
        if known.is_empty() {
            return (known, false);
        }
        let Ok(sample) = used.glance(DEADLINE) else { return (known, false) };
        let is_free = |known: &Left| {
            let device = self.found.devices.iter().find(|device| known.is_of(device));
            // What is not there any more has another fault.
            device.is_none_or(|d| sample.of(d).is_some_and(|seen| busy(d, seen, &known.before).is_none()))
        };
        let free: Vec<Left> = known.into_iter().filter(is_free).collect();
        // Others may have come while the driver was asked.
        let left = self.left.change(|left| left.retain(|known| !free.contains(known)));
        (left, !free.is_empty())
    }

    /// The devices.
    pub fn devices(&self) -> &[GresDevice] {
        &self.found.devices
    }

    /// That NVIDIA's driver and library are of different versions.
    pub fn mismatch(&self) -> Option<&str> {
        self.found.mismatch.as_deref()
    }

    /// Their files, and those that are kept from all jobs.
    pub fn files(&self) -> impl Iterator<Item = String> + '_ {
        let files = self.found.devices.iter().flat_map(|d| &d.files).map(|f| f.display().into_owned());
        let mut all: Vec<String> = files.chain(self.found.withheld.iter().cloned()).collect();
        all.sort();
        all.dedup();
        all.into_iter()
    }

    /// How many channels there are by which jobs share their memory over several nodes.
    pub fn imex_channels(&self) -> u32 {
        self.found.imex.map_or(0, |imex| imex.count)
    }

    /// These channels.
    pub fn imex(&self) -> Option<Imex> {
        self.found.imex
    }

    /// Has a step that has GPUs of NVIDIA's use its job's channel, whose file is made where it is not there, or not any more. Its control
    /// group keeps all others from it.
    ///
    /// # Errors
    /// The channel's device file cannot be made.
    pub fn channel(&self, launch: &StepLaunch, fabric: &mut Fabric) -> Result<(), String> {
        let Some(imex) = self.found.imex else { return Ok(()) };
        let has_gpu = launch.share.gres.iter().any(|device| device.vendor == Vendor::Nvidia);
        let own = launch.job.imex_channel.filter(|_| has_gpu);
        let owner = (launch.identity.uid.0, launch.identity.gid.0);
        if let Some(file) = own.map(|channel| imex::give(&imex, channel, owner)).transpose()?.flatten() {
            fabric.files.push(file);
        }
        Ok(())
    }

    /// Whether they are others, or other things are wrong with them, than when the agent started.
    fn differ(&self, used: &Used) -> bool {
        // The controller was told of those that are free by now, when their runs went.
        let (left, freed) = self.review_left(used);
        let Ok(mut helper) = self.helper.lock() else { return freed };
        let mut now = berth_gpus::look(&self.tree, &self.xids.now(&self.tree), || helper.ask());
        fence_left(&mut now.devices, &left);
        let given = add(&self.configured, &mut now);
        let changed = !is_like(&now.devices, &self.found.devices)
            || given != self.given
            || now.driver != self.found.driver
            || now.lacking != self.found.lacking
            || now.mismatch != self.found.mismatch
            || now.withheld != self.found.withheld
            || now.imex != self.found.imex;
        if changed {
            now.wrong.iter().for_each(|wrong| tracing::warn!("{wrong}"));
        }
        changed || freed
    }

    /// Looks again every minute, or more often while a GPU is about to be free, until something has changed.
    pub async fn until_changed(gpus: Arc<Gpus>, used: Arc<Used>) {
        loop {
            let left = !gpus.left.read().is_empty();
            tokio::select! {
                () = tokio::time::sleep(if left { SOON } else { PAUSE }) => {}
                () = gpus.unfit.notified() => tokio::time::sleep(SOON).await,
            }
            let (looking, using) = (Arc::clone(&gpus), Arc::clone(&used));
            if matches!(tokio::task::spawn_blocking(move || looking.differ(&using)).await, Ok(true)) {
                return;
            }
        }
    }

    /// What CDI files add to the container of a step beside its device files: mounts, variables and groups, for its devices alone.
    /// `root`: containers are root's to start.
    ///
    /// # Errors
    /// A file asks for a group that the step's user is not in and cannot be given.
    pub fn by_files(&self, launch: &StepLaunch, root: bool) -> Result<ByFiles, String> {
        let mut all = ByFiles::default();
        let (mounts, env) = (&mut all.mounts, &mut all.env);
        let host = launch.container.as_ref().is_none_or(|c| c.image.resolved == Some(ResolvedImage::Host));
        for name in launch.share.gres.iter().filter_map(|device| device.cdi.as_ref()).filter(|_| !host) {
            let given = self.given.get(name).ok_or_else(|| {
                format!("the node's CDI files do not have {name} any more; 'scontrol show node' says which devices there are")
            })?;
            let groups = given.groups_for(&launch.identity, root).map_err(|why| format!("{name}: {why}"))?;
            all.groups.extend(groups.into_iter().filter(|gid| !all.groups.contains(gid)).collect::<Vec<_>>());
            // What is in several is of all devices of a kind.
            mounts.extend(
                given.mounts.iter().filter(|mount| !mounts.contains(*mount)).cloned().collect::<Vec<_>>(),
            );
            env.extend(given.env.iter().filter(|pair| !env.contains(*pair)).cloned().collect::<Vec<_>>());
        }
        Ok(all)
    }

    /// The directory of MPS's control daemon, which may have come or gone since the last look, and its directory be another's by now.
    fn mps(&self) -> Result<String, String> {
        berth_gpus::mps::find(&self.tree, &self.configured.mps)
    }

    /// Has the programs of a step with NVIDIA's GPUs find MPS's control daemon where it is ([`tell_of_mps`]).
    ///
    /// # Errors
    /// The node has not the MPS of which the step has a part.
    pub fn find_mps(&self, launch: &mut StepLaunch, image: Option<&mut PreparedImage>) -> Result<(), String> {
        let given = &launch.share.gres;
        if !given.iter().any(|device| device.vendor == Vendor::Nvidia) {
            return Ok(());
        }
        let part = given.iter().any(|device| device.name == MPS);
        match self.mps() {
            Ok(dir) => tell_of_mps(&dir, part, launch, image),
            Err(why) if part => {
                return Err(format!("--gres={MPS}: {why}; or ask for whole GPUs (--gres=gpu:1)"));
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// What the container of a step gets beside its device files: mounts, and the glibc that libraries among them need; variables
    /// go into the image's. `notes`: what is to be told to the user.
    ///
    /// # Errors
    /// The image cannot run with this driver, by its own words, or the node has not the driver's libraries.
    pub fn inject(
        &self,
        launch: &StepLaunch,
        image: Option<&mut PreparedImage>,
        notes: &mut Vec<String>,
    ) -> Result<(Vec<ExtraMount>, Option<NeedsGlibc>), String> {
        let nothing = || Ok((Vec::new(), None));
        let given: Vec<GresDevice> =
            launch.share.gres.iter().filter(|d| d.vendor == Vendor::Nvidia).cloned().collect();
        if given.is_empty() {
            return nothing();
        }
        // A root directory has no words of its own; the loader finds the libraries there by its cache alone.
        let mut none = Vec::new();
        let image = match image {
            Some(image) => &mut image.env,
            None if is_root_dir(launch) => &mut none,
            None => return nothing(),
        };
        let Some(driver) = &self.found.driver else {
            // The submitter's word alone: an image that never asks for a version of the driver need not bring the driver.
            let tries = is_disabled(launch.env.iter().map(|pair| pair.0.as_slice()));
            let wanted = capabilities(asked(image, launch).as_deref());
            if let Some(why) = &self.found.lacking {
                notes.push(without_driver(why, &wanted, tries)?);
            }
            return nothing();
        };
        let driver = &Driver { mps: self.mps().ok(), ..driver.clone() };
        let of_first =
            self.found.answer.gpus.iter().find(|g| given.iter().any(|d| d.bus.as_deref() == Some(&g.bus)));
        let have = Have {
            cuda: self.found.answer.cuda,
            driver: driver.version.clone(),
            brand: of_first.and_then(|g| g.brand.clone()),
            arch: of_first.and_then(|g| g.arch),
        };
        // The submitter's words stand over the image's.
        let env = || image.iter().chain(&launch.env).map(|pair| pair.0.as_slice());
        let verdict = judge(image.iter().map(|pair| pair.0.as_slice()), env(), &have)?;
        let asked = asked(image, launch);
        let wanted = capabilities(asked.as_deref());
        notes.extend(missing(asked.as_deref(), driver));
        let glibc = driver.needs(&wanted).filter(|_| !is_disabled(env()));
        let path = image.iter().rev().find_map(|pair| pair.0.strip_prefix(b"LD_LIBRARY_PATH="));
        let path = path.map(|p| String::from_utf8_lossy(p).into_owned()).unwrap_or_default();
        let spec = specification(&given, Some(driver), &wanted, &path, verdict == Verdict::WithCompat);
        let edits = spec.all_edits();
        image.extend(edits.env.iter().map(|pair| ByteStr::from(pair.as_str())));
        let mounts = edits.mounts.iter().map(|mount| ExtraMount {
            source: ByteStr::from(self.tree.path(&mount.host_path).as_path()),
            target: ByteStr::from(mount.container_path.as_str()),
            read_only: true,
        });
        Ok((mounts.collect(), glibc))
    }
}

/// Answers each line of `ask` with what GPUs do, until nobody asks; what [`Used`] runs.
///
/// # Errors
/// Nobody asks any more, or nobody reads.
pub fn watch(ask: impl std::io::BufRead, out: impl std::io::Write) -> std::io::Result<()> {
    berth_gpus::nvml::watch::main(&Tree::here(), berth_runtime::sys::nvml::instance_of, ask, out)
}

/// The node's GPUs alone, where there is no agent yet and so no configuration. `program`: `berth`.
pub(crate) fn found(program: &Path) -> Found {
    let tree = Tree::here();
    let mut helper = Helper::new(program.to_path_buf(), vec!["internal-gpus".into()], DEADLINE);
    berth_gpus::look(&tree, &xids::logged(&tree), || helper.ask())
}

/// Adds the devices that CDI files name to those that were found, with what is wrong with them; and those of the configuration's `files`
/// that cannot be given: the others are added by the controller.
fn add(configured: &Configured, found: &mut Found) -> BTreeMap<String, Given> {
    let (devices, given) = cdi::look(&configured.named, &found.devices, &configured.by_file);
    for device in devices.iter().filter(|device| device.fault.is_some()) {
        let (name, why) =
            (device.cdi.as_deref().unwrap_or_default(), device.fault.as_deref().unwrap_or_default());
        found.wrong.push(format!("{} {} ({name}) is fenced: {why}", device.name, device.index));
    }
    let number = |file: &ByteStr| device_of(Path::new(file.as_os())).map_err(|e| e.to_string());
    let unfit = gres::unfit(&configured.by_file, &found.devices, &number);
    found.devices.extend(devices);
    for device in unfit {
        let index = found.devices.iter().filter(|other| other.name == device.name).count();
        let device = GresDevice { index: u32::try_from(index).unwrap_or(u32::MAX), ..device };
        let why = device.fault.as_deref().unwrap_or_default();
        found.wrong.push(format!("{} {} is fenced: {why}", device.name, device.index));
        found.devices.push(device);
    }
    given
}

/// Whether devices are what they were, and the same ones are fenced. A fault may be worded anew each minute, by a count of errors or by how a
/// driver does not answer: who is fenced already is told no more.
fn is_like(now: &[GresDevice], before: &[GresDevice]) -> bool {
    let well = |device: &GresDevice| GresDevice { fault: None, ..device.clone() };
    let same = |(now, before): (&GresDevice, &GresDevice)| {
        now.fault.is_some() == before.fault.is_some() && well(now) == well(before)
    };
    now.len() == before.len() && now.iter().zip(before).all(same)
}

fn fence_left(devices: &mut [GresDevice], left: &[Left]) {
    for device in devices.iter_mut().filter(|device| device.fault.is_none()) {
        device.fault = left.iter().find(|known| known.is_of(device)).map(|known| known.why.clone());
    }
}

/// Tells a step in which directory it finds MPS's control daemon. One that has a part of a GPU is held to it by that daemon alone, whatever
/// image and submitter say; with whole GPUs these may have another one, and the usual place is found without a word.
fn tell_of_mps(dir: &str, part: bool, launch: &mut StepLaunch, image: Option<&mut PreparedImage>) {
    let is_said = |pair: &ByteStr| {
        pair.0.strip_prefix(mps::VARIABLE.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
    };
    let own = image.as_ref().is_some_and(|image| image.env.iter().any(is_said));
    if !part && (dir == MPS_PIPES || own || launch.env.iter().any(is_said)) {
        return;
    }
    if let Some(image) = image {
        // Its words stand over the submitter's.
        image.env.retain(|pair| !is_said(pair));
    }
    launch.env.retain(|pair| !is_said(pair));
    launch.env.push(ByteStr::from(format!("{}={dir}", mps::VARIABLE)));
}

/// Takes from the GPUs of a step in a container the files by which they draw, where it does not ask for graphics: neither are they in its
/// `/dev` nor does its control group permit them. What is on the node's own filesystem keeps what its job has. A step that enters a container
/// is judged by its own words over those of the step that made it; the `/dev` there stays as that one's words had it.
pub fn narrow(launch: &mut StepLaunch, image: Option<&PreparedImage>) {
    if image.is_none() && !is_root_dir(launch) {
        return;
    }
    let asked = asked(image.map_or(&[][..], |image| image.env.as_slice()), launch);
    drm::narrow(&mut launch.share.gres, &capabilities(asked.as_deref()));
}

/// Which parts of NVIDIA's driver a step wants: the submitter's words stand over the image's.
fn asked(image: &[ByteStr], launch: &StepLaunch) -> Option<String> {
    let all = image.iter().chain(&launch.env);
    let value = all.filter_map(|pair| pair.0.strip_prefix(b"NVIDIA_DRIVER_CAPABILITIES=")).next_back();
    value.map(|value| String::from_utf8_lossy(value).into_owned())
}

fn is_root_dir(launch: &StepLaunch) -> bool {
    let resolved = launch.container.as_ref().and_then(|container| container.image.resolved.as_ref());
    matches!(resolved, Some(ResolvedImage::RootDir { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::{Attempt, JobId, StepId, StepKey};

    /// A GPU by what reads as its configuration on its bus, in a tree of its own.
    fn on_bus(dir: &Path, index: u32, config: &[u8]) -> GresDevice {
        let bus = format!("0000:{index:02x}:00.0");
        let device = dir.join("sys/bus/pci/devices").join(&bus);
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("config"), config).unwrap();
        let (name, vendor) = (GPU.into(), Vendor::Intel);
        GresDevice { name, index, bus: Some(bus), vendor, ..GresDevice::default() }
    }

    /// A node with these, whose drivers do not answer.
    fn node(dir: &Path, devices: Vec<GresDevice>) -> Gpus {
        Gpus {
            tree: Tree::at(dir),
            found: Found { devices, ..Found::default() },
            configured: Configured::default(),
            given: BTreeMap::new(),
            helper: Mutex::new(Helper::new("/bin/false".into(), Vec::new(), DEADLINE)),
            left: LeftFile::at(dir.join("left.json")),
            xids: Xids::at(dir.join("logged.json")),
            unfit: Notify::new(),
        }
    }

    #[test]
    fn a_gpu_that_nobody_samples_is_fenced_by_what_the_kernel_says() {
        let dir = tempfile::tempdir().unwrap();
        let (well, gone) = (on_bus(dir.path(), 3, &[0x86, 0x80, 0, 0]), on_bus(dir.path(), 4, &[0xff; 4]));
        let gpus = node(dir.path(), Vec::new());
        let faults = gpus.faults_by_kernel(&[&well, &gone]);
        assert_eq!(faults.iter().map(|fault| fault.index).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn a_fault_that_is_worded_anew_is_no_change_and_another_gpu_that_is_fenced_is_one() {
        let gpu = |index: u32, fault: Option<&str>| GresDevice {
            index,
            fault: fault.map(str::to_string),
            ..GresDevice::default()
        };
        let then = [gpu(0, Some("3 uncorrected memory errors")), gpu(1, None)];
        assert!(is_like(&[gpu(0, Some("4 uncorrected memory errors")), gpu(1, None)], &then));
        for now in [
            vec![gpu(0, None), gpu(1, None)],
            vec![gpu(0, Some("3 uncorrected memory errors")), gpu(1, Some("Xid 79"))],
            vec![gpu(0, None), gpu(1, Some("3 uncorrected memory errors"))],
            vec![gpu(0, Some("3 uncorrected memory errors"))],
            vec![gpu(0, Some("3 uncorrected memory errors")), gpu(2, None)],
        ] {
            assert!(!is_like(&now, &then), "{now:?}");
        }
    }

    #[test]
    fn a_job_that_is_not_to_begin_names_its_own_gpu_and_all_that_do_not_work() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = |index: u32, config: &[u8]| on_bus(dir.path(), index, config);
        let devices = vec![gpu(0, &[0xff; 4]), gpu(1, &[0x86, 0x80, 0, 0]), gpu(2, &[0xff; 4])];
        let gpus = node(dir.path(), devices.clone());
        let share = |gres: &[GresDevice]| NodeShare { gres: gres.to_vec(), ..NodeShare::default() };
        assert_eq!(gpus.sick(&share(&devices[1..2])), None, "its own is well");
        let sick = gpus.sick(&share(&devices[1..])).unwrap();
        assert!(sick.why.starts_with("GPU 2 does not work any more"), "{sick:?}");
        assert_eq!(sick.faults.iter().map(|fault| fault.index).collect::<Vec<_>>(), [2, 0]);
    }

    #[test]
    fn steps_are_told_where_the_daemon_of_mps_is_and_with_a_part_of_a_gpu_of_no_other() {
        let said = |dir: &str, part: bool, submitter: &[&str], image: Option<&[&str]>| {
            let pairs = |words: &[&str]| words.iter().map(|word| ByteStr::from(*word)).collect::<Vec<_>>();
            let mut launch =
                berth_samples::launch(StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Batch });
            launch.env = pairs(submitter);
            let mut image = image.map(|env| PreparedImage { env: pairs(env), ..PreparedImage::default() });
            tell_of_mps(dir, part, &mut launch, image.as_mut());
            // The image's words stand over the submitter's.
            let all = launch.env.iter().chain(image.iter().flat_map(|image| &image.env));
            let all: Vec<String> = all.map(|pair| pair.display().into_owned()).collect();
            all.join(" ")
        };
        let other = "CUDA_MPS_PIPE_DIRECTORY=/home/own";
        let here = "CUDA_MPS_PIPE_DIRECTORY=/run/mps";
        assert_eq!(said("/run/mps", false, &["A=1"], None), format!("A=1 {here}"));
        assert_eq!(said("/run/mps", false, &["A=1"], Some(&["B=2"])), format!("A=1 {here} B=2"));
        // Who has whole GPUs may have a daemon of their own.
        assert_eq!(said("/run/mps", false, &[other], Some(&[])), other);
        assert_eq!(said("/run/mps", false, &[], Some(&[other])), other);
        assert_eq!(said("/run/mps", true, &[other], Some(&[other, "B=2"])), format!("{here} B=2"));
        // Where every program looks by itself.
        assert_eq!(said("/tmp/nvidia-mps", false, &["A=1"], None), "A=1");
        let usual = "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps";
        assert_eq!(said("/tmp/nvidia-mps", true, &[other], None), usual);
    }

    #[test]
    fn a_gpu_that_is_fenced_while_others_are_looked_at_stays_fenced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // The driver takes its time.
        let script = format!(
            r#"while read -r line; do touch {0}; until [ -e {1} ]; do sleep 0.01; done
            echo 'use {{"devices":[{{"uuid":"GPU-0","used":0}},{{"uuid":"GPU-1","used":0}}]}}'; done"#,
            at("asked").display(),
            at("answer").display()
        );
        let used = Used::new(Path::new("/bin/sh"), vec!["-c".into(), script], 0);
        let gpu = |index: u32| GresDevice {
            index,
            uuid: Some(format!("GPU-{index}")),
            vendor: Vendor::Nvidia,
            ..GresDevice::default()
        };
        let gpus = node(dir.path(), vec![gpu(0), gpu(1)]);
        let leaves = |index: u32| {
            let fault = GpuFault { index, why: "a process is on it".into() };
            gpus.remember(&[&gpu(index)], &[fault], &BTreeMap::new());
        };
        leaves(0);
        let (left, freed) = std::thread::scope(|scope| {
            let review = scope.spawn(|| gpus.review_left(&used));
            while !at("asked").exists() && !review.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
            }
            leaves(1);
            std::fs::write(at("answer"), "").unwrap();
            review.join().unwrap()
        });
        assert!(freed && left.len() == 1 && left[0].is_of(&gpu(1)), "{left:?}");
        assert_eq!(gpus.left.read(), left);
    }
}
