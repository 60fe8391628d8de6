"""Which checkpoint a set of maps was made by, where it lies in an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.distillation.soft_labels import teachers
from nnunet_kd.distillation.soft_labels.description import SoftTeacher
from nnunet_kd.errors import MissingRequirement, ModelError


def test_a_full_disk_is_not_taken_for_an_archive_without_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "teacher.zip"
    archive.touch()
    errors = [ModelError("holds no such model"), MissingRequirement("No space left on device")]

    def refuse(*arguments: Any) -> Path:
        raise errors.pop(0)

    monkeypatch.setattr(teachers, "unpack_model", refuse)
    teacher = SoftTeacher.model_construct(fold=0, checkpoint="checkpoint_final.pth")
    assert teachers._digest_at(archive, teacher, "3d_fullres") is None
    with pytest.raises(MissingRequirement, match="No space left"):
        teachers._digest_at(archive, teacher, "3d_fullres")
