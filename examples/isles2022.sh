#!/usr/bin/env bash
# From the extracted ISLES 2022 download to a distilled student.
#
#   examples/isles2022.sh /data/ISLES-2022 [/data/new-cases]
#
# The first folder is the release on Zenodo (doi:10.5281/zenodo.7153326) or the challenge's, with `derivatives` in it. The
# second, if given, holds new cases in nnU-Net's format (X_0000 DWI, X_0001 ADC, X_0002 FLAIR, all on the grid of the DWI).
# Needs nnUNet_raw, nnUNet_preprocessed and nnUNet_results, and a GPU: nnU-Net's planner aims at 9 to 11 GB for the teacher, and the
# student's training holds the teacher, too. After an interruption, run it again: finished cases are kept, and --c goes on
# with a training.
set -euo pipefail

source_folder=${1:?usage: $0 FOLDER_OF_THE_DOWNLOAD [FOLDER_OF_NEW_CASES]}
new_cases=${2:-}
dataset=502
configuration=3d_fullres
fold=0 # of five
plans=nnUNetResEncUNetMPlans

# 1. Check everything, then convert. FLAIR is resampled to the DWI, where the challenge scores; --grid flair does the reverse.
nnunet-kd convert isles2022 "$source_folder" --dataset-id "$dataset" --grid dwi

# 2. Plan and preprocess, with nnU-Net's own check of the result.
nnUNetv2_plan_and_preprocess -d "$dataset" -pl nnUNetPlannerResEncM -c "$configuration" --verify_dataset_integrity

# 3. The teacher: a stock nnU-Net.
nnUNetv2_train "$dataset" "$configuration" "$fold" -p "$plans" --c

# 4. The student: a quarter of the channels, taught by the teacher of the same fold.
nnUNetv2_train "$dataset" "$configuration" "$fold" -tr nnUNetTrainerDCD -p "$plans" --c

# 5. Predict new cases with the student. It is an ordinary nnU-Net model.
if [ -n "$new_cases" ]; then
    nnUNetv2_predict -i "$new_cases" -o "$nnUNet_results/Dataset${dataset}_ISLES2022/predictions-dcd" \
        -d "$dataset" -c "$configuration" -f "$fold" -tr nnUNetTrainerDCD -p "$plans"
fi
