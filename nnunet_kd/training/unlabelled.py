"""Cases without labels: what trains on them is what a teacher says of them, and nothing else.

They lie in a folder of their own (:func:`unlabelled_folder`). ``nnunet-kd soften`` stores their soft labels, and the teacher's
decision in the place of a segmentation. That decision tells nnU-Net's loader where foreground is, and where a case is
validated on, what its pseudo Dice is measured against. In the loss it has no part: nnU-Net's loss is that of the samples
with labels alone, as if the batch had no others. A batch without any has a loss of labels of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnunet_kd.distillation.soft_labels.student import unlabelled_cases_of, unlabelled_folder_of
from nnunet_kd.nnunet.datasets import write_segmentation

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def unlabelled_folder(trainer: nnUNetTrainer) -> Path:
    """Where cases without labels of a trainer's dataset and configuration lie; it need not exist."""
    return unlabelled_folder_of(Path(str(trainer.preprocessed_dataset_folder)))


def unlabelled_cases(trainer: nnUNetTrainer, labelled: Collection[str]) -> list[str]:
    """Their names, sorted, but for the fold's ``labelled`` ones; empty too for the second stage of a cascade."""
    cases = Path(str(trainer.preprocessed_dataset_folder))
    return unlabelled_cases_of(cases, trainer.plans_manager.plans, trainer.configuration_name, labelled)


def write_decision(trainer: nnUNetTrainer, case: str, decision: np.ndarray) -> None:
    """Store what a teacher says of a case without labels in the place of its segmentation.

    Args:
        trainer: of the dataset.
        case: its name.
        decision: ``(*spatial)`` in the network's axes and spacing.

    Raises:
        MissingRequirement: the disk refused.
    """
    write_segmentation(
        unlabelled_folder(trainer), case, decision, trainer.plans_manager.plans, trainer.configuration_name,
        trainer.dataset_json,
    )  # fmt: skip


def loss_of_labelled(
    loss: Callable[[Any, Any], torch.Tensor], output: Any, target: Any, labelled: Sequence[int] | None
) -> torch.Tensor:
    """A loss of those samples of a batch that have labels.

    Args:
        loss: of a batch.
        output, target: what it takes: tensors ``(B, ...)``, or lists of them under deep supervision.
        labelled: places of the samples that count; ``None``: all.

    Returns:
        What ``loss`` is for a batch of these samples alone; 0, with a gradient of 0, if there are none.
    """
    if labelled is None:
        return loss(output, target)
    if not labelled:
        scales = output if isinstance(output, (list, tuple)) else [output]
        return torch.stack([scale.float().mean() for scale in scales]).sum() * 0
    return loss(_samples(output, labelled), _samples(target, labelled))


def share_of_labels(labelled: int, processes: Sequence[int]) -> float:
    """What the labels' loss of one of several processes counts, so that their mean is that of one process with all samples.

    Every process's loss is a mean over its own samples with labels, and gradients are averaged over processes. With ``n`` own
    samples with labels of ``N`` in all of ``P`` processes this is ``n P / N``; without any, 0.

    Args:
        labelled: own samples with labels.
        processes: those of every process.
    """
    return labelled * len(processes) / total if (total := sum(processes)) else 0.0


def _samples(values: Any, places: Sequence[int]) -> Any:
    if isinstance(values, (list, tuple)):
        return [_samples(value, places) for value in values]
    return values[torch.as_tensor(list(places), device=values.device)]
