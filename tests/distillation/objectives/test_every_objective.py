"""Every objective on every kind of network, label and dimension: one real training step each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd import trainers
from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.distillation.targets import Targets
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders, random_batch, write_untrained_teacher
from tests.conftest import make_plans
from tests.distillation.objectives.steps import HALF, HEADS, SHAPE, make, make_step, total
from tests.training.tiny_trainer import ready

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain 3D": {},
    "residual 3D": {"plan": {"architecture": "ResidualEncoderUNet"}},
    "2D": {"plan": {"dimensions": 2}},
    "residual 2D, regions": {"plan": {"dimensions": 2, "architecture": "ResidualEncoderUNet"}, "dataset": REGIONS},
    "anisotropic": {"plan": {"patch": (6, 20, 16), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))}},
    "two channels, no deep supervision": {
        "plan": {"channels": 2},
        "dataset": {"channel_names": {"0": "T1", "1": "T2"}},
        "deep_supervision": False,
    },
    "regions": {"dataset": REGIONS},
    "ignore label": {"dataset": {"labels": {"background": 0, "tumour": 1, "ignore": 2}}},
    "regions and ignore label": {"dataset": {**REGIONS, "labels": {**REGIONS["labels"], "ignore": 3}}},
}
ALL_AT_ONCE = [
    "nnUNetTrainerKD",
    *(f"objectives.{name}.weight=0.1" for name in OBJECTIVES if name != "soft"),
    "objectives.soft.alpha=0.1",
]
TRAINERS = {
    "dcd": ["nnUNetTrainerDCD", "objectives.dcd.every=1"],
    "fgbvd": ["nnUNetTrainerFGBVD"],
    "fopro": ["nnUNetTrainerFoPro", "objectives.fopro.explore_every=1"],
    "figkd": ["nnUNetTrainerFiGKD"],
    "logits": ["nnUNetTrainerLogits"],
    "fitnet": ["nnUNetTrainerFitNet"],
    "cwd": ["nnUNetTrainerCWD"],
    "ifvd": ["nnUNetTrainerIFVD"],
    "freekd": ["nnUNetTrainerFreeKD", "objectives.freekd.prompt_iterations=1"],
    "soft": ["nnUNetTrainerSoft", "objectives.soft.source=live"],
    "all at once": [*ALL_AT_ONCE, "objectives.freekd.prompt_iterations=1", "objectives.fopro.explore_every=1"],
}
WITHOUT_OBJECTIVES = {"student": ["nnUNetTrainerStudent"]}


def test_every_objective_is_here() -> None:
    assert list(TRAINERS)[:-1] == list(OBJECTIVES)
    shipped = {path.stem for path in Path(str(trainers.__path__[0])).glob("nnUNetTrainer*.py")}
    tested = {kind for kind, *_ in (*TRAINERS.values(), *WITHOUT_OBJECTIVES.values())}
    assert shipped - tested == {
        "nnUNetTrainerInherited"
    }  # the student's steps, after a start that needs training cases


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in OBJECTIVES), ("cwd", {"maps": "features"})])
def test_settings_say_whether_stages_are_compared(name: str, settings: dict[str, Any]) -> None:
    objective = make(name, **settings)
    chosen = OBJECTIVES[name].Settings(**settings)
    assert chosen.compares_stages == (objective.needs_teacher_features or objective.explores)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A dataset of the kind with an untrained teacher, made once for all objectives."""
    options = VARIANTS[request.param]
    plans = make_plans(**options.get("plan", {}))
    dataset = {**DATASET_JSON, **options.get("dataset", {})}
    with nnunet_folders(tmp_path_factory.mktemp("nnunet")):
        (configuration,) = plans["configurations"]
        write_untrained_teacher(plans, configuration, dataset)
        yield plans, dataset, options.get("deep_supervision", True)


@pytest.mark.parametrize("objective", TRAINERS)
def test_a_real_step(variant: Any, objective: str) -> None:
    plans, dataset, deep_supervision = variant
    name, *assignments = TRAINERS[objective]
    made = ready(name, plans, *assignments, dataset=dataset, deep_supervision=deep_supervision)
    teacher = made.supervision.teachers.members[0].network
    frozen = {key: value.clone() for key, value in teacher.state_dict().items()}
    before = {key: value.clone() for key, value in made.supervision.distillation.named_parameters()}
    batch = random_batch(made)
    # a first step, in which FreeKD tunes its prompts and FoPro's generator leaves the identity
    made.train_step(batch)
    made.history.close_epoch(0)
    # what reaches the student from here on comes from objectives alone
    made.loss.segmentation.forward = lambda output, target: (
        0.0 * sum(level.sum() for level in (output if isinstance(output, list) else [output]))
    )

    loss = float(made.train_step(batch)["loss"])

    assert abs(loss) < float("inf")
    assert loss > 0 or objective == "soft"  # a Dice is subtracted there, as in nnU-Net's own
    encoder = [parameter.grad for key, parameter in made.network.named_parameters() if key.startswith("encoder")]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in encoder)
    assert sum(float(gradient.norm()) for gradient in encoder) > 0
    for key, parameter in made.supervision.distillation.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.norm() > 0, key
        assert not torch.equal(parameter, before[key]), f"{key} was not trained"
    assert all(torch.equal(value, frozen[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    means = made.history.close_epoch(1)
    for key in OBJECTIVES if objective == "all at once" else [objective]:
        terms = [value for term, value in means.items() if term.startswith(f"{key}/")]
        assert means[key] == pytest.approx(sum(terms), rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ignored_voxels_change_nothing(name: str) -> None:
    """Neither their label nor what the networks say there."""
    settings: dict[str, Any] = {"freekd": {"prompt_iterations": 0}, "soft": {"source": "live", "where_ignored": False}}
    objective = make(name, **settings.get(name, {}))
    objective = objective.float() if name == "fopro" else objective
    valid = torch.rand(2, 1, *SHAPE) < 0.7
    step = make_step()
    step = replace(
        step,
        all_logits=(step.student_logits,),
        scale_weights=(1.0,),
        targets=Targets(step.targets.classes.where(valid[:, 0], 0), valid, HEADS),
    )
    noise = 3 * torch.randn(2, HEADS, *SHAPE, dtype=torch.float64)
    other = replace(
        step,
        student_logits=torch.where(valid, step.student_logits, noise),
        all_logits=(torch.where(valid, step.student_logits, noise),),
        teacher_logits=torch.where(valid, step.teacher_logits, -noise),
        targets=Targets(step.targets.classes.where(valid[:, 0], 1), valid, HEADS),
    )
    if name == "ifvd":
        fine = step.student_features[0]
        other = replace(other, student_features=[torch.where(valid, fine, 5.0), step.student_features[1]])
        coarse = make_step().student_features[1]
        assert coarse.shape[2:] == HALF
    assert total(objective, other).item() == pytest.approx(total(objective, step).item(), rel=1e-9)
