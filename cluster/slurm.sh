#!/bin/bash
# A run on Slurm: Ray on every node of an allocation, the run on its first, and all gone afterwards.
#
#   sbatch --nodes=4 cluster/slurm.sh run configs/cifar10.yaml --store /scratch/$USER/bend-store
#
# A job that was cut off is handed in again and goes on from the store, which all nodes must reach.
#SBATCH --job-name=bend-ray
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --exclusive
set -euo pipefail

# A token of this job alone; srun gives every node the environment.
RAY_AUTH_TOKEN=$(head --bytes=32 /dev/urandom | od --address-radix=n --format=x1 | tr --delete ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1

# Not by `| head`: a long list would end in a broken pipe, and with it the job.
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut --delimiter=' ' --fields=1)

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$address:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" -- \
    bend "$@" --address "$address:6379"
