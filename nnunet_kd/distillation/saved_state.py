"""What the objectives of a continued run take over from its checkpoint: by objective and by parameter's name.

A run may be continued with other objectives, or with other settings of the same. What has the same name and shape goes on;
the rest starts anew and is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nnunet_kd.distillation.objectives.base import NetworkPair
from nnunet_kd.distillation.settings import validate_settings
from nnunet_kd.distillation.weighting import Distillation

STATE, LEARNED, MOMENTUM = "distillation", "learned", "optimizer"
"""Entries of a checkpoint: the objectives' state, the names of what they learn, and its optimizer state in the order of names."""
_EXTRA = "_extra_state"


@dataclass(frozen=True)
class TakenOver:
    """How far objectives go on from a checkpoint.

    Attributes:
        anew: parts of objectives that start anew, by objective: ``{"freekd": ("prompts",)}``.
        dropped: objectives whose state is in the checkpoint and which are not used any more.
        optimizer: state of what is learned, by its place among the learned parameters now.
    """

    anew: Mapping[str, tuple[str, ...]]
    dropped: tuple[str, ...]
    optimizer: Mapping[int, Any]

    def describe(self) -> list[str]:
        """Lines for the log; none if everything goes on."""
        lines = []
        if self.anew:
            parts = "; ".join(f"{name} ({', '.join(parts)})" for name, parts in self.anew.items())
            lines.append(f"WARNING: the checkpoint holds nothing that fits these, which start anew: {parts}.")
        if self.dropped:
            lines.append(f"WARNING: no longer used, and not in later checkpoints: {', '.join(self.dropped)}.")
        return lines


def learned_names(distillation: Distillation) -> list[str]:
    """Names of the parameters that the student's optimizer has, in its order."""
    return [name for name, parameter in distillation.named_parameters() if parameter.requires_grad]


def take_over(distillation: Distillation, saved: Mapping[str, Any], networks: NetworkPair) -> TakenOver:
    """Load into the objectives whatever of a checkpoint's entry has their names and shapes.

    Args:
        distillation: the objectives of today's settings; changed in place.
        saved: the checkpoint's entry of this package.
        networks: what the objectives were built for.
    """
    state, own = saved[STATE], distillation.state_dict()
    fitting = {name for name, value in own.items() if isinstance(value, torch.Tensor) and _fits(value, state.get(name))}
    missing = {name for name, value in own.items() if isinstance(value, torch.Tensor)} - fitting
    for name in own:
        # such as an optimizer's state: it holds for all parameters beside and below it, or for none
        whole = not any(other.startswith(name.removesuffix(_EXTRA)) for other in missing)
        if name.endswith(_EXTRA) and name in state and whole:
            fitting.add(name)
    distillation.load_state_dict({name: state[name] for name in fitting}, strict=False)

    anew: dict[str, dict[str, None]] = {}
    for name in own:
        if name in missing:
            _, objective, part, *_ = name.split(".")
            anew.setdefault(objective, {})[part] = None
    used = {name.split(".")[1] for name in own} | set(distillation.all_objectives())
    dropped = dict.fromkeys(name.split(".")[1] for name in state if name.split(".")[1] not in used)
    return TakenOver(
        {objective: tuple(parts) for objective, parts in anew.items()},
        tuple(dropped),
        _optimizer_state(distillation, saved, networks, fitting),
    )


def _fits(own: torch.Tensor, saved: Any) -> bool:
    return isinstance(saved, torch.Tensor) and own.shape == saved.shape


def _optimizer_state(
    distillation: Distillation, saved: Mapping[str, Any], networks: NetworkPair, fitting: set[str]
) -> dict[int, Any]:
    numbered: Mapping[int, Any] = saved.get(MOMENTUM) or {}
    names = saved.get(LEARNED)
    if names is None:
        names = _names_of_older_versions(saved, networks) if numbered else []
    by_name = {names[place]: state for place, state in numbered.items() if place < len(names)}
    return {
        place: by_name[name]
        for place, name in enumerate(learned_names(distillation))
        if name in fitting and name in by_name
    }


def _names_of_older_versions(saved: Mapping[str, Any], networks: NetworkPair) -> list[str]:
    """Versions that wrote no names numbered the learned parameters of the objectives that their settings make."""
    settings = validate_settings(saved["settings"], "the checkpoint's settings")
    with torch.device("meta"):  # neither memory nor random numbers
        return learned_names(Distillation(settings.active_objectives(), networks))
