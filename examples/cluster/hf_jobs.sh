#!/bin/bash
# Four Jobs on the Hub, each with a quarter of the archives and a dataset of its own, which the loader reads as one.
#
#     USER=you PACKAGE=WHEEL_OR_URL bash examples/cluster/hf_jobs.sh
#
# Not tried there, where Jobs cost money. A Job that is started anew begins its quarter again.
set -euo pipefail

for parts in 0-543 544-1087 1088-1631 1632-2175; do
    hf jobs run --detach --flavor a100-large --timeout 3d --secrets HF_TOKEN \
        pytorch/pytorch:2.13.0-cuda12.8-cudnn9-runtime \
        bash -c "pip install $PACKAGE && latentmill run builders/cc12m \
            --options parts=$parts --output latents --push-to $USER/cc12m-latents-$parts --delete-pushed --max-disk 200"
done
