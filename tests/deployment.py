"""A small trained student and images for it: two channels, turned axes, mirrored inference, two folds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.cli import main
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.workflows.bench.pair import make_trainer, nnunet_folders, write_untrained_teacher
from tests.conftest import make_plans

DATASET: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "CT"},
    "labels": {"background": 0, "ball": 1, "core": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
    "licence": "CC0-1.0",
}
CT = {
    "mean": 40.0,
    "std": 20.0,
    "percentile_00_5": 0.0,
    "percentile_99_5": 100.0,
    "median": 30.0,
    "min": -9,
    "max": 300,
}


def plans() -> dict[str, Any]:
    made = make_plans(channels=2, patch=(16, 12, 16))
    configuration = made["configurations"]["3d_fullres"]
    configuration["normalization_schemes"] = ["ZScoreNormalization", "CTNormalization"]
    made["foreground_intensity_properties_per_channel"] = {"0": CT, "1": CT}
    made["transpose_forward"], made["transpose_backward"] = [1, 2, 0], [2, 0, 1]
    return made


def ball(seed: int, shape: tuple[int, ...] = (20, 18, 22)) -> tuple[np.ndarray, np.ndarray]:
    """``(channels, *shape)`` with a bright ball and a brighter core, and its labels."""
    generator = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + generator.uniform(-2, 2, 3)
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)))
    labels = (distance < 6.5).astype(np.uint8) + (distance < 3.5)
    image = np.stack([labels * 50.0, labels * 35.0]) + generator.normal(0, 5, (2, *shape)) + 20
    return image.astype(np.float32), labels


def write_image(array: np.ndarray, path: Path, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_cases(folder: Path, count: int = 3) -> tuple[Path, Path]:
    """Images and their references; the last case is of another spacing, so that nnU-Net resamples it."""
    for seed in range(count):
        image, labels = ball(seed)
        spacing = (1.0, 1.25, 1.0) if seed == count - 1 and count > 1 else (1.0, 1.0, 1.0)
        for channel, values in enumerate(image):
            write_image(values, folder / "images" / f"case{seed}_{channel:04d}.nii.gz", spacing)
        write_image(labels, folder / "labels" / f"case{seed}.nii.gz", spacing)
    return folder / "images", folder / "labels"


def train_student(folder: Path, folds: tuple[int, ...] = (0, 1)) -> Path:
    """A DCD student's model folder as training leaves it, trained on the balls; returns it."""
    with nnunet_folders(folder), contextlib.redirect_stdout(io.StringIO()):
        write_untrained_teacher(plans(), "3d_fullres", DATASET)
        os.environ[SET_VARIABLE] = json.dumps(["reduction=2", "seed=1", "teacher.fold=0"])
        for fold in folds:
            trainer = make_trainer("nnUNetTrainerDCD", plans(), "3d_fullres", DATASET, torch.device("cpu"), fold=fold)
            trainer.prepare_distillation()
            trainer.inference_allowed_mirroring_axes = (0, 1, 2)  # nnU-Net sets it with its data loaders
            _teach(trainer, fold)
            trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        model = Path(trainer.output_folder_base)
        (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
        (model / "dataset.json").write_text(json.dumps(DATASET))
        summary = {
            "mean": {"1": {"Dice": 0.9}, "2": {"Dice": 0.8}},
            "foreground_mean": {"Dice": 0.85},
            "metric_per_case": [{"prediction_file": "/home/someone/case0.nii.gz", "metrics": {}}],
        }
        (model / "fold_0" / "validation").mkdir()
        (model / "fold_0" / "validation" / "summary.json").write_text(json.dumps(summary))
    return model


def _teach(trainer: Any, seed: int) -> None:
    """A few steps of nnU-Net's own loss on nnU-Net's own view of the balls."""
    network, optimizer = trainer.network, torch.optim.Adam(trainer.network.parameters(), lr=1e-2)
    order = [1, 2, 0]
    for step in range(150):
        image, labels = ball(1000 * (seed + 1) + step, (16, 16, 12))
        normal = np.stack(
            [(image[0] - image[0].mean()) / image[0].std(), (image[1].clip(0, 100) - CT["mean"]) / CT["std"]]
        )
        data = torch.from_numpy(normal.transpose(0, *[1 + axis for axis in order])[None].copy())
        target = torch.from_numpy(labels.transpose(order)[None].astype(np.int64))
        output = network(data.float())
        finest = output[0] if isinstance(output, list | tuple) else output
        loss = torch.nn.functional.cross_entropy(finest, target, torch.tensor([1.0, 2.0, 8.0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def stock_predictor(model: Path, folds: tuple[int | str, ...] = (0,)) -> nnUNetPredictor:
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), folds, "checkpoint_final.pth")
    return predictor


def stock_prediction(model: Path, images: Path, output: Path, folds: tuple[int | str, ...] = (0,)) -> Path:
    """nnU-Net's own prediction, probabilities too, in this process."""
    output.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()):
        stock_predictor(model, folds).predict_from_files_sequential(str(images), str(output), save_probabilities=True)
    return output


def segmentation(path: Path) -> np.ndarray:
    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array


def run_command(*arguments: str) -> tuple[int, str, str]:
    """``nnunet-kd`` with these arguments, in this process: exit code, output, errors."""
    output, errors = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["nnunet-kd", *arguments]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as stop:
        return int(stop.code or 0), output.getvalue(), errors.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("the command line did not exit")
