#!/bin/sh
#SBATCH --job-name=array
#SBATCH --cpus-per-task=1
#SBATCH --mem=128M
#SBATCH --time=5:00
# Three tasks of an array; each sees its own index, and only what it was given.
. /etc/os-release
echo "task $SLURM_ARRAY_TASK_ID of job $SLURM_ARRAY_JOB_ID runs on $SLURMD_NODENAME in $PRETTY_NAME with $(nproc) core"
