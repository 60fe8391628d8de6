"""Soft labels of every kind of data, from the command that makes them to the batch that brings them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.objectives.soft import SoftSettings
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.distillation.soft_labels.maps import open_map, write_map
from nnunet_kd.distillation.soft_labels.student import unlabelled_folder_of
from nnunet_kd.models.folder import ModelFolder, load_predictor, new_predictor
from nnunet_kd.nnunet.datasets import case_names, preprocessed_cases
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders
from nnunet_kd.workflows.sweep.checkpoints import SweepCheckpoints
from nnunet_kd.workflows.sweep.description import SweepDescription
from tests.conftest import make_plans
from tests.training.tiny_training import CASES, NAME, SHORT, write_tiny_dataset

cli._register()
CASCADE = "3d_cascade_fullres"
SMALL: dict[str, Any] = {"features": (8, 16, 16), "patch": (8, 8, 8)}
IGNORED = {**DATASET_JSON, "labels": {**DATASET_JSON["labels"], "ignore": 3}}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
KINDS: dict[str, dict[str, Any]] = {
    "cascade": {"plans": {**SMALL, "configuration": CASCADE}},
    "dummy 2D, NumPy": {
        "plans": {**SMALL, "patch": (4, 16, 16), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))},
        "kind": nnUNetDatasetNumpy,
    },
    "ignore label": {"plans": SMALL, "dataset_json": IGNORED},
    "regions, ignore label": {
        "plans": SMALL,
        "dataset_json": {**DATASET_JSON, "labels": REGIONS, "regions_class_order": [1, 2]},
    },
    "cascade, NumPy": {"plans": {**SMALL, "configuration": CASCADE}, "kind": nnUNetDatasetNumpy},
    "2D": {"plans": {**SMALL, "dimensions": 2}},
}
EVERY_TIME = ("cascade", "dummy 2D, NumPy", "ignore label")


def _uniform(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return random.random(shape, dtype)


@pytest.fixture(
    params=[name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.nightly) for name in KINDS]
)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str, nnUNetDatasetBlosc2]]:
    """Its name, the configuration, and the softened cases, whose images lie between 0 and 1."""
    options = dict(KINDS[request.param])
    plans = make_plans(**options.pop("plans"))
    (configuration,) = plans["configurations"]
    if configuration == CASCADE:
        first = {**plans["configurations"][CASCADE], "next_stage": CASCADE, "data_identifier": "nnUNetPlans_3d_lowres"}
        plans["configurations"] = {
            CASCADE: {**plans["configurations"][CASCADE], "previous_stage": "3d_lowres"},
            "3d_lowres": first,
        }
    with nnunet_folders(tmp_path):
        write_tiny_dataset(2, plans, draw=_uniform, **options)
        if configuration == CASCADE:
            _add_unlabelled(Path(os.environ["nnUNet_preprocessed"]) / NAME / f"nnUNetPlans_{configuration}")
        soften = ["soften", "998", configuration, "0", "-device", "cpu", "--no-mirroring"]
        result = CliRunner().invoke(cli.app, soften)
        assert result.exit_code == 0, (result.output, result.exception)
        folder = Path(os.environ["nnUNet_preprocessed"]) / NAME / f"nnUNetPlans_{configuration}"
        previous = str(_first_stage()) if configuration == CASCADE else None
        yield request.param, configuration, type(preprocessed_cases(folder))(str(folder), list(CASES), previous)


def _add_unlabelled(cases: Path) -> None:
    """A case without labels, as another configuration with the same images has it; the cascade leaves it out."""
    target = unlabelled_folder_of(cases)
    target.mkdir(parents=True)
    for path in cases.glob("case_0*"):
        shutil.copyfile(path, target / path.name.replace("case_0", "extra_0"))
    assert case_names(target) == ["extra_0"]


def _first_stage() -> Path:
    model = Path(os.environ["nnUNet_results"]) / NAME / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    return model / "predicted_next_stage" / CASCADE


def prepared(configuration: str, *assignments: str) -> DistillationTrainer:
    """A trainer with its loaders."""
    os.environ[SET_VARIABLE] = json.dumps([*SHORT, "start=random", *assignments])
    os.environ["nnUNet_n_proc_DA"] = "0"
    made: DistillationTrainer = get_trainer_from_args(
        NAME, configuration, 0, "nnUNetTrainerSoft", device=torch.device("cpu")
    )
    made.on_train_start()
    assert made.soft_labels is not None
    return made


def input_of(cases: nnUNetDatasetBlosc2, case: str) -> torch.Tensor:
    """What the network sees: in a cascade, with one channel for each class of the first stage."""
    data, _, previous, _ = cases.load_case(case)
    image = np.asarray(data[:])
    if previous is not None:
        image = np.concatenate([image, *((np.asarray(previous[:]) == label)[None] for label in (1, 2))])
    return torch.from_numpy(image.astype(np.float32))


def test_from_the_command_to_the_step(kind: tuple[str, str, nnUNetDatasetBlosc2]) -> None:
    name, configuration, cases = kind
    made = prepared(configuration)
    folder = made.soft_labels
    assert folder is not None
    assert sorted(path.stem for path in folder.glob("*.b2nd")) == CASES[:4]
    swept = SweepDescription(dataset="998", configuration=configuration, name="kinds", methods=["soft"], device="cpu")
    planned = SweepCheckpoints(swept, made.dataset_json)
    assert planned.soft_labels(SoftSettings(), made.settings, made.plans_manager.plans, 0).settings.maps == str(folder)
    model = Path(os.environ["nnUNet_results"], NAME, f"nnUNetTrainer__nnUNetPlans__{configuration}")
    predictor = new_predictor(mirroring=False)
    load_predictor(ModelFolder(model, ("0",), "checkpoint_final.pth"), predictor)
    logits = predictor.predict_logits_from_preprocessed_data(input_of(cases, "case_1")).float()
    regions = made.label_manager.has_regions
    wanted = logits.sigmoid() if regions else logits.softmax(0)[1:]
    assert np.abs(open_map(folder, "case_1")[:] / 255 - wanted.numpy()).max() <= 1 / 510 + 1e-5
    if configuration == CASCADE:  # with what its first stage says beside it, wherever the teacher lies
        elsewhere = model.parent.rename(model.parents[1] / "elsewhere")
        told = ["soften", "998", configuration, "0", "-device", "cpu", "--no-mirroring", "-t"]
        result = CliRunner().invoke(cli.app, [*told, str(elsewhere / model.name)])
        assert result.exit_code == 0, (result.output, result.exception)
        assert "0 cases written, 4 kept" in result.output
        elsewhere.rename(model.parent)

    # maps that are their images must still be so after every spatial transform
    for case in CASES[:4]:
        image = np.asarray(cases.load_case(case)[0][:])
        write_map(folder, case, np.concatenate([image, 1 - image]) / 2, made.configuration_manager.patch_size)
    composed = made.dataloader_train.data_loader._transform_image
    composed.transforms = [one for one in composed.transforms if not isinstance(one, RandomTransform)]
    (spatial,) = [one for one in composed.transforms if isinstance(one, SpatialTransform)]
    spatial.p_rotation = spatial.p_scaling = 1
    assert isinstance(composed.transforms[0], Convert3DTo2DTransform) == (name == "dummy 2D, NumPy")
    assert isinstance(cases, nnUNetDatasetNumpy) == name.endswith("NumPy")
    for _ in range(3):
        batch = next(made.dataloader_train)
        assert batch[KEY].shape == (2, 2, *made.configuration_manager.patch_size)
        assert batch["data"].shape[1] == (3 if configuration == CASCADE else 1)
        assert (batch["data"][:, 0] - 2 * batch[KEY][:, 0]).abs().max() <= 2 / 510 + 1e-5
        assert batch["data"][:, 0].std() > 0.05
    made.on_train_epoch_start()
    made.train_step(batch)
    made.history.close_epoch(0)
    assert np.isfinite(made.history.epochs[0]["soft"])


@pytest.mark.parametrize(
    "kind", ["ignore label", pytest.param("regions, ignore label", marks=pytest.mark.nightly)], indirect=True
)
def test_where_the_teacher_speaks(kind: tuple[str, str, nnUNetDatasetBlosc2]) -> None:
    _, configuration, _ = kind
    for where_ignored in (False, True):
        made = prepared(configuration, f"objectives.soft.where_ignored={json.dumps(where_ignored)}")
        batch = next(made.dataloader_train)
        finest = batch["target"][0]
        ignored = finest[:, -1:] > 0 if made.label_manager.has_regions else finest == 3
        assert 0.1 < ignored.float().mean() < 0.4
        losses = []
        for where in (torch.zeros_like(ignored), ignored, ~ignored):
            maps = torch.where(where, 0.5 - batch[KEY] / 2, batch[KEY])
            assert made.supervision is not None
            made.supervision.start_step(0, 0, soft_labels=maps)
            found = made.supervision.loss(made.network(batch["data"]), batch["target"])
            made.supervision.finish_step()
            assert found is not None
            losses.append(found[0].item())
        assert (losses[1] == pytest.approx(losses[0], abs=1e-6)) is not where_ignored
        assert abs(losses[2] - losses[0]) > 1e-3
