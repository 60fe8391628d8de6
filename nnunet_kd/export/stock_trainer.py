"""Which trainer name an exported checkpoint may carry, so that nnU-Net alone builds the same network."""

from __future__ import annotations

import math
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.errors import MissingRequirement, ModelError
from nnunet_kd.models.folder import ModelFolder
from nnunet_kd.models.plans import inputs_and_heads
from nnunet_kd.nnunet.checkpoints import TRAINER, WEIGHTS, trained_configuration
from nnunet_kd.nnunet.environment import STOCK_TRAINER, find_trainer
from nnunet_kd.nnunet.training import build_network, ships_trainer


def stock_trainer_name(model: ModelFolder, checkpoint: dict[str, Any]) -> str:
    """The checkpoint's own trainer if nnU-Net ships it, else ``nnUNetTrainer`` after checking that it builds the same network.

    Checked: the weights fit strictly, and both networks give the same output, bit for bit, on a small random image.

    Args:
        model: where the checkpoint is from.
        checkpoint: as read.

    Raises:
        ModelError: stock nnU-Net would build another network.
    """
    name = str(checkpoint[TRAINER])
    if ships_trainer(name):
        return name
    weights = checkpoint[WEIGHTS]
    configuration = trained_configuration(checkpoint)
    stock = _build(nnUNetTrainer, model, configuration)
    try:
        stock.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"{model.folder}: the trainer {name} builds another network than the plan describes, so nnU-Net cannot predict "
            f"with it where {name} is not installed. Install the trainer's code there and copy the folder as it is. "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    try:
        trainer = find_trainer(name)
    except MissingRequirement:
        return STOCK_TRAINER  # nothing to compare with; the weights fit
    own = _build(trainer, model, configuration)
    own.load_state_dict(weights)
    image = _small_image(model, configuration)
    with torch.inference_mode():
        if not torch.equal(stock.eval()(image), own.eval()(image)):
            raise ModelError(
                f"{model.folder}: the trainer {name} changes what the network computes, so nnU-Net without it would give "
                f"other results. Install the trainer's code where you predict and copy the folder as it is."
            )
    return STOCK_TRAINER


def _build(trainer: Any, model: ModelFolder, configuration: str) -> nn.Module:
    plans = PlansManager(model.plans())
    inputs, heads = inputs_and_heads(model.plans(), configuration, model.dataset_json())
    return build_network(trainer, plans, configuration, inputs, heads)


def _small_image(model: ModelFolder, configuration: str) -> torch.Tensor:
    """Two voxels a side at the coarsest stage."""
    inputs, _ = inputs_and_heads(model.plans(), configuration, model.dataset_json())
    resolved = PlansManager(model.plans()).get_configuration(configuration)
    shape = [2 * math.prod(axis) for axis in zip(*resolved.pool_op_kernel_sizes, strict=True)]
    return torch.randn(1, inputs, *shape, generator=torch.Generator().manual_seed(0))
