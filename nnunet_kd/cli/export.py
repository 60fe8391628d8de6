"""``nnunet-kd export``: a trained model for stock nnU-Net or for ONNX runtimes."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from nnunet_kd.cli.options import option, parse_folds
from nnunet_kd.errors import SettingsError


class Target(str, Enum):
    """What to write."""

    nnunet = "nnunet"
    onnx = "onnx"


class Weights(str, Enum):
    """Which of a training's weights."""

    final = "final"
    best = "best"
    ema = "ema"


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, checkpoint_*.pth, or exported zip.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder, OUT.zip, or OUT.onnx.")],
    target: Annotated[Target, typer.Option("--to", help="A model for stock nnU-Net, or ONNX.")],
    folds: Annotated[
        Optional[list[str]],  # noqa: UP045  typer on Python 3.10
        option("folds", "0, or 0 1 2, or all (fold_all). Default: every trained numbered fold."),
    ] = None,
    weights: Annotated[
        Optional[Weights],  # noqa: UP045
        typer.Option(
            "--weights",
            help="ema: as final, but refused unless it is a moving average. Default: final, or the checkpoint that MODEL is.",
        ),
    ] = None,
    overwrite: Annotated[bool, option("overwrite", "Replace OUT.")] = False,
    keep_optimizer: Annotated[
        bool, typer.Option("--keep-optimizer", help="nnunet: keep what continuing the training needs.")
    ] = False,
    licence: Annotated[str, typer.Option("--licence", help="nnunet: the weights' licence, for the model card.")] = "",
    fp16: Annotated[
        bool, typer.Option("--fp16", help="onnx: half precision; inputs and outputs stay float32.")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="onnx: static quantisation, calibrated on -i.")] = False,
    images: Annotated[
        Optional[Path],  # noqa: UP045
        option("input", "onnx: folder of images to check on, and to calibrate --int8 on."),
    ] = None,
    references: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--references", help="onnx --int8: folder of their segmentations, to print the Dice cost."),
    ] = None,
) -> None:
    """Write a trained model so that it runs without this package. Works for any nnU-Net model folder."""
    from nnunet_kd.export.folder_export import FolderOptions, export_folder
    from nnunet_kd.export.weights import CHECKPOINT_OF
    from nnunet_kd.models.folder import open_model, refuse_other_checkpoint
    from nnunet_kd.nnunet.checkpoints import FINAL

    _check_options(target, fp16, int8, images, references, keep_optimizer, licence)
    if target is Target.nnunet and output.suffix in (".onnx", ".pth"):
        raise SettingsError(
            f"{output}: --to nnunet writes a model folder, or a zip of one. Give a name without "
            f"{output.suffix}, a .zip, or --to onnx."
        )
    console = Console(highlight=False, markup=False, emoji=False)
    choice = "final" if weights is None else weights.value
    if weights is not None:
        refuse_other_checkpoint(model, CHECKPOINT_OF[choice], f"--weights {choice}")
    with open_model(model, parse_folds(folds or []), CHECKPOINT_OF[choice]) as found:
        if target is Target.nnunet:
            options = FolderOptions(choice, keep_optimizer, licence, overwrite)
            written = export_folder(found, output, options)
            console.print(f"Wrote {written} (folds {', '.join(found.folds)}).", soft_wrap=True)
            if written.suffix == ".zip":
                console.print(
                    f"Install with: {shlex.join(['nnUNetv2_install_pretrained_model_from_zip', str(written)])}",
                    soft_wrap=True,
                )
            else:
                command = ["nnUNetv2_predict_from_modelfolder", "-m", str(written), "-f", *found.folds]
                command += [] if found.checkpoint == FINAL else ["-chk", found.checkpoint]
                console.print(f"Predict with: {shlex.join(command)} -i IN -o OUT", soft_wrap=True)
            return
        from nnunet_kd.export.onnx_export import OnnxOptions, export_onnx

        precision = "float16" if fp16 else "int8" if int8 else "float32"
        report = export_onnx(found, output, OnnxOptions(choice, precision, images, references, overwrite))
        for line in report.lines():
            console.print(line, soft_wrap=True)


def _check_options(
    target: Target,
    fp16: bool,
    int8: bool,
    images: Path | None,
    references: Path | None,
    keep_optimizer: bool,
    licence: str,
) -> None:
    if target is Target.nnunet and (fp16 or int8 or images or references):
        raise SettingsError("--fp16, --int8, -i and --references belong to --to onnx.")
    if target is Target.onnx and (keep_optimizer or licence):
        raise SettingsError("--keep-optimizer and --licence belong to --to nnunet.")
    if fp16 and int8:
        raise SettingsError("--fp16 and --int8 exclude each other.")
    if int8 and images is None:
        raise SettingsError("--int8 is calibrated on your images: give a folder of them with -i.")
    if references is not None and not int8:
        raise SettingsError("--references serves --int8, to print what it costs in Dice.")
