"""Archives of models that cannot be unpacked: what is wrong is said, whatever the zip library makes of it."""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.errors import MissingRequirement, ModelError
from nnunet_kd.models.archive import unpack_model


def write(path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
            archive.writestr(f"model/{name}", bytes(range(256)) * 40)
    return path


def change_headers(path: Path, offset: int, value: int) -> None:
    """A field of two bytes in every file's header, and in the directory, where it lies two bytes further back."""
    content = bytearray(path.read_bytes())
    for signature, further in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        place = content.find(signature)
        while place >= 0:
            struct.pack_into("<H", content, place + offset + further, value)
            place = content.find(signature, place + 4)
    path.write_bytes(content)


def test_whole(tmp_path: Path) -> None:
    assert sorted(path.name for path in unpack_model(write(tmp_path / "a.zip"), tmp_path).iterdir()) == [
        "dataset.json", "fold_0", "plans.json",
    ]  # fmt: skip


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED])
def test_damaged_data(compression: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", compression)
    content = bytearray(path.read_bytes())
    start = 30 + len("model/plans.json")  # of the first file's data
    content[start + 9 : start + 40] = b"\xff" * 31
    path.write_bytes(content)
    with pytest.raises(
        ModelError, match=r"a\.zip is not a complete zip archive \([0-9]+ bytes, .+\)\. Compare its size"
    ):
        unpack_model(path, tmp_path / "out")


@pytest.mark.parametrize(("offset", "value", "said"), [(6, 1, "is encrypted"), (8, 97, "compression method")])
def test_kinds_that_cannot_be_read(offset: int, value: int, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    change_headers(path, offset, value)
    with pytest.raises(ModelError, match=rf"a\.zip cannot be unpacked: .*{said}.* Unpack it with another program"):
        unpack_model(path, tmp_path / "out")


def test_a_full_disk_is_no_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(MissingRequirement, match=r"could not be unpacked to .*: No space left on device\. The disk of"):
        unpack_model(write(tmp_path / "a.zip"), tmp_path)
