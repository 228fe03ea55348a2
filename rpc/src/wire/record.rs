//! Answers to queries and the configuration on the wire.

use super::{enums, structs};
use berth_model::admission::ImageRule;
use berth_model::config::{
    AccountConfig, Config, ContainerConfig, GresConfig, ImagesConfig, LayerForm, LogsConfig, MirrorConfig,
    NodeConfig, PartitionConfig, PartitionState,
};
use berth_model::gpus::GpusConfig;
use berth_model::het::HetStep;
use berth_model::listing::{JobList, Origin, WaitingJobs};
use berth_model::programs::CheckedNodes;
use berth_model::programs::ProgramsConfig;
use berth_model::quota::QuotaConfig;
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo, PullInfo, StepInfo};
use berth_model::signature::{SignaturePolicy, SignatureRule};

enums! {
    CheckedNodes { Any, Idle, Allocated }
    PartitionState { Up, Down, Drain, Inactive }
    LayerForm { Auto, Directory, Erofs }
    SignaturePolicy { Off, Warn, Require }
}

structs! {
    StepInfo {
        id, name, attempt, state, image, allocated, layout, exit, message, started, ended, usage, time_limit,
        work_dir, cancelled_by, digest, pull, het,
    }
    HetStep { parts, layout, first_node, begins }
    PullInfo { took, bytes, hit, gpu_wait }
    JobInfo {
        id, array, task, waiting, spec, identity, partition, time_limit, state, reason, attempt, priority,
        requested, allocated, layout, shares, exit, derived_exit, cancelled_by, submitted, eligible, started,
        ended, leapt, steps, notices, sluid,
    }
    Origin { submission, command, submit_line }
    WaitingJobs {
        kinds, names, reasons, id, kind, name, reason, attempt, priority, submitted, eligible, begin_of, begin,
        origin, sluid,
    }
    JobList { jobs, waiting }
    NodeInfo {
        name, hardware, condition, partitions, total, allocated, completing, version, boot_time, agent_start,
        last_busy, load, free_memory, drift, unknown_settings, hardware_drift, used,
        host_name,
    }
    PartitionConfig {
        name, nodes, default, max_time, default_time, max_nodes, default_mem_per_cpu, default_cpus_per_gpu,
        default_mem_per_gpu, state,
    }
    PartitionInfo { config, nodes, total }
    GresConfig { name, kind, files, cdi, count, cores, shards, mps, flags }
    NodeConfig { name, memory_reserved, gres }
    AccountConfig { name, coordinators, users }
    ContainerConfig { mount_home, remap_root, entrypoint, keep_days, hooks_dirs }
    ProgramsConfig {
        prolog, prolog_seconds, epilog, epilog_seconds, task_prolog, task_prolog_seconds, task_epilog, task_epilog_seconds,
        health_check, health_check_seconds, health_check_interval_seconds, health_check_nodes,
        reboot, reboot_seconds, reboot_timeout_seconds, srun_prolog, srun_prolog_seconds, srun_epilog, srun_epilog_seconds,
        fence, fence_seconds, fence_after_seconds,
    }
    LogsConfig { max_size, keep }
    GpusConfig {
        sample_seconds, idle_percent, idle_warn_minutes, idle_warn_seconds, idle_release_minutes, idle_release_seconds, kept_from,
        mps_pipe_directory, serve_mismatched,
    }
    MirrorConfig { registry, urls, grants }
    QuotaConfig { users, size }
    SignatureRule { images, policy, keys, signed_as }
    ImageRule { accounts, otherwise, allow, deny }
    ImagesConfig {
        insecure_registries, layer_form, certificate_authorities, mirrors, high_watermark, low_watermark, peers, gateways, forms_agreed, max_size, keep_days,
        user_quota, quotas,
        path, memory, prefetch, allow, deny, rules, signatures, signature_rules,
    }
    Config {
        cluster, listen, certificate_seconds, kill_wait_seconds, unkillable_seconds, min_job_age_seconds,
        node_timeout_seconds, lost_after_seconds, start_timeout_seconds, max_array_size, max_jobs,
        launch_tree_from, launch_tree_width,
        root_jobs, requeue, keep_records_days, administrators, operators, container, programs, gpus, logs, images,
        accounts, partitions, nodes,
    }
}
