"""The synthetic heads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_kd.workflows.demo.phantom import LABELS, SHAPE, SPACING, make_case, write_dataset


def test_cases_come_from_their_seed_and_hold_what_they_promise() -> None:
    first, again, other = make_case(3), make_case(3), make_case(4)
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image != other.image).any()
    for case in (first, other):
        assert case.image.shape == (2, *SHAPE)
        assert np.isfinite(case.image).all()
        assert set(np.unique(case.labels)) == set(LABELS.values())
        t1, flair = case.image
        lesion, rest = case.labels == LABELS["lesion"], (case.labels == 0) & (t1 > 200)
        assert flair[lesion].mean() > flair[rest].mean()
        assert t1[lesion].mean() < t1[rest].mean()
        background = t1[:, :3, :3]  # Rician noise is positive where there is no signal
        assert background.min() >= 0
        assert background.mean() > 0


def test_dataset_on_disk(tmp_path: Path) -> None:
    write_dataset(tmp_path, training=2, test=1)
    assert json.loads((tmp_path / "dataset.json").read_text())["numTraining"] == 2
    image = sitk.ReadImage(str(tmp_path / "imagesTs" / "head_002_0001.nii.gz"))
    assert image.GetSpacing() == SPACING[::-1]
    assert sorted(path.name for path in (tmp_path / "labelsTr").iterdir()) == ["head_000.nii.gz", "head_001.nii.gz"]
