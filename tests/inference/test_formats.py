"""Every format that nnU-Net reads and writes, from images to segmentations, as stock nnU-Net does.

What stock takes and we refuse is in tests/test_refused_inputs.py.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from torch import nn

from nnunet_kd.errors import DataError
from nnunet_kd.inference.cases import InputCase, check_headers, find_cases
from nnunet_kd.inference.predictor import CasePredictor
from tests.conftest import make_plans
from tests.volumes.formats import CUT_INSIDE, FORMATS, SILENT, silent_damage, written
from tests.volumes.test_reading import sheared

CPU = torch.device("cpu")


class Threshold(nn.Module):
    """A network of two classes without weights: bright voxels, by the first channel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(batch, 2, *patch)``."""
        return torch.stack([-image[:, 0], image[:, 0]], 1)


def initialised(predictor: Any, reader: str, ending: str, channels: int = 1) -> Any:
    """One of nnU-Net's predictors, or ours, with :class:`Threshold` and a plan that names a reader."""
    dimensions = 2 if ending == ".png" or reader == "NaturalImage2DIO" else 3
    plans = make_plans(channels=channels, dimensions=dimensions, patch=(8, 8, 8)) | {"image_reader_writer": reader}
    plans["foreground_intensity_properties_per_channel"] = {str(number): {} for number in range(channels)}
    dataset_json = {
        "channel_names": {str(number): f"C{number}" for number in range(channels)},
        "labels": {"background": 0, "bright": 1},
        "file_ending": ending,
    }
    manager = PlansManager(plans)
    (name,) = plans["configurations"]
    configuration = manager.get_configuration(name)
    predictor.manual_initialization(Threshold(), manager, configuration, [{}], dataset_json, "nnUNetTrainer", None)
    return predictor


def ours(reader: str, ending: str, channels: int = 1) -> CasePredictor:
    return initialised(CasePredictor(CPU, use_mirroring=False), reader, ending, channels)


def by_stock(images: list[Path], output: Path, reader: str, ending: str, channels: int = 1) -> Path:
    """What nnU-Net itself writes of one case, in this process."""
    output.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()):
        stock = initialised(
            nnUNetPredictor(use_mirroring=False, device=CPU, allow_tqdm=False), reader, ending, channels
        )
        stock.predict_from_files_sequential([[str(path) for path in images]], [str(output / "case")])
    return output


def by_us(inputs: Path, output: Path, reader: str, ending: str, channels: int = 1) -> Path:
    """The same with everything that ``predict`` checks before."""
    predictor = ours(reader, ending, channels)
    cases = find_cases([inputs], output, predictor.dataset_json)
    for case in cases:
        check_headers(case, list(predictor.dataset_json["channel_names"].values()), predictor.reader)
    for _ in predictor.predict_cases(cases):
        pass
    return output


def images_of(name: str, folder: Path) -> Path:
    """A folder with one case ``case_0000`` of a format, and what the format has beside it."""
    path = written(name, folder)
    path.rename(folder / f"case_0000{FORMATS[name][0]}")
    return folder


WHOLE = [name for name in FORMATS if "reoriented" not in name]


@pytest.mark.parametrize("name", WHOLE)
def test_all_files_are_written_as_stock_writes_them(name: str, tmp_path: Path) -> None:
    ending, reader = FORMATS[name][0], type(FORMATS[name][1]).__name__
    inputs = images_of(name, tmp_path / "in")
    stock = by_stock([inputs / f"case_0000{ending}"], tmp_path / "stock", reader, ending)
    found = by_us(inputs, tmp_path / "ours", reader, ending)
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in stock.glob("case*")
    }
    assert (found / f"case{ending}").is_file()
    assert (found / "case.json").is_file() == (reader == "Tiff3DIO")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_sheared_images_are_read_by_the_plans_reader(ending: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = sheared(tmp_path / "in" / f"case_0000{ending}")
    stock = by_stock([path], tmp_path / "stock", "NibabelIO", ending) / f"case{ending}"
    found = by_us(tmp_path / "in", tmp_path / "ours", "NibabelIO", ending) / f"case{ending}"
    pair = [nibabel.load(file) for file in (stock, found)]
    assert np.array_equal(*[np.asanyarray(image.dataobj) for image in pair])
    assert np.array_equal(*[image.affine for image in pair])
    with pytest.raises(DataError, match="cannot be read"):
        by_us(tmp_path / "in", tmp_path / "itk", "SimpleITKIO", ending)


def test_a_picture_with_transparency_is_told_by_its_channels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14, 4)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "q_0000.png")
    message = r"q has 4 channels, but the model takes 3 \(C0, C1, C2\): q_0000\.png holds 4\..*save it as RGB"
    with pytest.raises(DataError, match=message):
        by_us(tmp_path / "in", tmp_path / "out", "NaturalImage2DIO", ".png", 3)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "in" / "q_0000.png")
    assert (by_us(tmp_path / "in", tmp_path / "out", "NaturalImage2DIO", ".png", 3) / "q.png").is_file()


def test_voxels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """nibabel keeps them, and the network would find nothing anywhere; ITK puts zeros in their place."""
    values = np.ones((8, 8, 8), np.float32)
    values[0, 0, :3] = np.nan
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "in" / "case_0000.nii.gz")
    with pytest.raises(DataError, match=r"case case \(case_0000\.nii\.gz\): 3 voxels NaN or infinite\. Replace them"):
        by_us(tmp_path / "in", tmp_path / "out", "NibabelIO", ".nii.gz")
    assert not list((tmp_path / "out").glob("*"))
    assert (by_us(tmp_path / "in", tmp_path / "itk", "SimpleITKIO", ".nii.gz") / "case.nii.gz").is_file()


# damage -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[CasePredictor, InputCase, bytes, Any]]:
    """Every format's case, its file's content, and what the network is given of it."""
    found = {}
    for name, (ending, reader, _) in FORMATS.items():
        folder = images_of(name, tmp_path_factory.mktemp("format"))
        predictor = ours(type(reader).__name__, ending)
        (case,) = find_cases([folder], folder / "out", predictor.dataset_json)
        found[name] = (predictor, case, case.images[0].read_bytes(), predictor.preprocess(case))
    return found


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(FORMATS)), start=st.floats(0, 1), count=st.integers(1, 40), inside=st.booleans(),
)  # fmt: skip
def test_damaged_images_are_refused_or_predicted_as_the_whole_ones(
    whole_files: dict[str, Any], name: str, start: float, count: int, inside: bool
) -> None:
    predictor, case, content, whole = whole_files[name]
    place = int(start * (len(content) - 1))
    kept = content[place + count :] if inside and name in CUT_INSIDE else b""
    case.images[0].write_bytes(content[:place] + kept)
    try:
        item = predictor.preprocess(case)
    except DataError as error:
        assert "case" in str(error)  # noqa: PT017
        return
    finally:
        case.images[0].write_bytes(content)
    assert torch.equal(item["data"], whole["data"])
    assert json.dumps(item["data_properties"], default=str) == json.dumps(whole["data_properties"], default=str)


@pytest.mark.parametrize("name", SILENT)
def test_damage_that_the_library_does_not_see_is_refused(whole_files: dict[str, Any], name: str) -> None:
    predictor, case, content, _ = whole_files[name]
    damages = silent_damage(name)
    for damaged in damages[:: max(1, len(damages) // 5)]:
        case.images[0].write_bytes(damaged)
        with pytest.raises(DataError, match=case.images[0].name):
            predictor.preprocess(case)
    case.images[0].write_bytes(content)
