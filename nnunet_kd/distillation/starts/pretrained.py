"""Checkpoints for nnU-Net's ``-pretrained_weights``, compared with the student before nnU-Net loads them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_kd.errors import CheckpointError, NnunetKdWarning, PlanError, SettingsError
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.models.plans import build_meta_network, inputs_and_heads, stage_channels
from nnunet_kd.nnunet.checkpoints import FINAL, INIT_ARGUMENTS, WEIGHTS, trained_configuration, trained_plans
from nnunet_kd.system.counts import some
from nnunet_kd.system.files import sha256

_HEADS = ".seg_layers."
"""nnU-Net's ``load_pretrained_weights`` leaves these as they are."""
_NAMED = 3


@dataclass(frozen=True)
class PretrainedWeights:
    """A checkpoint for nnU-Net's ``-pretrained_weights``.

    Attributes:
        path: absolute.
        sha256: of the file; what the weights are known by.
    """

    path: Path
    sha256: str


def find_pretrained(
    given: str, student_plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any], fold: int | str
) -> PretrainedWeights:
    """The checkpoint that students of a fold start from, which fits them.

    Other heads are no error, because nnU-Net never takes heads over; a :class:`NnunetKdWarning` names them.

    Args:
        given: a checkpoint, for all folds; or a model folder, whose ``fold_X/checkpoint_final.pth`` is taken for fold X, so that
            no student starts from weights that have seen its validation cases.
        student_plans, configuration, dataset_json: the students'.
        fold: theirs.

    Raises:
        SettingsError: it is not there, cannot be read, or is of another network.
    """
    path = Path(os.path.abspath(os.path.expanduser(given)))
    if path.is_dir():
        path = path / f"fold_{fold}" / FINAL
    if not path.is_file():
        raise SettingsError(
            f"pretrained_weights: there is no {path}. Give a checkpoint of a student of the same plan and reduction, or a model "
            f"folder that has one for every fold."
        )
    try:
        checkpoint = read_checkpoint(path, in_memory=False)
    except CheckpointError as error:
        raise SettingsError(f"pretrained_weights: {error}") from error
    weights = checkpoint.get(WEIGHTS)
    if not isinstance(weights, Mapping):
        raise SettingsError(f"pretrained_weights: {path} is not nnU-Net's, it has no network_weights.")
    inputs, heads = inputs_and_heads(student_plans, configuration, dataset_json)
    wanted = build_meta_network(student_plans, configuration, inputs, heads).state_dict()
    differing = {
        name: f"{name}: {shape_of(weights.get(name))} there, {shape_of(value)} in the student"
        for name, value in wanted.items()
        if shape_of(weights.get(name)) != shape_of(value)
    }
    body = [text for name, text in differing.items() if _HEADS not in name]
    if body:
        channels = _channels(checkpoint, student_plans, configuration)
        raise SettingsError(
            f"pretrained_weights: {path} is of another network than the student. What differs: {channels}"
            f"{some(body, _NAMED, '; ')}. Plan, configuration, input channels and reduction must be the same. A student "
            f"can start from a larger network all the same, as its teacher: `nnunet-kd train ... -t PATH --set start=teacher`."
        )
    if differing:
        last = list(differing.values())[-1]
        warnings.warn(
            f"pretrained_weights: {path} has other heads ({last}). nnU-Net takes over everything but heads, which start at "
            f"random.",
            NnunetKdWarning,
            stacklevel=2,
        )
    return PretrainedWeights(path, sha256(path))


def take_over(found: PretrainedWeights, network: nn.Module) -> None:
    """Put a checkpoint's weights into a network that it fits, wherever that is: all but the heads, as nnU-Net does it.

    Args:
        found: see :func:`find_pretrained`.
        network: without wrappers.
    """
    weights = read_checkpoint(found.path)[WEIGHTS]
    state = network.state_dict()
    network.load_state_dict({name: weights[name] if _HEADS not in name else value for name, value in state.items()})


def shape_of(value: torch.Tensor | None) -> str:
    """``8x1x3x3x3``, ``a number``, or ``missing``."""
    return "missing" if value is None else "x".join(map(str, value.shape)) or "a number"


def _channels(checkpoint: Mapping[str, Any], student_plans: Mapping[str, Any], configuration: str) -> str:
    """Channels of the stages, if both plans say them and they differ."""
    if INIT_ARGUMENTS not in checkpoint:
        return ""
    try:
        there = stage_channels(trained_plans(checkpoint), trained_configuration(checkpoint))
        here = stage_channels(student_plans, configuration)
    except (KeyError, TypeError, PlanError):
        return ""
    if there == here:
        return ""
    told = [", ".join(map(str, channels)) for channels in (there, here)]
    return f"channels of the stages: {told[0]} there, {told[1]} in the student; "
