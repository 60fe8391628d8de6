"""Files are whole or not there, what killed processes leave behind goes, and errors say what they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.errors import MissingRequirement, SettingsError
from nnunet_kd.system.files import (
    check_output,
    check_output_file,
    folder_beside,
    remove_leftover_folders,
    write_atomically,
)


def test_folders_that_a_kill_left_behind(tmp_path: Path) -> None:
    others = {".git", ".obsidian", ".snapshot", ".settings", ".metadata"}
    for name in others:
        (tmp_path / name).mkdir()
    with folder_beside(tmp_path / "case.nii") as first, folder_beside(tmp_path / "case") as second:
        assert sorted(remove_leftover_folders(tmp_path)) == sorted([first, second])
        assert not first.exists()
    assert {path.name for path in tmp_path.iterdir()} == others


def test_only_the_disks_errors_are_told_as_such(tmp_path: Path) -> None:
    def fail(error: Exception) -> Any:
        def write(file: Any) -> None:
            file.write(b"half")
            raise error

        return write

    with pytest.raises(MissingRequirement, match="could not be written: No space left"):
        write_atomically(tmp_path / "a", fail(OSError("No space left")))
    with pytest.raises(RuntimeError, match="of the picture"):
        write_atomically(tmp_path / "a", fail(RuntimeError("of the picture")))
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output(tmp_path / "new" / "below")
    for place in ("file", "file/below"):
        with pytest.raises(MissingRequirement, match="file is no folder that can be written to"):
            check_output(tmp_path / place)


def test_an_output_file_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for fine in ("new", "file"):
        check_output_file(tmp_path / fine)
    for place, told in (("new/below", "does not exist"), ("file/below", "is a file"), (".", "is a folder")):
        with pytest.raises(SettingsError, match=f"--json .*{told}"):
            check_output_file(tmp_path / place, "--json")
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # as root, nothing is closed
    with pytest.raises(MissingRequirement, match=r"cannot be written to\. Give another place with --json"):
        check_output_file(tmp_path / "new", "--json")
