#!/usr/bin/env bash
# All that wants a GPU, on a bare machine: no network, no Ray, torch 2.11 or newer. Ten minutes.
#
#   tests/gpu/check.sh [--wheels FOLDER] [--images FOLDER] [--minutes 10] [--device cuda]
#
# --wheels: packages that the machine lacks, installed without an index. --images: a folder with
# cifar10/{train,test}.parquet; without it the papers' protocol runs on random images.
set -euo pipefail
cd "$(dirname "$0")/../.."

python="${PYTHON:-python3}"
if [ "${1:-}" = --wheels ]; then
    "$python" -m venv --system-site-packages "${TMPDIR:-/tmp}/bend-gpu"
    python="${TMPDIR:-/tmp}/bend-gpu/bin/python"
    "$python" -m pip install --quiet --no-index --find-links "$2" \
        pydantic pyyaml pyarrow safetensors psutil tensorboardX torchvision
    shift 2
fi
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "$python" tests/gpu/check.py "$@"
