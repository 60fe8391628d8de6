"""``nnunet-kd soften``."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nnunet_kd.cli import training_options as options
from nnunet_kd.cli.options import option, parse_folds
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.nnunet.folds import parse_fold
from nnunet_kd.system.counts import counted

if TYPE_CHECKING:
    from nnunet_kd.distillation.settings import Settings, TeacherSettings
    from nnunet_kd.distillation.soft_labels.description import Description

TRAINER = "nnUNetTrainerSoft"


def soften(
    dataset: options.Dataset,
    configuration: options.Configuration,
    fold: options.Fold,
    teacher: Annotated[
        Optional[str],  # noqa: UP045  typer on Python 3.10
        option(
            "teacher",
            "Model folder, checkpoint_*.pth or exported zip. Default: as the settings files say, else searched for.",
        ),
    ] = None,
    folds: Annotated[
        Optional[list[str]],  # noqa: UP045
        option(
            "folds", "The teacher's, whose logits are averaged; after the other arguments, as -f 0 1 2. Default: FOLD."
        ),
    ] = None,
    mirroring: Annotated[
        bool, option("mirroring", "Average over mirrored images, as nnU-Net predicts: up to 8 times as many passes.")
    ] = False,
    out_of_fold: Annotated[
        bool,
        typer.Option(
            "--out-of-fold", help="Every case by the fold that was not trained on it; for fold all, with -f 0 1 2 3 4."
        ),
    ] = False,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak",
            help="Also by teachers that were trained on validation cases of FOLD; students then need objectives.soft.allow_leak.",
        ),
    ] = False,
    trusted: Annotated[
        bool, option("trusted", "Load a teacher's checkpoint that holds more than data, which may run code.")
    ] = False,
    images: Annotated[
        Optional[Path],  # noqa: UP045
        option("input", "Folder of images without labels; they train along from then on."),
    ] = None,
    plans_name: options.PlansName = "nnUNetPlans",
    device: options.Device = "cuda",
    num_parts: Annotated[int, option("num-parts", "Share the cases among so many processes.", min=1)] = 1,
    part_id: Annotated[int, option("part-id", "Which of them this is, from 0.", min=0)] = 0,
) -> None:
    """Compute once what a teacher says of a fold's training cases; nnUNetTrainerSoft learns from that. Trains nothing.

    Run it again after a stop: what is there is kept. FOLD is the student's.
    """
    options.check_device(device)
    own_fold = parse_fold(fold)
    if part_id >= num_parts:
        raise SettingsError(f"--part-id counts from 0, so it must be below --num-parts ({num_parts}), got {part_id}.")
    chosen = parse_folds(folds or [])
    options.pass_settings([], None, [])
    settings, _ = options.check_settings(TRAINER, dataset, configuration, plans_name)

    import torch

    from nnunet_kd.nnunet.training import trainer_of_dataset
    from nnunet_kd.workflows.soften import SoftenOptions
    from nnunet_kd.workflows.soften import soften as run

    wanted, own_folds = _teacher(settings, teacher, trusted)
    if chosen:
        wanted = wanted.model_copy(update={"sha256": None})  # which is of one fold
    make = partial(trainer_of_dataset, dataset, configuration, own_fold, TRAINER, plans_name, torch.device(device))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("looking for the teacher", total=None)

        def show(done: int, total: int, case: str) -> None:
            bar.update(task, completed=done, total=total, description=case or "done")

        with variables_set_to({"nnUNet_compile": "f"}), contextlib.redirect_stdout(io.StringIO()):
            found = run(
                make,
                wanted,
                SoftenOptions(chosen or own_folds, mirroring, out_of_fold, part_id, num_parts, allow_leak=allow_leak),
                torch.device(device),
                show,
                images,
            )
    console = Console()
    count = len(found.written) + len(found.kept)
    for line in (
        f"{counted(len(found.written), 'case')} written, {len(found.kept)} kept from before. "
        f"{found.size / 2**20 / max(1, count):.2f} MiB a case.",
        *_warnings(found.description, own_fold),
        *([f"Left out, since every teacher was trained on them: {', '.join(found.unseen)}."] if found.unseen else []),
        f"Soft labels: {found.folder}",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def _teacher(settings: Settings, path: str | None, trusted: bool) -> tuple[TeacherSettings, tuple[int | str, ...]]:
    """The teacher of the command line, else that of the settings files; and its folds, where these name any."""
    from nnunet_kd.distillation.settings import TeacherSettings

    if path is not None:
        return TeacherSettings(path=path, trusted=trusted), ()
    if len(settings.teacher) > 1:
        raise SettingsError(
            f"the settings files name {len(settings.teacher)} teachers, and soft labels are of the folds of one model. "
            f"Name it with -t. The objective `logits` learns from several teachers, which run beside."
        )
    (named,) = settings.teacher
    folds = tuple(one.fold for one in named.single() if one.fold is not None)
    return named.model_copy(update={"trusted": trusted or named.trusted}), folds


def _warnings(description: Description, fold: int | str) -> list[str]:
    from nnunet_kd.distillation.soft_labels.description import unknown_teachers

    unknown = [] if fold == "all" else unknown_teachers(description)
    return [
        f"WARNING: what {', '.join(unknown)} was trained on is not known, because no splits_final.json of its dataset says so. "
        f"If it was trained on validation cases of fold {fold}, validation will look better than it is."
    ] * bool(unknown)
