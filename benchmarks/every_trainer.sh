#!/usr/bin/env bash
# A short run of every trainer on the hippocampus data: 10 epochs of 20 iterations, batch 2, one seed. Shows that each trains and
# that stock nnU-Net predicts with its student, not which is better. A run that is done is not run again.
#
# Needs:   nnU-Net's three variables, after `python benchmarks/hippocampus.py prepare`; RESULTS = an empty or earlier folder for these runs.
# Command: RESULTS=.../short bash benchmarks/every_trainer.sh [METHOD...] && python benchmarks/draw_every_trainer.py .../short CURVES.png
set -euo pipefail
wanted=" $* "
: "${RESULTS:?}" "${nnUNet_raw:?}" "${nnUNet_preprocessed:?}" "${nnUNet_results:?}"
device=${DEVICE:-cpu}
dataset=Dataset004_Hippocampus
teacher="$nnUNet_results/$dataset/nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres"
mkdir -p "$RESULTS/two_images" "$RESULTS/preprocessed"
# the same preprocessed data, with two validation cases: nnU-Net validates all of them after each training
if [ ! -d "$RESULTS/preprocessed/$dataset" ]; then
  cp -rs "$nnUNet_preprocessed/$dataset" "$RESULTS/preprocessed/"
  rm "$RESULTS/preprocessed/$dataset/splits_final.json"
  python - "$nnUNet_preprocessed/$dataset/splits_final.json" "$RESULTS/preprocessed/$dataset/splits_final.json" <<'PYTHON'
import json, sys
fold = json.load(open(sys.argv[1]))[0]
json.dump([{"train": fold["train"], "val": fold["val"][:2]}], open(sys.argv[2], "w"))
PYTHON
fi
for case in $(python -c 'import json, sys; print(*json.load(open(sys.argv[1]))[0]["val"])' "$RESULTS/preprocessed/$dataset/splits_final.json"); do
  cp "$nnUNet_raw/$dataset/imagesTr/${case}"_0000.nii.gz "$RESULTS/two_images/"
done
export nnUNet_results="$RESULTS" nnUNet_preprocessed="$RESULTS/preprocessed"

run() { # method, its trainer, further arguments
  local method=$1 trainer=$2 out="$RESULTS/predictions/$2"
  shift 2
  [ "$wanted" != "  " ] && [[ "$wanted" != *" $method "* ]] && return
  [ -f "$out/done" ] && return
  nnunet-kd train 4 3d_fullres 0 -m "$method" -t "$teacher" -device "$device" --c --set seed=1 --set start=random --set epochs=10 \
    --set iterations_per_epoch=20 --set validation_iterations=5 "$@"
  nnUNetv2_predict -i "$RESULTS/two_images" -o "$out" -d 4 -c 3d_fullres -f 0 -tr "$trainer" -device "$device" -npp 1 -nps 1
  touch "$out/done"
}

run student nnUNetTrainerStudent
run dcd nnUNetTrainerDCD
run fgbvd nnUNetTrainerFGBVD
run fopro nnUNetTrainerFoPro
run figkd nnUNetTrainerFiGKD
run logits nnUNetTrainerLogits
run fitnet nnUNetTrainerFitNet
run cwd nnUNetTrainerCWD
run ifvd nnUNetTrainerIFVD
run freekd nnUNetTrainerFreeKD --set objectives.freekd.prompt_iterations=40 # two epochs of this short run
run kd nnUNetTrainerKD --set objectives.dcd.weight=0.05 --set objectives.logits.weight=1
