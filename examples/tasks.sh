#!/bin/bash
#SBATCH --job-name=two-tasks
#SBATCH --ntasks=2
#SBATCH --time=10:00
#SBATCH --output=%x-%j.out
# A batch script that starts two tasks as one step; run it with sbatch --container-image=IMAGE, and the step inherits the image.
set -euo pipefail
srun --label bash -c 'echo "rank $SLURM_PROCID of $SLURM_NTASKS, pid $$"'
