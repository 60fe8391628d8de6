"""``nnunet-kd convert``: public datasets into nnU-Net's raw format, with splits by patient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console

from nnunet_kd.cli.options import option
from nnunet_kd.datasets import brats2024, isles2022, msd
from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.checks import table
from nnunet_kd.datasets.conversion import SKIPPED, ConversionSummary
from nnunet_kd.errors import INTERRUPTED
from nnunet_kd.system.counts import counted

app = typer.Typer(
    help="Public datasets into nnU-Net's raw format, checked, with splits by patient.", no_args_is_help=True
)

_DEFAULTS = ConversionOptions()


class TargetGrid(str, Enum):
    """The grid that all channels of a case get."""

    dwi = "dwi"
    flair = "flair"


Sources = Annotated[
    list[Path], typer.Argument(metavar="SRC...", help="extracted download; several folders are read as one")
]
DatasetId = Annotated[int, option("dataset-id", "nnU-Net's number of the dataset")]
Link = Annotated[bool, option("link", "symlink the images that need no change instead of copying them")]
Processes = Annotated[int, option("workers", "worker processes", min=1)]
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
    dataset_id: DatasetId = brats2024.DATASET_ID,
    regions: Annotated[
        bool, typer.Option("--regions", help="the challenge's nested regions instead of labels")
    ] = False,
    link: Link = False,
    processes: Processes = _DEFAULTS.processes,
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    holdout: Holdout = None,
    seed: Seed = _DEFAULTS.seed,
) -> None:
    """BraTS 2024 GLI (post-treatment glioma): training_data1_v2, training_data_additional, validation_data."""
    options = ConversionOptions(link, processes, dry_run, skip_bad, holdout, seed)
    with _interruptible():
        summary = brats2024.convert_brats2024(sources, dataset_id=dataset_id, regions=regions, options=options)
    _report(summary)


@app.command("isles2022")
def convert_isles2022(
    sources: Sources,
    dataset_id: DatasetId = isles2022.DATASET_ID,
    grid: Annotated[
        TargetGrid, typer.Option("--grid", help="resample FLAIR to DWI, or DWI, ADC and mask to FLAIR")
    ] = TargetGrid.dwi,
    link: Link = False,
    processes: Processes = _DEFAULTS.processes,
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    holdout: Holdout = None,
    seed: Seed = _DEFAULTS.seed,
) -> None:
    """ISLES 2022 (stroke): the Zenodo release or the challenge's layout, the folder that holds derivatives."""
    options = ConversionOptions(link, processes, dry_run, skip_bad, holdout, seed)
    with _interruptible():
        summary = isles2022.convert_isles2022(sources, dataset_id=dataset_id, grid=grid.value, options=options)
    _report(summary)


@app.command("msd")
def convert_msd(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="extracted TaskXX_Name")],
    dataset_id: Annotated[int | None, option("dataset-id", "default: the task's number")] = None,
    group_regex: Annotated[
        str | None, option("group-regex", "finds the patient in a case's name; default: every case is one")
    ] = None,
    link: Link = False,
    processes: Processes = _DEFAULTS.processes,
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    holdout: Holdout = None,
    seed: Seed = _DEFAULTS.seed,
) -> None:
    """Any dataset in the layout of the Medical Segmentation Decathlon."""
    options = ConversionOptions(link, processes, dry_run, skip_bad, holdout, seed)
    with _interruptible():
        summary = msd.convert_msd(source, dataset_id=dataset_id, group_regex=group_regex, options=options)
    _report(summary)


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
