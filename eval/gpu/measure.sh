#!/usr/bin/env bash
# Measures this machine: adapters in one batch against a loop and a plain step, utilisation of the
# training step, sampling and embedding. Rows carry the GPU's name; without a GPU the same on CPU.
# What device.jsonl has of this hardware is not measured again.
#
#     eval/gpu/measure.sh [BUNDLE] [OUT]
set -euo pipefail

bundle=${1:-glyphs}
out=${2:-runs/gpu}
python=${PYTHON:-python}
for bench in device train-step; do
  "$python" -m hyperdp bench "$bench" --bundle "$bundle" --out "$out/$bench.jsonl"
done
