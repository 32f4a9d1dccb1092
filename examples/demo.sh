#!/usr/bin/env bash
# The main job on the built-in demo: twenty photographs become verified latent shards, and a training loop reads them.
# Needs Python 3.11+ and pip; makes .venv, downloads no model and no dataset. About a minute after the installation.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath -m "${VENV:-.venv}")
out=${1:-latents/demo}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet -c constraints.txt -e ".[demo]"
export PATH="$venv/bin:$PATH" HF_HUB_OFFLINE=1

echo "== 1. photographs -> shards"
accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 2 \
    precompute/run.py builders/demo --output "$out" \
    --vae toy --text-encoder toy --dtype float32 --batch-size 8

echo "== 2. every byte checked, every photograph decoded and held against its source"
python precompute/verify.py "$out" --decode 20

echo "== 3. a contact sheet"
python precompute/preview.py "$out"

echo "== 4. one pass of the loader"
python - "$out" <<'PYTHON'
import sys

from loader import make_loader

batches = make_loader(sys.argv[1], batch_size=4, resolution=256, caption_drop_prob=0.1, seed=0)
for batch in batches:
    print({name: tuple(value.shape) for name, value in batch.items()})
PYTHON

echo "== done"
echo "shards:        $out"
echo "contact sheet: $out/preview.png"
