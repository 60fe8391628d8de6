"""A user's ``--set`` adds to what shrink decides, and takes nothing of it away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.distillation.settings_sources import parse_assignments
from nnunet_kd.errors import SettingsError
from nnunet_kd.workflows.shrink.model import find_teacher
from nnunet_kd.workflows.shrink.request import Places, ShrinkRequest
from nnunet_kd.workflows.shrink.training import assignments
from tests.workflows.shrink.tiny_shrink import write_model


@pytest.mark.parametrize("given", ["objectives.soft={alpha: 0.7}", "objectives={soft: {alpha: 0.7}}"])
@pytest.mark.parametrize("labelled", [True, False])
def test_mappings_keep_what_shrink_decides(given: str, labelled: bool, tmp_path: Path) -> None:
    teacher = find_teacher(write_model(tmp_path), None, 4, False, Places(tmp_path / "out"))

    def settings(*wanted: str) -> dict[str, Any]:
        request = ShrinkRequest(teacher.model.folder, tmp_path, tmp_path, iterations=1, assignments=wanted)
        return parse_assignments(json.loads(assignments(request, teacher, "/maps", labelled=labelled)))

    assert settings(given)["objectives"]["soft"] == {"alpha": 0.7, "maps": "/maps", "allow_leak": True}
    assert settings()["objectives"]["soft"].get("alpha") == (None if labelled else 1)
    with pytest.raises(SettingsError, match="goes below 'soft'"):
        settings("objectives.soft=null")
