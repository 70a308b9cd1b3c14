#!/usr/bin/env bash
# Trains a bundle of text over SmolLM2-135M and measures it; started again, it goes on where it
# stopped. Needs `make texts` and the packages that `hyperdp pretrain smollm` names.
#
#     pretrain/gpu/text.sh [OUT]
#
# On GPUs, or on CPU where there are none, as train.sh does, with its STEPS, PROCESSES and PYTHON.
# SMALL=1 runs on CPU with the toy recipes, which need neither, and leaves the table out.
set -euo pipefail

out=${1:-runs/gpu-text}
here=$(dirname "$0")
python=${PYTHON:-python}
if [ -n "${SMALL:-}" ]; then
  exec "$here/train.sh" text-toy-base text-toy "$out"
fi
base=$out/base
[ -f "$base/README.md" ] || "$python" -m hyperdp pretrain smollm -o "$base"
"$here/train.sh" "$base" text-smollm "$out"
sed "s|^bundle = .*|bundle = \"$out/hyper/bundle\"|" "$here/../../eval/recipes/text-gain.toml" \
  > "$out/text-gain.toml"
"$python" -m hyperdp bench "$out/text-gain.toml" -o "$out/text-gain.jsonl" \
  --method base --method public_mean --method other_task --method hyper
