"""What every converter shares: running again, linking, dry runs, the folders it refuses."""

from __future__ import annotations

import gzip
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_kd.datasets.brats2024 import convert_brats2024, describe, find_cases
from nnunet_kd.datasets.case import Case, ConversionOptions
from nnunet_kd.datasets.checks import check_case
from nnunet_kd.datasets.isles2022 import convert_isles2022
from nnunet_kd.datasets.writing import write_case
from nnunet_kd.errors import DataError
from tests.datasets.generated_downloads import ONE, brats_case, download, edit, isles_case, tree_hash


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every written image."""
    files = [path for part in ("imagesTr", "labelsTr") for path in (folder / part).iterdir()]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_second_run_keeps_every_finished_case(source: Path) -> None:
    download(source)
    folder = convert_brats2024([source], options=ONE).folder
    before = state(folder)
    summary = convert_brats2024([source], options=ONE)
    assert summary.kept == 5
    assert state(folder) == before


def test_half_written_missing_and_changed_cases_are_redone(source: Path) -> None:
    download(source)
    folder = convert_brats2024([source], options=ONE).folder
    before = state(folder)
    half = folder / "imagesTr/BraTS-GLI-00000-100_0002.nii.gz"
    half.write_bytes(half.read_bytes()[:500])
    (folder / "labelsTr/BraTS-GLI-00001-100.nii.gz").unlink()
    edit(source / "BraTS-GLI-00002-100/BraTS-GLI-00002-100-t1c.nii.gz", lambda a: a + 1)
    left_over = folder / ".partial-1"
    left_over.mkdir()
    (left_over / "BraTS-GLI-00000-100_0002.nii.gz").write_bytes(b"half")
    summary = convert_brats2024([source], options=ONE)
    assert summary.kept == 2
    redone = {name[:19] for name, value in state(folder).items() if before.get(name) != value}
    assert redone == {f"BraTS-GLI-0000{patient}-100" for patient in range(3)}
    for case in sorted(source.iterdir()):
        for number, channel in enumerate(("t1n", "t1c", "t2w", "t2f")):
            written = folder / f"imagesTr/{case.name}_{number:04d}.nii.gz"
            assert written.read_bytes() == (case / f"{case.name}-{channel}.nii.gz").read_bytes()
    assert not left_over.exists()


def test_dry_run_checks_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    download(source)
    before = tree_hash(tmp_path)
    summary = convert_brats2024([source], options=ConversionOptions(processes=1, dry_run=True))
    assert (len(summary.training), summary.kept, len(summary.splits)) == (5, 0, 5)
    assert tree_hash(tmp_path) == before
    (source / "BraTS-GLI-00000-100/BraTS-GLI-00000-100-t1c.nii.gz").unlink()
    before = tree_hash(tmp_path)
    with pytest.raises(DataError, match="T1c: missing"):
        convert_brats2024([source], options=ConversionOptions(processes=1, dry_run=True))
    summary = convert_brats2024(
        [source], options=ConversionOptions(processes=1, dry_run=True, skip_bad=True, holdout=0.2)
    )
    assert len(summary.training) == 4
    assert tree_hash(tmp_path) == before


def test_links(source: Path) -> None:
    download(source)
    summary = convert_brats2024([source], options=ConversionOptions(processes=1, link=True))
    image = summary.folder / "imagesTr/BraTS-GLI-00001-100_0001.nii.gz"
    assert image.is_symlink()
    assert image.resolve() == (source / "BraTS-GLI-00001-100/BraTS-GLI-00001-100-t1c.nii.gz").resolve()
    assert not summary.warnings
    before = tree_hash(source)
    copied = convert_brats2024([source], options=ONE)  # replaces the links, not what they point to
    assert copied.kept == 0
    assert not image.is_symlink()
    assert tree_hash(source) == before


def test_what_cannot_be_linked_is_counted(source: Path) -> None:
    download(source, 4)
    brats_case(source, "BraTS-GLI-00009-100", ending=".nii")
    summary = convert_brats2024([source], options=ConversionOptions(processes=1, link=True))
    assert any(text.startswith("5 of 25 files had to be changed") for text in summary.warnings)


def test_read_only_source_is_enough(source: Path) -> None:
    for number in range(5):
        isles_case(source, f"sub-strokecase000{number}")
    paths = [source, *source.rglob("*")]
    before = tree_hash(source)
    for path in paths:
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    try:
        for grid in ("dwi", "flair"):
            summary = convert_isles2022([source], grid=grid, options=ONE)  # type: ignore[arg-type]
        assert tree_hash(source) == before
        assert all(os.access(path, os.W_OK) for path in summary.folder.rglob("*"))
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_several_processes_give_the_same(source: Path) -> None:
    download(source)
    first = convert_brats2024([source], options=ConversionOptions(processes=2)).folder
    second = convert_brats2024([source], dataset_id=503, options=ONE).folder
    for part in ("imagesTr", "labelsTr"):
        assert {path.name: path.read_bytes() for path in (first / part).iterdir()} == {
            path.name: path.read_bytes() for path in (second / part).iterdir()
        }
    assert convert_brats2024([source], options=ONE).kept == 5


@pytest.mark.slow
@pytest.mark.nightly
def test_script_without_a_main_guard_is_told_so(source: Path, tmp_path: Path) -> None:
    download(source)
    script = tmp_path / "script.py"
    script.write_text(
        "from nnunet_kd.datasets.brats2024 import convert_brats2024\n"
        "from nnunet_kd.datasets.case import ConversionOptions\n"
        f"convert_brats2024([{str(source)!r}], options=ConversionOptions(processes=2))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_skipped_csv_goes_when_nothing_is_skipped_any_more(source: Path) -> None:
    download(source, 6)
    bad = source / "BraTS-GLI-00003-100/BraTS-GLI-00003-100-t1n.nii.gz"
    content = bad.read_bytes()
    bad.unlink()
    options = ConversionOptions(processes=1, skip_bad=True, holdout=0.2)
    folder = convert_brats2024([source], options=options).folder
    assert "T1n: missing" in (folder / "skipped.csv").read_text()
    bad.write_bytes(content)
    for splits in folder.parent.parent.rglob("splits_final.json"):
        splits.unlink()
    assert len(convert_brats2024([source], options=options).training) == 6
    assert not (folder / "skipped.csv").exists()


def test_write_case_alone(source: Path, tmp_path: Path) -> None:
    brats_case(source, "BraTS-GLI-00005-100")
    (case,) = find_cases([source])
    folder = tmp_path / "dataset"
    for part in ("imagesTr", "labelsTr", "partial"):
        (folder / part).mkdir(parents=True)
    entry = write_case(case, describe(), folder, folder / "partial", link=False)
    assert len(entry.files) == 5
    assert not any((folder / "partial").iterdir())


@pytest.fixture(scope="module")
def whole_case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, dict[str, tuple[Path, bytes]]]:
    """A case with a compressed and a plain channel, and their contents."""
    folder = brats_case(tmp_path_factory.mktemp("download"), "BraTS-GLI-00001-100", shape=(6, 7, 5), labels=(0,))
    plain = folder / "BraTS-GLI-00001-100-t1c.nii.gz"
    plain.write_bytes(gzip.decompress(plain.read_bytes()))
    (case,) = find_cases([folder.parent])
    kinds = {"compressed": case.channels["T1n"].path, "plain": plain}
    return case, {kind: (path, path.read_bytes()) for kind, path in kinds.items()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["compressed", "plain"]), start=st.floats(0, 1), count=st.integers(1, 40), inside=st.booleans()
)
def test_damaged_files_are_refused_or_checked_as_the_whole_ones(
    whole_case: tuple[Case, dict[str, tuple[Path, bytes]]], kind: str, start: float, count: int, inside: bool
) -> None:
    case, files = whole_case
    path, content = files[kind]
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    place = int(start * (len(content) - 1))
    path.write_bytes(content[:place] + (content[place + count :] if inside else b""))
    try:
        problems = check_case(case, describe()).problems
        if not problems:
            assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), image)
        assert all(path.name in problem for problem in problems)
    finally:
        path.write_bytes(content)
