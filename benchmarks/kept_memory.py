"""What it saves that a training on a CPU keeps the memory that it frees (``freed_memory_kept``), and what it costs.

Command: ``python benchmarks/kept_memory.py [--shape brats2024]``. Processes with and without it take turns. Each takes several
steps in a row, since only the second step finds what the first one freed. The peak memory of a plain step is that of a process of
its own, beyond the imported libraries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nnunet_kd.system.memory import freed_memory_kept
from nnunet_kd.workflows.bench.pair import HIPPOCAMPUS, Shape, random_batch
from nnunet_kd.workflows.bench.rows import PLAIN_STUDENT, TrainerPhase, prepared_trainers, training_step
from nnunet_kd.workflows.bench.size import measure_here

CPU = torch.device("cpu")
WARM_UP = 2
DCD = TrainerPhase("nnUNetTrainerDCD", "nnUNetTrainerDCD")
KINDS = {"given back": False, "kept": True}
PLAIN, DISTILLED, FORWARD = WORK = ("plain step", "DCD step", "student's forward pass")


def measure(kind: str, shape: Shape, wanted: list[str], repeats: int) -> dict[str, list[float]]:
    """Seconds of repeated runs of every piece of work, in this process."""
    found: dict[str, list[float]] = {}
    with freed_memory_kept(KINDS[kind]), prepared_trainers([PLAIN_STUDENT, DCD], shape, CPU) as prepared:
        student, distilled = prepared[PLAIN_STUDENT.name], prepared[DCD.name]
        image = random_batch(student)["data"][:1]
        runs: dict[str, Callable[[], object]] = {
            PLAIN: training_step(student, random_batch(student), False),
            DISTILLED: training_step(distilled, random_batch(distilled), False),
            FORWARD: torch.inference_mode()(lambda: student.network(image)),
        }
        for name in wanted:
            for turn in range(-WARM_UP, repeats):
                began = time.perf_counter()
                runs[name]()
                if turn >= 0:
                    found.setdefault(name, []).append(time.perf_counter() - began)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=HIPPOCAMPUS, help="as of nnunet-kd bench step")
    parser.add_argument(
        "--only", default=",".join(WORK), help=f"pieces of work, with commas; default: {','.join(WORK)}"
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--repeats", type=int, default=10, help="counted runs in each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape, wanted = Shape(options.shape), options.only.split(",")
    if options.kind and options.peak:
        with freed_memory_kept(KINDS[options.kind]):
            print(json.dumps(measure_here(PLAIN_STUDENT, shape, CPU)["peak bytes"]))
        return
    if options.kind:
        print(json.dumps(measure(options.kind, shape, wanted, options.repeats)))
        return
    told = ["--shape", options.shape, "--only", options.only, "--repeats", str(options.repeats)]

    def in_its_own_process(kind: str, *more: str) -> str:
        command = [sys.executable, __file__, *told, "--kind", kind, *more]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]

    seconds: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in wanted} for kind in KINDS}
    for _ in range(options.rounds):
        for kind, pieces in seconds.items():
            for name, values in json.loads(in_its_own_process(kind)).items():
                pieces[name] += values
    found = {f"{name} (s)": [statistics.median(seconds[kind][name]) for kind in KINDS] for name in wanted}
    found["peak of a plain step (GiB)"] = [int(in_its_own_process(kind, "--peak")) / 2**30 for kind in KINDS]
    print(f"{options.shape}, {torch.get_num_threads()} threads")
    for name, (given_back, kept) in found.items():
        print(f"{name}: given back {given_back:.3g}, kept {kept:.3g}, ratio {kept / given_back:.2f}")
    if options.json:
        options.json.write_text(
            json.dumps({"shape": options.shape, "threads": torch.get_num_threads(), **found}, indent=1)
        )


if __name__ == "__main__":
    main()
