"""What is refused of BraTS 2024, and how it is told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nnunet_kd.datasets.brats2024 import convert_brats2024, find_cases
from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.checks import BadCase, BadCasesError, table
from nnunet_kd.errors import DataError, MissingRequirement
from tests.datasets.generated_downloads import (
    affine,
    brats_case,
    brats_download,
    edit,
    flip_byte,
    tree_hash,
    truncate,
)

ONE = ConversionOptions(processes=1)


def reasons(error: BadCasesError) -> dict[str, str]:
    return {case.name: "; ".join(case.problems) for case in error.bad}


def test_every_kind_of_damage_is_in_one_table(source: Path, nnunet: Path) -> None:
    folder = brats_download(source)
    additional = source / "training_data_additional"
    names = {}
    for number, kind in enumerate(
        ("channel", "gzip", "checksum", "nan", "label", "origin", "shape", "spacing", "seg", "fractional", "volumes")
    ):
        names[kind] = f"BraTS-GLI-{1000 + number:05d}-100"
        dtype = np.float32 if kind in ("nan", "fractional") else np.int16
        brats_case(folder, names[kind], seg=kind != "seg", dtype=dtype)

    def file(kind: str, channel: str) -> Path:
        return folder / names[kind] / f"{names[kind]}-{channel}.nii.gz"

    file("channel", "t2w").unlink()
    truncate(file("gzip", "t1n"))
    flip_byte(file("checksum", "t2f"))
    edit(file("nan", "t1c"), lambda a: np.where(a == a.max(), np.nan, a).astype(np.float32))
    edit(file("label", "seg"), lambda a: np.where(a == 4, 7, a).astype(np.int16))
    edit(file("origin", "t2f"), shift=(0, 0, 0.5))
    edit(file("shape", "t1c"), lambda a: a[:-1])
    brats_case(folder, names["spacing"], matrix=affine((1, 1, 1.01)))
    brats_case(source / "other", names["spacing"], matrix=affine((1, 1, 1)))
    (source / "other" / names["spacing"] / f"{names['spacing']}-t1n.nii.gz").replace(file("spacing", "t1n"))
    edit(file("fractional", "seg"), lambda a: np.where(a == 1, 0.5, a).astype(np.float32))
    edit(file("volumes", "t1n"), lambda a: np.stack([a, a], -1))
    brats_case(additional, "BraTS-GLI-00005-101")  # also in the first source
    brats_case(folder, "BraTS-GLI-77-100")
    brats_case(folder, "patient_12")
    before = tree_hash(folder, additional)

    with pytest.raises(BadCasesError) as caught:
        convert_brats2024([folder, additional], options=ONE)
    why = reasons(caught.value)
    assert why.keys() == {*names.values(), "BraTS-GLI-00005-101", "BraTS-GLI-77-100", "patient_12"}
    expected = {
        "channel": "T2w: missing",
        "gzip": "T1n: BraTS-GLI-01001-100-t1n.nii.gz is not whole: its gzip data end early",
        "checksum": "T2f: BraTS-GLI-01002-100-t2f.nii.gz is not whole: its gzip data end early or were changed",
        "nan": "T1c: 1 voxel NaN or infinite",
        "label": "label: holds 7; known are 0, 1, 2, 3, 4",
        "origin": "T2f: origin",
        "shape": "T1c: shape (23, 24, 16) instead of (24, 24, 16)",
        "spacing": "off by 0.01 mm",
        "seg": "seg: missing",
        "fractional": "label: holds 0.5",
        "volumes": "holds 2 volumes instead of one",
    }
    for kind, text in expected.items():
        assert text in why[names[kind]], kind
    assert f"the same case is also in {folder}" in why["BraTS-GLI-00005-101"]
    assert "does not parse" in why["BraTS-GLI-77-100"]
    assert "does not parse" in why["patient_12"]
    for name in why:  # all in one message, nothing written
        assert name in str(caught.value)
    assert not any(nnunet.iterdir())

    summary = convert_brats2024([folder, additional], options=ConversionOptions(processes=1, skip_bad=True))
    assert len(summary.training) == 10
    rows = (summary.folder / "skipped.csv").read_text().splitlines()
    assert len(rows) == 1 + len(why)
    assert any(row.startswith(names["label"]) and "holds 7" in row for row in rows)
    assert tree_hash(folder, additional) == before


def test_all_problems_of_a_case_are_listed(source: Path) -> None:
    folder = brats_download(source)
    bad = folder / "BraTS-GLI-00007-100"
    (bad / "BraTS-GLI-00007-100-t1n.nii.gz").unlink()
    edit(bad / "BraTS-GLI-00007-100-t2w.nii.gz", shift=(3, 0, 0))
    with pytest.raises(BadCasesError) as caught:
        convert_brats2024([folder], options=ONE)
    assert len(caught.value.bad[0].problems) == 2


def test_a_file_of_another_case_does_not_parse(source: Path) -> None:
    folder = brats_case(source, "BraTS-GLI-00005-100")
    (folder / "BraTS-GLI-00005-100-t1n.nii.gz").rename(folder / "BraTS-GLI-00006-100-t1n.nii.gz")
    (case,) = find_cases([source])
    assert "BraTS-GLI-00006-100-t1n.nii.gz: the name does not parse" in case.problems[0]


def test_empty_case_folder_is_a_bad_case_and_no_silent_loss(source: Path) -> None:
    folder = brats_download(source)
    (folder / "BraTS-GLI-00999-100").mkdir()
    twice = brats_case(folder / "BraTS-GLI-00998-100", "BraTS-GLI-00998-100")  # a zip inside its own folder
    assert twice.parent.name == twice.name
    with pytest.raises(BadCasesError) as caught:
        convert_brats2024([folder], options=ONE)
    (bad,) = caught.value.bad
    assert bad.name == "BraTS-GLI-00999-100"
    assert bad.problems == ("T1n: missing", "T1c: missing", "T2w: missing", "T2f: missing")


def test_folder_that_cannot_be_listed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = brats_download(source)
    locked, real = str(folder / "BraTS-GLI-00006-101"), os.scandir

    def scandir(path: str) -> object:
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", locked)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"BraTS-GLI-00006-101 cannot be listed \(Permission denied\)"):
        convert_brats2024([folder], options=ONE)


def test_table_cuts_nothing_off() -> None:
    folder = Path("/data/" + "a-rather-long-folder-name/" * 12) / "BraTS-GLI-00005-100"
    text = table([BadCase("BraTS-GLI-00005-100", folder, ("T1n: missing",))])
    last_column = "".join(row.split("|")[3].strip() for row in text.splitlines() if row.startswith("| "))
    assert last_column == f"found in{folder}"


def test_wrong_sources(source: Path) -> None:
    with pytest.raises(DataError, match="No case was found"):
        convert_brats2024([source], options=ONE)
    with pytest.raises(DataError, match=r"nowhere is not a folder.*overlap"):
        convert_brats2024([source, source / "nowhere", source], options=ONE)


def test_without_nnunet_raw(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brats_download(source)
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(MissingRequirement, match="nnUNet_raw"):
        convert_brats2024([source], options=ONE)
