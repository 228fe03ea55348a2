//! The fuzz targets of the grammars as tests: each is called with its first inputs.
#![allow(clippy::unwrap_used, clippy::panic)] // a panic is how a target tells what it found

use libfuzzer_sys::Seeds;

mod array;
mod count;
mod export;
mod gres;
mod hostlist;
mod jobid;
mod limit;
mod memory;
mod mounts;
mod options;
mod pattern;
mod runs;
mod script;
mod signal;
mod when;

const SEEDS: Seeds = Seeds {
    words: &[
        "1-02:03:04",
        "30:00",
        "UNLIMITED",
        "INFINITE",
        "4000M",
        "1.5g",
        "512K",
        "2-4k",
        "n[001-003,7],r[1-2]n[1-3].site",
        "a-b-c-[9-11]-ib0",
        "[",
        "]",
        "[1-3]",
        "0-15,20-40:5%4",
        "1-9:2",
        "12_[1-5,7%2].batch",
        "12_3.0",
        "12+1.extern",
        "B:USR1@50",
        "R:TERM@120",
        "SIGKILL",
        "now+3hours",
        "noon tomorrow",
        "16:00 PM",
        "2027-01-02T03:04:05",
        "12/31/26-10:00",
        "gpu:a100:4,nic=2k",
        "gres/gpu",
        "a100:2",
        "2(x3),1",
        "slurm-%A_%3a.out",
        "%j%N%n%t%u%x%%",
        "\\",
        "ALL,A='1,2',B=\"x\"",
        "NONE",
        "/a:/b:ro+nosuid,tmpfs:/t:size=1g",
        "type=bind,src=/a,dst=/b,readonly",
        "#!/bin/sh\n#SBATCH -n 4\n#PBS -x\ntrue\n",
        "#SBATCH -J 'a b' --time=5 # c\n",
        "#SBATCH hetjob\n",
        "--mem=1G\0-w\0n[1-2]\0--exclusive\0true",
        "-n4\0-N2\0-t5\0sh\0-c\0true",
        "--container-image=x\0--container-mounts=/a\0",
        "--array=1-3\0--export=NONE\0--signal=USR1\0",
        "--gres=gpu:1\0--gpus-per-task=1\0",
        "--begin=now+1\0--output=%j\0--",
        "é",
    ],
    slow: &[],
};
