"""What a distillation adds to nnU-Net's checkpoint, and how it comes back.

``network_weights`` and ``optimizer_state`` stay exactly what stock nnU-Net writes for the student, so that stock nnU-Net can
predict with, continue from and export every checkpoint. What objectives learned, their optimizer state, the settings and
the loss history live in one extra entry of plain dictionaries and tensors, :data:`ENTRY`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.files import write_atomically

ENTRY = "nnunet_kd"


def save_with_entry(save: Callable[[io.BytesIO], None], entry: Mapping[str, Any], path: Path) -> None:
    """Let nnU-Net save into memory, add ``entry``, and replace ``path`` in one step.

    Args:
        save: nnU-Net's own ``save_checkpoint``.
        entry: see :data:`ENTRY`; its ``optimizer`` is moved out of nnU-Net's optimizer state.
        path: the checkpoint's file; after an error it holds what it held before.
    """
    buffer = io.BytesIO()
    save(buffer)
    buffer.seek(0)
    # nnU-Net's checkpoints hold NumPy scalars and so need the full unpickler; this one was written a moment ago
    checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
    checkpoint["optimizer_state"], learned = split_optimizer_state(checkpoint["optimizer_state"])
    checkpoint[ENTRY] = {**entry, "optimizer": learned}
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint in CPU memory."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return checkpoint


def split_optimizer_state(state: dict[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
    """Divide an optimizer's state into nnU-Net's groups and what belongs to groups marked ``nnunet_kd``.

    Returns:
        The state without the marked groups, and the marked parameters' states numbered from 0.
    """
    marked = [index for group in state["param_groups"] if group.get(ENTRY) for index in group["params"]]
    rest = {
        "state": {index: value for index, value in state["state"].items() if index not in marked},
        "param_groups": [group for group in state["param_groups"] if not group.get(ENTRY)],
    }
    learned = {place: state["state"][index] for place, index in enumerate(marked) if index in state["state"]}
    return rest, learned


def add_learned_parameters(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], saved: Mapping[int, Any] | None
) -> None:
    """Give the optimizer a group of its own for what objectives learn, with its saved state if there is one."""
    optimizer.add_param_group({"params": parameters, ENTRY: True, "lr": optimizer.param_groups[0]["lr"]})
    for place, state in (saved or {}).items():
        parameter = parameters[place]
        optimizer.state[parameter] = {
            key: value.to(parameter.device) if isinstance(value, torch.Tensor) and value.ndim else value
            for key, value in state.items()
        }
