"""Class maps on the disk: with their place there, beside the output, and with a message where it is full."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.errors import MissingRequirement, SettingsError
from nnunet_kd_runtime.memory import GIB, Budget

TIGHT = 1000 / GIB
SHAPE = (3, 64, 64, 64)
BYTES = 2 * 3 * 64**3


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Folder and bytes on the disk of every temporary file, when an array of it is made."""
    seen: list[tuple[str, int]] = []
    memmap, temporary = np.memmap, tempfile.TemporaryFile
    folders: list[str] = []

    def open_file(dir: Any) -> Any:
        folders.append(str(dir))
        return temporary(dir=dir)

    def look(file: Any, **given: Any) -> Any:
        seen.append((folders[-1], os.fstat(file.fileno()).st_blocks * 512))
        return memmap(file, **given)

    monkeypatch.setattr(tempfile, "TemporaryFile", open_file)
    monkeypatch.setattr(np, "memmap", look)
    return seen


@pytest.mark.parametrize("way", ["posix_fallocate", "not supported", "not there"])
def test_the_place_is_taken(
    way: str, files: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "not there":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif way == "not supported":
        monkeypatch.setattr(os, "posix_fallocate", _failing(errno.EOPNOTSUPP), raising=False)
    output = tmp_path / "not" / "yet"
    made = Budget(TIGHT).beside(output).zeros(SHAPE, np.float16, 0)
    assert not made.any()
    made[...] = 1
    assert files[0][0] == str(tmp_path)
    assert files[0][1] >= BYTES  # a sparse file has none
    assert list(tmp_path.iterdir()) == []


def test_in_the_output_folder_or_the_systems(files: list[tuple[str, int]], tmp_path: Path) -> None:
    Budget(TIGHT).beside(tmp_path).zeros(SHAPE, np.float16, 0)
    Budget(TIGHT).zeros(SHAPE, np.float16, 0)
    assert [folder for folder, _ in files] == [str(tmp_path), tempfile.gettempdir()]


@pytest.mark.parametrize("given", [TIGHT, None])
def test_a_full_disk_is_told(given: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_kd_runtime.memory.available", lambda: 1000)
    monkeypatch.setattr(os, "posix_fallocate", _failing(errno.ENOSPC), raising=False)
    with pytest.raises(
        MissingRequirement, match=f"{BYTES} bytes of class maps do not fit into memory, and not"
    ) as told:
        Budget(given).beside(tmp_path).zeros(SHAPE, np.float16, 0)
    assert str(tmp_path) in str(told.value)
    assert ("--memory" in str(told.value)) == (given is not None)


@pytest.mark.parametrize("given", [0, -1, np.nan, np.inf, 1e308, "x"])
def test_limits_that_are_none(given: Any) -> None:
    with pytest.raises(SettingsError, match="memory must be a positive number of GiB"):
        Budget(given)


def _failing(number: int) -> Any:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail
