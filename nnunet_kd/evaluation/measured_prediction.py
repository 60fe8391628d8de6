"""Predict cases one by one and measure; run as a program so that its memory is the predictor's own.

Started by :mod:`nnunet_kd.evaluation.conformance` with a JSON file as its only argument: ``predictor`` (stock or runtime),
``model``, ``folds``, ``cases`` (lists of image files with the output's name), ``output``, ``threads``, ``mirroring``,
``previous_stage``. Writes ``seconds`` (a number a case) and ``peak_bytes`` to the file ``result``. Of this package it imports
only what needs the standard library alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_kd.system.memory import peak_resident_bytes

Predict = Callable[[dict[str, Any]], None]


def main(path: Path) -> None:
    """Run what the JSON file says."""
    given = json.loads(path.read_text(encoding="utf-8"))
    predict = {"stock": stock, "runtime": runtime}[given["predictor"]](given)
    seconds = []
    for case in given["cases"]:
        start = time.perf_counter()
        predict(case)
        seconds.append(time.perf_counter() - start)
    Path(given["result"]).write_text(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), encoding="utf-8")


def stock(given: dict[str, Any]) -> Predict:
    """nnU-Net's own predictor, loaded."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(given["threads"])
    predictor = nnUNetPredictor(use_mirroring=given["mirroring"], device=torch.device("cpu"), allow_tqdm=False)
    folds = [fold if fold == "all" else int(fold) for fold in given["folds"]]
    predictor.initialize_from_trained_model_folder(given["model"], folds, given["checkpoint"])

    def predict(case: dict[str, Any]) -> None:
        output = str(Path(given["output"]) / case["name"])
        predictor.predict_from_files_sequential(
            [case["images"]], [output], folder_with_segs_from_prev_stage=given["previous_stage"]
        )

    return predict


def runtime(given: dict[str, Any]) -> Predict:
    """nnunet-kd-runtime's predictor, loaded."""
    from nnunet_kd_runtime.arrays import open_predictor
    from nnunet_kd_runtime.cases import find_cases
    from nnunet_kd_runtime.session import Options, Run

    previous = Path(given["previous_stage"]) if given["previous_stage"] else None
    predictor = open_predictor(
        given["model"], backend=given["backend"], threads=given["threads"], mirroring=given["mirroring"]
    )
    run = Run(predictor, Options(previous_stage=previous, overwrite=True))

    def predict(case: dict[str, Any]) -> None:
        images = [Path(image) for image in case["images"]]
        run.cases(find_cases(images, Path(given["output"]), predictor.model), lambda *_: None, whole_folder=True)

    return predict


def peak_bytes() -> int | None:
    """This process's largest resident memory; ``None`` where the system does not say."""
    try:
        return peak_resident_bytes()
    except ImportError:  # Windows
        return None


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
