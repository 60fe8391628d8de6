"""What ``accelerator.sh`` found, as one page: targets, what does not hold, and a table per part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunet_kd.system.files import write_atomically
from nnunet_kd.workflows.bench.loss import PERIODIZATION, PTWT, ZERO

MACHINE, SUMMARY = "machine", "summary.md"
TOYS = "toys"
LARGEST_SHARE_OF_STEP = 0.20
LARGEST_SHARE_OF_DENSE = 0.05
ALL_STAGES, DENSE = "all stages", "all stages, one sample, with ptwt"
DCD_AND_SOFT = "DCD and soft, BraTS 2024"
"""Rows that targets are read from."""
LARGEST_SOFT_STEP = 1.15
LARGEST_DIFFERENCE = 1e-2
"""Between a GPU and the CPU, relative; TF32 keeps 10 bits."""
SHOWN = 12
"""Columns of a table at most; the JSON has all."""


def read_part(results: Path, name: str) -> dict[str, dict[str, Any]]:
    """Figures by row, as far as they were measured."""
    path = results / f"{name}.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def problem(figures: dict[str, Any]) -> str | None:
    """Why a row does not hold; ``None``: it does."""
    if "error" in figures:
        return str(figures["error"])
    if figures.get("finite") is False:
        return "not finite"
    if figures.get("falling") is False:
        return f"the loss does not fall ({figures['first']:.4g}, then {figures['last']:.4g})"
    if figures.get("same weights everywhere") is False:
        return "processes have different weights"
    if (figures.get("difference to the CPU") or 0) > LARGEST_DIFFERENCE:
        return f"differs from the CPU by {figures['difference to the CPU']:.1e}"
    if figures.get("waits"):
        return f"Python waits for the device at {', '.join(dict.fromkeys(figures['waits']))}"
    if figures.get("gradient") == 0 and figures.get("loss"):
        return "no gradient"
    return None


def targets(results: Path) -> list[tuple[str, float, float]]:
    """Name, measured and allowed ratio of each target whose figures are there."""
    loss, steps = read_part(results, "loss"), read_part(results, "steps")
    found = []
    step = steps.get(DCD_AND_SOFT, {}).get("seconds")
    stages = loss.get(ALL_STAGES, {}).get("seconds")
    dense = loss.get(DENSE, {}).get("seconds")
    if step and stages:
        share = stages[PERIODIZATION] / step["student step"]
        found.append(("DCD's loss of all stages / the student's step", share, LARGEST_SHARE_OF_STEP))
    if dense:
        for form in (ZERO, PERIODIZATION):
            found.append((f"DCD's loss ({form}) / dense 512 taps", dense[form] / dense[PTWT], LARGEST_SHARE_OF_DENSE))
    if step:
        ratio = step["nnUNetTrainerSoft"] / step["student step"]
        found.append(("a step with stored soft labels / the student's step", ratio, LARGEST_SOFT_STEP))
    return found


def write_summary(results: Path) -> None:
    """``summary.md`` of whatever is there."""
    machine: dict[str, Any] = dict(read_part(results, MACHINE))
    parts = [path.stem for path in sorted(results.glob("*.json"), key=lambda path: path.stat().st_mtime)]
    lines = ["# Measured by benchmarks/accelerator.sh", "", *(f"- {name}: {value}" for name, value in machine.items())]
    if machine.get("shapes") == TOYS:
        lines += ["", "A dry run: these networks are toys, and no figure below means anything."]
    lines += ["", "## Targets", "", "| ratio | measured | at most | met |", "|-|-:|-:|-|"]
    for name, ratio, most in targets(results):
        lines.append(f"| {name} | {ratio:.3f} | {most} | {'yes' if ratio <= most else 'no'} |")
    wrong = []
    for part in parts:
        if part != MACHINE:
            found = read_part(results, part)
            wrong += [f"- {part}, {row}: {said}" for row, figures in found.items() if (said := problem(figures))]
    lines += ["", "## Does not hold", "", *(wrong or ["Nothing."])]
    for part in parts:
        if part != MACHINE:
            lines += ["", f"## {part}", "", *table(read_part(results, part))]
    text = "\n".join(lines) + "\n"
    write_atomically(results / SUMMARY, lambda file: file.write(text.encode()))


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Numbers and words of every row; what holds more than one value is left to the JSON, but for seconds by name."""
    flat = {row: flattened(figures) for row, figures in rows.items()}
    columns = list(dict.fromkeys(key for figures in flat.values() for key in figures))
    if len(columns) > SHOWN:  # many names, few rows
        lines = ["| row | figure | value |", "|-|-|-:|"]
        return lines + [
            f"| {row} | {key} | {value} |" for row, figures in flat.items() for key, value in figures.items()
        ]
    lines = [f"| row | {' | '.join(columns)} |", f"|-|{'-:|' * len(columns)}"]
    return lines + [
        f"| {row} | {' | '.join(figures.get(key, '') for key in columns)} |" for row, figures in flat.items()
    ]


def flattened(figures: dict[str, Any]) -> dict[str, str]:
    """Texts by name; bytes as MiB."""
    found: dict[str, str] = {}
    for key, value in figures.items():
        if isinstance(value, dict) and key in ("seconds", "ratio", "explored"):
            found |= {f"{key}, {name}": written(key, one) for name, one in value.items()}
        elif not isinstance(value, dict | list):
            found[key.replace("bytes", "MiB")] = written(key, value)
    return found


def written(key: str, value: Any) -> str:
    """A value for a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value / 2**20:.0f}" if "bytes" in key else f"{value:.4g}"
    return str(value)
