#!/bin/bash
# Sixteen nodes, each on its own: no rendezvous that could fail, and nodes may come and go.
#
#     sbatch examples/cluster/slurm.sh
#
# All see /shared. Not tried on a real cluster.
#SBATCH --job-name=latentmill
#SBATCH --array=0-15
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
# Preempted, or out of time: leases are given back rather than waited out, and the job goes on where it was.
set -euo pipefail

# The signal reaches this shell alone; it waits in the background so that it can pass it on.
accelerate launch --num_processes 8 -m precompute.run builders/cc12m \
    --data-dir /shared/raw/cc12m --output /shared/latents/cc12m &
trap 'kill -TERM $!' TERM
wait $! || wait $!
