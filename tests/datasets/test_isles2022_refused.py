"""What is refused of ISLES 2022, and how it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.checks import BadCasesError
from nnunet_kd.datasets.isles2022 import convert_isles2022
from nnunet_kd.errors import SettingsError
from tests.datasets.generated_downloads import (
    FLAIR_AFFINE,
    FLAIR_SHAPE,
    affine,
    centred,
    edit,
    isles_case,
    isles_download,
    truncate,
)

ONE = ConversionOptions(processes=1)
CENTRE = np.array([3.0, -20.0, 40.0])


def test_every_kind_of_damage_is_in_one_table(source: Path, nnunet: Path) -> None:
    isles_download(source)
    names = {}
    for number, kind in enumerate(("channel", "gzip", "nan", "label", "origin", "apart", "mask", "flair mask")):
        names[kind] = f"sub-strokecase{100 + number:04d}"
        far = centred(FLAIR_SHAPE, affine((0.45, 0.45, 5)), (3, -20, 140))
        isles_case(source, names[kind], mask=kind != "mask", flair_affine=far if kind == "apart" else FLAIR_AFFINE)

    def image(kind: str, ending: str) -> Path:
        (path,) = source.rglob(f"{names[kind]}_ses-0001_{ending}.nii.gz")
        return path

    image("channel", "adc").unlink()
    truncate(image("gzip", "FLAIR"))
    edit(image("nan", "dwi"), lambda a: np.where(a == a.max(), np.inf, a))
    edit(image("label", "msk"), lambda a: a * 7)
    edit(image("origin", "adc"), shift=(2, 0, 0))
    image("flair mask", "FLAIR").rename(image("flair mask", "FLAIR").with_name("strokecase0107_FLAIR.nii.gz"))
    isles_case(source / "lost", "strokecase0109")
    with pytest.raises(BadCasesError) as caught:
        convert_isles2022([source], options=ONE)
    why = {case.name: "; ".join(case.problems) for case in caught.value.bad}
    for kind, text in {
        "channel": "ADC: missing",
        "gzip": "FLAIR: sub-strokecase0101_ses-0001_FLAIR.nii.gz is not whole: its gzip data end early",
        "nan": "DWI: 1 voxel NaN or infinite",
        "label": "label: holds 7; known are 0, 1",
        "origin": "ADC: origin",
        "apart": "FLAIR: does not overlap DWI",
        "mask": "mask: missing",
        "flair mask": "strokecase0107_FLAIR.nii.gz: the name does not parse",
    }.items():
        assert text in why.pop(f"{names[kind]}_ses-0001"), kind
    assert all("does not parse" in reason for reason in why.values())
    assert why
    assert not any(nnunet.iterdir())


def test_a_second_session_without_a_mask_is_no_silent_test_case(source: Path) -> None:
    isles_download(source)
    isles_case(source, "sub-strokecase0004", session="ses-0002", mask=False)
    with pytest.raises(BadCasesError, match="mask: missing"):
        convert_isles2022([source], options=ONE)


def test_session_or_subject_without_images_is_no_silent_loss(source: Path) -> None:
    isles_download(source)
    (source / "sub-strokecase0098").mkdir()
    (source / "sub-strokecase0099/ses-0001/dwi").mkdir(parents=True)
    with pytest.raises(BadCasesError) as caught:
        convert_isles2022([source], options=ONE)
    why = {case.name: "; ".join(case.problems) for case in caught.value.bad}
    assert why.keys() == {"sub-strokecase0098", "sub-strokecase0099_ses-0001"}
    assert "expected folders sub-<name>/ses-<number>" in why["sub-strokecase0098"]
    assert "DWI, ADC, FLAIR: missing" in why["sub-strokecase0099_ses-0001"]


def test_one_subject_in_two_sources(source: Path) -> None:
    first = isles_download(source / "zenodo")
    second = isles_download(source / "challenge", "challenge", subjects=1)
    with pytest.raises(BadCasesError) as caught:
        convert_isles2022([first, second], options=ONE)
    assert "the same case is also in" in caught.value.bad[0].problems[0]
    summary = convert_isles2022([first, second], options=ConversionOptions(processes=1, skip_bad=True))
    assert len(summary.training) == 5


def test_unknown_grid(source: Path) -> None:
    with pytest.raises(SettingsError, match="--grid is dwi or flair"):
        convert_isles2022([isles_download(source)], grid="t1", options=ONE)  # type: ignore[arg-type]
