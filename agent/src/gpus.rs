//! The node's GPUs: found when the agent starts and looked at again every minute; what containers with some of them get.

use crate::fabrics::Fabric;
use crate::imex;
use berth_gpus::inject::{capabilities, specification};
use berth_gpus::nvml::helper::Helper;
use berth_gpus::require::{Have, Verdict, is_disabled, judge};
use berth_gpus::{Found, Tree};
use berth_model::ByteStr;
use berth_model::elf::NeedsGlibc;
use berth_model::hardware::{GresDevice, Vendor};
use berth_model::launch::StepLaunch;
use berth_model::spec::ResolvedImage;
use berth_runtime::ExtraMount;
use berth_step::spool::PreparedImage;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// How long the driver may take to answer. A GPU whose driver was not in use takes some seconds to wake up.
const DEADLINE: Duration = Duration::from_secs(20);
/// How often it is asked.
const PAUSE: Duration = Duration::from_secs(60);

/// What was found, and what finds it.
pub struct Gpus {
    tree: Tree,
    found: Found,
    helper: Mutex<Helper>,
}

impl Gpus {
    /// Looks at the node. `program`: `berth`.
    pub fn look(program: &Path) -> Gpus {
        let tree = Tree::here();
        let mut helper = Helper::new(program.to_path_buf(), vec!["internal-gpus".into()], DEADLINE);
        let found = berth_gpus::look(&tree, &kernel_log(&tree), || helper.ask());
        found.wrong.iter().for_each(|wrong| tracing::warn!("{wrong}"));
        Gpus { tree, found, helper: Mutex::new(helper) }
    }

    /// The devices.
    pub fn devices(&self) -> &[GresDevice] {
        &self.found.devices
    }

    /// Their files.
    pub fn files(&self) -> impl Iterator<Item = String> + '_ {
        let files = self.found.devices.iter().flat_map(|d| &d.files).map(|f| f.display().into_owned());
        let mut all: Vec<String> = files.collect();
        all.sort();
        all.dedup();
        all.into_iter()
    }

    /// How many channels there are by which jobs share their memory over several nodes.
    pub fn imex_channels(&self) -> u32 {
        self.found.imex.map_or(0, |imex| imex.count)
    }

    /// Has a step that has GPUs of NVIDIA's use its job's channel, and keeps all others from it.
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
        fabric.denied.extend(imex::files().into_iter().filter(|file| !fabric.files.contains(file)));
        Ok(())
    }

    /// Whether they are others, or other things are wrong with them, than when the agent started.
    fn differ(&self) -> bool {
        let Ok(mut helper) = self.helper.lock() else { return false };
        let now = berth_gpus::look(&self.tree, &kernel_log(&self.tree), || helper.ask());
        let changed = now.devices != self.found.devices
            || now.driver != self.found.driver
            || now.imex != self.found.imex;
        if changed {
            now.wrong.iter().for_each(|wrong| tracing::warn!("{wrong}"));
        }
        changed
    }

    /// Looks again every minute until something has changed.
    pub async fn until_changed(gpus: std::sync::Arc<Gpus>) {
        loop {
            tokio::time::sleep(PAUSE).await;
            let looking = std::sync::Arc::clone(&gpus);
            if matches!(tokio::task::spawn_blocking(move || looking.differ()).await, Ok(true)) {
                return;
            }
        }
    }

    /// What the container of a step gets beside its device files: mounts, and the glibc that libraries among them need; variables
    /// go into the image's.
    ///
    /// # Errors
    /// The image cannot run with this driver, by its own words.
    pub fn inject(
        &self,
        launch: &StepLaunch,
        image: Option<&mut PreparedImage>,
    ) -> Result<(Vec<ExtraMount>, Option<NeedsGlibc>), String> {
        let nothing = || Ok((Vec::new(), None));
        let given: Vec<GresDevice> =
            launch.share.gres.iter().filter(|d| d.vendor == Vendor::Nvidia).cloned().collect();
        let (Some(driver), false) = (&self.found.driver, given.is_empty()) else { return nothing() };
        // A root directory has no words of its own; the loader finds the libraries there by its cache alone.
        let mut none = Vec::new();
        let image = match image {
            Some(image) => &mut image.env,
            None if is_root_dir(launch) => &mut none,
            None => return nothing(),
        };
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
        let verdict = judge(env(), &have)?;
        let value = |name: &str| {
            let found =
                env().filter_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")).next_back();
            found.map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let wanted = capabilities(value("NVIDIA_DRIVER_CAPABILITIES").as_deref());
        let glibc = driver.needs(&wanted).filter(|_| !is_disabled(env()));
        let path = image.iter().rev().find_map(|pair| pair.0.strip_prefix(b"LD_LIBRARY_PATH="));
        let path = path.map(|p| String::from_utf8_lossy(p).into_owned()).unwrap_or_default();
        let spec = specification(&given, Some(driver), &wanted, &path, verdict == Verdict::WithCompat);
        let mut edits = spec.all_edits();
        // It may be another's since it was found.
        edits.mounts.retain(|mount| {
            driver.mps.as_ref() != Some(&mount.host_path) || self.tree.is_own_dir(&mount.host_path)
        });
        image.extend(edits.env.iter().map(|pair| ByteStr::from(pair.as_str())));
        let mounts = edits.mounts.iter().map(|mount| ExtraMount {
            source: ByteStr::from(self.tree.path(&mount.host_path).as_path()),
            target: ByteStr::from(mount.container_path.as_str()),
            read_only: true,
        });
        Ok((mounts.collect(), glibc))
    }
}

fn is_root_dir(launch: &StepLaunch) -> bool {
    let resolved = launch.container.as_ref().and_then(|container| container.image.resolved.as_ref());
    matches!(resolved, Some(ResolvedImage::RootDir { .. }))
}

/// What the kernel has said, where the agent may read it and there is a driver to speak of.
fn kernel_log(tree: &Tree) -> String {
    const NONBLOCK: i32 = nix::libc::O_NONBLOCK;
    if !berth_gpus::nvidia::is_loaded(tree) {
        return String::new();
    }
    if let Some(recorded) = tree.text("/kmsg") {
        return recorded;
    }
    let Ok(mut file) = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(tree.path("/dev/kmsg"))
    else {
        return String::new();
    };
    let mut text = String::new();
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => return text,
            Ok(n) => text.push_str(&String::from_utf8_lossy(&record[..n])),
            // Records were overwritten while we read: the next one that is there follows.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(_) => return text,
        }
    }
}
