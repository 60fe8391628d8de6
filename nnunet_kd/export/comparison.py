"""How far an exported network is from PyTorch's: logits on patches, Dice on whole cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from torch import nn

from nnunet_kd.errors import DataError
from nnunet_kd.inference.cases import InputCase
from nnunet_kd.inference.predictor import CasePredictor
from nnunet_kd.nnunet.scoring import folder_metrics
from nnunet_kd.volumes.reading import check_file

if TYPE_CHECKING:  # it is optional
    from nnunet_kd_runtime.backends import Patch

LOGITS_TOLERANCE = 1e-3
"""Of float32: largest absolute difference in logits."""
FLOAT16_TOLERANCE = 1e-2
"""Of float16: largest difference relative to the largest logit. One rounding is 2^-11 = 5e-4 of a value; layers add up."""


@dataclass(frozen=True)
class OutputDifference:
    """Between two networks' logits on the same patches.

    Attributes:
        patches: how many were compared.
        largest: largest absolute difference.
        scale: largest absolute logit of PyTorch's network.
        agreement: share of voxels with the same largest logit.
    """

    patches: int
    largest: float
    scale: float
    agreement: float

    def __str__(self) -> str:
        return (
            f"{self.patches} patches: largest difference {self.largest:.2e} in logits of up to {self.scale:.1f}, "
            f"{100 * self.agreement:.3f}% of voxels alike"
        )

    def acceptable(self, precision: str) -> bool:
        """Whether it is within the precision's tolerance; int8 has none, what it costs is for the user to judge."""
        if precision == "int8":
            return math.isfinite(self.largest)
        if precision == "float16":
            return self.largest <= FLOAT16_TOLERANCE * self.scale
        return self.largest <= LOGITS_TOLERANCE


def compare_logits(network: nn.Module, run: Callable[[Patch], Patch], patches: Iterable[Patch]) -> OutputDifference:
    """Run both on every patch.

    Args:
        network: PyTorch's, in evaluation mode, without deep supervision.
        run: the exported one.
        patches: ``(B, channels, *size)`` each; at least one.
    """
    count, largest, scale, alike = 0, 0.0, 0.0, []
    for patch in patches:
        with torch.inference_mode():
            expected = network(torch.from_numpy(patch)).numpy()
        found = run(patch)
        difference = float(np.abs(found - expected).max())
        largest = math.inf if math.isnan(difference) else max(largest, difference)
        scale = max(scale, float(np.abs(expected).max()))
        alike.append(float((found.argmax(1) == expected.argmax(1)).mean()))
        count += 1
    return OutputDifference(count, largest, scale, float(np.mean(alike)))


def matching_references(cases: Sequence[InputCase], folder: Path, reader: BaseReaderWriter) -> list[InputCase]:
    """The cases that have a reference segmentation.

    Args:
        cases: any.
        folder: of segmentations named as the cases.
        reader: of the segmentations.

    Raises:
        DataError: none has, or one is not a whole file.
    """
    found = [case for case in cases if (folder / case.output.name).is_file()]
    if not found:
        example = cases[0].output.name
        raise DataError(f"{folder} has no reference segmentation of any image, for example no {example}.")
    for case in found:
        check_file(folder / case.output.name, reader)
    return found


def dice_by_label(
    predictors: Mapping[str, CasePredictor], cases: Sequence[InputCase], references: Path, workspace: Path
) -> dict[str, dict[str, float]]:
    """Mean Dice by label or region (nnU-Net's evaluation) of every predictor on the same cases.

    Args:
        predictors: by name.
        cases: with references, see :func:`matching_references`.
        references: folder of segmentations named as the cases.
        workspace: an empty folder for predictions.
    """
    result = {}
    for name, predictor in predictors.items():
        folder = workspace / name
        folder.mkdir()
        redirected = [InputCase(case.name, case.images, folder / case.output.name) for case in cases]
        for _ in predictor.predict_cases(redirected):
            pass
        labels = predictor.label_manager
        metrics = folder_metrics(
            references,
            folder,
            predictor.plans_manager.image_reader_writer_class(),
            predictor.dataset_json["file_ending"],
            labels.foreground_regions if labels.has_regions else labels.foreground_labels,
            labels.ignore_label,
        )
        result[name] = {str(label): float(values["Dice"]) for label, values in metrics["mean"].items()}
    return result
