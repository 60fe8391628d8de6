"""A user's ``--set`` adds to what shrink decides, and takes nothing of it away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.distillation.settings_sources import parse_assignments
from nnunet_kd.errors import SettingsError
from nnunet_kd.workflows.shrink.dataset import Split
from nnunet_kd.workflows.shrink.facts import facts_of
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.model import find_teacher
from nnunet_kd.workflows.shrink.request import Places, ShrinkRequest
from nnunet_kd.workflows.shrink.schedule import TrainingSchedule
from nnunet_kd.workflows.shrink.state import State
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


@pytest.mark.parametrize(
    ("alpha", "labelled", "told"),
    [
        (None, [], "the teacher alone"),
        (None, ["a"], "the teacher, and labels of 1 images"),
        ("0.5", ["a"], "the teacher, and labels of 1 images"),
        ("0", ["a"], "labels of 1 images alone"),
        ("1", ["a"], "the teacher alone"),
    ],
)
def test_the_report_says_who_teaches(alpha: str | None, labelled: list[str], told: str, tmp_path: Path) -> None:
    teacher = find_teacher(write_model(tmp_path), None, 4, False, Places(tmp_path / "out"))
    wanted = () if alpha is None else (f"objectives.soft.alpha={alpha}",)
    request = ShrinkRequest(teacher.model.folder, tmp_path, tmp_path, iterations=1, assignments=wanted)
    state = State(Places(tmp_path / "out"), {})
    split, schedule = Split(["a", "b"], ["c"]), TrainingSchedule(1, 1, 1)
    facts = facts_of(request, teacher, Images({}, {}, {}), split, labelled, False, schedule, state)
    assert facts["Learned from"] == told
