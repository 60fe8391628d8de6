"""What a model's files say about its data, read so that two of them can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import DataError, TeacherError
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.nnunet.resampling import resampling_defaults

TOLERANCE = 1e-6
"""Of preprocessed arrays, and relative of numbers in plans."""


@dataclass(frozen=True)
class DataDescription:
    """What a model's files say about its data.

    Attributes:
        plans: the plan.
        name: of the configuration in it.
        dataset: ``dataset.json``.
    """

    plans: Mapping[str, Any]
    name: str
    dataset: Mapping[str, Any]

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """The configuration with what it inherits, older spellings in today's."""
        resolved: dict[str, Any] = PlansManager(dict(self.plans)).get_configuration(self.name).configuration
        return resolved

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image's channels, in the order of their files; empty if there are none."""
        try:
            return tuple(channel_names(self.dataset))
        except DataError:
            return ()

    @property
    def schemes(self) -> tuple[str, ...]:
        """Names of the normalisations, one a channel."""
        return tuple(self.configuration.get("normalization_schemes", ())[: len(self.channels)])

    @property
    def statistics(self) -> Mapping[str, Mapping[str, float]]:
        """Intensities of the foreground by channel, as text."""
        older = self.plans.get("foreground_intensity_properties_by_modality", {})
        found: Mapping[str, Mapping[str, float]] = self.plans.get("foreground_intensity_properties_per_channel", older)
        return found

    @cached_property
    def labels(self) -> LabelManager:
        """What nnU-Net makes of the labels.

        Raises:
            TeacherError: they do not hold.
        """
        try:
            return LabelManager(dict(self.dataset["labels"]), self.dataset.get("regions_class_order"))
        except (RuntimeError, AssertionError, KeyError, TypeError, ValueError) as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else error
            raise TeacherError(
                f"the labels of {self.plans.get('dataset_name')} cannot be compared. nnU-Net says of its dataset.json: {reason}. "
                f"Correct that file."
            ) from error


Differ = Callable[[DataDescription, DataDescription], str | None]
"""How teacher and student differ, in words; ``None``: not at all."""


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same; numbers within a relative :data:`TOLERANCE`."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return bool(one == other)


def compared(read: Callable[[DataDescription], Any], tell: Callable[[DataDescription], Any] | None = None) -> Differ:
    """Compare what ``read`` makes of both; ``tell``: what is told of each, if it is something else."""

    def differ(teacher: DataDescription, student: DataDescription) -> str | None:
        one, other = read(teacher), read(student)
        if same(one, other):
            return None
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            keys = [key for key in {**one, **other} if not same(one.get(key), other.get(key))]
            return ", ".join(f"{key}: teacher {one.get(key)}, student {other.get(key)}" for key in keys)
        told = [_told((tell or read)(seen)) for seen in (teacher, student)]
        return f"teacher {told[0]}, student {told[1]}"

    return differ


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def reader_name(seen: DataDescription) -> str:
    """The reader that the plan names."""
    return str(seen.plans.get("image_reader_writer"))


def reader(seen: DataDescription) -> str:
    """The reader, readers that give the same array as one."""
    name = reader_name(seen)
    # both hand on the array of the file with its axes in the order z, y, x; what one of them alone can read is not compared
    return "SimpleITKIO or NibabelIO" if name in ("SimpleITKIO", "NibabelIO") else name


def _mask_decides(scheme: str) -> bool:
    return scheme not in ("CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")


def masks(decides: bool) -> Callable[[DataDescription], tuple[str, ...]]:
    """Masks for normalisation by channel: of the channels whose normalisation looks at them, or of the others."""

    def read(seen: DataDescription) -> tuple[str, ...]:
        masks = seen.configuration.get("use_mask_for_norm") or ()
        pairs = enumerate(zip(seen.schemes, masks, strict=False))
        return tuple(f"channel {place}: {mask}" for place, (scheme, mask) in pairs if _mask_decides(scheme) is decides)

    return read


def ct_statistics_differ(teacher: DataDescription, student: DataDescription) -> str | None:
    """Whether CT normalisation maps some intensity to numbers further apart than :data:`TOLERANCE`.

    It clips to two percentiles, subtracts a mean and divides by a standard deviation. The difference of two such maps is
    linear between their four bounds and constant beyond, so it is largest at a bound.
    """
    names = ("percentile_00_5", "percentile_99_5", "mean", "std")
    for place, schemes in enumerate(zip(teacher.schemes, student.schemes, strict=False)):
        if schemes != ("CTNormalization",) * 2:
            continue
        both = [seen.statistics.get(str(place), {}) for seen in (teacher, student)]
        if all(name in one for one in both for name in names):
            bounds = [one[name] for one in both for name in names[:2]]
            apart = max(abs(_normalised(bound, both[0]) - _normalised(bound, both[1])) for bound in bounds)
            if apart <= TOLERANCE:
                continue
        told = [", ".join(f"{name} {one.get(name)}" for name in names) for one in both]
        if told[0] != told[1]:
            return f"channel {place}: teacher {told[0]}; student {told[1]}"
    return None


def _normalised(intensity: float, statistics: Mapping[str, float]) -> float:
    clipped = min(max(intensity, statistics["percentile_00_5"]), statistics["percentile_99_5"])
    return (clipped - statistics["mean"]) / max(statistics["std"], 1e-8)


_STOCK_SCHEMES = (
    "ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
)  # fmt: skip


def statistics_of_own_schemes(seen: DataDescription) -> tuple[Any, ...]:
    """Intensities of the channels whose normalisation is not nnU-Net's own."""
    return tuple(
        seen.statistics.get(str(place)) for place, scheme in enumerate(seen.schemes) if scheme not in _STOCK_SCHEMES
    )


def resampling_arguments(key: str) -> Callable[[DataDescription], dict[str, Any]]:
    """The arguments in use: what is left out has the function's default, and what it does not look at is left out."""

    def read(seen: DataDescription) -> dict[str, Any]:
        given = dict(seen.configuration.get(f"{key}_kwargs") or {})
        defaults = resampling_defaults(str(seen.configuration.get(key)))
        if defaults is None:  # refused by its name
            return given
        used = {name: str(value) if name == "device" else value for name, value in {**defaults, **given}.items()}
        for name in ("num_threads", "device", "memefficient_seg_resampling"):  # of speed and memory
            used.pop(name, None)
        if used.get("force_separate_z") is False:
            used.pop("order_z", None)
        if used.get("force_separate_z") is not None:
            used.pop("separate_z_anisotropy_threshold", None)
        return used

    return read


def in_cascade(differ: Differ) -> Differ:
    """The same, but for second stages of cascades only."""
    return lambda teacher, student: differ(teacher, student) if student.configuration.get("previous_stage") else None


def channels_differ(teacher: DataDescription, student: DataDescription) -> str | None:
    """How many channels there are, and their names in order."""
    one, other = ([name.strip().casefold() for name in seen.channels] for seen in (teacher, student))
    if len(one) != len(other):
        return f"input channels: teacher {len(one)}, student {len(other)}"
    return None if one == other else f"teacher {_told(teacher.channels)}; student {_told(student.channels)}"


def heads(seen: DataDescription) -> tuple[str, ...]:
    """What every head stands for, in the order of the heads."""
    entries = [
        (str(name).strip().casefold(), value) for name, value in seen.dataset["labels"].items() if name != "ignore"
    ]
    if not seen.labels.has_regions:
        found: dict[int, list[str]] = {int(label): [] for label in seen.labels.all_labels}
        for name, value in entries:
            found[int(value[0] if isinstance(value, list | tuple) else value)].append(name)
        return tuple(f"{label} {' '.join(sorted(names))}" for label, names in found.items())
    members = [(name, sorted(set(value)) if isinstance(value, list | tuple) else [value]) for name, value in entries]
    return tuple(f"{name} {labels}" for name, labels in members if labels != [0])


def class_order(seen: DataDescription) -> Any:
    """The labels that regions become; ``None`` without regions."""
    return seen.dataset.get("regions_class_order") if seen.labels.has_regions else None


def plan_entry(key: str, missing: Any = None) -> Differ:
    """An entry of the plan as it is; ``missing`` stands for none."""
    return compared(lambda seen: seen.plans.get(key, missing))


def configuration_entry(key: str) -> Differ:
    """An entry of the configuration as it is."""
    return compared(lambda seen: seen.configuration.get(key))
