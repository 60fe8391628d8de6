"""The example scripts, with every command replaced by one that writes down how it was called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = ("nnunet-kd", "nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")


@pytest.mark.parametrize(
    ("script", "dataset"), [("brats2024", "Dataset501_BraTS2024"), ("isles2022", "Dataset502_ISLES2022")]
)
def test_steps_in_order(tmp_path: Path, script: str, dataset: str) -> None:
    (tmp_path / "raw" / dataset / "imagesTs").mkdir(parents=True)
    (tmp_path / "raw" / dataset / "imagesTs/new_0000.nii.gz").touch()
    (tmp_path / "bin").mkdir()
    for command in COMMANDS:
        (tmp_path / "bin" / command).write_text(f'#!/bin/sh\necho {command} "$@"\n')
        (tmp_path / "bin" / command).chmod(0o755)
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    environment = os.environ | folders | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [EXAMPLES / f"{script}.sh", "a folder", "new"], env=environment, capture_output=True, text=True, check=True
    )
    steps = done.stdout.splitlines()
    number = dataset[7:10]
    assert steps[0].startswith(f"nnunet-kd convert {script} a folder --dataset-id {number}")
    assert steps[1].startswith(f"nnUNetv2_plan_and_preprocess -d {number} ")
    assert steps[2] == f"nnUNetv2_train {number} 3d_fullres 0 -p nnUNetResEncUNetMPlans --c"
    assert steps[3] == f"nnUNetv2_train {number} 3d_fullres 0 -tr nnUNetTrainerDCD -p nnUNetResEncUNetMPlans --c"
    assert steps[4].startswith("nnUNetv2_predict -i ")
    assert steps[4].endswith(f"-d {number} -c 3d_fullres -f 0 -tr nnUNetTrainerDCD -p nnUNetResEncUNetMPlans")
    assert len(steps) == 5


@pytest.mark.parametrize("script", ["brats2024", "isles2022"])
def test_without_a_folder(script: str) -> None:
    done = subprocess.run([EXAMPLES / f"{script}.sh"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage:" in done.stderr
