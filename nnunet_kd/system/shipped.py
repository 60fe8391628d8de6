"""Where the files are that travel with the package but keep a top-level place in its repository."""

from __future__ import annotations

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """``plans`` or ``trainers``: inside the package when installed, at the repository's root in a checkout.

    Args:
        name: the folder's name at the repository's root.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "_shipped" / name
    return installed if installed.is_dir() else package.parent / name
