#!/usr/bin/env bash
# The runs of docs/results.md: r=4 students of a real hippocampus teacher, 20 epochs of 100 iterations, batch 2, one seed.
#
# Needs:   nnU-Net's three variables; DATA = Task04_Hippocampus in MSD layout; TEACHER = the folder that holds the model folder
#          nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres and its splits_final.json.
# Command: DATA=.../Task04_Hippocampus TEACHER=.../Dataset004_Hippocampus bash benchmarks/hippocampus.sh
set -euo pipefail
: "${DATA:?}" "${TEACHER:?}" "${nnUNet_raw:?}" "${nnUNet_preprocessed:?}" "${nnUNet_results:?}"
device=${DEVICE:-cpu}
dataset=Dataset004_Hippocampus
model=nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres

if [ ! -d "$nnUNet_preprocessed/$dataset/nnUNetPlans_3d_fullres" ]; then
  nnUNetv2_convert_MSD_dataset -i "$DATA"
  nnUNetv2_extract_fingerprint -d 4
  nnUNetv2_plan_experiment -d 4
  cp "$TEACHER/$model/plans.json" "$nnUNet_preprocessed/$dataset/nnUNetPlans.json"  # batch 2, as the teacher was trained
  cp "$TEACHER/splits_final.json" "$nnUNet_preprocessed/$dataset/"
  nnUNetv2_preprocess -d 4 -c 3d_fullres
fi
mkdir -p "$nnUNet_results/$dataset"
[ -d "$nnUNet_results/$dataset/$model" ] || cp -r "$TEACHER/$model" "$nnUNet_results/$dataset/"

for method in student dcd; do
  nnunet-kd train 4 3d_fullres 0 -m $method -device "$device" --c --set seed=12345 \
    --set epochs=20 --set iterations_per_epoch=100 --set validation_iterations=20
done

validation="$nnUNet_results/$dataset/validation_images"
mkdir -p "$validation"
python - "$nnUNet_preprocessed/$dataset/splits_final.json" "$nnUNet_raw/$dataset/imagesTr" "$validation" <<'PYTHON'
import json, shutil, sys
for case in json.load(open(sys.argv[1]))[0]["val"]:
    shutil.copy(f"{sys.argv[2]}/{case}_0000.nii.gz", sys.argv[3])
PYTHON
for trainer in nnUNetTrainer_20epochs nnUNetTrainerStudent nnUNetTrainerDCD; do
  out="$nnUNet_results/$dataset/predictions/$trainer"
  nnUNetv2_predict -i "$validation" -o "$out" -d 4 -c 3d_fullres -f 0 -tr $trainer -device "$device"
  nnUNetv2_evaluate_folder "$nnUNet_preprocessed/$dataset/gt_segmentations" "$out" \
    -djfile "$out/dataset.json" -pfile "$out/plans.json" --chill
done

R="$nnUNet_results/$dataset"
nnunet-kd compare --reference student --fold 0 --output "$R/comparison" \
  teacher="$R/predictions/nnUNetTrainer_20epochs" --model teacher="$R/$model" \
  student="$R/nnUNetTrainerStudent__nnUNetPlans__3d_fullres" dcd="$R/nnUNetTrainerDCD__nnUNetPlans__3d_fullres"
