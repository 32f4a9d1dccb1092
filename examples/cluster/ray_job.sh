#!/bin/bash
# One job on a Ray cluster: a worker a GPU, on whatever nodes there are and on those that join.
#
#     export RAY_ADDRESS=http://HEAD:8265
#     bash examples/cluster/ray_job.sh builders/cc12m --data-dir /shared/raw/cc12m --output /shared/latents/cc12m
#
# From a checkout, which goes with the job. The nodes have the dependencies installed (pip install "latentmill[ray]"), and all
# see /shared; with --output s3://BUCKET/PREFIX (and "latentmill[cloud]") only what is read.
set -euo pipefail

ray job submit --runtime-env-json '{"working_dir": ".", "excludes": [".git", ".venv*", "latents"]}' \
    -- python -m precompute.run "$@" --engine ray
