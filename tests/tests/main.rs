//! Integration tests with real parts: real clusters, a real registry, real images. One binary, a module per concern.
#![forbid(unsafe_code)]

mod acceptance;
mod admission;
mod ahead;
mod attaching;
mod bad_input;
mod binding;
mod carried;
mod clocks;
mod cluster;
mod commands;
mod components;
mod containers;
mod copying;
mod devices;
mod direct;
mod diskless;
mod documented;
mod drift;
mod eight;
mod engine;
mod engine_stores;
mod entering;
mod environment;
mod escape;
mod explain;
mod fabrics;
mod faults;
mod fencing;
mod forms;
mod forms_travel;
mod front_doors;
mod full_disk;
mod full_names;
mod gpu_script;
mod gpus;
mod granted;
mod harness;
mod health;
mod hooks;
mod host_jobs;
mod idle;
mod image_cluster;
mod image_json;
mod job_namespaces;
mod joining;
mod killed;
mod leases;
mod limits;
mod logins;
mod logs;
mod matrix;
mod members;
mod memory;
mod moving;
mod mpi;
mod named;
mod node_states;
mod oci;
mod outputs;
mod packages;
mod pam;
mod peers;
mod place;
mod programs;
mod pulls;
mod quickstart;
mod rebooting;
mod reconfigure;
mod recorded;
mod registries;
mod relayed;
mod restoring;
mod roles;
mod room;
mod rotating;
mod saving;
mod several;
mod signalling;
mod signatures;
mod simulating;
mod sluids;
mod srun_programs;
mod starts;
mod streams;
mod subids;
mod task_programs;
mod terms;
mod tools;
mod traps;
mod tree;
mod ulimits;
mod under_load;
mod unkillable;
mod upgrade;
mod verifying;
mod x11;

/// A module that nobody names here would never be run.
#[test]
fn no_module_is_forgotten() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let main = std::fs::read_to_string(directory.join("main.rs")).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let module = name.trim_end_matches(".rs");
        if module != "main" {
            assert!(main.contains(&format!("\nmod {module};")), "tests/tests/{name} is not named in main.rs");
            seen += 1;
        }
    }
    assert!(seen > 5);
}
