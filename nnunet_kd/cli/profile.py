"""``nnunet-kd profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_kd.cli.options import option
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.folds import parse_fold


def parse_models(texts: list[str]) -> dict[str, Path]:
    """``name=PATH`` or ``PATH``, which is called by its own name.

    Raises:
        SettingsError: two of one name.
    """
    models: dict[str, Path] = {}
    for text in texts:
        name, equals, path_text = text.partition("=")
        # a path may hold an equals sign; a name holds no slash
        if not equals or "/" in name or Path(text).exists():
            name, path_text = Path(text).name, text
        if name in models:
            raise SettingsError(f"two models are called {name!r}. Tell them apart: name=PATH.")
        models[name] = Path(path_text).expanduser()
    return models


def profile(
    models: Annotated[
        list[str],
        typer.Argument(help="[NAME=]PATH: model folder, exported zip, plan (*.json), or ONNX.", metavar="MODEL..."),
    ],
    configuration: Annotated[str | None, option("configuration", "Of plans and zips.")] = None,
    fold: Annotated[str | None, option("folds", "Of model folders and zips; default: the first trained one.")] = None,
    dataset_json: Annotated[Path | None, option("dataset-json", "Of plans; default: beside it.")] = None,
    device: Annotated[
        list[str] | None,
        option("device", "cpu or cuda, repeatable; default: cpu, and cuda where there is one."),
    ] = None,
    volume: Annotated[
        str | None, typer.Option(help="Voxels of the whole volume, as 155x240x240; default: the plan's median shape.")
    ] = None,
    repeats: Annotated[int, option("repeats", "Timed runs.", min=1)] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs before.")] = 2,
    patch_only: Annotated[bool, typer.Option("--patch-only", help="Do not time whole volumes.")] = False,
    output: Annotated[
        Path | None, option("output", "JSON for `compare --profile`; *.md, *.csv, *.tex beside it.")
    ] = None,
) -> None:
    """Parameters, FLOPs, checkpoint size, peak memory and latency; ratios are to the first model."""
    import torch

    from nnunet_kd.evaluation.costs.profiling import PROFILED_DEVICES, ProfileOptions, profile_models
    from nnunet_kd.evaluation.costs.tables import profile_table, write_profiles
    from nnunet_kd.nnunet.devices import check_device
    from nnunet_kd.system.files import check_output_file, write_atomically

    if fold is not None:
        parse_fold(fold)
    named = parse_models(models)
    devices = tuple(device) if device else ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for one in devices:
        check_device(one, PROFILED_DEVICES)
    if output is not None:
        if output.suffix != ".json":
            raise SettingsError(f"--output {output} must be a *.json file.")
        check_output_file(output)
    options = ProfileOptions(devices, repeats, warmup, _parse_volume(volume), not patch_only)
    profiles = profile_models(named, options, configuration, fold, dataset_json)
    table = profile_table(profiles)
    shown = Table(*table.header, title=table.title, caption=table.note)
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row))
    console = Console()
    console.print(shown)
    if output is not None:
        write_profiles(profiles, output)
        texts = {".md": table.markdown(), ".csv": table.csv(), ".tex": table.latex()}
        for ending, text in texts.items():
            content = text.encode()
            write_atomically(output.with_suffix(ending), lambda file, content=content: file.write(content))  # type: ignore[misc]
        console.print(f"Written: {output} and .md, .csv, .tex beside it", soft_wrap=True, highlight=False)


def _parse_volume(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts) or len(parts) not in (2, 3):
        raise SettingsError(f"--volume {text!r} must be two or three numbers, as 155x240x240.")
    return tuple(int(part) for part in parts)
