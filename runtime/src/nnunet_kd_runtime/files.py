"""Files that appear under their name when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_kd_runtime.errors import MissingRequirement


@contextmanager
def complete_files(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output``; what lies there at the end moves beside ``output``, whose own file comes last.

    Raises:
        MissingRequirement: the disk refused; nothing appears then.
    """
    temporary: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        yield temporary
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == output.name):
            os.replace(path, output.parent / path.name)
    except OSError as error:
        raise MissingRequirement(f"{output} could not be written: {error}.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
