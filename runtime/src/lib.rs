//! Container planner and launcher: rootfs, mounts, cgroups, limits, devices, seccomp.
