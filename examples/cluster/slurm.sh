#!/bin/bash
# Sixteen nodes, each on its own: no rendezvous that could fail, and nodes may come and go.
#
#     sbatch examples/cluster/slurm.sh builders/cc12m --data-dir /shared/raw/cc12m --output /shared/latents/cc12m
#
# All see /shared and the folder that this is started from. What sbatch is told before the script's name wins:
# `sbatch --array=0-3 --gpus-per-node=4 examples/cluster/slurm.sh ...`.
#SBATCH --job-name=latentmill
#SBATCH --array=0-15
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
# Preempted, or out of time: leases are given back rather than waited out, and the job goes on where it was.
set -euo pipefail

# The signal reaches this shell alone; it waits in the background so that it can pass it on.
accelerate launch --num_processes "$SLURM_GPUS_ON_NODE" -m precompute.run "$@" &
trap 'kill -TERM $!' TERM
wait $! || wait $!
