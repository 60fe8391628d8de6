"""The start through the trainer, for every kind of training that nnU-Net has: what is seen, and that ``r=1`` is exact."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_kd.distillation.features import plain_module
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.training import started
from nnunet_kd.training.patches import training_patches
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders
from tests.conftest import make_plans
from tests.training.test_start import DCD, INHERITED
from tests.training.tiny_training import NAME, SHORT, write_tiny_dataset

REGIONS = {**DATASET_JSON, "labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
IGNORE = {**DATASET_JSON, "labels": {**DATASET_JSON["labels"], "ignore": 3}}


def small_plans(**options: Any) -> dict[str, Any]:
    return make_plans(features=(8, 16, 16), patch=(8, 8, 8), **options)


def cascade() -> dict[str, Any]:
    plans = small_plans(configuration="3d_cascade_fullres")
    second = plans["configurations"]["3d_cascade_fullres"]
    plans["configurations"]["3d_lowres"] = {**second, "next_stage": "3d_cascade_fullres"}
    second["previous_stage"] = "3d_lowres"
    return plans


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "2d": (small_plans(dimensions=2), DATASET_JSON, 1),
    "regions": (small_plans(), REGIONS, 1),
    "ignore label": (small_plans(), IGNORE, 1),
    "cascade": (cascade(), DATASET_JSON, 3),
    "residual, 2d, regions": (small_plans(architecture="ResidualEncoderUNet", dimensions=2), REGIONS, 1),
}
"""Plan, dataset and input channels."""


def prepared(configuration: str, trainer: str, *assignments: str) -> DistillationTrainer:
    os.environ[SET_VARIABLE] = json.dumps([*SHORT, *assignments])
    with contextlib.redirect_stdout(io.StringIO()):
        made: DistillationTrainer = get_trainer_from_args(NAME, configuration, 0, trainer, device=torch.device("cpu"))
        made.prepare_distillation()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_training(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans, dataset_json, channels = json.loads(json.dumps(KINDS[kind]))
    configuration = next(iter(plans["configurations"]))
    patch = (1, channels, *plans["configurations"][configuration]["patch_size"])
    inherit, regions = started.inherit, []

    def watched(*arguments: Any) -> Any:
        assert {tuple(one.shape) for one in arguments[2]} == {patch}
        regions.append(arguments[5])
        return inherit(*arguments)

    monkeypatch.setattr(started, "inherit", watched)
    with nnunet_folders(tmp_path):
        write_tiny_dataset(plans=plans, dataset_json=dataset_json)
        whole, half = (prepared(configuration, INHERITED, f"reduction={r}") for r in (1, 2))
        assert regions == [dataset_json is not None and "regions_class_order" in dataset_json] * 2
        with contextlib.redirect_stdout(io.StringIO()):
            images = training_patches(whole, 2, augmented=False, seed=1)
            augmented = training_patches(whole, 2, augmented=True, seed=1)
        assert {tuple(one.shape) for one in (*images, *augmented)} == {patch}
        if channels > 1:
            handed_on = torch.cat(images)[:, 1:]
            assert set(handed_on.unique().tolist()) == {0.0, 1.0}, "no segmentation of the first stage"
        outputs = of_both(whole, Path(os.environ["nnUNet_results"]) / NAME, configuration, images[0])
        for of_student, of_teacher in zip(*outputs, strict=True):
            assert float((of_student - of_teacher).abs().max() / of_teacher.abs().max()) < 1e-4
    assert half.settings.start == "teacher"
    assert all(value.isfinite().all() for value in plain_module(half.network).state_dict().values())
    assert any(fit.unexplained > 0 for fit in half.start_fits)


def of_both(trainer: DistillationTrainer, results: Path, configuration: str, image: torch.Tensor) -> list[Any]:
    """What the student and the teacher's weights give at every scale."""
    network = plain_module(trainer.network).eval()
    teacher = results / f"nnUNetTrainer__nnUNetPlans__{configuration}" / "fold_0" / "checkpoint_final.pth"
    with torch.no_grad():
        outputs = [network(image)]
        network.load_state_dict(read_checkpoint(teacher)["network_weights"])
        return [*outputs, network(image)]


def test_it_is_computed_on_the_cores_that_are_ours(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    seen = {}

    def watched(name: str) -> Any:
        original = getattr(started, name)

        def call(*arguments: Any) -> Any:
            seen[name] = torch.get_num_threads()
            return original(*arguments)

        return call

    for name in ("training_patches", "inherit", "fit_projections"):
        monkeypatch.setattr(started, name, watched(name))
    assert torch.get_num_threads() == 1, "as nnU-Net sets it for a GPU"
    prepared("3d_fullres", DCD, "objectives.dcd.projection_start=fitted")
    assert seen == {"training_patches": 2, "inherit": 2, "fit_projections": 2}
    assert torch.get_num_threads() == 1, "the training got them"
