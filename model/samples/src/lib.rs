//! Jobs, steps and containers from which tests of several packages start: they ask for nothing that need not be asked for, and
//! a test changes what it is about.
#![forbid(unsafe_code)]

use berth_model::distribution::Distribution;
use berth_model::ids::{Gid, StepId, StepKey, SubmissionId, Uid};
use berth_model::launch::{JobFacts, NodeShare, Program, StepLaunch};
use berth_model::spec::{
    ContainerSpec, Identity, ImageRef, IoSpec, JobKind, JobSpec, MemoryRequest, ResolvedImage,
    ResourceRequest, StepSpec,
};
use berth_model::time::{Span, Time};
use std::sync::Arc;

/// A user with one group.
pub fn identity(uid: u32) -> Identity {
    Identity {
        uid: Uid(uid),
        gid: Gid(uid),
        groups: Vec::new(),
        user: format!("user{uid}"),
        group: format!("group{uid}"),
        home: "/".into(),
        shell: "/bin/sh".into(),
    }
}

/// A job of one task.
pub fn job(kind: JobKind, submission: &str) -> JobSpec {
    JobSpec {
        submission: SubmissionId(submission.into()),
        kind,
        name: "job".into(),
        partition: None,
        account: None,
        resources: ResourceRequest::default(),
        time_limit: None,
        begin: None,
        hold: false,
        nice: 0,
        requeue: None,
        array: None,
        immediate: None,
        comment: None,
        work_dir: "/".into(),
        submit_dir: "/".into(),
        io: IoSpec::default(),
        container: None,
        limits: Default::default(),
        umask: 0o22,
        warn_signal: None,
        lost_after: None,
        clientless: false,
        user_env: false,
        command: "true".into(),
        submit_line: "sbatch".into(),
        submit_host: "host".into(),
        submit_sid: 1,
        het: None,
    }
}

/// A step that a client attends to.
pub fn step(submission: &str) -> StepSpec {
    StepSpec {
        submission: SubmissionId(submission.into()),
        name: "true".into(),
        tasks: None,
        nodes: None,
        max_nodes: None,
        tasks_per_node: None,
        node_list: Vec::new(),
        exclude: Vec::new(),
        relative: None,
        distribution: None,
        cpus_per_task: None,
        memory: MemoryRequest::Default,
        gres: None,
        devices: Default::default(),
        gpu_bind: None,
        overlap: false,
        exact: false,
        immediate: None,
        argv: vec!["true".into()],
        env: Vec::new(),
        work_dir: "/".into(),
        work_dir_explicit: false,
        io: IoSpec::default(),
        container: None,
        limits: Default::default(),
        umask: 0o22,
        pty: None,
        kill_on_bad_exit: false,
        wait_after_first_exit: None,
        time_limit: None,
        attached: true,
        enter: None,
        x11: None,
        mpi: None,
        login: None,
        client_address: None,
        pytorch: false,
        task_prolog: Default::default(),
        task_epilog: Default::default(),
        prolog: None,
        cpu_bind: None,
        mem_bind: None,
        programs: Vec::new(),
        overcommit: false,
        fabric: None,
        sockets: None,
        receive: None,
    }
}

/// What the agent is told of a step: a batch script's, or one of a job of its own. No client attends to it.
pub fn launch(key: StepKey) -> StepLaunch {
    let kind = if key.step == StepId::Batch { JobKind::Batch } else { JobKind::Run };
    StepLaunch {
        key,
        node: "n1".into(),
        node_index: 0,
        identity: identity(1),
        job: JobFacts {
            kind,
            name: "job".into(),
            partition: "main".into(),
            account: None,
            cluster: "berth".into(),
            array: None,
            restarts: 0,
            start: Time(0),
            end: None,
            layout: Arc::default(),
            submit_dir: "/".into(),
            submit_host: "n1".into(),
            tasks: None,
            tasks_per_node: None,
            cpus_per_task: None,
            mem_per_node: None,
            mem_per_cpu: None,
            mem_per_gpu: None,
            share: NodeShare::default(),
            subids: false,
            het: None,
            imex_channel: None,
            sluid: None,
        },
        name: "step".into(),
        program: Program::Argv(vec!["true".into()]),
        env: Vec::new(),
        user_env: false,
        work_dir: "/".into(),
        work_dir_explicit: false,
        io: IoSpec::default(),
        container: None,
        limits: Default::default(),
        umask: 0o22,
        pty: None,
        layout: Arc::default(),
        distribution: Distribution::Block,
        cpus_per_task: 1,
        share: NodeShare::default(),
        kill_on_bad_exit: false,
        wait_after_first_exit: None,
        attached: false,
        kill_wait: Span::from_secs(30),
        enter: None,
        x11: None,
        pytorch: false,
        master: None,
        client_address: None,
        task_prolog: Default::default(),
        task_epilog: Default::default(),
        told_within: None,
        mpi: None,
        cpu_bind: None,
        mem_bind: None,
        gpu_bind: None,
        programs: Vec::new(),
        overcommit: false,
        fabric: None,
        sockets: None,
        receive: None,
    }
}

/// A container of an image.
pub fn container(typed: &str, resolved: Option<ResolvedImage>) -> ContainerSpec {
    ContainerSpec::of(ImageRef { typed: typed.into(), resolved })
}
