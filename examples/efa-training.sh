#!/bin/bash
#SBATCH --job-name=training
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --partition=p4d
#SBATCH --output=%x-%j.out
# Trains over two nodes of eight GPUs each, which EFA joins. IMAGE, SHARED and TRAIN say with what, where and what:
#   IMAGE=nvcr.io#nvidia/pytorch:24.01-py3 TRAIN=/shared/train.py sbatch examples/efa-training.sh
# --pytorch tells each task MASTER_ADDR, MASTER_PORT, RANK, LOCAL_RANK and WORLD_SIZE: torch.distributed needs nothing else.
ulimit -l unlimited
ulimit -s unlimited
export FI_EFA_USE_DEVICE_RDMA=1
export FI_PROVIDER=efa
export NCCL_DEBUG=INFO
srun --pytorch --container-image="$IMAGE" --container-mounts="${SHARED:-/shared}:/shared" python -u "$TRAIN"
