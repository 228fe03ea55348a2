#!/bin/bash
#SBATCH --job-name=memory-limit
#SBATCH --mem=64M
#SBATCH --time=2:00
# Takes more memory than it asked for: the kernel ends this job alone, and sacct says OUT_OF_MEMORY.
head -c 512M /dev/zero | tail | wc -c
