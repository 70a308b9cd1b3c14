#!/usr/bin/env bash
# Measures the tables that hang on a bundle, cell by cell on whatever the machine has: the curves of
# every private set, the labelled tables, the forecast. Several processes at once, each with cells of
# its own; started again, it goes on with what has no row yet. BUNDLE is the shipped one by default.
#
#     eval/gpu/evidence.sh [OUT]
#
# PROCESSES at a time, for SECONDS_MOST at most; PARTS out of `curves forecast labelled`, RECIPES of the
# labelled ones out of `quick fashion`, TASKS of the forecast for data of any kind. On a GPU the
# processes share it through CUDA's multi-process service, without which they wait for each other.
# First: hyperdp pretrain corpus, and hyperdp pretrain digits -o runs/digits.npz. SMALL=1 measures one
# small cell, without a GPU. Ends with 1 where a process failed and 124 where the time was up.
set -euo pipefail

out=$(realpath -m "${1:-runs/evidence}")
python=${PYTHON:-python}
small=${SMALL:-}
bundle=${BUNDLE:-glyphs}
gpus=0
[ -n "$small" ] || gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
device=cpu; [ "$gpus" -eq 0 ] || device=cuda
processes=${PROCESSES:-$([ "$device" = cuda ] && echo 12 || echo 2)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$out/logs"

if [ "$device" = cuda ] && command -v nvidia-cuda-mps-control > /dev/null; then
  CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)  # short and local: it holds sockets
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
  nvidia-cuda-mps-control -d
  trap 'echo quit | nvidia-cuda-mps-control > /dev/null || true' EXIT
fi

scripts=(mnist-5k ethiopic armenian khmer bengali)

curves() {
  local set seed
  for set in "${scripts[@]}"; do
    echo "bench gain-curves --private-set $set --method floor --method base --method public_mean \
--method other_task --method lora -o @/gain-curves.jsonl"
  done
  echo "bench gain-curves-digits -o @/gain-curves-digits.jsonl"
  for seed in 0 1 2; do
    for set in "${scripts[@]}"; do
      echo "bench gain-curves --private-set $set --method hyper --seed $seed -o @/gain-curves.jsonl"
    done
  done
}

labelled() {
  local recipe methods n seed
  for recipe in ${RECIPES:-quick fashion}; do
    echo "labelled labelled-$recipe --method public_only -o @/labelled-$recipe.jsonl"
    methods="--method nonprivate --method dpsgd --method dpsgd_from_public --method hyper \
--method dpsgd_lora"
    [ "$recipe" = fashion ] || methods+=" --method reweighted --method reweighted_and_public \
--method reweighted_by_class --method reweighted_by_class_and_public"
    for n in $([ "$recipe" = quick ] || echo 5000) 2000 500; do
      for seed in 0 1 2; do
        echo "labelled labelled-$recipe -n $n --seed $seed $methods -o @/labelled-$recipe.jsonl"
      done
    done
  done
}

forecast() { # several processes share the tasks of a kind
  local process
  for process in 1 2 3 4; do
    echo "pretrain forecast $bundle --no-guard --fid --samples 500 --levels 4 -n 64 -n 2048 \
--tasks 9 --like print --work @/tasks -o @/forecast-print-$process"
    echo "pretrain forecast $bundle --no-guard --fid --samples 500 --levels 4 -n 64 -n 2048 \
--tasks ${TASKS:-24} --work @/tasks -o @/forecast-any-$process"
  done
}

if [ -n "$small" ]; then
  list() { echo "bench bench-quick --private-set mnist-5k --method floor -o @/small.jsonl"; }
else
  list() { for part in ${PARTS:-curves forecast labelled}; do "$part"; done; }
fi
run() { # WORDS…, in which @/ stands for OUT, whatever its name has in it
  set -- "${@/#@\//$out/}"
  local log option=()
  [ "$1" = pretrain ] || option=(--bundle "$bundle")
  log=$(mktemp "$out/logs/XXXXXX.txt")
  echo "$*" > "$log"
  "$python" -m hyperdp "$@" "${option[@]}" --device "$device" >> "$log" 2>&1 && return
  echo "failed: $* (see $log)" >&2
  tail -n 5 "$log" >&2
  return 1
}
export -f run
export out python device bundle
rc=0
list | timeout "${SECONDS_MOST:-36000}" xargs -P "$processes" -L 1 bash -c 'run "$@"' run || rc=$?
[ "$rc" -ne 124 ] || echo "the time was up; started again, it goes on" >&2
[ "$rc" -ne 123 ] || rc=1
exit "$rc"
