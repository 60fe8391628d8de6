"""Files named as checkpoints that are none: each is refused with what is wrong, whatever PyTorch makes of it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunet_kd.errors import CheckpointError
from nnunet_kd.models.checkpoint import read_checkpoint


def _no_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/thesis.txt", "mine")


def _encrypted(path: Path) -> None:
    _no_pickle(path)
    content = bytearray(path.read_bytes())
    content[6] = content[content.index(b"PK\x01\x02") + 8] = 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_no_pickle, "cannot be read: .* Is it a checkpoint that nnU-Net wrote"),
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path), "Is it a checkpoint that nnU-Net wrote"),
        (_encrypted, "cannot be read: .* is encrypted"),
        (lambda path: torch.save([1, 2], path), "holds a list, but nnU-Net's hold named entries"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_other_files_of_that_name(tmp_path: Path, write: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match=rf"the checkpoint .*checkpoint_final\.pth .*{said}"):
        read_checkpoint(tmp_path / "checkpoint_final.pth")
