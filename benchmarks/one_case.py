"""Run ``kd-segment`` or ``nnunet-kd`` in this process and say what reading, network and writing took; for ``runtime_costs.py``.

    python benchmarks/one_case.py RESULT.json kd-segment MODEL.onnx IMAGE -o OUT

Imports nothing but the program itself, so that it also runs in the runtime's own environment.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = runpy.run_path(str(Path(__file__).resolve().parents[1] / "nnunet_kd" / "system" / "memory.py"))
"""The package's own reader of memory, by its path: the runtime's environment has no nnunet_kd."""
SECONDS = {"reading": 0.0, "network": 0.0, "writing": 0.0}


def timed(owner: Any, name: str, part: str) -> None:
    """Add a function's seconds to a part's."""
    original = getattr(owner, name)

    def replacement(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*given, **named)
        finally:
            SECONDS[part] += time.perf_counter() - start

    setattr(owner, name, replacement)


def kd_segment() -> Callable[[], Any]:
    """The runtime's command."""
    from nnunet_kd_runtime import command, session
    from nnunet_kd_runtime.segmentation import Predictor

    timed(session, "read_case", "reading")
    timed(Predictor, "logits", "network")
    timed(session, "write_segmentation", "writing")
    return command.main


def nnunet_kd() -> Callable[[], Any]:
    """The main package's command."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunet_kd.cli import main
    from nnunet_kd.inference.predictor import CasePredictor

    timed(SimpleITKIO, "read_images", "reading")
    timed(CasePredictor, "predict_logits_from_preprocessed_data", "network")
    timed(SimpleITKIO, "write_seg", "writing")
    return main


def main() -> int:
    """See the module."""
    result, program = sys.argv[1:3]
    sys.argv = [program, *sys.argv[3:]]
    run = {"kd-segment": kd_segment, "nnunet-kd": nnunet_kd}[program]()
    try:
        code = run()
    except SystemExit as stop:
        code = stop.code
    peak = MEMORY["peak_resident_bytes"]()
    Path(result).write_text(json.dumps({**SECONDS, "peak": peak}))
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
