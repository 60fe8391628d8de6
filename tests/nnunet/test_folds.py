"""What a path to a model names."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_kd.nnunet.folds import split_model_path


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/m", ("/m", None, None)),
        ("/m/fold_0", ("/m", "0", None)),
        ("/m/fold_all/checkpoint_best.pth", ("/m", "all", "checkpoint_best.pth")),
        ("/fold_1/m", ("/fold_1/m", None, None)),
        ("/m/checkpoint_final.pth", ("/m/checkpoint_final.pth", None, None)),
        ("m.zip", ("m.zip", None, None)),
        ("", (".", None, None)),
    ],
)
def test_a_path(path: str, named: tuple[str, str | None, str | None]) -> None:
    folder, fold, checkpoint = split_model_path(Path(path))
    assert (str(folder), fold, checkpoint) == named
