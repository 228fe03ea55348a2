//! Trees of files as nodes with GPUs have them, from what drivers' and distributions' documents say.

pub mod sets;

use berth_gpus::Tree;
use std::fs;
use tempfile::TempDir;

/// A node's files, below a directory that goes with it.
pub struct Recorded(TempDir);

impl Recorded {
    /// Nothing.
    pub fn new() -> Recorded {
        Recorded(tempfile::tempdir().unwrap())
    }

    /// The closed kernel module, with libraries where Debian and Ubuntu have them.
    pub fn debian(version: &str) -> Recorded {
        let tree = Recorded::new();
        let line = format!(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Jun  6 22:20:39 UTC 2023"
        );
        tree.write(
            "/proc/driver/nvidia/version",
            &format!("{line}\nGCC version:  gcc version 11.3.0 (Ubuntu 11.3.0-1)\n"),
        );
        tree.driver("/usr/lib/x86_64-linux-gnu", version);
        tree
    }

    /// The open kernel module, with libraries where RHEL has them.
    pub fn open(version: &str) -> Recorded {
        let tree = Recorded::new();
        let line = format!(
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (dvs-builder@U16)  Thu Feb 22 01:44:30 UTC 2024"
        );
        tree.write("/proc/driver/nvidia/version", &line);
        tree.driver("/usr/lib64", version);
        tree
    }

    /// The files of an installed driver.
    pub fn driver(&self, dir: &str, version: &str) {
        for (name, link) in [
            ("libcuda", "1"),
            ("libnvidia-ml", "1"),
            ("libnvidia-ptxjitcompiler", "1"),
            ("libnvidia-nvvm", "4"),
            ("libnvidia-opencl", "1"),
            ("libnvidia-encode", "1"),
            ("libGLX_nvidia", "0"),
            ("libnvidia-glcore", ""),
            ("libnvidia-allocator", "1"),
        ] {
            self.write(&format!("{dir}/{name}.so.{version}"), "ELF");
            if !link.is_empty() {
                let link = self.tree().path(&format!("{dir}/{name}.so.{link}"));
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink(format!("{name}.so.{version}"), link).unwrap();
            }
        }
        self.write("/usr/bin/nvidia-smi", "");
        self.write(&format!("/lib/firmware/nvidia/{version}/gsp_tu10x.bin"), "");
        self.write("/run/nvidia-persistenced/socket", "");
    }

    /// A driver with the libraries and the firmware that its version has; `{}` in a name is the version.
    pub fn of(set: &sets::Set) -> Recorded {
        let tree = Recorded::new();
        let module = if set.open { "Open Kernel Module for x86_64" } else { "x86_64 Kernel Module" };
        let line = format!(
            "NVRM version: NVIDIA UNIX {module}  {}  Release Build  (dvs-builder@U22)\n",
            set.version
        );
        tree.write("/proc/driver/nvidia/version", &line);
        let named = |name: &str| name.replace("{}", set.version);
        for library in set.libraries {
            let file = named(library.file);
            let dir =
                if file.starts_with("libvdpau") { format!("{}/vdpau", set.dir) } else { set.dir.to_string() };
            tree.write(&format!("{dir}/{file}"), "ELF");
            if library.link != library.file && !library.link.is_empty() {
                let link = tree.tree().path(&format!("{dir}/{}", named(library.link)));
                std::os::unix::fs::symlink(&file, link).unwrap();
            }
        }
        for firmware in set.firmware {
            tree.write(&format!("/lib/firmware/nvidia/{}/{firmware}", set.version), "");
        }
        tree.write("/usr/bin/nvidia-smi", "");
        tree
    }

    /// GPUs as the stand-in library has them: the address falls while the number rises.
    pub fn gpus(self, count: u32) -> Recorded {
        for n in 0..count {
            let bus = format!("0000:{:02x}:00.0", 0x80 - 0x10 * n);
            let information = format!(
                "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t {n}\nGPU UUID: \t GPU-{n:08x}-0000-0000-0000-000000000000\n\
                 Bus Location: \t {bus}\nDevice Minor: \t {n}\nGPU Excluded:\t No\n"
            );
            self.write(&format!("/proc/driver/nvidia/gpus/{bus}/information"), &information);
            self.write(&format!("/sys/bus/pci/devices/{bus}/numa_node"), "1\n");
            self.write(&format!("/sys/bus/pci/devices/{bus}/local_cpulist"), "16-19,40\n");
            self.write(&format!("/dev/nvidia{n}"), "");
        }
        for shared in ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"] {
            self.write(&format!("/dev/{shared}"), "");
        }
        self
    }

    /// The files by which one of NVIDIA's draws.
    pub fn draws(&self, bus: &str, number: u32) {
        for name in [format!("card{number}"), format!("renderD{}", 128 + number)] {
            self.write(&format!("/sys/bus/pci/devices/{bus}/drm/{name}/dev"), "226:0\n");
            self.write(&format!("/dev/dri/{name}"), "");
        }
        // What it is joined to is below its card.
        self.write(&format!("/sys/bus/pci/devices/{bus}/drm/card{number}-DP-1/status"), "connected\n");
        self.write(&format!("/dev/dri/card{number}-DP-1"), "");
    }

    /// One of AMD's: its node, render number, place on the bus, and its card.
    pub fn amd(&self, node: u32, render: u32, place: u32, other: u32) {
        let dir = format!("/sys/class/kfd/kfd/topology/nodes/{node}");
        let properties = format!(
            "simd_count 440\ndrm_render_minor {render}\nlocation_id {place}\ndomain 0\nunique_id 1234{node}\n"
        );
        self.write(&format!("{dir}/properties"), &properties);
        self.write(&format!("{dir}/gpu_id"), &format!("5111{node}\n"));
        self.write(&format!("{dir}/mem_banks/0/properties"), "heap_type 1\nsize_in_bytes 68702699520\n");
        self.write(&format!("{dir}/io_links/0/properties"), "type 2\nnode_to 0\n");
        self.write(&format!("{dir}/io_links/1/properties"), &format!("type 11\nnode_to {}\n", 3 - other));
        self.drm(render, &format!("0000:{:02x}:00.0", place >> 8), 0x1002, 0x7408);
        self.write(&format!("/sys/class/drm/renderD{render}/device/product_name"), "AMD Instinct MI250X\n");
    }

    /// One of Intel's.
    pub fn intel(&self, render: u32, bus: &str, id: u32) {
        self.drm(render, bus, 0x8086, id);
    }

    fn drm(&self, render: u32, bus: &str, vendor: u32, id: u32) {
        for name in [format!("renderD{render}"), format!("card{}", render - 128)] {
            let dir = format!("/sys/class/drm/{name}/device");
            self.write(&format!("{dir}/vendor"), &format!("{vendor:#x}\n"));
            self.write(&format!("{dir}/device"), &format!("{id:#x}\n"));
            self.write(&format!("{dir}/uevent"), &format!("DRIVER=x\nPCI_SLOT_NAME={bus}\n"));
            self.write(&format!("/dev/dri/{name}"), "");
        }
        self.write(&format!("/sys/class/drm/card{}-HDMI-A-1/status", render - 128), "disconnected\n");
    }

    /// Writes a file, with the directories above it.
    pub fn write(&self, path: &str, text: &str) {
        self.bytes(path, text.as_bytes());
    }

    pub fn bytes(&self, path: &str, bytes: &[u8]) {
        let path = self.tree().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn tree(&self) -> Tree {
        Tree::at(self.0.path())
    }
}
