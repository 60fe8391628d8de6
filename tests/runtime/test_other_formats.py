"""Formats besides NIfTI are read and written as nnU-Net's readers do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.errors import DataError
from nnunet_kd_runtime.readers import read_case, write_segmentation
from tests.runtime.stock_readers import SHAPE, same_as_stock
from tests.volumes.formats import FORMATS, written


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".gipl"])
def test_other_formats_of_itk(ending: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray((np.random.default_rng(0).random(SHAPE) * 99).astype(np.int16))
    image.SetSpacing((0.7, 1.1, 2.5))
    image.SetOrigin((1, -2, 3))
    path = tmp_path / f"a_0000{ending}"
    sitk.WriteImage(image, str(path))
    same_as_stock("SimpleITKIO", [path], tmp_path, ending)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3)])
def test_pictures(ending: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    from skimage import io

    path = tmp_path / f"a_0000{ending}"
    io.imsave(path, (np.random.default_rng(0).random(shape) * 255).astype(np.uint8), check_contrast=False)
    volume = read_case("NaturalImage2DIO", ending, [path])
    stock = NaturalImage2DIO()
    expected, properties = stock.read_images([str(path)])
    assert np.array_equal(volume.array, expected)
    assert volume.properties == properties
    labels = (np.random.default_rng(0).random((1, 9, 8)) * 3).astype(np.uint8)
    write_segmentation("NaturalImage2DIO", ending, labels, tmp_path / f"mine{ending}", volume.properties)
    assert np.array_equal(io.imread(tmp_path / f"mine{ending}"), labels[0])


@pytest.mark.parametrize("shape", [(3, 9, 8), (4, 9, 8), (3, 9, 3)])
def test_colours_that_are_stored_plane_by_plane(shape: tuple[int, ...], tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "a_0000.tif"
    tifffile.imwrite(path, (np.random.default_rng(0).random(shape) * 255).astype(np.uint8))
    assert np.array_equal(
        read_case("NaturalImage2DIO", ".tif", [path]).array, NaturalImage2DIO().read_images([str(path)])[0]
    )


@pytest.mark.parametrize("spacing", [None, [3, 0.5, 0.5]])
def test_tiff(spacing: list[float] | None, tmp_path: Path) -> None:
    import json

    import tifffile

    path = tmp_path / "a_0000.tif"
    tifffile.imwrite(path, (np.random.default_rng(0).random(SHAPE) * 255).astype(np.uint8))
    if spacing:
        (tmp_path / "a.json").write_text(json.dumps({"spacing": spacing}))
    volume = read_case("Tiff3DIO", ".tif", [path])
    expected, properties = Tiff3DIO().read_images([str(path)])
    assert np.array_equal(volume.array, expected)
    assert list(volume.properties["spacing"]) == list(properties["spacing"])
    labels = (np.random.default_rng(0).random(SHAPE) * 3).astype(np.uint8)
    write_segmentation("Tiff3DIO", ".tif", labels, tmp_path / "mine.tif", volume.properties)
    Tiff3DIO().write_seg(labels, str(tmp_path / "theirs.tif"), properties)
    assert np.array_equal(tifffile.imread(tmp_path / "mine.tif"), tifffile.imread(tmp_path / "theirs.tif"))
    assert json.loads((tmp_path / "mine.json").read_text()) == json.loads((tmp_path / "theirs.json").read_text())


@pytest.mark.parametrize("name", ["gipl", "tiff, page by page", "tiff, big", "png", "png, noise", "nifti", "mha"])
def test_a_file_cut_short_is_refused_or_read_as_the_whole_one(name: str, tmp_path: Path) -> None:
    name = {"mha": "meta image"}.get(name, name)
    path, stock = written(name, tmp_path, "a_0000"), type(FORMATS[name][1]).__name__
    ending, content = FORMATS[name][0], path.read_bytes()
    if stock == "SimpleITKIO" and ending == ".nii":
        stock = "NibabelIO"  # nnU-Net's for this ending
    expected = read_case(stock, ending, [path]).array
    cuts = [content[:end] for end in range(0, len(content), max(1, len(content) // 40))]
    cuts += [content[:-1], content[:100] + content[110:]] if ending == ".png" else [content[:-1]]
    refused = 0
    for cut in cuts:
        path.write_bytes(cut)
        try:
            assert np.array_equal(read_case(stock, ending, [path]).array, expected)
        except DataError:
            refused += 1
    assert refused > len(cuts) / 2


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from nnunet_kd_runtime.errors import MissingRequirement

    for module, reader, ending, extra in (
        ("SimpleITK", "SimpleITKIO", ".mha", "itk"),
        ("imageio.v3", "NaturalImage2DIO", ".png", "images"),
        ("tifffile", "Tiff3DIO", ".tif", "images"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        path = tmp_path / f"a_0000{ending}"
        path.write_bytes(b"")
        with pytest.raises(MissingRequirement, match=rf"pip install 'nnunet-kd-runtime\[{extra}\]'"):
            read_case(reader, ending, [path])
