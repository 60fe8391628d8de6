"""Weights that a sweep's students start from, instead of random ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.checkpoint import read_checkpoint
from nnunet_kd.errors import CheckpointError, SettingsError
from nnunet_kd.files import sha256
from nnunet_kd.plans import build_meta_network

_NOT_TAKEN_OVER = ".seg_layers."
"""nnU-Net's ``load_pretrained_weights`` leaves these as they are."""


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
        path = path / f"fold_{fold}" / "checkpoint_final.pth"
    if not path.is_file():
        raise SettingsError(
            f"pretrained_weights: there is no {path}. Give a checkpoint of a student of the same plan and reduction, or a model "
            f"folder that has one for every fold of the sweep."
        )
    try:
        weights = read_checkpoint(path, in_memory=False).get("network_weights")
    except CheckpointError as error:
        raise SettingsError(f"pretrained_weights: {error}") from error
    if not isinstance(weights, Mapping):
        raise SettingsError(f"pretrained_weights: {path} is not nnU-Net's, it has no network_weights.")
    manager = PlansManager(dict(student_plans))
    inputs = determine_num_input_channels(manager, manager.get_configuration(configuration), dict(dataset_json))
    heads = manager.get_label_manager(dict(dataset_json)).num_segmentation_heads
    wanted = build_meta_network(student_plans, configuration, inputs, heads).state_dict()
    for name, value in wanted.items():
        if _NOT_TAKEN_OVER in name:
            continue
        there = tuple(weights[name].shape) if name in weights else None
        if there != tuple(value.shape):
            raise SettingsError(
                f"pretrained_weights: {path} is of another network. {name} is {tuple(value.shape)} in the student and "
                f"{'missing' if there is None else there} there. Plan, configuration and reduction must be the same."
            )
    return PretrainedWeights(path, sha256(path))
