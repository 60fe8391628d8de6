"""What a network costs: parameters, FLOPs, file size, peak memory, latency.

FLOPs are PyTorch's count (``torch.utils.flop_counter``: convolutions and matrix products, two per multiply-add), taken
on the meta device, so they depend on no machine. Whole volumes are predicted by nnU-Net's own sliding window, half a
patch per step.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_kd.errors import SettingsError
from nnunet_kd.evaluation.costs.networks import MeasuredNetwork, read_network
from nnunet_kd.evaluation.costs.onnx_network import OnnxNetwork
from nnunet_kd.evaluation.costs.peak_memory import cpu_peak_memory, cuda_peak_memory, prediction_precision
from nnunet_kd.evaluation.costs.timing import Timing, time_in_turn
from nnunet_kd.models.folder import new_predictor
from nnunet_kd.nnunet.devices import check_device
from nnunet_kd.nnunet.environment import STOCK_TRAINER
from nnunet_kd.nnunet.prediction import window_starts
from nnunet_kd.system.counts import counted
from nnunet_kd.system.processor import processor_name

PROFILED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Latency:
    """Seconds over repeats, warm-up left out: median, quartiles, number of repeats."""

    median: float
    lower_quartile: float
    upper_quartile: float
    repeats: int

    @classmethod
    def of(cls, timing: Timing) -> Latency:
        """The quartiles of timed runs."""
        lower, median, upper = np.percentile(timing.seconds, [25, 50, 75])
        return cls(float(median), float(lower), float(upper), len(timing.seconds))


@dataclass(frozen=True)
class DeviceProfile:
    """What was measured on one device.

    Attributes:
        name: of the processor, as the system calls it.
        peak_memory_bytes: weights and one patch's activations at their highest: CUDA's allocator, or the resident
            memory of a fresh process; ``None`` where it cannot be told.
        latency: by kind: ``patch``, ``patch_mirrored`` (all flips of one patch), ``volume``, ``volume_mirrored``.
    """

    name: str
    peak_memory_bytes: int | None
    latency: dict[str, Latency] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """One model's costs.

    Attributes:
        name, source: how the user calls it, and the path it was read from.
        parameters: number of learned values.
        patch_size, volume_shape: voxels; the volume is ``None`` if not known.
        windows: patches that the sliding window takes of the volume.
        mirror_passes: forward passes per patch with mirroring.
        flops_patch: of one patch; ``None`` for ONNX, which PyTorch cannot count.
        flops_volume: of all windows, without mirroring.
        file_bytes: of the checkpoint or exported file; ``None`` for a plan.
        devices: ``cpu``, ``cuda``, as far as measured.
    """

    name: str
    source: str
    parameters: int
    patch_size: tuple[int, ...]
    volume_shape: tuple[int, ...] | None
    windows: int | None
    mirror_passes: int
    flops_patch: int | None
    flops_volume: int | None
    file_bytes: int | None
    devices: dict[str, DeviceProfile] = field(default_factory=dict)

    @property
    def flops_volume_mirrored(self) -> int | None:
        """As nnU-Net predicts by default: every window in every flip."""
        return None if self.flops_volume is None else self.flops_volume * self.mirror_passes


@dataclass(frozen=True)
class ProfileOptions:
    """How to measure.

    Attributes:
        devices: ``cpu``, ``cuda``.
        repeats, warmup: timed and untimed runs of each kind.
        volume_shape: voxels; ``None`` takes each plan's median shape.
        time_volumes: also time whole volumes, which takes windows times flips times as long.
        time_mirrored: also time a patch in all its flips.
        peak_memory: also measure memory, on the CPU in a fresh process for every model.
    """

    devices: tuple[str, ...] = ("cpu",)
    repeats: int = 10
    warmup: int = 2
    volume_shape: tuple[int, ...] | None = None
    time_volumes: bool = True
    time_mirrored: bool = True
    peak_memory: bool = True


def profile_models(
    models: Mapping[str, Path],
    options: ProfileOptions | None = None,
    configuration: str | None = None,
    fold: str | None = None,
    dataset_json: Path | None = None,
) -> list[Profile]:
    """Measure models against each other.

    Args:
        models: paths by what to call them.
        options: default :class:`ProfileOptions`.
        configuration, fold, dataset_json: of all models; see :func:`nnunet_kd.evaluation.costs.networks.read_network`.

    Raises:
        ModelError, PlanError: nothing to read there.
        SettingsError: CUDA is asked for and not there, or a volume of other dimension than the patch.
    """
    options = options or ProfileOptions()
    for device in options.devices:
        check_device(device, PROFILED_DEVICES)
    sources = {name: read_network(path, configuration, fold, dataset_json) for name, path in models.items()}
    profiles = {name: _costs_without_a_device(name, source, options) for name, source in sources.items()}
    for device in options.devices:
        # ONNX sessions run on the CPU
        fit = {name: s for name, s in sources.items() if device == "cpu" or not isinstance(s.network, OnnxNetwork)}
        memory: dict[str, int | None] = dict.fromkeys(fit)
        for name, source in fit.items() if options.peak_memory else ():
            memory[name] = (
                cuda_peak_memory(source)
                if device == "cuda"
                else cpu_peak_memory(source.path, configuration, fold, dataset_json)
            )
        for name, latency in _latencies(fit, device, options).items():
            profiles[name].devices[device] = DeviceProfile(_device_name(device), memory[name], latency)
    return list(profiles.values())


def _costs_without_a_device(name: str, source: MeasuredNetwork, options: ProfileOptions) -> Profile:
    volume = options.volume_shape or source.volume_shape
    windows = None if volume is None else count_windows(volume, source.patch_size)
    per_patch = None if isinstance(source.network, OnnxNetwork) else count_flops(source)
    return Profile(
        name=name,
        source=str(source.path),
        parameters=source.parameters,
        patch_size=source.patch_size,
        volume_shape=volume,
        windows=windows,
        mirror_passes=2 ** len(source.mirror_axes),
        flops_patch=per_patch,
        flops_volume=None if per_patch is None or windows is None else per_patch * windows,
        file_bytes=source.file_bytes,
    )


def count_windows(volume_shape: Sequence[int], patch_size: Sequence[int]) -> int:
    """Patches that nnU-Net's sliding window takes of a volume, padded to the patch where smaller.

    A 2D patch runs over every slice of a 3D volume.

    Raises:
        SettingsError: other dimensions.
    """
    volume, slices = tuple(volume_shape), 1
    if len(volume) == 3 and len(patch_size) == 2:
        slices, volume = volume[0], volume[1:]
    if len(volume) != len(patch_size) or min(volume) < 1:
        raise SettingsError(
            f"a volume of {'x'.join(map(str, volume_shape))} does not go with a patch of "
            f"{'x'.join(map(str, patch_size))}. Give --volume with {len(patch_size)} numbers above 0."
        )
    padded = [max(size, patch) for size, patch in zip(volume, patch_size, strict=True)]
    return slices * math.prod(len(starts) for starts in window_starts(padded, patch_size))


def count_flops(source: MeasuredNetwork) -> int:
    """FLOPs of one patch (1, C, *patch), on the meta device: nothing is computed, and no memory is used."""
    network = copy.deepcopy(source.network).to("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.empty(1, source.input_channels, *source.patch_size, device="meta"))
    return int(counter.get_total_flops())


def mirrored(network: nn.Module, axes: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The mean over all flips of the spatial ``axes`` (from 0), as test-time mirroring takes it."""
    flips = [
        tuple(axis + 2 for axis in chosen) for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)
    ]

    def run(x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = network(x)
        for flip in flips[1:]:
            total = total + torch.flip(network(torch.flip(x, flip)), flip)
        return total / len(flips)

    return run


def _latencies(
    sources: Mapping[str, MeasuredNetwork], device: str, options: ProfileOptions
) -> dict[str, dict[str, Latency]]:
    """By model and kind."""
    runs: dict[str, dict[str, Callable[[], object]]] = {}
    for name, source in sources.items():
        for kind, run in _runs(source, device, options).items():
            runs.setdefault(kind, {})[name] = run
    latencies: dict[str, dict[str, Latency]] = {name: {} for name in sources}
    for kind, of_kind in runs.items():
        # as nnU-Net's predictor does by itself for volumes
        with torch.inference_mode(), prediction_precision(device):
            title = f"{kind}, {device}".replace("_", " ")
            timings = time_in_turn(of_kind, options.repeats, device, options.warmup, title)
        for name, timing in timings.items():
            latencies[name][kind] = Latency.of(timing)
    return latencies


def _runs(source: MeasuredNetwork, device: str, options: ProfileOptions) -> dict[str, Callable[[], object]]:
    """What is timed of a model, by kind."""
    network = source.network.to(device)
    patch = torch.rand(1, source.input_channels, *source.patch_size, device=device)
    runs: dict[str, Callable[[], object]] = {"patch": partial(network, patch)}
    if options.time_mirrored:
        runs["patch_mirrored"] = partial(mirrored(network, source.mirror_axes), patch)
    volume = options.volume_shape or source.volume_shape
    if source.predictor is None or volume is None or not options.time_volumes:
        return runs
    image = torch.rand(source.input_channels, *(volume if len(volume) == 3 else (1, *volume)))
    for kind, mirroring in (("volume", False), ("volume_mirrored", True)):
        predictor = new_predictor(mirroring, device)
        given = source.predictor
        predictor.manual_initialization(
            network, given.plans_manager, given.configuration_manager, None, given.dataset_json, STOCK_TRAINER,
            source.mirror_axes,
        )  # fmt: skip
        runs[kind] = partial(predictor.predict_sliding_window_return_logits, image)
    return runs


def _device_name(device: str) -> str:
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{processor_name()}, {counted(torch.get_num_threads(), 'thread')}"
