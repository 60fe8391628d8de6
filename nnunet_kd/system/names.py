"""Names of files that hold bytes which are no text.

Python hands them on as lone surrogates. Libraries that want text fail on them; SimpleITK ends the whole process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nnunet_kd.errors import DataError


def name_as_text(path: str | Path) -> str:
    """A path that can be printed: bytes that are no text as ``\\xe9``."""
    return os.fsencode(path).decode(sys.getfilesystemencoding(), "backslashreplace")


def name_problem(path: str | Path) -> str | None:
    """What is wrong with a name, in words that follow it; ``None`` for a name that is text."""
    try:
        str(path).encode(sys.getfilesystemencoding())
    except UnicodeEncodeError:
        return f"has a name that is not {sys.getfilesystemencoding()}, so libraries cannot open it. Rename that file or folder"
    return None


def check_name(path: str | Path) -> None:
    """Raise a DataError unless the name is text."""
    problem = name_problem(path)
    if problem is not None:
        raise DataError(f"{name_as_text(path)} {problem}.")
