"""Put what one of nnU-Net's writers has written in its place, whatever files the format consists of."""

from __future__ import annotations

from pathlib import Path


def move_all(source: Path, target: Path, last: str) -> None:
    """Move every file of a folder into another one of the same disk, replacing files of the same names.

    A segmentation in 3D TIFF, for example, has its spacing in a JSON file beside it.

    Args:
        source: holds files only.
        target: exists.
        last: name of the file that is moved last, because its presence means that all are there.
    """
    for path in sorted(source.iterdir(), key=lambda path: (path.name == last, path.name)):
        path.replace(target / path.name)
