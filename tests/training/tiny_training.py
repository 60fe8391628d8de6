"""A preprocessed dataset so small that an epoch of nnU-Net's own loop takes a fraction of a second, and trainings on it."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.training.history import LossHistory
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import make_plans

NAME = "Dataset998_Tiny"
CASES = [f"case_{index}" for index in range(6)]
SHORT = ("iterations_per_epoch=2", "validation_iterations=1", "seed=5", "inheritance.voxels=4096")
SIZE = 12


def write_tiny_dataset(
    batch_size: int = 2,
    plans: dict[str, Any] | None = None,
    dataset_json: Mapping[str, Any] = DATASET_JSON,
    kind: type[nnUNetDatasetBlosc2 | nnUNetDatasetNumpy] = nnUNetDatasetBlosc2,
    draw: Callable[..., np.ndarray] = np.random.Generator.standard_normal,
    size: int = SIZE,
) -> dict[str, Any]:
    """Six random cases in nnU-Net's preprocessed format, their split, and an untrained teacher; returns the plan.

    Args:
        batch_size: of the plan.
        plans: whose first configuration is trained; default: a small ``3d_fullres``.
        dataset_json: with the labels of :data:`DATASET_JSON`, regions of them, or ``ignore`` as a further one.
        kind: of the files.
        draw: a generator's method that makes the images.
        size: voxels along every axis.
    """
    plans = make_plans(features=(8, 16, 16), patch=(8, 8, 8)) if plans is None else plans
    configuration, described = next(iter(plans["configurations"].items()))
    described["batch_size"] = batch_size
    teacher = write_untrained_teacher(plans, configuration, dataset_json)
    folder = Path(os.environ["nnUNet_preprocessed"]) / NAME
    cases, reference = folder / described["data_identifier"], folder / "gt_segmentations"
    reference.mkdir()
    for leftover in cases.glob("case.*"):
        leftover.unlink()
    labels = PlansManager(plans).get_label_manager(dict(dataset_json))
    sampled: list[Any] = list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)
    sampled += [(-1, *labels.all_labels)] if labels.has_ignore_label else []
    highest = max(labels.all_labels) + int(labels.has_ignore_label)
    random = np.random.default_rng(0)
    shape = (size, size, size)
    for name in CASES:
        data = draw(random, (1, *shape), dtype=np.float32)
        segmentation = random.integers(0, highest + 1, (1, *shape)).astype(np.int8)
        image = sitk.GetImageFromArray(segmentation[0].astype(np.uint8))
        sitk.WriteImage(image, str(reference / f"{name}.nii.gz"))
        geometry = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
        properties = {
            "class_locations": {label: np.argwhere(np.isin(segmentation, label)) for label in sampled},
            "sitk_stuff": geometry,
            "spacing": [1.0, 1.0, 1.0],
            "shape_before_cropping": shape,
            "shape_after_cropping_and_before_resampling": shape,
            "bbox_used_for_cropping": [[0, size]] * 3,
        }
        kind.save_case(data, segmentation, properties, str(cases / name))
        if (first := described.get("previous_stage")) is not None:
            handed_on = (
                teacher.with_name(f"nnUNetTrainer__nnUNetPlans__{first}") / "predicted_next_stage" / configuration
            )
            handed_on.mkdir(parents=True, exist_ok=True)
            kind.save_seg(segmentation[0], str(handed_on / name))
    (folder / "splits_final.json").write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:]}]))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return plans


def write_teacher_with_batch_norm() -> None:
    """In the place of the tiny dataset's teacher and plan: no student can start inside it."""
    plans = make_plans(features=(8, 16, 16), patch=(8, 8, 8))
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments.update(norm_op="torch.nn.modules.batchnorm.BatchNorm3d", norm_op_kwargs={"eps": 1e-5, "affine": True})
    write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    for leftover in (Path(os.environ["nnUNet_preprocessed"]) / NAME / "nnUNetPlans_3d_fullres").glob("case.*"):
        leftover.unlink()


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """nnU-Net's progress.png takes longer than everything else together."""
    patch.setattr(LocalLogger, "plot_progress_png", lambda self, output_folder: None)
    patch.setattr(LossHistory, "draw", lambda self, path: None)


def train(
    trainer: str,
    assignments: Sequence[str],
    continued: bool = False,
    before: Callable[[DistillationTrainer], None] = lambda trainer: None,
) -> DistillationTrainer:
    """What ``nnUNetv2_train`` does on the CPU with an in-process loader, up to the end of its training."""
    os.environ[SET_VARIABLE] = json.dumps(list(assignments))
    os.environ["nnUNet_n_proc_DA"] = "0"
    with contextlib.redirect_stdout(io.StringIO()):
        made: DistillationTrainer = get_trainer_from_args(
            NAME, "3d_fullres", 0, trainer, continue_training=continued, device=torch.device("cpu")
        )
        maybe_load_checkpoint(made, continued, False)
        before(made)
        made.run_training()
    return made


def validate(trainer: str, assignments: Sequence[str]) -> DistillationTrainer:
    """What ``nnUNetv2_train --val`` does on the CPU."""
    os.environ[SET_VARIABLE] = json.dumps(list(assignments))
    os.environ["nnUNet_n_proc_DA"] = "0"
    with contextlib.redirect_stdout(io.StringIO()):
        made: DistillationTrainer = get_trainer_from_args(NAME, "3d_fullres", 0, trainer, device=torch.device("cpu"))
        maybe_load_checkpoint(made, False, True)
        made.perform_actual_validation(False)
    return made
