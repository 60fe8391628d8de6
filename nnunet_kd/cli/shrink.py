"""``nnunet-kd shrink``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nnunet_kd.cli import training_options as options
from nnunet_kd.cli.options import option
from nnunet_kd.errors import INTERRUPTED

if TYPE_CHECKING:
    from nnunet_kd.workflows.shrink.run import Shrunk


class _Shown:
    """Steps and their progress on the terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._steps = 0

    def step(self, title: str) -> None:
        self.stop()
        self._steps += 1
        self.console.print(f"[bold]{self._steps}. {escape(title)}[/]", soft_wrap=True)

    def show(self, done: float, total: float, what: str) -> None:
        if self._bar is None:
            columns = (
                TextColumn("   {task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f}"),
                TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(escape(what), total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=escape(what) or "done")

    def tell(self, line: str) -> None:
        self.stop()
        self.console.print(f"   {escape(line)}", soft_wrap=True)

    def warn(self, line: str) -> None:
        self.stop()
        self.console.print(f"   [bold yellow]warning:[/] {escape(line)}", soft_wrap=True)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def shrink(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Exported zip or model folder of the teacher.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images, at least five.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the student; new, or begun with the same line.")
    ],
    reduction: Annotated[float, option("reduction", "Channels are divided by this.")] = 4.0,
    configuration: Annotated[
        Optional[str],  # noqa: UP045  typer on Python 3.10
        option("configuration", "Of a model with several."),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--minutes", help="Wall-clock time for everything; the training is fitted to what is left. Default: 60."
        ),
    ] = None,
    iterations: Annotated[
        Optional[int],  # noqa: UP045
        option("iterations", "Of the training, in place of --minutes."),
    ] = None,
    labels: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--labels", help="Folder of segmentations of some or all images: trained on, too."),
    ] = None,
    group_regex: Annotated[
        Optional[str],  # noqa: UP045
        option("group-regex", "Finds the patient in an image's name; images of one patient stay together."),
    ] = None,
    mirroring: Annotated[
        Optional[bool],  # noqa: UP045
        option("mirroring", "Average predictions over mirrored images. Default: yes, if --minutes leaves time."),
    ] = None,
    seed: Annotated[Optional[int], option("seed", "Of weights, patches and augmentation.")] = None,  # noqa: UP045
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045
        option(
            "set",
            "Any setting of the training, for example --set objectives.soft.alpha=0.5; repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    device: options.Device = "cuda",
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Go on if the teacher finds nothing in most images.")
    ] = False,
    trusted: Annotated[
        bool, option("trusted", "Load a checkpoint that holds more than data, which may run code.")
    ] = False,
) -> None:
    """Make a small student of any trained nnU-Net, with nothing but images. Needs no labels and none of nnU-Net's variables.

    Writes OUT/student.zip, OUT/student.onnx with its JSON, and OUT/report.html. Stop it at any time: the same line goes on.
    """
    options.check_device(device)

    from nnunet_kd.workflows.shrink.request import ShrinkRequest
    from nnunet_kd.workflows.shrink.run import resumed_line
    from nnunet_kd.workflows.shrink.run import shrink as run

    request = ShrinkRequest(
        model=model,
        images=images,
        output=output,
        reduction=reduction,
        configuration=configuration,
        minutes=60.0 if minutes is None and iterations is None else minutes,
        iterations=iterations,
        labels=labels,
        group_regex=group_regex,
        seed=seed,
        device=device,
        mirroring=mirroring,
        allow_empty=allow_empty,
        trusted=trusted,
        assignments=tuple(assignments or ()),
    )
    shown = _Shown()
    try:
        found = run(request, shown)
    except KeyboardInterrupt:
        shown.stop()
        shown.console.print(escape(resumed_line(request)), soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        shown.stop()
    _print(found)


def _print(found: Shrunk) -> None:
    from nnunet_kd.evaluation.metrics import DICE, HD95, NSD
    from nnunet_kd.evaluation.tables import mean_and_error

    console = Console(highlight=False)
    own = found.agreement.with_teacher
    values = ", ".join(
        f"{metric.title} {mean_and_error(own.summary(metric.name), metric)} {metric.unit}"
        for metric in (DICE, HD95, NSD)
    )
    console.print(f"Agreement with the teacher on {len(own.cases)} images kept aside: {values}.", soft_wrap=True)
    against = found.agreement.against_labels
    if against is not None:
        dice = ", ".join(
            f"{name} {mean_and_error(one.summary(DICE.name), DICE)} %" for name, one in against.evaluations.items()
        )
        console.print(f"Dice against {len(against.cases)} labels: {dice}.", soft_wrap=True)
    console.print(f"{found.iterations} iterations, {found.minutes:.1f} minutes in all.", soft_wrap=True)
    places = found.places
    written = [places.student_zip, *([] if found.without_onnx else [places.student_onnx]), places.report]
    console.print(f"Written: {', '.join(escape(str(path)) for path in written)}", soft_wrap=True)
