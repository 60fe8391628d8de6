"""``nnunet-kd`` as a subprocess."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE
from nnunet_kd.system.sessions import running

NNUNET_KD = (sys.executable, "-c", "from nnunet_kd.cli import main; main()")
"""The command of this very Python, wherever its scripts are."""


@contextlib.contextmanager
def running_training(command: Sequence[str], results: Path) -> Iterator[subprocess.Popen[str]]:
    """A training in a session of its own, see :func:`nnunet_kd.system.sessions.running`; ``results``: ``nnUNet_results``."""
    # a recipe that the caller's variable names is among the run's arguments
    environment = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE}
    environment["nnUNet_results"] = str(results)
    with running(command, environment) as process:
        yield process
