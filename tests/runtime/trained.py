"""Small students of several kinds, trained by stock nnU-Net on real images for some hundred iterations."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.workflows.bench.pair import nnunet_folders
from tests.conftest import make_plans
from tests.runtime.real_images import ACDC, ACDC_RAW, HIPPOCAMPUS, hippocampus_cases, split
from tests.training.tiny_training import without_pictures

EPOCHS, ITERATIONS = 8, 50
LEARNING_RATE = 5e-3
TRAINING_CASES = 12
LABELS = {"background": 0, "anterior": 1, "posterior": 2}


@dataclass(frozen=True)
class Kind:
    """A model to train.

    Attributes:
        channels: of the image; the second one is the first one's gradient.
        dimensions: 2 or 3.
        patch, features, strides: of the network.
        configuration: what replaces the configuration's values.
        plan: what replaces the plan's.
        dataset: what replaces the values of ``dataset.json``.
        acdc: trained on the heart instead of the hippocampus.
    """

    channels: int = 1
    dimensions: int = 3
    patch: tuple[int, ...] = (24, 32, 24)
    features: tuple[int, ...] = (8, 16, 32)
    strides: tuple[tuple[int, ...], ...] | None = None
    configuration: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    acdc: bool = False


KINDS = {
    "plain": Kind(),
    "two-channels": Kind(
        channels=2,
        features=(6, 12, 24),
        configuration={"use_mask_for_norm": [True, False], "spacing": [1.1, 0.9, 1.0]},
        plan={"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]},
    ),
    "2d": Kind(dimensions=2, patch=(32, 32), configuration={"batch_size": 8, "spacing": [0.9, 1.1]}),
    "ct": Kind(
        features=(6, 12, 24),
        configuration={"normalization_schemes": ["CTNormalization"], "spacing": [1.2, 0.9, 1.0]},
    ),
    "regions": Kind(
        features=(6, 12, 24),
        configuration={"spacing": [0.9, 1.0, 1.2]},
        dataset={"labels": {"background": 0, "whole": [1, 2], "posterior": 2}, "regions_class_order": [1, 2]},
    ),
    "separate-z": Kind(
        patch=(8, 48, 48),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        configuration={"spacing": [10.0, 3.0, 3.0]},
        dataset={"labels": {"background": 0, "RV": 1, "MYO": 2, "LV": 3}},
        acdc=True,
    ),
}


def sources(kind: Kind, case: str) -> tuple[Path, Path]:
    """A case's image and reference."""
    if kind.acdc:
        return ACDC_RAW / "imagesTr" / f"{case}_0000.nii.gz", ACDC_RAW / "labelsTr" / f"{case}.nii.gz"
    return HIPPOCAMPUS / "imagesTr" / f"{case}.nii.gz", HIPPOCAMPUS / "labelsTr" / f"{case}.nii.gz"


def cases_of(kind: Kind, part: str) -> list[str]:
    """Of the training or validation split."""
    return split(ACDC, part) if kind.acdc else hippocampus_cases(part)


def write_channels(image: sitk.Image, folder: Path, case: str, channels: int) -> list[str]:
    """The files that nnU-Net reads."""
    written = [image, sitk.GradientMagnitudeRecursiveGaussian(image, 1.0)][:channels]
    paths = [str(folder / f"{case}_{number:04d}.nii.gz") for number in range(channels)]
    for one, path in zip(written, paths, strict=True):
        sitk.WriteImage(one, path)
    return paths


def train(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Preprocess the first training cases, train, and return the model folder; all by stock nnU-Net, in this process."""
    kind = KINDS[name]
    patch.setenv("nnUNet_n_proc_DA", "0")
    patch.setenv("nnUNet_compile", "f")
    without_pictures(patch)
    with nnunet_folders(folder), contextlib.redirect_stdout(io.StringIO()):
        plans = _preprocess(kind, folder / "images")
        configuration = next(iter(plans["configurations"]))
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  nnU-Net's loaders draw from it
        trainer = get_trainer_from_args(
            plans["dataset_name"], configuration, 0, "nnUNetTrainer", device=torch.device("cpu")
        )
        trainer.initial_lr = LEARNING_RATE
        # nnU-Net's SGD with its momentum of 0.99 finds no foreground in so few iterations
        trainer.configure_optimizers = lambda: _adam(trainer)  # type: ignore[method-assign]
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = (
            EPOCHS,
            ITERATIONS,
            1,
        )
        trainer.run_training()
        model = Path(trainer.output_folder_base)
    return model


def _adam(trainer: nnUNetTrainer) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
    optimizer = torch.optim.Adam(trainer.network.parameters(), trainer.initial_lr)
    return optimizer, PolyLRScheduler(optimizer, trainer.initial_lr, trainer.num_epochs)


def _preprocess(kind: Kind, images: Path) -> dict[str, Any]:
    """Write the preprocessed dataset; returns the plan."""
    dataset = {
        "channel_names": {str(number): f"C{number}" for number in range(kind.channels)},
        "labels": LABELS,
        "numTraining": TRAINING_CASES,
        "file_ending": ".nii.gz",
        **kind.dataset,
    }
    plans = make_plans(
        dimensions=kind.dimensions, features=kind.features, patch=kind.patch, strides=kind.strides,
        channels=kind.channels,
    )  # fmt: skip
    name, configuration = next(iter(plans["configurations"].items()))
    configuration.update(kind.configuration)
    plans.update(kind.plan)
    cases = cases_of(kind, "train")[:TRAINING_CASES]
    plans["foreground_intensity_properties_per_channel"] = _statistics(kind, cases)
    folder = Path(os.environ["nnUNet_preprocessed"]) / plans["dataset_name"]
    preprocessed = folder / configuration["data_identifier"]
    preprocessed.mkdir(parents=True)
    images.mkdir(parents=True)
    for file, content in (
        ("dataset.json", dataset),
        ("nnUNetPlans.json", plans),
        ("dataset_fingerprint.json", {}),
        ("splits_final.json", [{"train": cases, "val": cases[:2]}]),
    ):
        (folder / file).write_text(json.dumps(content))
    manager = PlansManager(plans)
    for case in cases:
        image, reference = sources(kind, case)
        channels = write_channels(sitk.ReadImage(str(image), sitk.sitkFloat32), images, case, kind.channels)
        DefaultPreprocessor(verbose=False).run_case_save(
            str(preprocessed / case), channels, str(reference), manager, manager.get_configuration(name), dataset
        )
    return plans


def _statistics(kind: Kind, cases: list[str]) -> dict[str, dict[str, float]]:
    """Of the foreground's intensities in the first channel, as nnU-Net's fingerprint has them."""
    values = []
    for case in cases:
        image, reference = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sources(kind, case))
        values.append(image[reference > 0].astype(np.float64))
    found = np.concatenate(values)
    low, median, high = np.percentile(found, [0.5, 50, 99.5])
    statistics = {
        "mean": float(found.mean()), "std": float(found.std()), "median": float(median), "min": float(found.min()),
        "max": float(found.max()), "percentile_00_5": float(low), "percentile_99_5": float(high),
    }  # fmt: skip
    return {str(number): statistics for number in range(kind.channels)}
