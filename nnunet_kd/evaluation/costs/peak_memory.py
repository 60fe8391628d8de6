"""Peak memory of one patch through a network, weights included."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.evaluation.costs.networks import MeasuredNetwork, read_network
from nnunet_kd.system.memory import forget_peak, peak_resident_bytes, resident_bytes


def prediction_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """nnU-Net predicts in mixed precision on CUDA."""
    return torch.autocast("cuda") if device == "cuda" else contextlib.nullcontext()


def cuda_peak_memory(source: MeasuredNetwork) -> int:
    """Bytes that CUDA's allocator held at most for the weights and one patch."""
    source.network.to("cpu")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    network = source.network.to("cuda")
    with torch.inference_mode(), prediction_precision("cuda"):
        network(torch.rand(1, source.input_channels, *source.patch_size, device="cuda"))
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def cpu_peak_memory(path: Path, configuration: str | None, fold: str | None, dataset_json: Path | None) -> int | None:
    """Bytes of resident memory for the weights and one patch; ``None`` where the system does not tell.

    In a process of its own, as memory that Python has once taken is seldom given back.
    """
    if not forget_peak():
        return None
    arguments = [str(path), configuration, fold, None if dataset_json is None else str(dataset_json)]
    code = f"import sys, json, {__name__} as p; print(); print(p.resident_peak(*json.loads(sys.argv[1])))"
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    last = result.stdout.strip().rpartition("\n")[2]
    return int(last) if last.isdigit() else None  # the number is worth a dash, not the run


def resident_peak(path: str, configuration: str | None, fold: str | None, dataset_json: str | None) -> int | None:
    """Bytes by which one patch raises this process's resident memory, weights included; see ``read_network``."""
    source = read_network(Path(path), configuration, fold, None if dataset_json is None else Path(dataset_json))
    weights = sum(parameter.nbytes for parameter in source.network.parameters()) or 4 * source.parameters
    patch = torch.rand(1, source.input_channels, *source.patch_size)
    with torch.inference_mode():
        source.network(patch)  # loads the libraries that any network needs; they are none of its costs
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # freed memory that glibc keeps would hide what the patch takes
        ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    if not forget_peak():  # what came before may have taken more than the patch does
        return None
    with torch.inference_mode():
        source.network(patch)
    return peak_resident_bytes() - before + weights
