//! The commands that speak to a cluster: srun, sbatch, squeue and their like.
#![forbid(unsafe_code)]
