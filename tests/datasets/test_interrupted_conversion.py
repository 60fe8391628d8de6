"""Conversions that are stopped half way: nothing half is left, and the next run goes on."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunet_kd.datasets.brats2024 import convert_brats2024
from nnunet_kd.datasets.isles2022 import convert_isles2022
from nnunet_kd.datasets.writing import JOURNAL, Journal, WrittenCase
from nnunet_kd.errors import MissingRequirement
from tests.datasets.generated_downloads import ONE, download, isles_case


def test_a_failure_in_the_middle_leaves_no_half_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)
    real, written = os.replace, []

    def full_disk(old: Path, new: Path) -> None:
        if len(written) == 12:  # in the middle of the third case
            raise OSError(28, "No space left on device")
        written.append(new)
        real(old, new)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(MissingRequirement, match=r"BraTS-GLI-00002-100 could not be written .*No space left"):
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
        MissingRequirement, match=r"sub-strokecase0000_ses-0001 could not be written .* after writing.* GB free"
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
    with pytest.raises(MissingRequirement, match=r"cannot be written: .*No space left on device"):
        convert_brats2024([source], options=ONE)


@pytest.mark.slow
@pytest.mark.nightly
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
