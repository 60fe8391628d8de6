"""``nnunet-kd bench``: the package's performance claims, measured where it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Measure what distillation costs, side by side in one run.", no_args_is_help=True)

Output = Annotated[Optional[Path], typer.Option("--json", help="Also write the figures to this file.")]  # noqa: UP045


@app.command("loss")
def loss(
    repeats: Annotated[int, typer.Option(help="Counted runs of each form.")] = 7,
    output: Output = None,
) -> None:
    """DCD's stage loss, forward and backward on one CPU thread, against the same loss through ptwt; and its peak memory."""
    from nnunet_kd.bench.loss import measure_memory, measure_speed

    console = Console(highlight=False)
    with console.status("timing the stage loss against ptwt, one thread"):
        speed = measure_speed(repeats=repeats)
    table = Table(
        "form", "forward + backward", "times as fast as ptwt", title=f"teacher feature {tuple(speed['shape'])}"
    )
    for name, seconds in speed["seconds"].items():
        table.add_row(name, f"{1e3 * seconds:.1f} ms", f"{speed['faster'][name]:.1f}")
    console.print(table)
    console.print(
        f"largest relative difference to ptwt (loss and gradients, mode zero): {speed['largest relative difference']:.1e}"
    )
    with console.status("measuring peak memory in a process of its own"):
        memory = measure_memory()
    console.print(
        f"peak memory at {tuple(memory['shape'])}: {memory['peak'] / 2**20:.0f} MiB, "
        f"{memory['ratio']:.2f} times the two features ({memory['features'] / 2**20:.0f} MiB)"
    )
    _write(output, {"speed": speed, "memory": memory})


@app.command("step")
def step(
    trainer: Annotated[str, typer.Option("-tr", help="A shipped trainer with objectives.")] = "nnUNetTrainerDCD",
    repeats: Annotated[int, typer.Option(help="Counted runs of each part.")] = 10,
    device: Annotated[str, typer.Option("-device", "--device")] = "cpu",
    output: Output = None,
) -> None:
    """A distillation step against the plain student's step and the teacher's forward, at the hippocampus shape."""
    import torch

    from nnunet_kd.bench.step import measure_step

    console = Console(highlight=False)
    with console.status(f"timing {trainer} and its parts"):
        result = measure_step(trainer, repeats, torch.device(device))
    table = Table(
        "part", "median (range)", title=f"batch 2, patch 40x56x40, r=4, {result['threads']} threads, {device}"
    )
    for name, spread in result["spread"].items():
        table.add_row(name, spread)
    console.print(table)
    console.print(f"{trainer} step / (student step + teacher encoder) = {result['ratio']:.2f}")
    _write(output, result)


def _write(output: Path | None, result: dict[str, Any]) -> None:
    if output is not None:
        from nnunet_kd.files import write_atomically

        write_atomically(output, lambda file: file.write(json.dumps(result, indent=1).encode()))
