"""Folds of one folder share its plans.json: a training that would make another fold unusable is refused."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.errors import PlanError
from nnunet_kd.models.plans import named_student_plans
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON
from tests.training.tiny_trainer import trainer


def _started(plans: dict, fold: int, *assignments: str, dataset: dict = DATASET_JSON) -> DistillationTrainer:
    """A student's training at the place where nnU-Net writes ``plans.json``; saved as if it had trained."""
    made = trainer("nnUNetTrainerStudent", plans, *assignments, dataset=dataset, fold=fold)
    made.print_to_log_file("a line")
    with contextlib.redirect_stdout(io.StringIO()):
        made.refuse_to_spoil_folds()
        made.initialize()
        made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    for name, content in (("plans", made.plans_manager.plans), ("dataset", made.dataset_json)):
        (Path(made.output_folder_base) / f"{name}.json").write_text(json.dumps(content))
    return made


def test_a_fold_that_would_make_another_unusable_is_refused_before_anything_is_written(tiny: dict) -> None:
    first = _started(tiny, 0, "reduction=4")
    folder = Path(first.output_folder_base)

    def content() -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    with contextlib.redirect_stdout(io.StringIO()):
        second = trainer("nnUNetTrainerStudent", tiny, "reduction=2", fold=1)
        second.print_to_log_file("a line")
        with pytest.raises(
            PlanError, match=r"holds fold 0, .*another architecture \(reduction=4; .* has 2\)"
        ) as caught:
            second.on_train_start()
    train = "nnUNetv2_train 998 3d_fullres 1 -tr nnUNetTrainerStudent -p nnUNetPlans_r2"
    assert f"nnunet-kd plan 998 -p nnUNetPlans -r 2 && {train}" in str(caught.value)
    assert content() == before
    assert not (folder / "fold_1").exists()
    # the way out, the same reduction, and the same fold anew
    assert Path(_started(named_student_plans(tiny, 2), 1, "reduction=2").output_folder_base) != folder
    _started(tiny, 1, "reduction=4")
    with pytest.raises(PlanError, match="holds fold 1"):
        _started(tiny, 0, "reduction=2")


def test_a_fold_alone_may_be_trained_anew_and_validated(tiny: dict) -> None:
    _started(tiny, 0, "reduction=4")
    assert _started(tiny, 0, "reduction=2").output_folder_base.endswith("nnUNetPlans__3d_fullres")
    _started(tiny, 1, "reduction=2")
    # --val makes a trainer without the settings of the training, and never starts it
    assert trainer("nnUNetTrainerStudent", tiny, fold=1).configuration_name == "3d_fullres"


def _of_configuration(key: str, value: Any) -> Callable[[dict, dict], None]:
    return lambda plans, dataset: plans["configurations"]["3d_fullres"].update({key: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_of_configuration("spacing", [2.0, 2.0, 2.0]), "spacing"),
        (_of_configuration("patch_size", [8, 8, 16]), "patch_size"),
        (_of_configuration("normalization_schemes", ["NoNormalization"]), "normalization_schemes"),
        (_of_configuration("use_mask_for_norm", [True]), "use_mask_for_norm"),
        (lambda plans, dataset: plans.update(transpose_forward=[1, 0, 2]), "transpose_forward"),
        (lambda plans, dataset: dataset["labels"].update(a=2, b=1), "labels"),
    ],
)
def test_folds_that_were_given_other_numbers_are_not_made_unusable(
    tiny: dict, change: Callable[[dict, dict], None], named: str
) -> None:
    described = {**DATASET_JSON, "labels": {"background": 0, "a": 1, "b": 2}}
    _started(tiny, 0, "reduction=4", dataset=described)
    plans, dataset = json.loads(json.dumps([tiny, described]))
    change(plans, dataset)
    with pytest.raises(
        PlanError, match=rf"another {named}\. .*Give the plan another name|another {named}\. .*nnunet-kd plan"
    ):
        _started(plans, 1, "reduction=4", dataset=dataset)


def test_a_batch_of_another_size_is_no_matter_to_the_weights(tiny: dict) -> None:
    _started(tiny, 0, "reduction=4")
    other = json.loads(json.dumps(tiny))
    other["configurations"]["3d_fullres"]["batch_size"] = 3
    _started(other, 1, "reduction=4")


def test_a_trial_leaves_its_own_fold_usable(tiny: dict) -> None:
    _started(tiny, 0, "reduction=4")
    with contextlib.redirect_stdout(io.StringIO()):
        trial = trainer("nnUNetTrainerStudent", tiny, "reduction=2")
        trial.disable_checkpointing = True
        with pytest.raises(PlanError, match="holds fold 0"):
            trial.on_train_start()
        # the same network changes nothing
        same = trainer("nnUNetTrainerStudent", tiny, "reduction=4")
        same.disable_checkpointing = True
        same.refuse_to_spoil_folds()
