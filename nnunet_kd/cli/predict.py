"""``nnunet-kd predict``: nnU-Net's prediction with the runtime of choice."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

from rich.console import Console

from nnunet_kd.cli.options import option, parse_folds
from nnunet_kd.system.counts import counted


class BackendName(str, Enum):
    """What runs the network."""

    torch = "torch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


def predict(
    inputs: Annotated[
        list[Path],
        option("input", "Folder of CASE_0000... files, or one case's files (-i once a channel)."),
    ],
    output: Annotated[Path, option("output", "Folder; for one case also a file.")],
    model: Annotated[Path, option("model", "Model folder, checkpoint_*.pth, exported zip, or ONNX file.")],
    backend: Annotated[
        Optional[BackendName],  # noqa: UP045  typer on Python 3.10
        option("backend", "Default: onnxruntime for an ONNX file, torch for everything else."),
    ] = None,
    device: Annotated[str, option("device", "cuda, cpu or mps.")] = "cpu",
    folds: Annotated[
        Optional[list[str]],  # noqa: UP045
        option("folds", "Of a model folder: 0, or 0 1 2, or all (fold_all). Default: all trained."),
    ] = None,
    checkpoint: Annotated[
        Optional[str],  # noqa: UP045
        option("checkpoint", "Of a model folder: the checkpoint's file name. Default: checkpoint_final.pth."),
    ] = None,
    step: Annotated[float, option("step-size", "Distance of patches / patch size.", min=0.05, max=1)] = 0.5,
    mirroring: Annotated[bool, option("mirroring", "Average over mirrored images.")] = True,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        option("threads", "CPU threads. Default: all cores.", min=1),
    ] = None,
    probabilities: Annotated[
        bool, option("save-probabilities", "Also write the probabilities, as nnU-Net does.")
    ] = False,
    overwrite: Annotated[bool, option("overwrite", "Predict again what is already there.")] = False,
    previous_stage: Annotated[
        Optional[Path],  # noqa: UP045
        option("previous-stage", "Of a cascade: the first stage's folder."),
    ] = None,
    trusted: Annotated[
        bool, option("trusted", "Load checkpoints that hold more than data; this runs code of theirs.")
    ] = False,
) -> None:
    """Segment images with nnU-Net's preprocessing, sliding window and export. Cases already in OUT are skipped."""
    from nnunet_kd.inference.session import RunOptions
    from nnunet_kd.inference.session import predict as run

    options = RunOptions(
        backend=backend.value if backend else None,
        device=device,
        folds=parse_folds(folds or []),
        checkpoint=checkpoint,
        mirroring=mirroring,
        step=step,
        threads=threads,
        probabilities=probabilities,
        overwrite=overwrite,
        previous_stage=previous_stage,
        trusted=trusted,
    )
    result = run(inputs, output, model, options)
    kept = f"; {result.kept} kept from before (--overwrite predicts all again)" if result.kept else ""
    Console(highlight=False, markup=False, emoji=False).print(
        f"{counted(result.predicted, 'case')} segmented with {result.backend}{kept}: {output}", soft_wrap=True
    )
