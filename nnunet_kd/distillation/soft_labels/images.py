"""Which image a map was made of, so that a map of other data is noticed though plan and shape are the same.

Beside every map lies a record of the preprocessed image's file: size, time of change and a hash of its values. While size and
time are the same, nothing is read. If they are not, the values decide: a copied dataset, or one that was preprocessed again
from the same images, keeps its maps.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nnunet_kd.errors import MissingRequirement
from nnunet_kd.nnunet.datasets import Dataset, case_shape, image_file
from nnunet_kd.system.files import write_atomically


@dataclass(frozen=True)
class ImageRecord:
    """What is known of an image: bytes of its file, its time of change in nanoseconds, and SHA-256 of its values."""

    size: int
    modified: int
    content: str


@dataclass(frozen=True)
class PreprocessedImage:
    """The image of a preprocessed case on disk.

    Attributes:
        dataset: nnU-Net's, of the folder that the case lies in.
        case: its name.
    """

    dataset: Dataset
    case: str

    @property
    def shape(self) -> tuple[int, ...]:
        """``(channels, *spatial)``."""
        return case_shape(self.dataset, self.case)

    def status(self) -> tuple[int, int]:
        """Bytes of the file, and its time of change in nanoseconds."""
        status = image_file(Path(self.dataset.source_folder), self.case).stat()
        return status.st_size, status.st_mtime_ns

    def record(self) -> ImageRecord:
        """Of the image as it is now; its values are read."""
        status = self.status()  # first: what is written meanwhile has another time
        return ImageRecord(*status, content_of(np.asarray(self.dataset.load_case(self.case)[0][:])))

    def is_that_of(self, folder: Path) -> bool:
        """Whether the map in a set's folder was made of this image. Maps of older versions, without a record, are believed.

        Where the values had to be read, the record is brought up to date, so that the next time is quick.
        """
        known = _read(folder, self.case)
        if known is None or (known.size, known.modified) == self.status():
            return True
        now = self.record()
        if now.content != known.content:
            return False
        with contextlib.suppress(MissingRequirement):  # a set may lie where it cannot be written to
            write_record(folder, self.case, now)
        return True


def content_of(values: np.ndarray) -> str:
    """SHA-256 of an array: its type, shape and values."""
    whole = np.ascontiguousarray(values)
    digest = hashlib.sha256(f"{whole.dtype.str} {whole.shape}".encode())
    digest.update(whole.data.cast("B") if whole.size else b"")
    return digest.hexdigest()


def record_path(folder: Path, case: str) -> Path:
    """Where the record beside a case's map lies."""
    return folder / f"{case}.image.json"


def write_record(folder: Path, case: str, record: ImageRecord) -> None:
    """Store what a case's map is made of; a record that is there and says the same stays.

    Raises:
        MissingRequirement: the disk refused.
    """
    if _read(folder, case) != record:
        text = json.dumps(asdict(record)).encode()
        write_atomically(record_path(folder, case), lambda file: file.write(text))


def _read(folder: Path, case: str) -> ImageRecord | None:
    try:
        content = json.loads(record_path(folder, case).read_text(encoding="utf-8"))
        return ImageRecord(int(content["size"]), int(content["modified"]), str(content["content"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return ImageRecord(-1, -1, "")  # fits nothing
