"""Predict with nnunet-kd-runtime in its own environment; ``inference.py``'s worker for it. Imports nothing else."""

from __future__ import annotations

import json
import runpy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

MEMORY = runpy.run_path(str(Path(__file__).resolve().parents[1] / "nnunet_kd" / "system" / "memory.py"))
"""The package's own reader of memory, by its path: the runtime's environment has no nnunet_kd."""


def work(task: dict[str, Any]) -> dict[str, float]:
    """Predict once, as ``inference.py`` describes a task."""
    from nnunet_kd_runtime.arrays import open_predictor
    from nnunet_kd_runtime.cases import find_cases
    from nnunet_kd_runtime.segmentation import Predictor
    from nnunet_kd_runtime.session import Options, Run

    network: list[float] = []
    processor: list[float] = []
    predict = Predictor.logits

    def timed(*given: Any) -> Any:
        start, busy = time.perf_counter(), time.process_time()
        logits = predict(*given)
        network.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
        return logits

    Predictor.logits = timed  # type: ignore[assignment, method-assign]
    predictor = open_predictor(
        task["model"], backend=task["how"].split()[1], threads=task["threads"], mirroring=task["mirroring"]
    )
    run = Run(predictor, Options())
    start = time.perf_counter()
    run.cases(
        find_cases([Path(task["images"])], Path(task["output"]), predictor.model), lambda *_: None, whole_folder=True
    )
    whole = time.perf_counter() - start
    return {
        "whole": whole / len(network),
        "network": statistics.median(network),
        "cpu": statistics.median(processor),
        "peak": MEMORY["peak_resident_bytes"](),
    }


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
