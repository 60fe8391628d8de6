"""Models whose ``dataset.json`` has ``modality``, as the first releases of nnU-Net v2 called the channels' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_kd.errors import DataError
from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.models.folder import open_model
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import make_plans
from tests.inference.predicting import run


@pytest.fixture
def model(folders: Path) -> Path:
    dataset: dict[str, Any] = {**DATASET_JSON, "modality": DATASET_JSON["channel_names"]}
    del dataset["channel_names"]
    plans = {**make_plans(), "foreground_intensity_properties_per_channel": {"0": {}}}
    return write_untrained_teacher(plans, "3d_fullres", dataset)


def write_images(folder: Path, channels: int) -> Path:
    folder.mkdir()
    for channel in range(channels):
        image = sitk.GetImageFromArray(np.random.default_rng(channel).random((16, 16, 16), np.float32))
        sitk.WriteImage(image, str(folder / f"a_{channel:04d}.nii.gz"))
    return folder


def test_predicted_and_exported(model: Path, tmp_path: Path) -> None:
    result = run(write_images(tmp_path / "images", 1), tmp_path / "out", model, mirroring=False)
    assert (result.predicted, (tmp_path / "out" / "a.nii.gz").is_file()) == (1, True)
    with pytest.raises(DataError, match="The model takes the channels 0000 MRI"):
        run(write_images(tmp_path / "more", 2), tmp_path / "out", model)
    with open_model(model, ("0",)) as opened:
        exported = export_folder(opened, tmp_path / "exported", FolderOptions())
    assert "input channels, in this order: 0: MRI" in (exported / "README.md").read_text()
