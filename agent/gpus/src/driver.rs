//! What of NVIDIA's driver programs need besides the devices: libraries of the kernel module's very version, firmware, sockets,
//! programs.

use crate::inject::Capability::{self, Compute, Display, Graphics, Utility, Video};
use crate::nvidia::is_version;
use crate::tree::Tree;
use berth_model::elf::{Glibc, MadeFor, NeedsGlibc};
use berth_model::ldcache;
use std::collections::BTreeSet;

/// Beginnings of libraries' names, for what they are, and the ending of the name by which programs ask; with an empty one they ask for
/// the version itself.
const LIBRARIES: &[(&str, Capability, &str)] = &[
    ("libnvidia-ml", Utility, "1"),
    ("libnvidia-cfg", Utility, "1"),
    ("libnvidia-nscq", Compute, "1"),
    ("libcuda", Compute, "1"),
    ("libcudadebugger", Compute, "1"),
    ("libnvidia-opencl", Compute, "1"),
    ("libnvidia-gpucomp", Compute, ""),
    ("libnvidia-ptxjitcompiler", Compute, "1"),
    ("libnvidia-fatbinaryloader", Compute, ""),
    ("libnvidia-allocator", Compute, "1"),
    ("libnvidia-compiler", Compute, ""),
    ("libnvidia-pkcs11", Compute, ""),
    ("libnvidia-pkcs11-openssl3", Compute, ""),
    ("libnvidia-nvvm", Compute, "4"),
    ("libnvidia-tileiras", Compute, ""),
    ("libnvidia-sandboxutils", Compute, "1"),
    ("libnvcuvid", Video, "1"),
    ("libnvidia-encode", Video, "1"),
    ("libnvidia-opticalflow", Video, "1"),
    ("libvdpau_nvidia", Video, "1"),
    ("libnvidia-eglcore", Graphics, ""),
    ("libnvidia-glcore", Graphics, ""),
    ("libnvidia-tls", Graphics, ""),
    ("libnvidia-glsi", Graphics, ""),
    ("libnvidia-fbc", Graphics, "1"),
    ("libnvidia-rtcore", Graphics, ""),
    ("libnvidia-glvkspirv", Graphics, ""),
    ("libnvoptix", Graphics, "1"),
    ("libGLX_nvidia", Graphics, "0"),
    ("libEGL_nvidia", Graphics, "0"),
    ("libGLESv2_nvidia", Graphics, "2"),
    ("libGLESv1_CM_nvidia", Graphics, "1"),
    ("libnvidia-ifr", Graphics, "1"),
    ("libnvidia-cbl", Graphics, ""),
    ("libnvidia-present", Graphics, ""),
    ("libnvidia-vksc-core", Graphics, "1"),
    ("libnvidia-vulkan-producer", Graphics, ""),
    ("libnvidia-ngx", Capability::Ngx, "1"),
    ("libnvidia-wayland-client", Display, ""),
];

/// Libraries that come with the driver and have versions of their own, by the names by which they are asked for. Until 52x the compiler's
/// library was among them, and from 580 its earlier version is.
const WITH_OWN_VERSIONS: &[(&str, Capability)] = &[
    ("libnvidia-nvvm.so.4", Compute),
    ("libnvidia-nvvm70.so.4", Compute),
    ("libnvidia-api.so.1", Capability::Ngx),
    ("libnvidia-egl-gbm.so.1", Graphics),
    ("libnvidia-egl-wayland.so.1", Graphics),
    ("libnvidia-egl-wayland2.so.1", Graphics),
    ("libnvidia-egl-xcb.so.1", Graphics),
    ("libnvidia-egl-xlib.so.1", Graphics),
];

/// Programs, and what for.
const PROGRAMS: &[(&str, Capability)] = &[
    ("nvidia-smi", Utility),
    ("nvidia-debugdump", Utility),
    ("nvidia-persistenced", Utility),
    ("nv-fabricmanager", Utility),
    ("nvidia-cuda-mps-control", Compute),
    ("nvidia-cuda-mps-server", Compute),
];

/// Files by which loaders of the makers' interfaces find this driver's libraries, and what these read beside, in `/etc` or `/usr/share`.
const FILES: &[(&str, Capability)] = &[
    ("glvnd/egl_vendor.d/10_nvidia.json", Graphics),
    ("egl/egl_external_platform.d/10_nvidia_wayland.json", Graphics),
    ("egl/egl_external_platform.d/15_nvidia_gbm.json", Graphics),
    ("egl/egl_external_platform.d/20_nvidia_xcb.json", Graphics),
    ("egl/egl_external_platform.d/20_nvidia_xlib.json", Graphics),
    ("vulkan/icd.d/nvidia_icd.json", Graphics),
    ("vulkan/icd.d/nvidia_icd.x86_64.json", Graphics),
    ("vulkan/icd.d/nvidia_icd.aarch64.json", Graphics),
    ("vulkan/implicit_layer.d/nvidia_layers.json", Graphics),
    ("nvidia/nvoptix.bin", Graphics),
];

/// Sockets of the node's services that libraries speak with.
const SOCKETS: &[(&str, Capability)] =
    &[("/run/nvidia-persistenced/socket", Utility), ("/run/nvidia-fabricmanager/socket", Compute)];

/// Directories in which distributions put such libraries; the loader's cache says where others do.
const DIRECTORIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib/x86_64-linux-gnu/vdpau",
    "/usr/lib/aarch64-linux-gnu/vdpau",
    "/usr/lib64",
    "/usr/lib64/nvidia",
    "/usr/lib64/vdpau",
    "/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
    "/opt/nvidia/lib64",
    "/usr/local/nvidia/lib64",
];

/// Those for libraries of 32 bits; RHEL has them beside `lib64`.
const DIRECTORIES_32: &[&str] = &[
    "/usr/lib/i386-linux-gnu",
    "/usr/lib/i386-linux-gnu/nvidia/current",
    "/usr/lib/i386-linux-gnu/vdpau",
    "/usr/lib32",
    "/usr/lib32/nvidia",
    "/usr/lib32/vdpau",
    "/lib/i386-linux-gnu",
    "/usr/lib",
    "/usr/lib/vdpau",
];

/// The installed driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// `535.54.03`.
    pub version: String,
    /// Ordered by name.
    pub libraries: Vec<Library>,
    /// Those for programs of 32 bits, likewise; a driver need not have any.
    pub libraries_32: Vec<Library>,
    /// Programs.
    pub programs: Vec<(String, Capability)>,
    /// Files that say of libraries where they are, by the paths at which they are looked for.
    pub files: Vec<(String, Capability)>,
    /// Directory of firmware.
    pub firmware: Option<String>,
    /// Sockets.
    pub sockets: Vec<(String, Capability)>,
    /// Directory of MPS's pipes, where its control process runs. It comes and goes without the driver: who makes a container adds it
    /// ([`crate::mps`]).
    pub mps: Option<String>,
}

/// One library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Its file on the node.
    pub path: String,
    /// Names by which it is asked for.
    pub names: Vec<String>,
    /// What for.
    pub of: Capability,
    /// The glibc that it needs, where its file says that.
    pub glibc: Option<Glibc>,
}

impl Driver {
    /// The glibc that libraries of these kinds need, and which one needs it.
    pub fn needs(&self, wanted: &BTreeSet<Capability>) -> Option<NeedsGlibc> {
        let asked = self.libraries.iter().filter(|l| wanted.contains(&l.of));
        let (version, library) =
            asked.filter_map(|l| Some((l.glibc?, l))).max_by_key(|(version, _)| *version)?;
        let of = library.path.rsplit('/').next().unwrap_or(&library.path).to_string();
        Some(NeedsGlibc { version, of })
    }

    /// Finds what belongs to `version`, and nothing else: a library of another version makes programs fail in ways that nobody
    /// understands.
    ///
    /// # Errors
    /// The library without which nothing works is not there.
    pub fn find(tree: &Tree, version: &str) -> Result<Driver, String> {
        let libraries = libraries(tree, version, Bits::Native);
        if !libraries.iter().any(|l| l.names.iter().any(|n| n == "libcuda.so.1")) {
            return Err(format!(
                "libcuda.so.{version}, which belongs to the loaded kernel module, is not on the node: install the driver's libraries of this version there"
            ));
        }
        let dirs = ["/usr/bin", "/usr/local/bin", "/opt/nvidia/bin", "/usr/local/nvidia/bin", "/usr/sbin"];
        let program = |(name, of): &(&str, Capability)| {
            let there = dirs.iter().map(|dir| format!("{dir}/{name}")).find(|path| tree.has(path))?;
            Some((tree.real(&there)?, *of))
        };
        let firmware = format!("/lib/firmware/nvidia/{version}");
        Ok(Driver {
            version: version.to_string(),
            libraries,
            libraries_32: self::libraries(tree, version, Bits::Narrow),
            programs: PROGRAMS.iter().filter_map(program).collect(),
            files: FILES
                .iter()
                .flat_map(|(file, of)| ["/etc", "/usr/share"].map(|dir| (format!("{dir}/{file}"), *of)))
                .filter(|(path, _)| tree.has(path))
                .collect(),
            firmware: tree.has(&firmware).then_some(firmware),
            sockets: SOCKETS
                .iter()
                .filter(|(p, _)| tree.has(p))
                .map(|(p, of)| (p.to_string(), *of))
                .collect(),
            mps: None,
        })
    }
}

/// Which programs libraries are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bits {
    /// Those of the machine.
    Native,
    /// Those of 32 bits.
    Narrow,
}

impl Bits {
    /// Whether a file is for these. Packages put both kinds under the same names, and some into the same directories.
    fn has(self, tree: &Tree, path: &str) -> bool {
        match tree.made_for(path) {
            MadeFor::Native | MadeFor::Unsaid => self == Bits::Native,
            MadeFor::Narrow => self == Bits::Narrow,
            MadeFor::Others => false,
        }
    }
}

/// The libraries of the driver of that version.
fn libraries(tree: &Tree, version: &str, bits: Bits) -> Vec<Library> {
    let mut libraries: Vec<Library> = Vec::new();
    let directories = directories(tree, bits);
    for dir in &directories {
        for file in tree.names(dir) {
            let Some(library) = library(tree, dir, &file, version) else { continue };
            if !libraries.iter().any(|l| l.names == library.names) && bits.has(tree, &library.path) {
                libraries.push(library);
            }
        }
    }
    for (name, of) in WITH_OWN_VERSIONS {
        let is_there = |l: &Library| l.names.iter().any(|n| n == name);
        if !libraries.iter().any(is_there) {
            let mut found = directories.iter().filter_map(|dir| with_own_version(tree, dir, name, *of));
            libraries.extend(found.find(|library| bits.has(tree, &library.path)));
        }
    }
    libraries.sort_by(|a, b| a.names.cmp(&b.names));
    libraries
}

/// A library of the driver, if the file is one of that version.
fn library(tree: &Tree, dir: &str, file: &str, version: &str) -> Option<Library> {
    let stem = file.strip_suffix(version)?.strip_suffix(".so.")?;
    let (_, of, ending) = LIBRARIES.iter().find(|(name, ..)| *name == stem)?;
    let mut names = vec![file.to_string()];
    if !ending.is_empty() {
        names.insert(0, format!("{stem}.so.{ending}"));
    }
    if stem == "libcuda" {
        // Compilers and interpreters ask for it without a number.
        names.push("libcuda.so".into());
    }
    let path = tree.real(&format!("{dir}/{file}"))?;
    let glibc = tree.glibc(&path);
    Some(Library { path, names, of: *of, glibc })
}

/// A library by the name by which it is asked for, where that leads to one of just that name, or of the name and more of a version of its
/// own. Where it leads to another driver's, that has no such library.
fn with_own_version(tree: &Tree, dir: &str, name: &str, of: Capability) -> Option<Library> {
    let path = tree.real(&format!("{dir}/{name}"))?;
    let file = path.rsplit('/').next()?.to_string();
    let more = file.strip_prefix(name)?;
    if !more.is_empty() && !more.starts_with('.') {
        return None;
    }
    let mut names = vec![name.to_string()];
    names.extend(Some(file).filter(|file| file != name));
    let glibc = tree.glibc(&path);
    Some(Library { path, names, of, glibc })
}

/// Where to look: where the loader's cache has such libraries, then the known places; each once.
fn directories(tree: &Tree, bits: Bits) -> Vec<String> {
    let (flags, known) = match bits {
        Bits::Native => (ldcache::native_flags(), DIRECTORIES),
        Bits::Narrow => (ldcache::narrow_flags(), DIRECTORIES_32),
    };
    let cache =
        tree.bytes("/etc/ld.so.cache").and_then(|bytes| ldcache::parse(&bytes).ok()).unwrap_or_default();
    let wanted = |e: &&ldcache::Entry| {
        e.flags == flags
            && LIBRARIES.iter().any(|(stem, ..)| e.name.starts_with(format!("{stem}.so").as_bytes()))
    };
    let cached = cache.iter().filter(wanted).filter_map(|e| {
        let path = std::str::from_utf8(&e.path).ok()?;
        path.rsplit_once('/').map(|(dir, _)| dir.to_string())
    });
    let mut all: Vec<String> = Vec::new();
    for dir in cached.chain(known.iter().map(ToString::to_string)) {
        if dir.starts_with('/') && !all.contains(&dir) {
            all.push(dir);
        }
    }
    all
}

/// The installed `libnvidia-ml.so.1`, wherever the driver's libraries are looked for.
pub(crate) fn management(tree: &Tree) -> Option<String> {
    let at = |dir: String| {
        tree.real(&format!("{dir}/libnvidia-ml.so.1")).filter(|file| Bits::Native.has(tree, file))
    };
    directories(tree, Bits::Native).into_iter().find_map(at)
}

/// Version of the installed `libnvidia-ml.so.1`, by the name of its file.
pub fn library_version(tree: &Tree) -> Option<String> {
    let at = |dir: String| {
        let file =
            tree.real(&format!("{dir}/libnvidia-ml.so.1")).filter(|file| Bits::Native.has(tree, file))?;
        let version = file.rsplit_once("libnvidia-ml.so.")?.1.to_string();
        is_version(&version).then_some(version)
    };
    directories(tree, Bits::Native).into_iter().find_map(at)
}
