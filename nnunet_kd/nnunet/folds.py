"""Folds of nnU-Net: what names one wherever it is given, its number or ``all``, and the file that says which cases it has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from nnunet_kd.errors import SettingsError

SPLITS_FILE = "splits_final.json"
"""In a dataset's folder."""
Fold = int | Literal["all"]
"""As nnU-Net's trainers take it."""


def is_fold(text: str) -> bool:
    """Whether a text names a fold."""
    return text == "all" or (text.isascii() and text.isdigit())


def split_model_path(path: Path) -> tuple[Path, str | None, str | None]:
    """What a path to a model names: its folder, fold and checkpoint; the latter two as far as the path goes on to them.

    ``MODEL``, ``MODEL/fold_X`` or ``MODEL/fold_X/checkpoint_Y.pth``; only names are looked at, not the disk.
    """
    checkpoint = None
    if path.suffix == ".pth" and path.parent.name.startswith("fold_"):  # a model folder may lie in any folder
        path, checkpoint = path.parent, path.name
    if not path.name.startswith("fold_"):
        return path, None, None
    return path.parent, path.name.removeprefix("fold_"), checkpoint


def parse_fold(text: str) -> Fold:
    """The fold that a text names.

    Raises:
        SettingsError: neither a number nor ``all``.
    """
    if not is_fold(text):
        raise SettingsError(f"a fold is a number or all, got {text!r}.")
    return "all" if text == "all" else int(text)


def parse_folds(texts: Iterable[str]) -> list[Fold]:
    """The folds of several texts, each with commas between its folds: ``0,1`` or ``all``.

    Raises:
        SettingsError: something in them is neither a number nor ``all``, or a text is empty.
    """
    return [parse_fold(part) for text in texts for part in _parts(text)]


def _parts(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part] or [text]
