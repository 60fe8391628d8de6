"""Networks as plans describe them: how many channels go in, and how nnU-Net builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn


def network_inputs(manager: PlansManager, configuration: ConfigurationManager, dataset_json: Mapping[str, Any]) -> int:
    """Channels of a network's input, those of a cascade's previous stage included."""
    return int(determine_num_input_channels(manager, configuration, dict(dataset_json)))


def planned_network(
    configuration: ConfigurationManager, inputs: int, outputs: int, initialised: bool = True
) -> nn.Module:
    """The network of a configuration, without deep supervision.

    Args:
        configuration: of a plan, with everything that it inherits.
        inputs, outputs: input channels and segmentation heads.
        initialised: by the architecture's own rule; ``False``: PyTorch's weights stay.
    """
    network: nn.Module = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        inputs,
        outputs,
        allow_init=initialised,
        deep_supervision=False,
    )
    return network
