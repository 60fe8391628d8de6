"""``nnunet-kd convert``: public datasets into nnU-Net's raw format, with splits by patient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console

from nnunet_kd.cli.options import option
from nnunet_kd.datasets.case import BRATS2024_ID, ISLES2022_ID, SKIPPED, ConversionOptions
from nnunet_kd.errors import INTERRUPTED
from nnunet_kd.system.counts import counted

if TYPE_CHECKING:
    from nnunet_kd.datasets.conversion import ConversionSummary

app = typer.Typer(
    help="Public datasets into nnU-Net's raw format, checked, with splits by patient.", no_args_is_help=True
)


class TargetGrid(str, Enum):
    """The grid that all channels of a case get."""

    dwi = "dwi"
    flair = "flair"


Sources = Annotated[
    list[Path], typer.Argument(metavar="SRC...", help="extracted download; several folders are read as one")
]
DatasetId = Annotated[int, option("dataset-id", "nnU-Net's number of the dataset")]
Link = Annotated[bool, option("link", "symlink the images that need no change instead of copying them")]
Processes = Annotated[
    Optional[int],  # noqa: UP045  typer on Python 3.10
    option("workers", "worker processes; default: nnUNet_def_n_proc, else 8; at most one a core", min=1),
]
DryRun = Annotated[bool, option("dry-run", "check everything, write nothing")]
SkipBad = Annotated[bool, option("skip-bad", f"leave bad cases out (listed in {SKIPPED}) instead of stopping")]
Holdout = Annotated[
    float | None,
    option("holdout", "one split with this share of the patients in validation (papers: 0.2), not five folds"),
]
Seed = Annotated[int, option("seed", "of the splits")]


@app.command("brats2024")
def convert_brats2024(
    sources: Sources,
    dataset_id: DatasetId = BRATS2024_ID,
    regions: Annotated[
        bool, typer.Option("--regions", help="the challenge's nested regions instead of labels")
    ] = False,
    link: Link = False,
    processes: Processes = None,
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    holdout: Holdout = None,
    seed: Seed = ConversionOptions.seed,
) -> None:
    """BraTS 2024 GLI (post-treatment glioma): training_data1_v2, training_data_additional, validation_data."""
    options = _options(link, processes, dry_run, skip_bad, holdout, seed)
    from nnunet_kd.datasets.brats2024 import convert_brats2024 as convert

    with _interruptible():
        summary = convert(sources, dataset_id=dataset_id, regions=regions, options=options)
    _report(summary)


@app.command("isles2022")
def convert_isles2022(
    sources: Sources,
    dataset_id: DatasetId = ISLES2022_ID,
    grid: Annotated[
        TargetGrid, typer.Option("--grid", help="resample FLAIR to DWI, or DWI, ADC and mask to FLAIR")
    ] = TargetGrid.dwi,
    link: Link = False,
    processes: Processes = None,
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    holdout: Holdout = None,
    seed: Seed = ConversionOptions.seed,
) -> None:
    """ISLES 2022 (stroke): the Zenodo release or the challenge's layout, the folder that holds derivatives."""
    options = _options(link, processes, dry_run, skip_bad, holdout, seed)
    from nnunet_kd.datasets.isles2022 import convert_isles2022 as convert

    with _interruptible():
        summary = convert(sources, dataset_id=dataset_id, grid=grid.value, options=options)
    _report(summary)


@app.command("msd")
def convert_msd(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="extracted TaskXX_Name")],
    dataset_id: Annotated[int | None, option("dataset-id", "default: the task's number")] = None,
    group_regex: Annotated[
        str | None, option("group-regex", "finds the patient in a case's name; default: every case is one")
    ] = None,
    link: Link = False,
    processes: Processes = None,
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    holdout: Holdout = None,
    seed: Seed = ConversionOptions.seed,
) -> None:
    """Any dataset in the layout of the Medical Segmentation Decathlon."""
    options = _options(link, processes, dry_run, skip_bad, holdout, seed)
    from nnunet_kd.datasets.msd import convert_msd as convert

    with _interruptible():
        summary = convert(source, dataset_id=dataset_id, group_regex=group_regex, options=options)
    _report(summary)


def _options(
    link: bool, processes: int | None, dry_run: bool, skip_bad: bool, holdout: float | None, seed: int
) -> ConversionOptions:
    given: dict[str, Any] = {} if processes is None else {"processes": processes}
    return ConversionOptions(link=link, dry_run=dry_run, skip_bad=skip_bad, holdout=holdout, seed=seed, **given)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say what Ctrl-C has left."""
    try:
        yield
    except KeyboardInterrupt:
        message = "Interrupted. Finished cases are kept; run the same command again to go on."
        Console(stderr=True).print(message, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def _report(summary: ConversionSummary) -> None:
    from nnunet_kd.datasets.checks import table

    console = Console(highlight=False, markup=False, emoji=False)

    def line(what: str, value: object) -> None:
        console.print(f"{what:<9} {value}", soft_wrap=True)  # paths are not cut off

    line("dataset", summary.folder)
    several = f" ({summary.patients_with_several} with several time points)" if summary.patients_with_several else ""
    line("training", f"{counted(len(summary.training), 'case')} of {counted(summary.patients, 'patient')}{several}")
    line("test", f"{counted(len(summary.test), 'case')} without segmentation, in imagesTs")
    todo = len(summary.training) + len(summary.test) - summary.kept
    line("to write" if summary.dry_run else "written", f"{counted(todo, 'case')}; {summary.kept} finished before")
    for number, split in enumerate(summary.splits):
        line(f"fold {number}", f"{len(split['train'])} training, {counted(len(split['val']), 'validation case')}")
    for path in summary.splits_files:
        line("splits", str(path))
    if summary.skipped:
        where = "would be listed" if summary.dry_run else "listed"
        console.print(
            f"{counted(len(summary.skipped), 'bad case')} left out, {where} in {summary.folder / SKIPPED}:",
            soft_wrap=True,
        )
        console.print(table(summary.skipped), soft_wrap=True)
    for warning in summary.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    if len(summary.splits) == 1:
        console.print(
            "Train fold 0 only: nnU-Net makes up other folds by itself, without regard to patients.", style="yellow"
        )
    if summary.dry_run:
        console.print("Dry run: nothing was written.")
        return
    if not summary.training:
        images = quote(str(summary.folder / "imagesTs"))
        console.print(f"Next: nnunet-kd predict -i {images} -o OUT --model MODEL", soft_wrap=True)
        return
    dataset_id = summary.folder.name.removeprefix("Dataset").partition("_")[0].lstrip("0")
    console.print(f"Next: nnUNetv2_plan_and_preprocess -d {dataset_id} --verify_dataset_integrity", soft_wrap=True)
