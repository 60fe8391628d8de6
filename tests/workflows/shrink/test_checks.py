"""What is wrong is said at once and by name, before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock

from nnunet_kd.errors import DataError, MissingRequirement, SettingsError
from nnunet_kd.workflows.bench.pair import DATASET_JSON
from nnunet_kd.workflows.shrink import checks
from nnunet_kd.workflows.shrink.dataset import split_cases
from nnunet_kd.workflows.shrink.images import look_at
from nnunet_kd.workflows.shrink.model import find_teacher
from nnunet_kd.workflows.shrink.request import Places, ShrinkRequest
from nnunet_kd.workflows.shrink.teacher import choose_mirroring, load_teacher
from tests.workflows.shrink.tiny_shrink import (
    LONG,
    SIZE,
    error_of,
    refused,
    shrink,
    tiny_plans,
    write_images,
    write_labels,
    write_model,
    zipped,
)

pytestmark = pytest.mark.usefixtures("nothing_computed")


def test_fewer_than_five_images(model: Path, tmp_path: Path) -> None:
    said = refused(DataError, model, write_images(tmp_path / "few", 4), tmp_path / "out")
    assert "holds 4 images (patient_0, patient_1, patient_2, patient_3), but at least 5 are needed" in said
    assert not (tmp_path / "out" / "work" / "state.json").exists()  # so that another line may follow


def test_images_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    whole = (images / "patient_3.nii.gz").read_bytes()
    (images / "patient_3.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert "patient_3.nii.gz is not whole" in refused(DataError, model, images, tmp_path / "out")
    (images / "patient_3.nii.gz").write_bytes(b"")
    assert "patient_3.nii.gz is empty" in refused(DataError, model, images, tmp_path / "out")


def test_another_number_of_channels(model: Path, tmp_path: Path) -> None:
    said = refused(DataError, model, write_images(tmp_path / "two", channels=2), tmp_path / "out")
    assert "case patient_0: patient_0_0001.nii.gz is one too many. The model takes the channels 0000 MRI." in said
    four = tmp_path / "four"
    four.mkdir()
    for number in range(5):
        image = sitk.GetImageFromArray(np.zeros((2, SIZE, SIZE, SIZE), np.float32), isVector=False)
        sitk.WriteImage(image, str(four / f"scan_{number}.nii.gz"))
    said = refused(DataError, model, four, tmp_path / "out")
    assert "case scan_0 has 2 channels, but the model takes 1 (MRI)" in said
    two = {**DATASET_JSON, "channel_names": {"0": "T1", "1": "T2"}}
    said = refused(DataError, write_model(tmp_path / "both", tiny_plans(channels=2), two), four, tmp_path / "out")
    assert "case scan_0: scan_0.nii.gz has 4 dimensions" in said  # of which nnU-Net writes no segmentation
    assert "Split it into one 3D file a channel, with the same ending: scan_0_0000 (T1), scan_0_0001 (T2)." in said


def test_folders_that_are_not_there_or_hold_no_images(model: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused(DataError, model, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    assert "holds no image that the model's reader (SimpleITKIO) takes" in refused(
        DataError, model, tmp_path / "texts", tmp_path / "out"
    )
    images = write_images(tmp_path / "images")
    (images / "patient_4.nii.gz").write_bytes(b"")  # told first: labels are looked for before images are read
    assert "--labels: the folder" in refused(
        DataError, model, images, tmp_path / "out", "--labels", tmp_path / "nowhere"
    )


def test_voxels_that_are_no_numbers(model: Path, tmp_path: Path) -> None:
    """ITK replaces them by zero without a word."""
    images = write_images(tmp_path / "images")
    path = str(images / "patient_3.nii.gz")
    array = sitk.GetArrayFromImage(sitk.ReadImage(path))
    array[0, 0, :2] = np.nan, np.inf
    sitk.WriteImage(sitk.GetImageFromArray(array), path)
    assert "case patient_3: 2 voxels NaN or infinite" in refused(DataError, model, images, tmp_path / "out")


def test_one_image_under_two_names(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    shutil.copy(images / "patient_2.nii.gz", images / "patient_2_0000.nii.gz")
    said = refused(DataError, model, images, tmp_path / "out")
    assert "patient_2.nii.gz and patient_2_0000.nii.gz may be the same image" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "objectives.nope.alpha=1"), "objectives.nope"),
        (("--set", "objectives.soft.alpha=7"), "objectives.soft.alpha"),
        (("--set", "objectives.soft.maps=x"), "--set objectives.soft.maps: shrink decides that itself"),
        (("--set", "objectives={soft: {allow_leak: false}}"), "--set objectives.soft.allow_leak: shrink decides"),
        (
            ("--set", "objectives.soft.source=live"),
            "--set objectives.soft.source: shrink decides that itself. Its soft labels are always stored",
        ),
        (("--set", "objectives={soft: {source: live}}"), "--set objectives.soft.source: shrink decides that itself"),
        (
            ("--set", "objectives.soft.alpha=0"),
            r"--set objectives.soft.alpha=0 leaves the teacher out, and labels alone teach nothing about 4 images without labels",
        ),
        (("--seed", "-1"), "--seed must be 0 or more, got -1"),
        (("--group-regex", "("), "--group-regex '(' is not a regular expression"),
        (("-r", "nan"), "-r must be a number above 1"),
        (("-r", "inf"), "-r must be a number above 1"),
    ],
)
def test_options_that_do_not_hold(options: tuple[str, str], said: str, model: Path, tmp_path: Path) -> None:
    """Before anything is written, so that the corrected line is a new one."""
    assert said in refused(SettingsError, model, write_images(tmp_path / "images"), tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_labels_alone_need_labels_of_all_images(model: Path, tmp_path: Path) -> None:
    images, alone = write_images(tmp_path / "images"), ("--set", "objectives.soft.alpha=0", "--labels")
    cases = [f"patient_{number}" for number in range(5)]
    held_out = split_cases(cases, None).held_out
    some, trained = write_labels(tmp_path / "some", cases[:2]), [case for case in cases if case not in held_out]
    said = refused(SettingsError, model, images, tmp_path / "out", *alone, some)
    assert "images without labels (patient_" in said
    assert "give labels of all images with --labels" in said
    enough = write_labels(tmp_path / "enough", trained)  # what is kept aside teaches nothing
    assert isinstance(shrink(model, images, tmp_path / "out", *alone, enough, *LONG).exception, AssertionError)


@pytest.mark.parametrize("minutes", ["nan", "inf", "0"])
def test_minutes_that_are_no_time(minutes: str, model: Path, tmp_path: Path) -> None:
    result = shrink(model, write_images(tmp_path / "images"), tmp_path / "out", "--minutes", minutes)
    assert isinstance(result.exception, SettingsError)
    assert "--minutes must be a number above 0" in error_of(result)


def test_nothing_is_left_of_what_was_refused(model: Path, tmp_path: Path) -> None:
    """Neither the unpacked model nor the lock; folders that were there stay."""
    few, there = write_images(tmp_path / "few", 4), tmp_path / "there"
    there.mkdir()
    for output in (tmp_path / "out", there):
        refused(DataError, zipped(model), few, output)
    assert not (tmp_path / "out").exists()
    assert list(there.iterdir()) == []


def test_two_files_of_one_case(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    sitk.WriteImage(sitk.ReadImage(str(images / "patient_0.nii.gz")), str(images / "patient_0.mha"))
    assert "has two files for case patient_0" in refused(DataError, model, images, tmp_path / "out")


def test_an_output_that_cannot_be_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images")
    (tmp_path / "file").touch()
    assert "is a file" in refused(DataError, model, images, tmp_path / "file")
    assert "cannot be written to" in refused(MissingRequirement, model, images, tmp_path / "file" / "out")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert "holds other things (thesis.tex)" in refused(DataError, model, images, other)

    def denied(self: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", denied)
    said = refused(MissingRequirement, model, images, tmp_path / "out")
    assert "cannot be written to: Permission denied. Choose another folder." in said


def test_an_output_in_which_another_process_works(model: Path, tmp_path: Path) -> None:
    images, output = write_images(tmp_path / "images"), tmp_path / "out"
    Places(output).work.mkdir(parents=True)
    with FileLock(Places(output).work / ".lock"):
        said = refused(DataError, model, images, output)
    assert f"another process works in OUT, {output}. Wait until it has ended" in said
    assert isinstance(shrink(model, images, output, *LONG).exception, AssertionError)  # free again, and begun
    assert isinstance(shrink(model, images, output, *LONG).exception, AssertionError)


def test_other_arguments_for_the_same_output(model: Path, tmp_path: Path) -> None:
    images, output = write_images(tmp_path / "images"), tmp_path / "out"
    assert isinstance(shrink(model, images, output, *LONG).exception, AssertionError)  # begun
    said = refused(DataError, model, images, output, "-r", "2")
    assert "was begun with other arguments (-r: was 4.0, now 2.0)" in said
    changed = images / "patient_4.nii.gz"
    content = changed.read_bytes()
    changed.write_bytes(content[:4] + b"\1\2\3\4" + content[8:])  # gzip's time
    said = refused(DataError, model, images, output)
    assert "patient_4.nii.gz" in said, "another file of the same name and size, too"
    changed.write_bytes(content)
    (images / "patient_0.nii.gz").rename(images / "other.nii.gz")
    said = refused(DataError, model, images, output)
    assert "the images have changed" in said
    assert "gone patient_0.nii.gz" in said
    assert "new other.nii.gz" in said


def test_not_enough_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "bytes_needed", lambda images, teacher: 10**18)
    said = refused(MissingRequirement, model, write_images(tmp_path / "images"), tmp_path / "out")
    assert "the work takes up to 953,674,316,406 MiB" in said


def test_labels_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    labels = write_labels(tmp_path / "labels", ["patient_0", "patient_1"], highest=5)
    said = refused(DataError, model, images, tmp_path / "out", "--labels", labels)
    assert "2 label files do not fit: patient_0.nii.gz holds 3, 4, 5" in said
    assert "has no segmentation of any image" in refused(
        DataError, model, images, tmp_path / "out", "--labels", write_labels(tmp_path / "others", ["x"])
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    image = sitk.GetImageFromArray(np.zeros((SIZE,) * 3, np.uint8))
    image.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(elsewhere / "patient_0.nii.gz"))
    said = refused(DataError, model, images, tmp_path / "out", "--labels", elsewhere)
    assert "patient_0.nii.gz and its image differ in spacing, [2.0, 2.0, 2.0] against [1.0, 1.0, 1.0]" in said
    small = tmp_path / "small"
    small.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 3, 3), np.uint8)), str(small / "patient_0.nii.gz"))
    said = refused(DataError, model, images, tmp_path / "out", "--labels", small)
    assert "patient_0.nii.gz has 3 x 3 x 3 voxels and its image 12 x 12 x 12" in said


def test_arguments_that_exclude_each_other(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    for arguments, said in (
        (("--minutes", "3"), "either --minutes or --iterations"),
        (("-r", "1"), "-r must be a number above 1"),
        (("--set", "epochs=3"), "--set epochs: shrink decides that itself"),
    ):
        assert said in refused(SettingsError, model, images, tmp_path / "out", *arguments)


def test_one_patient_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finds one patient only in 3 images"):
        split_cases(["a_1", "a_2", "a_3"], "^([a-z])")
    split = split_cases([f"{name}_{number}" for name in "abcde" for number in range(3)], "^([a-z])")
    assert len({case[0] for case in split.held_out}) == 1
    assert not {case[0] for case in split.held_out} & {case[0] for case in split.training}


def test_a_budget_that_the_teacher_alone_exceeds(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "choose_mirroring", lambda *_: (False, 3600.0))
    result = shrink(model, write_images(tmp_path / "images"), tmp_path / "out", "--minutes", "30")
    assert isinstance(result.exception, MissingRequirement)
    said = error_of(result)
    assert "--minutes 30: the teacher alone takes about 60.0 minutes for these images, without mirroring" in said
    assert "Give more minutes, fewer images, or a GPU." in said, "mirroring is off already"
    assert not (tmp_path / "out" / "work" / "state.json").exists()


def test_mirroring_is_given_up_for_a_budget(model: Path, tmp_path: Path) -> None:
    teacher = find_teacher(model, None, 4, False, Places(tmp_path / "out"))
    images = look_at(write_images(tmp_path / "images"), None, teacher, lambda done, total, what: None)

    def chosen(**more: Any) -> tuple[bool, float]:
        request = ShrinkRequest(model, tmp_path, tmp_path, **more)
        return choose_mirroring(request, teacher, images, load_teacher(request, teacher))

    assert chosen(iterations=5)[0]
    assert chosen(minutes=60)[0]
    assert not chosen(minutes=1e-6)[0]
    assert chosen(minutes=1e-6, mirroring=True)[0]
    assert not chosen(iterations=5, mirroring=False)[0]
