"""What of the teacher's size each objective keeps for the backward pass: memory that lasts until the step ends."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders, random_batch, write_untrained_teacher
from tests.conftest import make_plans
from tests.distillation.objectives.test_every_objective import TRAINERS
from tests.training.tiny_trainer import ready

ALLOWED: dict[str, dict[str, int]] = {}
SETTINGS = {"freekd": ["objectives.freekd.prompt_iterations=0"]}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = make_plans(features=(16, 20, 28), patch=(16, 12, 8))
    with nnunet_folders(tmp_path_factory.mktemp("nnunet")):
        write_untrained_teacher(made, "3d_fullres", DATASET_JSON)
        yield made


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
    print("KEPT", name, dict(sorted(found.items())), round(share, 2))
