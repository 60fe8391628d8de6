"""``nnunet-kd bench``: the package's performance claims, measured where it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli.options import option
from nnunet_kd.cli.training_options import check_device
from nnunet_kd.system.files import check_output_file, write_atomically

app = typer.Typer(help="Measure what distillation costs, side by side in one run.", no_args_is_help=True)

SHAPE_HELP = (
    "hippocampus, brats2024 (ResidualEncoderUNet, 4x128x160x112), or a teacher's model folder, of which plan and configuration "
    "are taken."
)
TRAINER_HELP = "A shipped trainer with objectives"
PEAK_OF = {"student step": "nnUNetTrainerStudent"}

Output = Annotated[Optional[Path], option("json", "Also write the figures to this file.")]  # noqa: UP045


@app.command("loss")
def loss(
    repeats: Annotated[int, option("repeats", "Counted runs of each form.", min=1)] = 7,
    device: Annotated[str, option("device", "cuda or cpu.")] = "cpu",
    output: Output = None,
) -> None:
    """DCD's stage loss, forward and backward (CPU: one thread), against the same loss through ptwt; and its peak memory."""
    import torch

    from nnunet_kd.evaluation.costs.profiling import PROFILED_DEVICES
    from nnunet_kd.workflows.bench.loss import measure_memory, measure_speed

    check_device(device, PROFILED_DEVICES)
    _check(output)
    console, on = Console(highlight=False), torch.device(device)
    with console.status("timing the stage loss against ptwt"):
        speed = measure_speed(repeats=repeats, device=on)
    table = Table(
        "form",
        "forward + backward",
        "times as fast as ptwt",
        title=f"teacher feature {tuple(speed['shapes'][0])}, {device}",
    )
    for name, seconds in speed["seconds"].items():
        table.add_row(name, f"{1e3 * seconds:.1f} ms", f"{speed['faster'][name]:.1f}")
    console.print(table)
    console.print(
        f"largest relative difference to ptwt (loss and gradients, mode zero): {speed['largest relative difference']:.1e}"
    )
    with console.status("measuring peak memory in a process of its own"):
        memory = measure_memory(device=on)
    console.print(
        f"peak memory at {tuple(memory['shape'])}: {memory['peak'] / 2**20:.0f} MiB, "
        f"{memory['ratio']:.2f} times the two features ({memory['features'] / 2**20:.0f} MiB)"
    )
    _write(output, {"speed": speed, "memory": memory})


@app.command("step")
def step(
    trainer: Annotated[str, option("trainer", f"{TRAINER_HELP}.")] = "nnUNetTrainerDCD",
    every: Annotated[bool, typer.Option("--all", help="All shipped trainers, in one run.")] = False,
    repeats: Annotated[int, option("repeats", "Counted runs of each part.", min=1)] = 10,
    shape: Annotated[str, typer.Option(help=SHAPE_HELP)] = "hippocampus",
    device: Annotated[str, option("device", "cuda, cpu or mps.")] = "cpu",
    output: Output = None,
) -> None:
    """A distillation step against the plain student's step and the teacher's forward."""
    import torch

    from nnunet_kd.workflows.bench.pair import Shape
    from nnunet_kd.workflows.bench.rows import all_trainers, check_trainers
    from nnunet_kd.workflows.bench.step import measure_steps

    check_device(device)
    _check(output)
    trainers = all_trainers() if every else check_trainers([trainer])
    console, at = Console(highlight=False), Shape(shape)
    with console.status(f"timing {'all trainers' if every else trainer} and the parts"):
        result = measure_steps(trainers, repeats, torch.device(device), shape=at)
    patch = "x".join(map(str, at.configuration["patch_size"]))
    size = f"{at.configuration_name}, batch {at.configuration['batch_size']}, patch {patch}, r=4"
    title = f"one training step: {size}, {result['threads']} threads, {device}"
    table = Table("part", "median (range)", "ratio to student step + teacher forward", "peak memory", title=title)
    for name, spread in result["spread"].items():
        ratio, peak = result["ratio"].get(name), result["peak bytes"].get(PEAK_OF.get(name, name))
        table.add_row(
            name, spread, "" if ratio is None else f"{ratio:.2f}", "" if peak is None else f"{peak / 2**20:.0f} MiB"
        )
    console.print(table)
    console.print("Teacher forward: the encoder alone, or the whole network for objectives on logits.")
    for name, iterations in result["every"].items():
        if iterations > 1:
            console.print(
                f"{name} counts in one of {iterations} iterations. The others are steps of the student alone."
            )
    _write(output, result)


@app.command("size")
def size(
    shape: Annotated[str, typer.Option(help=SHAPE_HELP)] = "brats2024",
    trainer: Annotated[list[str] | None, option("trainer", f"{TRAINER_HELP}; may be repeated. Default: all.")] = None,
    device: Annotated[str, option("device", "cuda, cpu or mps.")] = "cpu",
    output: Output = None,
) -> None:
    """Peak memory and time of one training step at a real size, each trainer in a process of its own; and the least it takes."""
    import torch

    from nnunet_kd.workflows.bench.pair import Shape
    from nnunet_kd.workflows.bench.rows import all_trainers, check_trainers
    from nnunet_kd.workflows.bench.size import measure_sizes, unavoidable

    check_device(device)
    _check(output)
    trainers = check_trainers(trainer) if trainer else all_trainers()
    console, at = Console(highlight=False), Shape(shape)
    floor = unavoidable(at)
    rows = []
    with console.status("one step of the plain student and of each trainer") as status:
        for row in measure_sizes(trainers, at, torch.device(device)):
            parts = [part for part in ("student", row["forward"]) if part]
            row["floor"] = {kind: sum(of[part] for part in parts) for kind, of in floor.items()}
            rows.append(row)
            status.update(f"measured {row['name']}")
            _write(
                output,
                {"shape": shape, "device": device, "threads": torch.get_num_threads(), "floor": floor, "rows": rows},
            )
    table = Table(
        "trainer",
        "peak memory",
        "at least",
        "step",
        "computation, at least",
        title=f"one training step: {shape}, {at.configuration_name}, {device}",
    )
    for row in rows:
        least = (f"{row['floor']['bytes'] / 2**30:.2f} GiB", f"{row['floor']['flops'] / 1e12:.3f} TFLOP")
        failed = row.get("error")
        peak, seconds = ("", failed) if failed else (f"{row['peak bytes'] / 2**30:.2f} GiB", f"{row['seconds']:.3g} s")
        table.add_row(row["name"], peak, least[0], seconds, least[1])
    console.print(table)


def _check(output: Path | None) -> None:
    if output is not None:
        check_output_file(output, "--json")


def _write(output: Path | None, result: dict[str, Any]) -> None:
    if output is not None:
        write_atomically(output, lambda file: file.write(json.dumps(result, indent=1).encode()))
