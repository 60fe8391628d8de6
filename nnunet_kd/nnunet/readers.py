"""nnU-Net's readers of images and segmentations: found as nnU-Net finds them, and which library each reads with."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

Library = Literal["itk", "nibabel", "pictures"]
_LIBRARIES: tuple[tuple[Library, tuple[type[BaseReaderWriter], ...]], ...] = (
    ("itk", (SimpleITKIO,)),
    ("nibabel", (NibabelIO, NibabelIOWithReorient)),
    ("pictures", (NaturalImage2DIO,)),
)


def library_of(reader: BaseReaderWriter) -> Library | None:
    """What a reader reads with; ``None``: something else, such as a reader of the user's."""
    return next((library for library, kinds in _LIBRARIES if isinstance(reader, kinds)), None)


def orientation_of(reader: BaseReaderWriter) -> str | None:
    """To where a reader turns every image's axes, by their letters; ``None``: it leaves them as they are."""
    return "RAS" if isinstance(reader, (SimpleITKIOWithReorient, NibabelIOWithReorient)) else None


def reader_named(name: str) -> BaseReaderWriter:
    """The reader that a plan names.

    Raises:
        RuntimeError: nnU-Net has none of this name.
    """
    reader: BaseReaderWriter = recursive_find_reader_writer_by_name(name)()
    return reader


def reader_of_dataset(dataset_json: Mapping[str, Any], example: Path | None) -> BaseReaderWriter:
    """The reader that ``dataset.json`` names, else the first that is registered for its ending and opens ``example``.

    Raises:
        RuntimeError: there is none.
    """
    file = None if example is None else str(example)
    # it prints a traceback of every reader that does not open the example
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        kind = determine_reader_writer_from_dataset_json(dict(dataset_json), file, verbose=False)
    reader: BaseReaderWriter = kind()
    return reader
