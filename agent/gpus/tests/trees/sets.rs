//! Which libraries drivers of several versions have: facts, as packages' lists of files, generated container specifications and
//! listings of machines have them in public. Without X's own modules and 32-bit libraries.

/// A driver.
pub struct Set {
    pub version: &'static str,
    /// Where its distribution puts libraries.
    pub dir: &'static str,
    /// The open kernel module.
    pub open: bool,
    pub firmware: &'static [&'static str],
    pub libraries: &'static [Library],
}

/// A library; `{}` is the driver's version.
pub struct Library {
    /// Its file.
    pub file: &'static str,
    /// The link by which programs ask for it; empty: they ask for the file.
    pub link: &'static str,
    /// A container that says nothing of capabilities gets it.
    pub given: bool,
}

const fn given(file: &'static str, link: &'static str) -> Library {
    Library { file, link, given: true }
}

const fn left(file: &'static str, link: &'static str) -> Library {
    Library { file, link, given: false }
}

/// All of them.
pub const ALL: [&Set; 6] = [&R470, &R535, &R550, &R570, &R580, &R615];

/// Ubuntu. The compiler's library has a version of its own.
pub const R470: Set = Set {
    version: "470.256.02",
    dir: "/usr/lib/x86_64-linux-gnu",
    open: false,
    firmware: &["gsp.bin"],
    libraries: R470_LIBRARIES,
};
const R470_LIBRARIES: &[Library] = &[
    given("libcuda.so.{}", "libcuda.so.1"),
    given("libnvidia-ml.so.{}", "libnvidia-ml.so.1"),
    given("libnvidia-cfg.so.{}", "libnvidia-cfg.so.1"),
    given("libnvidia-opencl.so.{}", "libnvidia-opencl.so.1"),
    given("libnvidia-ptxjitcompiler.so.{}", "libnvidia-ptxjitcompiler.so.1"),
    given("libnvidia-allocator.so.{}", "libnvidia-allocator.so.1"),
    given("libnvidia-compiler.so.{}", ""),
    given("libnvidia-nvvm.so.4.0.0", "libnvidia-nvvm.so.4"),
    left("libEGL_nvidia.so.{}", "libEGL_nvidia.so.0"),
    left("libGLESv1_CM_nvidia.so.{}", "libGLESv1_CM_nvidia.so.1"),
    left("libGLESv2_nvidia.so.{}", "libGLESv2_nvidia.so.2"),
    left("libGLX_nvidia.so.{}", "libGLX_nvidia.so.0"),
    left("libnvidia-eglcore.so.{}", ""),
    left("libnvidia-glcore.so.{}", ""),
    left("libnvidia-glsi.so.{}", ""),
    left("libnvidia-glvkspirv.so.{}", ""),
    left("libnvidia-tls.so.{}", ""),
    left("libnvidia-rtcore.so.{}", ""),
    left("libnvoptix.so.{}", "libnvoptix.so.1"),
    left("libnvidia-fbc.so.{}", "libnvidia-fbc.so.1"),
    left("libnvidia-ngx.so.{}", "libnvidia-ngx.so.1"),
    left("libnvcuvid.so.{}", "libnvcuvid.so.1"),
    left("libnvidia-encode.so.{}", "libnvidia-encode.so.1"),
    left("libnvidia-opticalflow.so.{}", "libnvidia-opticalflow.so.1"),
    left("libvdpau_nvidia.so.{}", "libvdpau_nvidia.so.1"),
    left("libnvidia-cbl.so.{}", ""),
    left("libnvidia-ifr.so.{}", "libnvidia-ifr.so.1"),
    left("libnvidia-vulkan-producer.so.{}", ""),
    left("libnvidia-egl-wayland.so.1.1.13", "libnvidia-egl-wayland.so.1"),
];

/// Ubuntu. A debugger's library came, OpenCL's compiler went.
pub const R535: Set = Set {
    version: "535.230.02",
    dir: "/usr/lib/x86_64-linux-gnu",
    open: false,
    firmware: &["gsp_ga10x.bin", "gsp_tu10x.bin"],
    libraries: R535_LIBRARIES,
};
const R535_LIBRARIES: &[Library] = &[
    given("libcuda.so.{}", "libcuda.so.1"),
    given("libnvidia-ml.so.{}", "libnvidia-ml.so.1"),
    given("libnvidia-cfg.so.{}", "libnvidia-cfg.so.1"),
    given("libnvidia-opencl.so.{}", "libnvidia-opencl.so.1"),
    given("libnvidia-ptxjitcompiler.so.{}", "libnvidia-ptxjitcompiler.so.1"),
    given("libnvidia-allocator.so.{}", "libnvidia-allocator.so.1"),
    given("libcudadebugger.so.{}", "libcudadebugger.so.1"),
    given("libnvidia-nvvm.so.{}", "libnvidia-nvvm.so.4"),
    given("libnvidia-pkcs11.so.{}", ""),
    given("libnvidia-pkcs11-openssl3.so.{}", ""),
    left("libEGL_nvidia.so.{}", "libEGL_nvidia.so.0"),
    left("libGLESv1_CM_nvidia.so.{}", "libGLESv1_CM_nvidia.so.1"),
    left("libGLESv2_nvidia.so.{}", "libGLESv2_nvidia.so.2"),
    left("libGLX_nvidia.so.{}", "libGLX_nvidia.so.0"),
    left("libnvidia-eglcore.so.{}", ""),
    left("libnvidia-glcore.so.{}", ""),
    left("libnvidia-glsi.so.{}", ""),
    left("libnvidia-glvkspirv.so.{}", ""),
    left("libnvidia-tls.so.{}", ""),
    left("libnvidia-rtcore.so.{}", ""),
    left("libnvoptix.so.{}", "libnvoptix.so.1"),
    left("libnvidia-fbc.so.{}", "libnvidia-fbc.so.1"),
    left("libnvidia-ngx.so.{}", "libnvidia-ngx.so.1"),
    left("libnvcuvid.so.{}", "libnvcuvid.so.1"),
    left("libnvidia-encode.so.{}", "libnvidia-encode.so.1"),
    left("libnvidia-opticalflow.so.{}", "libnvidia-opticalflow.so.1"),
    left("libvdpau_nvidia.so.{}", "libvdpau_nvidia.so.1"),
    left("libnvidia-api.so.1", ""),
    left("libnvidia-wayland-client.so.{}", ""),
    left("libnvidia-egl-gbm.so.1.1.0", "libnvidia-egl-gbm.so.1"),
    left("libnvidia-egl-wayland.so.1.1.11", "libnvidia-egl-wayland.so.1"),
];

/// Ubuntu. What compilers share came, and is asked for by the version.
pub const R550: Set = Set {
    version: "550.67",
    dir: "/usr/lib/x86_64-linux-gnu",
    open: false,
    firmware: &["gsp_ga10x.bin", "gsp_tu10x.bin"],
    libraries: R550_LIBRARIES,
};
const R550_LIBRARIES: &[Library] = &[
    given("libcuda.so.{}", "libcuda.so.1"),
    given("libnvidia-ml.so.{}", "libnvidia-ml.so.1"),
    given("libnvidia-cfg.so.{}", "libnvidia-cfg.so.1"),
    given("libnvidia-opencl.so.{}", "libnvidia-opencl.so.1"),
    given("libnvidia-ptxjitcompiler.so.{}", "libnvidia-ptxjitcompiler.so.1"),
    given("libnvidia-allocator.so.{}", "libnvidia-allocator.so.1"),
    given("libcudadebugger.so.{}", "libcudadebugger.so.1"),
    given("libnvidia-nvvm.so.{}", "libnvidia-nvvm.so.4"),
    given("libnvidia-pkcs11.so.{}", ""),
    given("libnvidia-pkcs11-openssl3.so.{}", ""),
    given("libnvidia-gpucomp.so.{}", ""),
    left("libEGL_nvidia.so.{}", "libEGL_nvidia.so.0"),
    left("libGLESv1_CM_nvidia.so.{}", "libGLESv1_CM_nvidia.so.1"),
    left("libGLESv2_nvidia.so.{}", "libGLESv2_nvidia.so.2"),
    left("libGLX_nvidia.so.{}", "libGLX_nvidia.so.0"),
    left("libnvidia-eglcore.so.{}", ""),
    left("libnvidia-glcore.so.{}", ""),
    left("libnvidia-glsi.so.{}", ""),
    left("libnvidia-glvkspirv.so.{}", ""),
    left("libnvidia-tls.so.{}", ""),
    left("libnvidia-rtcore.so.{}", ""),
    left("libnvoptix.so.{}", "libnvoptix.so.1"),
    left("libnvidia-fbc.so.{}", "libnvidia-fbc.so.1"),
    left("libnvidia-ngx.so.{}", "libnvidia-ngx.so.1"),
    left("libnvcuvid.so.{}", "libnvcuvid.so.1"),
    left("libnvidia-encode.so.{}", "libnvidia-encode.so.1"),
    left("libnvidia-opticalflow.so.{}", "libnvidia-opticalflow.so.1"),
    left("libvdpau_nvidia.so.{}", "libvdpau_nvidia.so.1"),
    left("libnvidia-api.so.1", ""),
    left("libnvidia-wayland-client.so.{}", ""),
    left("libnvidia-egl-gbm.so.1.1.1", "libnvidia-egl-gbm.so.1"),
    left("libnvidia-egl-wayland.so.1.1.13", "libnvidia-egl-wayland.so.1"),
];

/// Ubuntu, with the library of NVSwitches.
pub const R570: Set = Set {
    version: "570.133.20",
    dir: "/usr/lib/x86_64-linux-gnu",
    open: true,
    firmware: &["gsp_ga10x.bin", "gsp_tu10x.bin"],
    libraries: R570_LIBRARIES,
};
const R570_LIBRARIES: &[Library] = &[
    given("libcuda.so.{}", "libcuda.so.1"),
    given("libnvidia-ml.so.{}", "libnvidia-ml.so.1"),
    given("libnvidia-cfg.so.{}", "libnvidia-cfg.so.1"),
    given("libnvidia-opencl.so.{}", "libnvidia-opencl.so.1"),
    given("libnvidia-ptxjitcompiler.so.{}", "libnvidia-ptxjitcompiler.so.1"),
    given("libnvidia-allocator.so.{}", "libnvidia-allocator.so.1"),
    given("libcudadebugger.so.{}", "libcudadebugger.so.1"),
    given("libnvidia-nvvm.so.{}", "libnvidia-nvvm.so.4"),
    given("libnvidia-pkcs11.so.{}", ""),
    given("libnvidia-pkcs11-openssl3.so.{}", ""),
    given("libnvidia-gpucomp.so.{}", ""),
    given("libnvidia-sandboxutils.so.{}", "libnvidia-sandboxutils.so.1"),
    given("libnvidia-nscq.so.{}", "libnvidia-nscq.so.1"),
    left("libEGL_nvidia.so.{}", "libEGL_nvidia.so.0"),
    left("libGLESv1_CM_nvidia.so.{}", "libGLESv1_CM_nvidia.so.1"),
    left("libGLESv2_nvidia.so.{}", "libGLESv2_nvidia.so.2"),
    left("libGLX_nvidia.so.{}", "libGLX_nvidia.so.0"),
    left("libnvidia-eglcore.so.{}", ""),
    left("libnvidia-glcore.so.{}", ""),
    left("libnvidia-glsi.so.{}", ""),
    left("libnvidia-glvkspirv.so.{}", ""),
    left("libnvidia-tls.so.{}", ""),
    left("libnvidia-rtcore.so.{}", ""),
    left("libnvoptix.so.{}", "libnvoptix.so.1"),
    left("libnvidia-fbc.so.{}", "libnvidia-fbc.so.1"),
    left("libnvidia-ngx.so.{}", "libnvidia-ngx.so.1"),
    left("libnvcuvid.so.{}", "libnvcuvid.so.1"),
    left("libnvidia-encode.so.{}", "libnvidia-encode.so.1"),
    left("libnvidia-opticalflow.so.{}", "libnvidia-opticalflow.so.1"),
    left("libvdpau_nvidia.so.{}", "libvdpau_nvidia.so.1"),
    left("libnvidia-api.so.1", ""),
    left("libnvidia-wayland-client.so.{}", ""),
    left("libnvidia-present.so.{}", ""),
    left("libnvidia-vksc-core.so.{}", "libnvidia-vksc-core.so.1"),
    left("libnvidia-egl-gbm.so.1.1.2", "libnvidia-egl-gbm.so.1"),
    left("libnvidia-egl-wayland.so.1.1.17", "libnvidia-egl-wayland.so.1"),
];

/// RHEL. An earlier compiler came, with a version of its own.
pub const R580: Set = Set {
    version: "580.105.08",
    dir: "/usr/lib64",
    open: true,
    firmware: &["gsp_ga10x.bin", "gsp_tu10x.bin"],
    libraries: R580_LIBRARIES,
};
const R580_LIBRARIES: &[Library] = &[
    given("libcuda.so.{}", "libcuda.so.1"),
    given("libnvidia-ml.so.{}", "libnvidia-ml.so.1"),
    given("libnvidia-cfg.so.{}", "libnvidia-cfg.so.1"),
    given("libnvidia-opencl.so.{}", "libnvidia-opencl.so.1"),
    given("libnvidia-ptxjitcompiler.so.{}", "libnvidia-ptxjitcompiler.so.1"),
    given("libnvidia-allocator.so.{}", "libnvidia-allocator.so.1"),
    given("libcudadebugger.so.{}", "libcudadebugger.so.1"),
    given("libnvidia-nvvm.so.{}", "libnvidia-nvvm.so.4"),
    given("libnvidia-nvvm70.so.4", ""),
    given("libnvidia-pkcs11-openssl3.so.{}", ""),
    given("libnvidia-gpucomp.so.{}", ""),
    given("libnvidia-sandboxutils.so.{}", "libnvidia-sandboxutils.so.1"),
    left("libEGL_nvidia.so.{}", "libEGL_nvidia.so.0"),
    left("libGLESv1_CM_nvidia.so.{}", "libGLESv1_CM_nvidia.so.1"),
    left("libGLESv2_nvidia.so.{}", "libGLESv2_nvidia.so.2"),
    left("libGLX_nvidia.so.{}", "libGLX_nvidia.so.0"),
    left("libnvidia-eglcore.so.{}", ""),
    left("libnvidia-glcore.so.{}", ""),
    left("libnvidia-glsi.so.{}", ""),
    left("libnvidia-glvkspirv.so.{}", ""),
    left("libnvidia-tls.so.{}", ""),
    left("libnvidia-rtcore.so.{}", ""),
    left("libnvoptix.so.{}", "libnvoptix.so.1"),
    left("libnvidia-fbc.so.{}", "libnvidia-fbc.so.1"),
    left("libnvidia-ngx.so.{}", "libnvidia-ngx.so.1"),
    left("libnvcuvid.so.{}", "libnvcuvid.so.1"),
    left("libnvidia-encode.so.{}", "libnvidia-encode.so.1"),
    left("libnvidia-opticalflow.so.{}", "libnvidia-opticalflow.so.1"),
    left("libvdpau_nvidia.so.{}", "libvdpau_nvidia.so.1"),
    left("libnvidia-api.so.1", ""),
    left("libnvidia-present.so.{}", ""),
    left("libnvidia-vksc-core.so.{}", "libnvidia-vksc-core.so.1"),
];

/// RHEL. Another compiler came.
pub const R615: Set = Set {
    version: "615.71.09",
    dir: "/usr/lib64",
    open: true,
    firmware: &["gsp_ga10x.bin", "gsp_tu10x.bin"],
    libraries: R615_LIBRARIES,
};
const R615_LIBRARIES: &[Library] = &[
    given("libcuda.so.{}", "libcuda.so.1"),
    given("libnvidia-ml.so.{}", "libnvidia-ml.so.1"),
    given("libnvidia-cfg.so.{}", "libnvidia-cfg.so.1"),
    given("libnvidia-opencl.so.{}", "libnvidia-opencl.so.1"),
    given("libnvidia-ptxjitcompiler.so.{}", "libnvidia-ptxjitcompiler.so.1"),
    given("libnvidia-allocator.so.{}", "libnvidia-allocator.so.1"),
    given("libcudadebugger.so.{}", "libcudadebugger.so.1"),
    given("libnvidia-nvvm.so.{}", "libnvidia-nvvm.so.4"),
    given("libnvidia-nvvm70.so.4", ""),
    given("libnvidia-pkcs11-openssl3.so.{}", ""),
    given("libnvidia-gpucomp.so.{}", ""),
    given("libnvidia-sandboxutils.so.{}", "libnvidia-sandboxutils.so.1"),
    given("libnvidia-tileiras.so.{}", ""),
    left("libEGL_nvidia.so.{}", "libEGL_nvidia.so.0"),
    left("libGLESv1_CM_nvidia.so.{}", "libGLESv1_CM_nvidia.so.1"),
    left("libGLESv2_nvidia.so.{}", "libGLESv2_nvidia.so.2"),
    left("libGLX_nvidia.so.{}", "libGLX_nvidia.so.0"),
    left("libnvidia-eglcore.so.{}", ""),
    left("libnvidia-glcore.so.{}", ""),
    left("libnvidia-glsi.so.{}", ""),
    left("libnvidia-glvkspirv.so.{}", ""),
    left("libnvidia-tls.so.{}", ""),
    left("libnvidia-rtcore.so.{}", ""),
    left("libnvoptix.so.{}", "libnvoptix.so.1"),
    left("libnvidia-fbc.so.{}", "libnvidia-fbc.so.1"),
    left("libnvidia-ngx.so.{}", "libnvidia-ngx.so.1"),
    left("libnvcuvid.so.{}", "libnvcuvid.so.1"),
    left("libnvidia-encode.so.{}", "libnvidia-encode.so.1"),
    left("libnvidia-opticalflow.so.{}", "libnvidia-opticalflow.so.1"),
    left("libnvidia-api.so.1", ""),
    left("libnvidia-present.so.{}", ""),
    left("libnvidia-vksc-core.so.{}", "libnvidia-vksc-core.so.1"),
    left("libnvidia-wayland-client.so.{}", ""),
    left("libnvidia-egl-gbm.so.1.1.2", "libnvidia-egl-gbm.so.1"),
    left("libnvidia-egl-wayland2.so.1.0.2", "libnvidia-egl-wayland2.so.1"),
    left("libnvidia-egl-xcb.so.1.0.6", "libnvidia-egl-xcb.so.1"),
    left("libnvidia-egl-xlib.so.1.0.6", "libnvidia-egl-xlib.so.1"),
];
