#!/bin/bash
# Trains on several machines of a SLURM cluster, one process a GPU:
#
#   sbatch --nodes 2 --gpus-per-node 8 tools/slurm.sh --config-file configs/d3etr/conditional_r101_r50.yaml [KEY VALUE ...]
#
# A process that fails is started anew with all others, three times; a job that is preempted or reaches its time limit is
# queued again. Either way the run goes on from its last checkpoint, so OUTPUT_DIR has to lie on a disk that all machines
# share, and a job of the same OUTPUT_DIR goes on with the run that is there.
#SBATCH --job-name detr_distill
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 32
#SBATCH --time 24:00:00
#SBATCH --requeue
#SBATCH --open-mode append
# Two minutes before the time limit the script is told to queue the job again.
#SBATCH --signal B:USR1@120
set -euo pipefail

requeue() {
    scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of the job's own: two jobs may share a machine.
port=$((20000 + SLURM_JOB_ID % 20000))
srun torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:$port" \
    train_net.py --resume "$@" &
wait $!
