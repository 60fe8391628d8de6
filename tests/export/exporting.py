"""Model folders exported, and their checkpoints read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.export.weights import CHECKPOINT_OF
from nnunet_kd.models.folder import open_model

FOLDER_NAME = "nnUNetTrainerDCD__nnUNetPlans__3d_fullres"


def export(source: Path, output: Path, folds: tuple[str, ...] = (), **options: Any) -> Path:
    chosen = FolderOptions(**options)
    with open_model(source, folds, CHECKPOINT_OF[chosen.weights]) as model:
        return export_folder(model, output, chosen)


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=False)
    return checkpoint
