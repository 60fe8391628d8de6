"""The report says what it could not measure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_kd.errors import ModelError
from nnunet_kd.evaluation.page import write_page
from nnunet_kd.evaluation.tables import Table
from nnunet_kd.workflows.shrink import report
from nnunet_kd.workflows.shrink.request import Places


def test_costs_that_could_not_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the checkpoint holds more than data"

    def refuse(*arguments: Any) -> None:
        raise ModelError(reason)

    monkeypatch.setattr(report, "profile_models", refuse)
    teacher: Any = SimpleNamespace(model=SimpleNamespace(folder=tmp_path), configuration="3d_fullres")
    profile, unprofiled = report._profile(teacher, Places(tmp_path), "cpu")
    assert (profile, unprofiled) == (None, reason)
    table = Table("Agreement", ("class",), (("all",),), "")
    content = {
        **dict.fromkeys(("title", "meaning"), ""), **{name: [] for name in ("warnings", "labels_tables", "cases")},
        **{name: {} for name in ("facts", "legend", "files")}, **dict.fromkeys(("agreement", "speed"), table), "labelled": 0,
    }  # fmt: skip
    write_page("shrink.html.j2", {**content, "profile": profile, "unprofiled": unprofiled}, tmp_path / "report.html")
    assert f"could not be measured: {reason}" in (tmp_path / "report.html").read_text()
