//! Which instance of its GPU a part is: two calls of NVIDIA's library for which its binding has no safe function.

use nvml_wrapper::Device;

/// GPU instance and compute instance of a part of a divided GPU (MIG). Nothing where the library does not say them: of what is no part,
/// and with drivers that do not have the calls.
pub fn instance_of(part: &Device<'_>) -> Option<(u32, u32)> {
    let library = part.nvml().lib();
    let of_gpu = library.nvmlDeviceGetGpuInstanceId.as_ref().ok()?;
    let of_compute = library.nvmlDeviceGetComputeInstanceId.as_ref().ok()?;
    let (mut gpu, mut compute) = (0, 0);
    // SAFETY: the handle is one of this library, which stays open while `part` is borrowed; each call (`nvml.h`) writes one unsigned int,
    // to a variable that lives across it.
    let said = unsafe {
        let handle = part.handle();
        [of_gpu(handle, &mut gpu), of_compute(handle, &mut compute)]
    };
    (said == [0, 0]).then_some((gpu, compute))
}
