"""Checkpoints for ``-pretrained_weights``: what differs is told, heads alone are no reason to refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_kd.distillation.starts.pretrained import find_pretrained
from nnunet_kd.errors import NnunetKdWarning, SettingsError
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import make_plans

THREE_LABELS = {**DATASET_JSON, "labels": {**DATASET_JSON["labels"], "third": 3}}
TWO_CHANNELS = {**DATASET_JSON, "channel_names": {"0": "T1", "1": "T2"}}


def test_other_heads_are_told(folders: Path, recwarn: pytest.WarningsRecorder) -> None:
    plans = make_plans()
    model = write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    found = find_pretrained(str(model), plans, "3d_fullres", DATASET_JSON, 0)
    assert found.path == model / "fold_0" / "checkpoint_final.pth"
    assert not [one for one in recwarn if issubclass(one.category, NnunetKdWarning)]
    with pytest.warns(
        NnunetKdWarning, match="has other heads .*3 there, 4 in the student.*heads, which start at random"
    ):
        assert find_pretrained(str(model), plans, "3d_fullres", THREE_LABELS, 0) == found


def test_other_input_channels_are_told(folders: Path) -> None:
    plans = make_plans()
    model = write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    with pytest.raises(SettingsError, match=r"What differs: encoder\S+: 8x1x3x3x3 there, 8x2x3x3x3 in the student"):
        find_pretrained(str(model), plans, "3d_fullres", TWO_CHANNELS, 0)
