"""nnU-Net's search for a trainer tells users nothing that they can do nothing about."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from nnunetv2.utilities import find_objects

from nnunet_kd.nnunet.environment import find_trainer


def test_deprecations_of_imported_libraries_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm, which nnU-Net's trainers import, warns when it is imported, which happens once in a process."""

    def search(name: str) -> Any:
        print("looking here and there")
        warnings.warn("`torch.jit.interface` is deprecated. Please use `torch.compile` instead.", FutureWarning)  # noqa: B028
        warnings.warn("of the trainer's own", FutureWarning)  # noqa: B028
        return dict

    monkeypatch.setattr(find_objects, "recursive_find_trainer_class_by_name", search)
    with pytest.warns(FutureWarning) as seen:
        assert find_trainer("nnUNetTrainerOfMine") is dict
    assert [str(one.message) for one in seen] == ["of the trainer's own"]
