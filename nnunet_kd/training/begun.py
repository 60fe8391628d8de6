"""Which training a fold's folder holds.

nnU-Net lets a user train again in the same folder. Until the new training ends, checkpoints of both lie there, and ``--c``
must not go on with the old one. So every training has a name of its own, in its checkpoints and in its settings file.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import nnunet_kd
from nnunet_kd.distillation.settings import Settings
from nnunet_kd.distillation.settings_sources import SETTINGS_FILE
from nnunet_kd.system.files import write_atomically

_LINE = re.compile(r"^# training ([0-9a-f]{32})( after -pretrained_weights)?$", re.MULTILINE)


@dataclass(frozen=True)
class Begun:
    """A training that has begun.

    Attributes:
        name: 32 hexadecimal digits, drawn at random when it began.
        pretrained: weights were loaded before its first epoch (``-pretrained_weights``).
    """

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    pretrained: bool = False

    def line(self) -> str:
        """For the settings file: a comment, so that the file stays one that ``NNUNET_KD_CONFIG`` takes."""
        return f"# training {self.name}{' after -pretrained_weights' if self.pretrained else ''}\n"


def write_settings(folder: Path, settings: Settings, trainer: str, begun: Begun | None) -> None:
    """Write the settings file of a training.

    Args:
        folder: the fold's.
        settings: all of them.
        trainer: its name.
        begun: ``None``: an older version began the training.

    Raises:
        OSError: the disk refused.
    """
    text = f"# nnunet-kd {nnunet_kd.__version__}, trainer {trainer}; usable as NNUNET_KD_CONFIG\n"
    text += begun.line() if begun is not None else ""
    text += yaml.safe_dump(settings.as_dict(), sort_keys=False)
    write_atomically(folder / SETTINGS_FILE, lambda file: file.write(text.encode()))


def read_begun(settings_file: Path) -> Begun | None:
    """What a settings file says of its training; ``None``: there is no such file, or an older version wrote it."""
    found = _LINE.search(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else None
    return None if found is None else Begun(found[1], found[2] is not None)
