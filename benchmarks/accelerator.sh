#!/usr/bin/env bash
# Everything that is to be measured on a GPU, on one card, the shorter parts first. Nothing is downloaded; data are made up, and teachers untrained.
#
# Needs:   an environment with nnunet-kd (`make setup`, then PYTHON=.venv/bin/python) and a CUDA device; some GB of disk in RESULTS/work.
# Command: bash benchmarks/accelerator.sh RESULTS              # RESULTS: a new folder, or an earlier one: what was measured is kept
#          bash benchmarks/accelerator.sh RESULTS loss steps   # these parts only
#          DEVICE=cpu TOY=1 bash benchmarks/accelerator.sh RESULTS    # tries the script without a GPU; its figures mean nothing
# Result:  RESULTS/summary.md and one JSON per part, a few kB together. RESULTS/work can be deleted.
#
#   objectives  forward and backward of every objective, exploration; against the CPU; whether anything waits for the device
#   loss        DCD's loss against a dense convolution of 512 taps, and its memory (`nnunet-kd bench loss`)
#   start       the start inside the teacher, BraTS shape
#   trainers    every trainer, 20 steps with mixed precision and torch.compile: loss finite and falling, memory
#   processes   two processes under torchrun, if there are two cards
#   steps       parts of a training step (`nnunet-kd bench step --all`); DCD and soft at the BraTS shape
#   sizes       memory and time of a step, BraTS shape (`nnunet-kd bench size`)
#   proof       seconds per 100 iterations of every core row of the proof, ACDC and BraTS shapes
set -euo pipefail
if [ $# -eq 0 ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
results=$1
shift
parts=(objectives loss start trainers processes steps sizes proof)
[ $# -gt 0 ] && parts=("$@")
mkdir -p "$results/work"
# compiled code is kept, so that a second start of the script is short
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$(cd "$results/work" && pwd)/compiled}"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}" nnUNet_wandb_enabled=0
unset PYTHONDONTWRITEBYTECODE
failed=()
for part in "${parts[@]}"; do
  "${PYTHON:-python}" "$(dirname "$0")/accelerator.py" "$part" --results "$results" --device "${DEVICE:-cuda}" ${TOY:+--toy} || failed+=("$part")
done
echo "Results: $results/summary.md"
if [ ${#failed[@]} -gt 0 ]; then
  echo "Parts that do not hold: ${failed[*]}. Give the command again to measure what failed."
  exit 1
fi
