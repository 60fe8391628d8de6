"""Models whose trainer is not installed: the network that the plan alone describes, where it takes the weights."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import MissingRequirement, ModelError, NnunetKdWarning
from nnunet_kd.models.plans import inputs_and_heads
from nnunet_kd.nnunet.checkpoints import MIRROR_AXES, TRAINER, WEIGHTS, trained_configuration
from nnunet_kd.nnunet.training import build_network

if TYPE_CHECKING:
    from nnunet_kd.models.folder import ModelFolder


def load_without_trainer(
    model: ModelFolder, predictor: nnUNetPredictor, checkpoints: list[dict[str, Any]], missing: MissingRequirement
) -> None:
    """Put the network that the plan describes into the predictor, with a :class:`NnunetKdWarning`, if it takes the weights.

    Args:
        model: whose plan.
        predictor: nnU-Net's or one of ours; not initialised.
        checkpoints: of every fold.
        missing: says which trainer is not there.

    Raises:
        ModelError: it does not.
    """
    plans, dataset, first = model.plans(), model.dataset_json(), checkpoints[0]
    configuration, name = trained_configuration(first), first[TRAINER]
    manager = PlansManager(plans)
    weights = [checkpoint[WEIGHTS] for checkpoint in checkpoints]
    try:
        network = build_network(nnUNetTrainer, manager, configuration, *inputs_and_heads(plans, configuration, dataset))
        network.load_state_dict(weights[0])
    except Exception as error:  # whatever the architecture of a plan makes of its arguments
        raise ModelError(
            f"the model {model.folder} cannot be loaded. {missing} The plan alone does not build its network: "
            f"{first_lines(error)}."
        ) from error
    warnings.warn(
        f"the trainer {name} of {model.folder} is not installed. The network was built from the plan alone and takes its "
        f"weights. If {name} changes what the network computes, results differ from those of its author.",
        NnunetKdWarning,
        stacklevel=3,
    )
    axes = first.get(MIRROR_AXES)
    chosen = manager.get_configuration(configuration)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.manual_initialization(network, manager, chosen, weights, dataset, str(name), axes)


def first_lines(error: Exception) -> str:
    """An error's first two lines, which name the first thing that is wrong; PyTorch's on weights has a line for every one."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
