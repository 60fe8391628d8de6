"""One table of options: a long name each, nnU-Net's short one beside it, and what older versions called it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from nnunet_kd.nnunet import folds

TABLE: dict[str, tuple[str, ...]] = {
    "backend": ("--backend",),
    "checkpoint": ("--checkpoint", "-chk"),
    "configuration": ("--configuration", "-c"),
    "continue": ("--continue", "--c"),
    "dataset-id": ("--dataset-id",),
    "dataset-json": ("--dataset-json",),
    "device": ("--device", "-device"),
    "disable-checkpointing": ("--disable-checkpointing", "--disable_checkpointing"),
    "dry-run": ("--dry-run",),
    "empty": ("--empty",),
    "folds": ("--folds", "-f", "--fold"),
    "group-regex": ("--group-regex",),
    "hd95-penalty": ("--hd95-penalty",),
    "holdout": ("--holdout",),
    "input": ("--input", "-i", "--images"),
    "iterations": ("--iterations",),
    "json": ("--json",),
    "link": ("--link",),
    "method": ("--method", "-m"),
    "methods": ("--methods",),
    "mirroring": ("--mirroring/--no-mirroring", " /--disable_tta"),  # the blank: another name of the second alone
    "model": ("--model", "-m"),
    "name": ("--name",),
    "nsd-tolerance": ("--nsd-tolerance",),
    "num-gpus": ("--num-gpus", "-num_gpus"),
    "num-parts": ("--num-parts", "-num_parts"),
    "output": ("--output", "-o"),
    "overwrite": ("--overwrite",),
    "part-id": ("--part-id", "-part_id"),
    "plans": ("--plans", "-p"),
    "pretrained-weights": ("--pretrained-weights", "-pretrained_weights"),
    "previous-stage": ("--previous-stage", "-prev_stage_predictions"),
    "recipe": ("--recipe",),
    "reduction": ("--reduction", "-r"),
    "reference": ("--reference",),
    "repeats": ("--repeats",),
    "save-probabilities": ("--save-probabilities", "--save_probabilities", "--npz"),
    "seed": ("--seed",),
    "seeds": ("--seeds",),
    "set": ("--set",),
    "shape": ("--shape",),
    "skip-bad": ("--skip-bad",),
    "splits": ("--splits",),
    "step-size": ("--step-size", "-step_size"),
    "teacher": ("--teacher", "-t"),
    "threads": ("--threads",),
    "trainer": ("--trainer", "-tr"),
    "trusted": ("--trusted",),
    "val-best": ("--val-best", "--val_best"),
    "workers": ("--workers", "-np"),
}
"""Every option that several commands have, or that has more than its long name. The long name stands first."""


def option(name: str, help: str | None = None, **more: Any) -> Any:
    """An option of :data:`TABLE` for a command.

    Args:
        name: in the table.
        help: what it does there; where a word means the same in several commands, the same text.
        more: of ``typer.Option``.
    """
    return typer.Option(*TABLE[name], help=help, **more)


class SeveralFolds(TyperCommand):
    """A command that takes ``-f 0 1 2`` as nnU-Net's do, besides ``-f 0,1,2`` and ``-f 0 -f 1 -f 2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click knows no option of any number of values, so each gets its own ``-f``."""
        return super().parse_args(ctx, repeated_folds(args))


def repeated_folds(arguments: Sequence[str]) -> list[str]:
    """``-f 0 1 2`` as ``-f 0 -f 1 -f 2``; a fold is a number or ``all``. Everything else stays as it is."""
    found: list[str] = []
    follows = False
    for place, argument in enumerate(arguments):
        names_fold = folds.is_fold(argument)
        if follows and names_fold and arguments[place - 1] != "-f":
            found.append("-f")
        follows = argument == "-f" or (follows and names_fold)
        found.append(argument)
    return found


def parse_folds(given: Sequence[str]) -> tuple[str, ...]:
    """``-f 0 -f 1``, ``-f 0,1`` or ``-f all`` as fold names.

    Raises:
        SettingsError: one is neither a number nor ``all``.
    """
    return tuple(str(fold) for fold in folds.parse_folds(given))
