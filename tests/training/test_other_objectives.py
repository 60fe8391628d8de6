"""A run continued with other objectives: what fits goes on by name, and what does not is named."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.saved_state import LEARNED
from nnunet_kd.distillation.settings_sources import SETTINGS_FILE
from nnunet_kd.errors import SettingsError
from nnunet_kd.models.checkpoint import ENTRY
from nnunet_kd.training.trainer import DistillationTrainer
from tests.training.tiny_trainer import close_epoch, ready, save, steps, trainer

MIX = (
    "objectives.dcd.weight=0.05",
    "objectives.cwd={weight: 0.1, maps: features}",
    "objectives.fgbvd.weight=0.05",
    "objectives.freekd={weight: 0.1, prompt_iterations: 1}",
    "objectives.fopro={weight: 0.05, explore_every: 1}",
)


def stopped(plans: dict, *assignments: str, names: bool = True) -> tuple[DistillationTrainer, Path]:
    """A run of an epoch, with its files as nnU-Net's loop would have written them.

    Args:
        plans: of the teacher.
        assignments: the run's.
        names: ``False``: the checkpoint is as older versions wrote it.
    """
    made = ready("nnUNetTrainerKD", plans, *assignments)
    steps(made, 2)
    close_epoch(made)
    path = save(made)
    Path(made.output_folder, SETTINGS_FILE).write_text(json.dumps(made.settings.as_dict()))
    if not names:
        checkpoint = torch.load(path, weights_only=False)
        del checkpoint[ENTRY][LEARNED]
        torch.save(checkpoint, path)
    return made, path


def continued(plans: dict, path: Path, *assignments: str) -> tuple[DistillationTrainer, list[str]]:
    """As ``--c --set ...`` does it; also the warnings in the log."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        made = trainer("nnUNetTrainerKD", plans, *assignments, continue_training=True)
        made.load_checkpoint(str(path))
        made.prepare_distillation()
        made.on_train_epoch_start()
    return made, [line.split("WARNING: ")[1] for line in told.getvalue().splitlines() if "WARNING" in line]


def goes_on(before: DistillationTrainer, after: DistillationTrainer) -> set[str]:
    """Names of learned parameters that have their values and their momentum."""
    old = dict(before.supervision.distillation.named_parameters())
    found = set()
    for name, value in after.supervision.distillation.named_parameters():
        if name in old and value.requires_grad and torch.equal(value, old[name]):
            momentum = [
                made.optimizer.state[one]["momentum_buffer"] for made, one in ((before, old[name]), (after, value))
            ]
            assert torch.equal(*momentum), name
            found.add(name)
    return found


@pytest.mark.parametrize("names", [True, False])
def test_fewer_objectives(tiny: dict, names: bool) -> None:
    before, path = stopped(tiny, *MIX, names=names)
    after, warnings = continued(tiny, path, "objectives.dcd=null", "objectives.freekd=null")
    assert list(after.settings.active_objectives()) == ["fgbvd", "fopro", "cwd"]
    assert warnings == ["no longer used, and not in later checkpoints: dcd, freekd."]
    learned = {name for name, value in after.supervision.distillation.named_parameters() if value.requires_grad}
    assert {name.split(".")[1] for name in learned} == {"fgbvd", "fopro", "cwd"}
    assert goes_on(before, after) == learned
    for name, value in after.supervision.distillation.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, before.supervision.distillation.state_dict()[name]), name
    assert all(torch.isfinite(torch.tensor(steps(after, 2))))


def test_the_same_objectives_go_on_without_a_word(tiny: dict) -> None:
    before, path = stopped(tiny, *MIX)
    after, warnings = continued(tiny, path)
    assert warnings == []
    assert len(goes_on(before, after)) == len(
        [p for p in after.supervision.distillation.parameters() if p.requires_grad]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        before.on_train_epoch_start()
    assert steps(after, 2, first_seed=5) == steps(before, 2, first_seed=5)


def test_another_kind_of_maps_starts_anew(tiny: dict) -> None:
    before, path = stopped(tiny, "objectives.cwd={weight: 0.1, maps: logits}", "objectives.dcd.weight=0.05")
    after, warnings = continued(tiny, path, "objectives.cwd.maps=features")
    assert warnings == ["the checkpoint holds nothing that fits these, which start anew: cwd (projections)."]
    assert {name.split(".")[1] for name in goes_on(before, after)} == {"dcd"}
    assert all(torch.isfinite(torch.tensor(steps(after, 2))))
    _, path = stopped(tiny, "objectives.cwd={weight: 0.1, maps: features}", "objectives.dcd.weight=0.05")
    after, warnings = continued(tiny, path, "objectives.cwd.maps=logits")
    assert warnings == []
    assert all(torch.isfinite(torch.tensor(steps(after, 2))))


def test_projections_that_are_no_longer_learned_stay_as_they_are(tiny: dict) -> None:
    before, path = stopped(tiny, "objectives.dcd.weight=0.05")
    after, warnings = continued(tiny, path, "objectives.dcd.projection=fixed")
    assert warnings == []
    steps(after, 2)
    pairs = zip(before.supervision.distillation.parameters(), after.supervision.distillation.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert len(after.optimizer.param_groups) == 1


def test_an_added_objective_is_named_and_the_others_go_on(tiny: dict) -> None:
    before, path = stopped(tiny, "objectives.dcd.weight=0.05")
    after, warnings = continued(tiny, path, "objectives.fitnet.weight=0.1", "objectives.logits.weight=1")
    assert warnings == ["the checkpoint holds nothing that fits these, which start anew: fitnet (projections)."]
    assert {name.split(".")[1] for name in goes_on(before, after)} == {"dcd"}
    steps(after, 1)


def test_masks_of_another_shape_are_tuned_anew(tiny: dict) -> None:
    before, path = stopped(tiny, "objectives.freekd={weight: 0.1, prompt_iterations: 1}")
    assert not before.supervision.distillation.all_objectives()["freekd"].is_preparing()
    after, warnings = continued(tiny, path, "objectives.freekd.prompts=3")
    assert warnings == ["the checkpoint holds nothing that fits these, which start anew: freekd (prompts)."]
    assert after.supervision.distillation.all_objectives()["freekd"].is_preparing()
    assert len(goes_on(before, after)) == 3  # one projection per stage
    steps(after, 2)


def test_a_prompts_learning_rate_is_the_one_asked_for(tiny: dict) -> None:
    _, path = stopped(tiny, "objectives.fopro={weight: 0.1, explore_every: 1}")
    after, warnings = continued(tiny, path, "objectives.fopro.learning_rate=0.5")
    assert warnings == []
    (group,) = after.supervision.distillation.objectives["fopro"].prompts._optimizer.param_groups
    assert group["lr"] == 0.5


def test_another_network_is_refused(tiny: dict) -> None:
    _, path = stopped(tiny, "objectives.dcd.weight=0.05")
    with pytest.raises(SettingsError, match=r"reduction=2: the run to continue has a student of reduction 4"):
        continued(tiny, path, "reduction=2")
    assert SettingsError.exit_code == 3
