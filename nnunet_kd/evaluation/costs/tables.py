"""Profiles as the paper's table 3, and as a file that a comparison reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.costs.profiling import DeviceProfile, Latency, Profile
from nnunet_kd.evaluation.tables import DASH, TIMES, Table
from nnunet_kd.system.files import write_atomically

_KINDS = {
    "patch": "one patch",
    "patch_mirrored": "one patch, mirrored",
    "volume": "volume",
    "volume_mirrored": "volume, mirrored",
}


def profile_table(profiles: Sequence[Profile]) -> Table:
    """Table 3 of the paper: one row per cost, one column per model.

    Behind each number of the second and later models stands how many times less it is than the first's.
    """
    rows: list[tuple[str, ...]] = [
        _row("Parameters (M)", [profile.parameters for profile in profiles], 1e6),
        _row("FLOPs, one patch (G)", [profile.flops_patch for profile in profiles], 1e9),
        _row("FLOPs, volume (T)", [profile.flops_volume for profile in profiles], 1e12),
        _row("FLOPs, volume, mirrored (T)", [profile.flops_volume_mirrored for profile in profiles], 1e12),
        _row("Checkpoint (MB)", [profile.file_bytes for profile in profiles], 1e6),
    ]
    for device in dict.fromkeys(device for profile in profiles for device in profile.devices):
        measured = [profile.devices.get(device) for profile in profiles]
        memory = [None if found is None else found.peak_memory_bytes for found in measured]
        if any(value is not None for value in memory):
            rows.append(_row(f"Peak memory, {device} (MB)", memory, 1e6))
        for kind, title in _KINDS.items():
            latencies = [None if found is None else found.latency.get(kind) for found in measured]
            if any(latencies):
                rows.append(_latency_row(f"Latency, {title}, {device} (ms)", latencies))
    return Table("Model complexity", ("", *(profile.name for profile in profiles)), tuple(rows), _note(profiles))


def _note(profiles: Sequence[Profile]) -> str:
    patches = {_shape(profile.patch_size) for profile in profiles}
    if len(patches) > 1:
        patches = {f"{_shape(profile.patch_size)} ({profile.name})" for profile in profiles}
    volumes = {
        f"{_shape(profile.volume_shape)} ({profile.windows} {'window' if profile.windows == 1 else 'windows'})"
        for profile in profiles
        if profile.volume_shape is not None
    }
    processors = {f"{device}: {found.name}" for profile in profiles for device, found in profile.devices.items()}
    repeats = {
        str(latency.repeats) for p in profiles for found in p.devices.values() for latency in found.latency.values()
    }
    parts = [
        f"Patch: {', '.join(sorted(patches))}",
        f"volume: {', '.join(sorted(volumes)) or 'not known'}",
        f"mirrored: {', '.join(sorted({str(profile.mirror_passes) for profile in profiles}))} passes per patch",
        "FLOPs: two per multiply-add of convolutions and matrix products",
    ]
    if repeats:
        parts.append(f"latency: median (quartiles) of {', '.join(sorted(repeats))} repeats, batch 1")
    return "; ".join([*parts, *sorted(processors)]) + "."


def _shape(shape: Sequence[int]) -> str:
    return TIMES.join(str(size) for size in shape)


def _row(title: str, values: Sequence[float | None], unit: float) -> tuple[str, ...]:
    return (title, *(DASH if value is None else f"{_digits(value / unit)}{_less(values, value)}" for value in values))


def _digits(value: float) -> str:
    """Three decimals, or three significant digits below 1."""
    return f"{value:.3f}" if value >= 1 or value == 0 else f"{value:.3g}"


def _latency_row(title: str, latencies: Sequence[Latency | None]) -> tuple[str, ...]:
    medians = [None if latency is None else latency.median for latency in latencies]
    cells = [
        DASH if latency is None else
        f"{latency.median * 1e3:.1f} ({latency.lower_quartile * 1e3:.1f} to {latency.upper_quartile * 1e3:.1f})"
        f"{_less(medians, latency.median)}"
        for latency in latencies
    ]  # fmt: skip
    return (title, *cells)


def _less(values: Sequence[float | None], value: float) -> str:
    """`` [16.0x]`` for what is 16 times less than the first model's."""
    first = values[0]
    return "" if first is None or not value or value == first else f" [{first / value:.1f}{TIMES}]"


def write_profiles(profiles: Sequence[Profile], path: Path) -> None:
    """Write JSON for ``nnunet-kd compare --profile``."""
    text = json.dumps({"nnunet_kd_profiles": [asdict(profile) for profile in profiles]}, indent=2)
    write_atomically(path, lambda file: file.write(text.encode()))


def read_profiles(path: Path) -> dict[str, Profile]:
    """Read what :func:`write_profiles` wrote, by name.

    Raises:
        DataError: another file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["nnunet_kd_profiles"]
        return {entry["name"]: _profile(entry) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no profile ({error!r}). Write one with `nnunet-kd profile NAME=MODEL ... --output FILE.json`."
        ) from error


def _profile(entry: dict[str, Any]) -> Profile:
    devices = {
        name: DeviceProfile(
            found["name"],
            found["peak_memory_bytes"],
            {kind: Latency(**latency) for kind, latency in found["latency"].items()},
        )
        for name, found in entry["devices"].items()
    }
    shape = entry["volume_shape"]
    shapes = {"patch_size": tuple(entry["patch_size"]), "volume_shape": None if shape is None else tuple(shape)}
    return Profile(**(entry | shapes | {"devices": devices}))
