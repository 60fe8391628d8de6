"""One part of ``accelerator.sh``, which says how to run all of them.

    python benchmarks/accelerator.py PART --results FOLDER [--device cuda] [--toy]

A row that was measured is kept in ``FOLDER/PART.json`` and not measured again; one that failed is. ``FOLDER/summary.md`` is
written anew after every part. The exit code is 1 if a row of the part failed or does not hold, 2 if it cannot begin.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnunetv2
import torch
from accelerator_extent import Extent, real_extent, toy_extent
from accelerator_parts import PARTS, free_memory, one_of_several
from accelerator_proof import Row
from accelerator_summary import MACHINE, TOYS, problem, read_part, write_summary

import nnunet_kd
from nnunet_kd.errors import MissingRequirement, NnunetKdError, SettingsError
from nnunet_kd.system.cores import usable_cores
from nnunet_kd.system.files import write_atomically
from nnunet_kd.system.processor import processor_name

PROCESS = "process"
"""Not a part: one of several processes of a part."""


def describe_machine(extent: Extent) -> dict[str, Any]:
    """What figures belong to: rows of one folder must not come from two."""
    device = extent.device
    properties = torch.cuda.get_device_properties(device) if extent.on_gpu else None
    return {
        "device": device.type if properties is None else properties.name,
        "device bytes": None if properties is None else properties.total_memory,
        "devices": torch.cuda.device_count() if extent.on_gpu else 1,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version() if extent.on_gpu else None,
        "processor": processor_name(),
        "cores": usable_cores(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "nnU-Net": version(nnunetv2),
        "nnunet-kd": nnunet_kd.__version__,
        "commit": commit(),
        "shapes": [shape.name for shape in (extent.small, extent.large, extent.cardiac)] if extent.apart else TOYS,
    }


def version(package: Any) -> str:
    """Of an installed distribution."""
    from importlib.metadata import version as installed

    return installed(package.__name__)


def commit() -> str | None:
    """Of this checkout, with ``+`` where tracked files have changed since; ``None`` without git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, check=True, capture_output=True, text=True).stdout
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changed else "")


def check_machine(results: Path, extent: Extent) -> None:
    """Write down what is measured on; raise a SettingsError if earlier rows are of something else."""
    now, path = json.loads(json.dumps(describe_machine(extent))), results / f"{MACHINE}.json"
    if path.is_file() and (before := json.loads(path.read_text())) != now:
        other = ", ".join(
            f"{key} ({before.get(key)}; now {value})" for key, value in now.items() if before.get(key) != value
        )
        raise SettingsError(f"{results} has figures of another {other}. Choose another folder for these.")
    write_json(path, now)


def run_part(name: str, results: Path, extent: Extent, tell: Callable[[str], object] = print) -> list[str]:
    """Measure the rows of a part that have no figures yet; returns what does not hold, of all rows.

    Args:
        name: of the part.
        results: the folder.
        extent: what to measure at.
        tell: given a line per row.
    """
    results.mkdir(parents=True, exist_ok=True)
    check_machine(results, extent)
    found = read_part(results, name)
    for row, measure in PARTS[name](extent).items():
        if row in found and "error" not in found[row]:
            continue
        tell(f"{name}: {row}")
        found[row] = measured(measure)
        write_json(results / f"{name}.json", found)
        free_memory(extent.device)
    write_summary(results)
    return [f"{row}: {said}" for row, figures in found.items() if (said := problem(figures))]


def measured(measure: Row) -> dict[str, Any]:
    """A row's figures and its wall-clock seconds; its error, so that others go on."""
    began, printed = time.perf_counter(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            figures = dict(measure())
    except Exception as error:  # whatever it is, the next row may work
        traceback.print_exc()
        figures = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    return {**figures, "wall seconds": round(time.perf_counter() - began, 1)}


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1).encode()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, PROCESS])
    parser.add_argument("--results", type=Path, required=True, help="a new folder, or an earlier one to go on")
    parser.add_argument("--work", type=Path, help="made-up data and models (default: RESULTS/work)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="networks so small that nothing is learned from the figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    options = parse(arguments)
    device = torch.device(options.device)
    try:
        if device.type == "cuda" and not torch.cuda.is_available():
            raise MissingRequirement(
                "PyTorch sees no CUDA device here. Look at nvidia-smi and at torch.version.cuda, or try the script with "
                "DEVICE=cpu TOY=1."
            )
        work = options.work or options.results / "work"
        extent = (toy_extent if options.toy else real_extent)(device, work.resolve())
        if options.part == PROCESS:
            figures = one_of_several(extent)
            if int(os.environ["RANK"]) == 0:
                write_json(work / "processes.json", figures)
            return 0
        problems = run_part(options.part, options.results, extent)
    except NnunetKdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for one in problems:
        print(f"{options.part} does not hold: {one}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
