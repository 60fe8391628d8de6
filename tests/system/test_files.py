"""What killed processes leave behind."""

from __future__ import annotations

from pathlib import Path

from nnunet_kd.system.files import folder_beside, remove_leftover_folders


def test_folders_that_a_kill_left_behind(tmp_path: Path) -> None:
    kept = tmp_path / ".git"
    kept.mkdir()
    with folder_beside(tmp_path / "case.nii") as temporary:
        assert remove_leftover_folders(tmp_path) == [temporary]
        assert not temporary.exists()
    assert kept.is_dir()
