"""What of the teacher's size each objective keeps for the backward pass: memory that lasts until the step ends."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import random_batch
from tests.distillation.objectives.test_every_objective import TRAINERS
from tests.training.tiny_trainer import ready

FEATURES, PATCH = (16, 20, 28), (16, 12, 8)
ALLOWED: dict[str, tuple[dict[str, int], float]] = {
    "dcd": ({}, 0.22),  # the gradient that backward gives the student
    "fgbvd": ({"stage0": 2, "stage1": 2, "stage2": 2}, 2.38),  # the features themselves and their low band
    "fopro": ({"stage0": 3, "stage1": 3, "stage2": 3}, 2.05),
    "figkd": ({"stage2": 7}, 0.13),  # signs of seven bands, each an eighth of the logits
    "logits": ({"logits": 2}, 0.27),
    "fitnet": ({"stage0": 1, "stage1": 1, "stage2": 1}, 1.08),  # the difference
    "cwd": ({"logits": 2}, 0.27),
    "ifvd": ({"logits": 1, "stage2": 1}, 0.53),  # of those sizes, not of the teacher
    "freekd": ({"stage0": 1, "stage1": 1, "stage2": 2}, 1.12),
    "soft": ({"logits": 3}, 0.41),  # the student's probabilities, their logarithms, and the teacher's probabilities
}
"""What was measured while teachers ran in inference mode, whose tensors cannot be kept. Then FGBVD held its two outside of what
autograd saves, and FreeKD, one level deep, kept 1.15."""
SETTINGS = {"freekd": ["objectives.freekd.prompt_iterations=0"], "soft": ["objectives.soft.source=live"]}


def kept(made: DistillationTrainer) -> tuple[Counter[str], float]:
    """Distinct saved tensors of about the size of the teacher's ``stage0``, ... or ``logits``, by that name.

    Also the bytes of all saved tensors, parameters and what the student itself computed left out, over those of the teacher's
    features and logits.
    """
    batch = random_batch(made)
    made.supervision.start_step(0, 0)
    output = made.network(batch["data"])
    student = made.supervision._capture.features
    channels, samples = made.supervision.teachers.channels, len(batch["data"])
    sizes = {
        f"stage{place}": samples * count * feature[0, 0].numel()
        for place, (count, feature) in enumerate(zip(channels, student, strict=True))
    }
    sizes["logits"] = output[0].numel()
    found: dict[int, str] = {}
    storages: dict[int, int] = {}
    alive = [*student, *output, *made.supervision.distillation.parameters()]  # so that no storage is used twice
    known = {tensor.untyped_storage().data_ptr() for tensor in alive}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
            for name, size in sizes.items():
                if 0.85 * size < tensor.numel() < 1.15 * size:
                    found[storage.data_ptr()] = name
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = made.supervision.loss(output, batch["target"])
    loss.backward()
    made.supervision.finish_step()
    return Counter(found.values()), sum(storages.values()) / (4 * sum(sizes.values()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_more_than_is_needed(plans: dict, name: str) -> None:
    made = ready(TRAINERS[name][0], plans, *SETTINGS.get(name, []))
    found, share = kept(made)
    names, limit = ALLOWED[name]
    assert dict(sorted(found.items())) == names
    assert share < limit + 0.005
