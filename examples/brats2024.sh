#!/usr/bin/env bash
# From the extracted BraTS 2024 GLI download to a distilled student.
#
#   examples/brats2024.sh /data/BraTS2024-BraTS-GLI
#
# The folder holds training_data1_v2, training_data_additional and, if you have it, validation_data (Synapse syn53708249).
# Needs nnUNet_raw, nnUNet_preprocessed and nnUNet_results, and a GPU: nnU-Net's planner aims at 9 to 11 GB for the teacher, and the
# student's training holds the teacher, too. After an interruption, run it again: finished cases are kept, and --c goes on
# with a training.
set -euo pipefail

source_folder=${1:?usage: $0 FOLDER_OF_THE_DOWNLOAD}
dataset=501
configuration=3d_fullres
fold=0 # of five; all time points of a patient are on one side
plans=nnUNetResEncUNetMPlans

# 1. Check everything, then convert. --link saves the copies; --skip-bad leaves damaged cases out.
nnunet-kd convert brats2024 "$source_folder" --dataset-id "$dataset"

# 2. Plan and preprocess, with nnU-Net's own check of the result.
nnUNetv2_plan_and_preprocess -d "$dataset" -pl nnUNetPlannerResEncM -c "$configuration" --verify_dataset_integrity

# 3. The teacher: a stock nnU-Net.
nnUNetv2_train "$dataset" "$configuration" "$fold" -p "$plans" --c

# 4. The student: a quarter of the channels, taught by the teacher of the same fold.
nnUNetv2_train "$dataset" "$configuration" "$fold" -tr nnUNetTrainerDCD -p "$plans" --c

# 5. Predict the challenge's validation cases with the student. It is an ordinary nnU-Net model.
images="$nnUNet_raw/Dataset${dataset}_BraTS2024/imagesTs"
if [ -n "$(ls -A "$images")" ]; then
    nnUNetv2_predict -i "$images" -o "$nnUNet_results/Dataset${dataset}_BraTS2024/predictions-dcd" \
        -d "$dataset" -c "$configuration" -f "$fold" -tr nnUNetTrainerDCD -p "$plans"
else
    echo "No validation_data in $source_folder, so nothing to predict; see the validation folder of the trained model."
fi
