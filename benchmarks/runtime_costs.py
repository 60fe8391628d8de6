"""What nnunet-kd-runtime takes, in an environment of its own, beside ``nnunet-kd predict`` and stock nnU-Net.

    python benchmarks/runtime_costs.py --teacher FOLDER --student FOLDER --images FOLDER --threads 1

Builds the environment (``pip install ./runtime`` with its constraints), then measures, one after the other:

- its size with pip in it;
- ``kd-segment --help``, and the start-up of both programs: one process for one case minus reading, network and writing. Both
  in turn, after one run each that fills the cache; medians. ``kd-segment`` also gives its peak memory;
- seconds a case by every way of ``inference.py``, which are that page's rows. OpenVINO is installed before that.

Nothing else may run on the machine. The exit code is 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import inference

ROOT = Path(__file__).resolve().parents[1]
SIZE, MEMORY, START_UP, START_UP_SHARE, HELP, SPEED = 350e6, 500e6, 1.5, 1 / 5, 0.3, 1.05
BINARIES = "Scripts" if os.name == "nt" else "bin"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--starts", type=int, default=10, help="runs that each start-up is the median of")
    parser.add_argument("--repeats", type=int, default=5, help="runs that each speed is the median of")
    parser.add_argument("--cases", type=int, default=4, help="images that speed is measured on")
    parser.add_argument("--environment", type=Path, help="keep the runtime's environment here")
    parser.add_argument("--json", type=Path, help="keep all figures")
    return parser.parse_args()


def main() -> int:
    """See the module."""
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        environment = options.environment or root / "environment"
        size = build(environment)
        python, command = environment / BINARIES / "python", environment / BINARIES / "kd-segment"
        onnx = root / "student.onnx"
        inference.export(options.student, onnx)
        images = inference.first_cases(options.images, root / "images", options.cases)
        starts = start_ups(onnx, images, python, command, options, root)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", f"{ROOT / 'runtime'}[openvino]", *constraints()], check=True
        )
        speed = argparse.Namespace(
            **{**vars(options), "runtime": python, "no_mirroring": False, "ways": ";".join(inference.RUNTIME_WAYS)}
        )
        speeds = inference.measure(speed, images, onnx, root)
    inference.report(speeds, speed)
    figures = {"size": size, **starts, "speeds": speeds}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return report(figures, options)


def constraints() -> list[str]:
    """The versions that sizes are claimed for."""
    return ["-c", str(ROOT / "runtime" / "constraints.txt")]


def build(environment: Path) -> int:
    """Install the runtime into a new environment; returns its bytes."""
    venv.create(environment, with_pip=True, clear=True)
    python = environment / BINARIES / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", str(ROOT / "runtime"), *constraints()], check=True)
    return sum(path.stat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink())


def start_ups(
    onnx: Path, images: Path, python: Path, command: Path, options: argparse.Namespace, root: Path
) -> dict[str, list[dict[str, float]]]:
    """Every run's seconds, by program."""
    image = sorted(images.iterdir())[0]
    one = root / "one"
    one.mkdir()
    (one / image.name).symlink_to(image.resolve())
    threads = ["--threads", str(options.threads)]
    calls = {
        "kd-segment": [python, "kd-segment", onnx, one, "-o", "OUT", *threads],
        "nnunet-kd predict": [
            sys.executable, "nnunet-kd", "predict", "-i", one, "-o", "OUT", "--model", onnx, "--backend", "onnxruntime", *threads
        ],
    }  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {**{name: [] for name in calls}, "--help": []}
    for repeat in range(options.starts + 1):
        for name, (interpreter, *arguments) in calls.items():
            output, result = root / "starts" / f"{name[:2]}{repeat}", root / "result.json"
            given = [output if argument == "OUT" else argument for argument in arguments]
            row = {
                "whole": seconds(
                    [interpreter, Path(__file__).with_name("one_case.py"), result, *given], options.threads
                )
            }
            row.update(json.loads(result.read_text()))
            row["start-up"] = row["whole"] - row["reading"] - row["network"] - row["writing"]
            found[name].append(row)
        found["--help"].append({"whole": seconds([command, "--help"], options.threads)})
    return {name: rows[1:] for name, rows in found.items()}  # the first fills the cache


def seconds(command: list[Any], threads: int) -> float:
    """Of a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "nnUNet_def_n_proc": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    taken = time.perf_counter() - start
    if finished.returncode:
        sys.exit(finished.stderr)
    return taken


def report(figures: dict[str, Any], options: argparse.Namespace) -> int:
    """The table, and each limit beside what was found."""
    own, main_package = figures["kd-segment"], figures["nnunet-kd predict"]
    print(f"\nStart-up, s, median of {options.starts} runs in turn, {options.threads} threads\n")
    print("| | whole process | reading | network | writing | start-up | peak memory |\n|-|-|-|-|-|-|-|")
    for name, rows in (("kd-segment", own), ("nnunet-kd predict", main_package)):
        row = {key: statistics.median(one[key] for one in rows) for key in rows[0]}
        parts = " | ".join(f"{row[key]:.3f}" for key in ("whole", "reading", "network", "writing", "start-up"))
        print(f"| {name} | {parts} | {row['peak'] / 1e6:.0f} MB |")
    starts = [statistics.median(row["start-up"] for row in rows) for rows in (own, main_package)]
    whole = {way: statistics.median(run["whole"] for run in runs) for way, runs in figures["speeds"].items()}
    limits = [
        ("environment with pip, MB", figures["size"] / 1e6, SIZE / 1e6),
        ("peak memory of a case, MB", max(row["peak"] for row in own) / 1e6, MEMORY / 1e6),
        ("start-up, s", starts[0], START_UP),
        ("start-up / nnunet-kd predict's", starts[0] / starts[1], START_UP_SHARE),
        ("--help, s", statistics.median(row["whole"] for row in figures["--help"]), HELP),
        *(
            (f"{backend}, s/case / predict --backend {backend}'s",
             whole[f"student, runtime {backend}"] / whole[f"student, {backend}"], SPEED)
            for backend in ("onnxruntime", "openvino")
        ),
    ]  # fmt: skip
    print("\n| | found | at most | |\n|-|-|-|-|")
    for what, value, limit in limits:
        print(f"| {what} | {value:.3f} | {limit:.3f} | {'holds' if value <= limit else 'MISSED'} |")
    return int(any(value > limit for _, value, limit in limits))


if __name__ == "__main__":
    sys.exit(main())
