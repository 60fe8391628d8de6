"""One small image and segmentation in every format that nnU-Net registers, and in the ways in which other programs write them."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io as pictures

SHAPE = (5, 6, 7)  # scikit-image takes a TIFF of three or four pages for a picture in colours
LABELS = (np.indices(SHAPE).sum(0) % 3).astype(np.uint8)
Write = Callable[[Path], object]


def itk(compressed: bool) -> Write:
    def write(path: Path) -> None:
        image = sitk.GetImageFromArray(LABELS)
        image.SetSpacing((1.0, 2.0, 3.0))
        sitk.WriteImage(image, str(path), compressed)

    return write


def nifti_2(path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(LABELS.transpose(2, 1, 0), np.diag([1.0, 2.0, 3.0, 1.0])), path)


def plain_nifti(path: Path) -> None:
    """Without compression, whatever the name says."""
    itk(False)(path.with_name("plain.nii"))
    path.with_name("plain.nii").rename(path)


def tiff(path: Path, **options: object) -> None:
    tifffile.imwrite(path, LABELS, photometric="minisblack", **options)
    path.with_name(path.name.removesuffix(".tif") + ".json").write_text(json.dumps({"spacing": [3.0, 2.0, 1.0]}))


def tiff_page_by_page(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        for plane in LABELS:
            file.write(plane, contiguous=False, metadata=None)


def picture(path: Path) -> None:
    pictures.imsave(path, LABELS[0], check_contrast=False)


def noise(path: Path) -> None:
    """Hardly compressible, so that the pixels take more than a few bytes."""
    pixels = np.random.default_rng(0).integers(0, 3, (40, 40)).astype(np.uint8)
    pictures.imsave(path, pixels, check_contrast=False)


FORMATS: dict[str, tuple[str, BaseReaderWriter, Write]] = {
    "nifti, compressed": (".nii.gz", SimpleITKIO(), itk(True)),
    "nifti, named compressed": (".nii.gz", SimpleITKIO(), plain_nifti),
    "nifti": (".nii", SimpleITKIO(), itk(False)),
    "nifti 2": (".nii.gz", NibabelIO(), nifti_2),
    "nifti, compressed, nibabel": (".nii.gz", NibabelIO(), itk(True)),
    "nifti, nibabel": (".nii", NibabelIO(), itk(False)),
    "nifti, nibabel, reoriented": (".nii.gz", NibabelIOWithReorient(), itk(True)),
    "nrrd": (".nrrd", SimpleITKIO(), itk(False)),
    "nrrd, compressed": (".nrrd", SimpleITKIO(), itk(True)),
    "meta image": (".mha", SimpleITKIO(), itk(False)),
    "meta image, compressed": (".mha", SimpleITKIO(), itk(True)),
    "gipl": (".gipl", SimpleITKIO(), itk(False)),
    "tiff": (".tif", Tiff3DIO(), tiff),
    "tiff, compressed": (".tif", Tiff3DIO(), lambda path: tiff(path, compression="zlib")),
    "tiff, page by page": (".tif", Tiff3DIO(), tiff_page_by_page),
    "tiff, big": (".tif", Tiff3DIO(), lambda path: tiff(path, bigtiff=True)),
    "tiff, imagej": (".tif", Tiff3DIO(), lambda path: tiff(path, imagej=True)),
    "png": (".png", NaturalImage2DIO(), picture),
    "png, noise": (".png", NaturalImage2DIO(), noise),
    "bmp": (".bmp", NaturalImage2DIO(), picture),
    "tiff, picture": (".tif", NaturalImage2DIO(), picture),
}
"""Ending, reader and writer by what it is."""
SILENT = {"nifti, compressed": 3, "nifti": 40, "gipl": 40, "tiff, page by page": 2, "png": 1}
"""Formats that nnU-Net's readers read as something else, without a word, if certain bytes are missing; and in steps of how many
bytes :func:`silent_damage` looks for them."""
CUT_INSIDE = [name for name in FORMATS if "nifti" in name or "png" in name]
"""Formats in which bytes that are missing in the middle are found, too."""


@cache
def silent_damage(name: str) -> tuple[bytes, ...]:
    """Contents of a format's file of :data:`SILENT` with bytes missing that nnU-Net's own reader takes for another image."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path, reader = written(name, Path(folder)), FORMATS[name][1]
        content, (whole, _) = path.read_bytes(), reader.read_seg(str(path))
        places = range(1, len(content) - 3, SILENT[name])
        cuts = [content[:place] for place in places]
        if name in CUT_INSIDE:
            cuts += [content[:place] + content[place + count :] for place in places for count in (1, 3)]
        found = []
        for cut in cuts:
            path.write_bytes(cut)
            with contextlib.suppress(Exception):  # the library says something
                array, _ = reader.read_seg(str(path))
                if array.shape != whole.shape or not np.array_equal(array, whole):
                    found.append(cut)
    assert found, f"{name}: the library notices everything by now"
    return tuple(found)


def written(name: str, folder: Path, case: str = "case") -> Path:
    """A file of a format: ``case`` with its ending."""
    ending, _, write = FORMATS[name]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"{case}{ending}")
    return folder / f"{case}{ending}"
