"""What every converter shares: running again, linking, dry runs, the folders it refuses."""

from __future__ import annotations

import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_kd.datasets import conversion
from nnunet_kd.datasets.brats2024 import convert_brats2024, describe, find_cases
from nnunet_kd.datasets.case import Case, ConversionOptions
from nnunet_kd.datasets.checks import check_case
from nnunet_kd.datasets.isles2022 import convert_isles2022
from nnunet_kd.datasets.writing import JOURNAL, Journal, WrittenCase, write_case
from nnunet_kd.errors import DataError
from tests.datasets.generated_downloads import brats_case, edit, isles_case, tree_hash

ONE = ConversionOptions(processes=1)


def download(source: Path, patients: int = 5) -> Path:
    for patient in range(patients):
        brats_case(source, f"BraTS-GLI-{patient:05d}-100")
    return source


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


def test_a_failure_in_the_middle_leaves_no_half_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)
    real, written = os.replace, []

    def full_disk(old: Path, new: Path) -> None:
        if len(written) == 12:  # in the middle of the third case
            raise OSError(28, "No space left on device")
        written.append(new)
        real(old, new)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(DataError, match=r"BraTS-GLI-00002-100 could not be written .*No space left"):
        convert_brats2024([source], options=ONE)
    monkeypatch.setattr(os, "replace", real)
    summary = convert_brats2024([source], options=ONE)
    assert summary.kept == 2
    assert not [path for path in summary.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_killed_and_run_again(source: Path, nnunet: Path) -> None:
    """A conversion that is killed outright, then run to its end: the result is that of an undisturbed one."""
    for patient in range(5):
        isles_case(source, f"sub-strokecase{patient:04d}", dwi_shape=(40, 40, 30), flair_shape=(180, 180, 12))
    code = (
        "from nnunet_kd.datasets.isles2022 import convert_isles2022; from nnunet_kd.datasets.case import ConversionOptions; "
        f"convert_isles2022([{str(source)!r}], grid='flair', options=ConversionOptions(processes=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    folder = nnunet / "Dataset502_ISLES2022"
    while process.poll() is None and len(list((folder / "labelsTr").glob("*"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "dataset.json").exists()
    summary = convert_isles2022([source], grid="flair", options=ONE)
    assert 0 < summary.kept < 5
    content = {path.name: path.read_bytes() for part in ("imagesTr", "labelsTr") for path in (folder / part).iterdir()}
    again = convert_isles2022([source], grid="flair", dataset_id=503, options=ONE).folder
    assert content == {
        path.name: path.read_bytes() for part in ("imagesTr", "labelsTr") for path in (again / part).iterdir()
    }


def test_a_torn_line_in_the_journal_costs_one_case(source: Path) -> None:
    download(source)
    folder = convert_brats2024([source], options=ONE).folder
    journal = folder / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-40])
    assert convert_brats2024([source], options=ONE).kept == 4
    assert convert_brats2024([source], options=ONE).kept == 5


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


def test_target_inside_a_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)
    monkeypatch.setenv("nnUNet_raw", str(source / "raw"))
    with pytest.raises(DataError, match="nothing may be written into a source"):
        convert_brats2024([source], options=ONE)
    assert not (source / "raw").exists()


def test_splits_inside_a_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)
    before = tree_hash(source)
    monkeypatch.setenv("nnUNet_preprocessed", str(source / "preprocessed"))
    with pytest.raises(DataError, match="nothing may be written into a source"):
        convert_brats2024([source], options=ONE)
    assert tree_hash(source) == before


def test_images_folder_that_is_a_link_into_the_source(source: Path, nnunet: Path) -> None:
    download(source)
    folder = nnunet / "Dataset501_BraTS2024"
    folder.mkdir()
    (folder / JOURNAL).touch()
    (folder / "imagesTr").symlink_to(source)
    with pytest.raises(DataError, match="nothing may be written into a source"):
        convert_brats2024([source], options=ONE)


def test_folder_of_somebody_else_is_left_alone(source: Path, nnunet: Path) -> None:
    download(source)
    theirs = nnunet / "Dataset501_BraTS2024/labelsTr/BraTS-GLI-00001-100.nii.gz"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"edited by hand")
    with pytest.raises(DataError, match="was not made by this command"):
        convert_brats2024([source], options=ONE)
    assert theirs.read_bytes() == b"edited by hand"


@pytest.mark.parametrize("place", ["raw", "preprocessed", "results"])
def test_taken_id(source: Path, nnunet: Path, place: str) -> None:
    download(source)
    (nnunet.parent / place / "Dataset501_Other").mkdir()
    with pytest.raises(DataError, match="Dataset id 501 is taken by Dataset501_Other"):
        convert_brats2024([source], options=ONE)
    assert convert_brats2024([source], dataset_id=600, options=ONE).folder.name == "Dataset600_BraTS2024"


def test_cases_of_an_earlier_conversion_are_not_mixed_in(source: Path) -> None:
    first, second = download(source / "a"), source / "b"
    brats_case(second, "BraTS-GLI-00100-100")
    convert_brats2024([first, second], options=ONE)
    with pytest.raises(DataError, match=r"5 files that do not belong .*BraTS-GLI-00100-100"):
        convert_brats2024([first], options=ONE)


def test_other_splits_stop_before_anything_is_written(source: Path, nnunet: Path) -> None:
    download(source)
    splits = nnunet.parent / "preprocessed/Dataset501_BraTS2024/splits_final.json"
    splits.parent.mkdir()
    splits.write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    with pytest.raises(DataError, match="hold\\(s\\) other splits"):
        convert_brats2024([source], options=ONE)
    assert json.loads(splits.read_text()) == [{"train": ["a"], "val": ["b"]}]
    assert not any(nnunet.iterdir())


def test_full_disk_is_found_before_copying(source: Path, nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)
    monkeypatch.setattr(conversion, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(DataError, match="--link"):
        convert_brats2024([source], options=ONE)
    assert not (nnunet / "Dataset501_BraTS2024/imagesTr").exists()


@pytest.mark.parametrize("how", ["cut short", "voxels missing"])
def test_simpleitk_that_writes_half_a_file_without_an_error(
    source: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What it does on a full disk: resampled images must not count as finished."""
    for number in range(5):
        isles_case(source, f"sub-strokecase000{number}")
    real = sitk.WriteImage

    def full_disk(image: sitk.Image, path: str, compress: bool) -> None:
        real(image, path, compress)
        content = Path(path).read_bytes()
        half = content[: len(content) // 2]
        Path(path).write_bytes(half if how == "cut short" else gzip.compress(gzip.decompress(content)[:-1000]))

    monkeypatch.setattr(sitk, "WriteImage", full_disk)
    with pytest.raises(
        DataError,
        match=r"sub-strokecase0000_ses-0001 could not be written .* after writing.* GB free",
    ):
        convert_isles2022([source], options=ONE)
    monkeypatch.setattr(sitk, "WriteImage", real)
    summary = convert_isles2022([source], options=ONE)
    assert summary.kept == 0
    for path in (summary.folder / "imagesTr").iterdir():
        gzip.decompress(path.read_bytes())


def test_record_that_cannot_be_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)

    def full_disk(self: Journal, entry: WrittenCase) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "add", full_disk)
    with pytest.raises(DataError, match=r"cannot be written: .*No space left on device"):
        convert_brats2024([source], options=ONE)


@pytest.mark.slow
def test_interrupted_by_ctrl_c(source: Path, nnunet: Path) -> None:
    """As in a terminal: the signal goes to the command and to its workers. No traceback, and the next run goes on."""
    for patient in range(8):
        isles_case(source, f"sub-strokecase{patient:04d}", flair_shape=(320, 320, 28))
    code = "from nnunet_kd.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", "isles2022", str(source), "--grid", "flair", "-np", "2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # shells start background jobs with the signal ignored, which children inherit: the tests may be one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = nnunet / "Dataset502_ISLES2022"
    while process.poll() is None and len(list((folder / "imagesTr").glob("*"))) < 2:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "Interrupted. Finished cases are kept" in printed
    assert not (folder / "dataset.json").exists()
    assert not list(folder.glob(".partial-*"))
    assert len(convert_isles2022([source], grid="flair", options=ONE).training) == 8


@pytest.mark.slow
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
