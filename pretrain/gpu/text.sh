#!/usr/bin/env bash
# Trains a bundle of text over SmolLM2-135M and measures it; started again, it goes on where it
# stopped. Needs `make texts` and the packages that `hyperdp pretrain smollm` names.
#
#     pretrain/gpu/text.sh [OUT]
#
# On GPUs, or on CPU where there are none, as train.sh does, with its STEPS, PROCESSES and PYTHON.
# The table is measured on CPU, in the two sizes that matter most; its LoRA's settings are those that
# were chosen for text-tiny, so that a gain in it is not to be reported before they are chosen anew.
# SMALL=1 runs on CPU with the toy recipes and measures one cell; TABLE=0 leaves the table out.
set -euo pipefail

out=${1:-runs/gpu-text}
here=$(dirname "$0")
python=${PYTHON:-python}
if [ -n "${SMALL:-}" ]; then
  "$here/train.sh" text-toy-base text-toy "$out"
  n="128" seeds="0" only=(--private-set fortunes-science)
else
  base=$out/base
  [ -f "$base/README.md" ] || "$python" -m hyperdp pretrain smollm -o "$base"
  "$here/train.sh" "$base" text-smollm "$out"
  n="128, 2000" seeds="0, 1, 2" only=()
fi
[ "${TABLE:-1}" != 0 ] || exit 0
recipe=$out/text-gain.toml
sed -e "s|^bundle = .*|bundle = \"$out/hyper/bundle\"|" -e "s|^n = .*|n = [$n]|" \
  -e "s|^epsilon = .*|epsilon = [1.0]|" -e "s|^seeds = .*|seeds = [$seeds]|" \
  "$here/../../eval/recipes/text-gain.toml" > "$recipe"
methods=(base lora public_mean other_task hyper) # gains are told by the first two
"$python" -m hyperdp bench "$recipe" -o "$out/text-gain.jsonl" "${only[@]}" \
  "${methods[@]/#/--method=}"
