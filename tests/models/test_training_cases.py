"""Which cases a model's folds have seen."""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_kd.models.folder import ModelFolder
from nnunet_kd.models.training_cases import own_training_cases


def test_a_fold_beyond_the_split_hides_nothing_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    assert own_training_cases(ModelFolder(tmp_path, ("0", "2", "all"), "checkpoint_final.pth")) == {
        "0": ["a", "b"],
        "all": ["a", "b", "c"],
    }
