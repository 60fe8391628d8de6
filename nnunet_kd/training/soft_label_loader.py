"""nnU-Net's loader of training patches, with a map of soft labels beside every patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_kd.distillation.soft_labels.maps import crop, open_map
from nnunet_kd.errors import DataError

KEY = "soft_labels"
"""Of the maps in a batch: ``(B, channels, *patch)``, float32."""


class SoftLabelLoader(nnUNetDataLoader):
    """Cuts every map by the box of its image, and sends it through the same spatial transforms.

    The map is batchgeneratorsv2's regression target: rotated, scaled and mirrored as the image is, interpolated linearly, and
    left alone by transforms of intensities. Outside the image every channel is 0, which is background. Nothing else
    differs: nnU-Net's loader draws the same patches from the same random numbers.

    Args:
        maps: folder of the set.
        arguments, options: of nnU-Net's loader.
    """

    transforms: Any

    def __init__(self, maps: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._maps = maps
        self._transform_image: Any = self.transforms
        self.transforms = self._transform
        self._cases: list[str] = []
        self._boxes: list[list[tuple[int, int]]] = []
        self._cropped: list[torch.Tensor] = []

    def generate_train_batch(self) -> dict[str, Any]:
        """nnU-Net's batch, and the maps under :data:`KEY`."""
        self._cases, self._boxes, self._cropped = [], [], []
        batch: dict[str, Any] = super().generate_train_batch()
        return {**batch, KEY: torch.stack(self._cropped)}

    def get_indices(self) -> Any:
        """nnU-Net's choice of cases, remembered."""
        cases = super().get_indices()
        self._cases = [str(case) for case in cases]
        return cases

    def get_bbox(self, *arguments: Any, **options: Any) -> Any:
        """nnU-Net's choice of a box, remembered."""
        lower, upper = super().get_bbox(*arguments, **options)
        self._boxes.append(list(zip(lower, upper, strict=True)))
        return lower, upper

    def _transform(self, **sample: Any) -> dict[str, Any]:
        place = len(self._cropped)
        cropped = crop(open_map(self._maps, self._cases[place]), self._boxes[place])
        if self.patch_size_was_2d:
            cropped = cropped[:, 0]
        result: dict[str, Any] = self._transform_image(**sample, regression_target=cropped)
        transformed = result.pop("regression_target", None)
        if transformed is None:
            raise DataError(
                "an augmentation of this trainer drops regression targets, so soft labels cannot follow the image. It is a "
                "transform of batchgeneratorsv2 without _apply_to_regr_target; take it out, or set objectives.soft.source=live."
            )
        self._cropped.append(transformed)
        return result
