"""``nnunet-kd conform``: does the runtime give nnU-Net's result on your own images?"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from nnunet_kd.cli.options import option, parse_folds
from nnunet_kd.errors import ModelError


class RuntimeBackend(str, Enum):
    """What runs the network in the runtime."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"


def conform(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, checkpoint_*.pth, or exported zip.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of CASE_0000... files.")],
    output: Annotated[Path, option("output", "Folder for the export, both segmentations, table and page.")] = Path(
        "conformance"
    ),
    folds: Annotated[
        Optional[list[str]],  # noqa: UP045  typer on Python 3.10
        option("folds", "0, or 0 1 2, or all (fold_all). Default: every trained numbered fold."),
    ] = None,
    backend: Annotated[RuntimeBackend, option("backend", "Of the runtime.")] = RuntimeBackend.onnxruntime,
    threads: Annotated[int, option("threads", "CPU threads of each program.", min=1)] = 1,
    mirroring: Annotated[bool, option("mirroring", "Average over mirrored images, in both.")] = True,
    previous_stage: Annotated[
        Optional[Path],  # noqa: UP045
        option("previous-stage", "Of a cascade: the first stage's folder."),
    ] = None,
    overwrite: Annotated[bool, option("overwrite", "Replace another model's results in the output folder.")] = False,
) -> None:
    """Predict IMAGES with stock nnU-Net and with the runtime, and compare: voxels, Dice, seconds, memory, size."""
    from nnunet_kd.evaluation.conformance import LEAST_AGREEMENT, ConformanceRequest
    from nnunet_kd.evaluation.conformance import conform as run
    from nnunet_kd.models.folder import open_model

    given = ConformanceRequest(images, output, threads, backend.value, mirroring, previous_stage, overwrite)
    with open_model(model, parse_folds(folds or [])) as found:
        result = run(found, given)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(result.table().markdown(), soft_wrap=True)
    console.print(f"Wrote {output / 'conformance.html'}, .md and .csv.", soft_wrap=True)
    if result.least_agreement < LEAST_AGREEMENT:
        raise ModelError(
            f"a case agrees in only {100 * result.least_agreement:.4f}% of its voxels (at least {100 * LEAST_AGREEMENT:.2f}% "
            f"expected). Please report this with the model's plans.json."
        )
