#!/usr/bin/env bash
# Trains a base model and a bundle over it, on every GPU of this machine; started again, it goes on
# where it stopped.
#
#     pretrain/gpu/train.sh [BASE_RECIPE] [HYPER_RECIPE] [OUT]
#
# BASE_RECIPE may be a local diffusers folder: then there is no base to train. Without a GPU it
# trains on CPU, by PROCESSES processes; SMALL=1 does so with the recipes that ship for tests.
set -euo pipefail

small=${SMALL:-}
base=${1:-${small:+glyphs-tiny-base}}; base=${base:-glyphs-base}
hyper=${2:-${small:+glyphs-tiny}}; hyper=${hyper:-glyphs}
out=${3:-runs/gpu}
steps=(); [ -z "${STEPS:-}" ] || steps=(--steps "$STEPS")
python=${PYTHON:-python}

gpus=0
[ -n "$small" ] || gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
train() { # KIND RECIPE OUT [OPTION…]
  if [ "$gpus" -gt 1 ]; then
    "$python" -m accelerate.commands.launch --multi_gpu --num_processes "$gpus" \
      -m hyperdp.pretrain "$@" "${steps[@]}"
  elif [ "$gpus" -eq 1 ]; then
    "$python" -m hyperdp.pretrain "$@" "${steps[@]}"
  else
    ACCELERATE_USE_CPU=true "$python" -m torch.distributed.run --standalone \
      --nproc-per-node "${PROCESSES:-1}" -m hyperdp.pretrain "$@" "${steps[@]}"
  fi
}

if [ -d "$base" ]; then
  folder=$base
else
  folder=$out/base
  train base "$base" -o "$folder"
fi
train hyper "$hyper" --base "$folder" -o "$out/hyper"
