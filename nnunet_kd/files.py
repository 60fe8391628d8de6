"""Writing files so that a crash leaves the old one in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from nnunet_kd.errors import MissingRequirement


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, force it to disk, then rename it to ``path``.

    Raises:
        MissingRequirement: the disk refused (full, read-only); what was at ``path`` is untouched.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise MissingRequirement(
            f"{path} could not be written: {error}. Free space or permissions on {path.parent} are the usual causes. "
            f"{'The file from before is still there, undamaged.' if path.exists() else 'Nothing was left behind.'}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
