"""Do a teacher and a student see the same numbers, and do their heads mean the same?

The criterion: the same files through both preprocessors give the same arrays (1e-6), and every head stands for the same label
or region. :data:`PLAN`, :data:`CONFIGURATION` and :data:`DATASET` say for every key that nnU-Net writes what a difference in it
means. They were made by reading nnU-Net's preprocessing (``DefaultPreprocessor.run_case``), its ``LabelManager`` and what its
trainers do to a patch before the network sees it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import TeacherError
from nnunet_kd.models.plans import MARK

TOLERANCE = 1e-6
"""Of preprocessed arrays, and relative of numbers in plans."""


class Verdict(Enum):
    """What a difference between teacher and student means."""

    REFUSED = "refused"
    WARNED = "warned of"
    HARMLESS = "harmless"


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
        """Names of the image's channels, in the order of their files."""
        named = self.dataset.get("modality", self.dataset.get("channel_names", {}))
        return tuple(str(named[key]) for key in sorted(named, key=int))

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


@dataclass(frozen=True)
class Aspect:
    """One thing that a key decides.

    Attributes:
        verdict: on a difference.
        why: what the key decides, or where it is used; one short sentence.
        differ: finds the difference; ``None``: the entries as they are.
        what: names it for people; empty: the key.
        in_arrays: whether a difference shows in preprocessed arrays. What is refused without that is beside the criterion: it
            decides what a patch is, which image is which, what heads mean, or how large stages are.
    """

    verdict: Verdict
    why: str
    differ: Differ | None = None
    what: str = ""
    in_arrays: bool = True


@dataclass(frozen=True)
class Difference:
    """What was found.

    Attributes:
        key: of the file.
        aspect: that differs.
        text: what each has.
    """

    key: str
    aspect: Aspect
    text: str

    @property
    def verdict(self) -> Verdict:
        """What it means."""
        return self.aspect.verdict

    def __str__(self) -> str:
        return f"{self.aspect.what or self.key}: {self.text}"


# how entries are read ---------------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same; numbers within a relative :data:`TOLERANCE`."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return bool(one == other)


def _by(read: Callable[[DataDescription], Any]) -> Differ:
    def differ(teacher: DataDescription, student: DataDescription) -> str | None:
        one, other = read(teacher), read(student)
        return None if same(one, other) else f"teacher {_told(one)}, student {_told(other)}"

    return differ


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _reader(seen: DataDescription) -> str:
    name = str(seen.plans.get("image_reader_writer"))
    # both hand on the array of the file with its axes in the order z, y, x; what one of them alone can read is not compared
    return "SimpleITKIO or NibabelIO" if name in ("SimpleITKIO", "NibabelIO") else name


def _mask_decides(scheme: str) -> bool:
    return scheme not in ("CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")


def _masks(decides: bool) -> Callable[[DataDescription], tuple[str, ...]]:
    def read(seen: DataDescription) -> tuple[str, ...]:
        masks = seen.configuration.get("use_mask_for_norm") or ()
        pairs = enumerate(zip(seen.schemes, masks, strict=False))
        return tuple(f"channel {place}: {mask}" for place, (scheme, mask) in pairs if _mask_decides(scheme) is decides)

    return read


def _ct_statistics(teacher: DataDescription, student: DataDescription) -> str | None:
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


def _statistics_of_own_schemes(seen: DataDescription) -> tuple[Any, ...]:
    return tuple(
        seen.statistics.get(str(place)) for place, scheme in enumerate(seen.schemes) if scheme not in _STOCK_SCHEMES
    )


def _resampling(key: str) -> Callable[[DataDescription], dict[str, Any]]:
    """The arguments in use: what is left out has the function's default, and what it does not look at is left out."""

    def read(seen: DataDescription) -> dict[str, Any]:
        given = dict(seen.configuration.get(f"{key}_kwargs") or {})
        try:
            function = recursive_find_resampling_fn_by_name(str(seen.configuration.get(key)))
        except RuntimeError:  # refused by its name
            return given
        parameters = inspect.signature(function).parameters.values()
        defaults = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
        used = {name: str(value) if name == "device" else value for name, value in {**defaults, **given}.items()}
        for name in ("num_threads", "device", "memefficient_seg_resampling"):  # of speed and memory
            used.pop(name, None)
        if used.get("force_separate_z") is False:
            used.pop("order_z", None)
        if used.get("force_separate_z") is not None:
            used.pop("separate_z_anisotropy_threshold", None)
        return used

    return read


def _in_cascade(differ: Differ) -> Differ:
    return lambda teacher, student: differ(teacher, student) if student.configuration.get("previous_stage") else None


def _channels(teacher: DataDescription, student: DataDescription) -> str | None:
    one, other = ([name.strip().casefold() for name in seen.channels] for seen in (teacher, student))
    if len(one) != len(other):
        return f"input channels: teacher {len(one)}, student {len(other)}"
    return None if one == other else f"teacher {_told(teacher.channels)}; student {_told(student.channels)}"


def _heads(seen: DataDescription) -> tuple[str, ...]:
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


def _class_order(seen: DataDescription) -> Any:
    return seen.dataset.get("regions_class_order") if seen.labels.has_regions else None


def _plan(key: str, missing: Any = None) -> Differ:
    return _by(lambda seen: seen.plans.get(key, missing))


def _entry(key: str) -> Differ:
    return _by(lambda seen: seen.configuration.get(key))


# the table --------------------------------------------------------------------------------------------------------------

Table = Mapping[str, tuple[Aspect, ...]]


def _refused(why: str, differ: Differ, what: str = "", in_arrays: bool = True) -> Aspect:
    return Aspect(Verdict.REFUSED, why, differ, what, in_arrays)


def _warned(why: str, differ: Differ, what: str = "") -> Aspect:
    return Aspect(Verdict.WARNED, why, differ, what, in_arrays=False)


def _harmless(why: str) -> tuple[Aspect, ...]:
    return (Aspect(Verdict.HARMLESS, why, in_arrays=False),)


def _resampled(key: str, what: str) -> tuple[Aspect, ...]:
    """Of segmentations: a cascade's second stage sees them as further channels, others only learn from them."""
    differ = _by(_resampling(key)) if what.endswith("arguments") else _entry(key)
    return (
        _refused("The second stage of a cascade sees the first one's segmentation.", _in_cascade(differ), what, False),
        _warned("The teacher learned from labels that were resampled in another way.", differ, what),
    )


PLAN: Table = {
    "dataset_name": _harmless("A name."),
    "plans_name": _harmless("A name."),
    "comment": _harmless("A text."),
    "original_median_spacing_after_transp": _harmless("Of planning."),
    "original_median_shape_after_transp": _harmless("Of planning."),
    "image_reader_writer": (
        _refused("The reader decides orientation and values.", _by(_reader), "reader (image_reader_writer)"),
        _warned(
            "Both readers give the same array where both read a file.",
            _plan("image_reader_writer"), "reader (image_reader_writer)",
        ),
    ),
    "transpose_forward": (
        _refused("The order of the axes.", _plan("transpose_forward"), "axis order (transpose_forward)"),
    ),
    "transpose_backward": _harmless("Of writing predictions."),
    "experiment_planner_used": _harmless("Of planning."),
    "label_manager": (
        _refused("It decides what heads mean.", _plan("label_manager", "LabelManager"), in_arrays=False),
    ),
    "foreground_intensity_properties_per_channel": (
        _refused(
            "CT normalisation clips and shifts by them.", _ct_statistics,
            "intensities for CT normalisation (foreground_intensity_properties_per_channel)",
        ),
        _warned(
            "A normalisation that is not nnU-Net's own may use them.", _by(_statistics_of_own_schemes),
            "intensities of channels with an own normalisation",
        ),
    ),
    "foreground_intensity_properties_by_modality": _harmless("The former name of the entry above, read as that."),
    "configurations": _harmless("Only the one in use counts, by its entries."),
}  # fmt: skip
"""Keys of a plan."""

CONFIGURATION: Table = {
    "data_identifier": _harmless("A name."),
    "preprocessor_name": (_refused("Another preprocessor may compute anything.", _entry("preprocessor_name")),),
    "batch_size": _harmless("Of training."),
    "patch_size": (
        _refused("How much of an image a network sees at once.", _entry("patch_size"), "patch size", in_arrays=False),
    ),
    "median_image_size_in_voxels": _harmless("Of planning."),
    "spacing": (_refused("Images are resampled to it.", _entry("spacing"), "spacing"),),
    "normalization_schemes": (
        _refused("How intensities are normalised.", _by(lambda seen: seen.schemes), "normalization"),
    ),
    "use_mask_for_norm": (
        _refused("Z-scores are of the masked voxels.", _by(_masks(decides=True)), "use_mask_for_norm"),
        _warned("In training, nnU-Net sets voxels outside of the mask to 0.", _by(_masks(decides=False)), "use_mask_for_norm"),
    ),
    "resampling_fn_data": (_refused("How images are resampled.", _entry("resampling_fn_data")),),
    "resampling_fn_data_kwargs": (
        _refused("How images are resampled.", _by(_resampling("resampling_fn_data")), "resampling_fn_data_kwargs"),
    ),
    "resampling_fn_seg": _resampled("resampling_fn_seg", "resampling_fn_seg"),
    "resampling_fn_seg_kwargs": _resampled("resampling_fn_seg", "resampling_fn_seg's arguments"),
    "resampling_fn_probabilities": _harmless("Of writing predictions."),
    "resampling_fn_probabilities_kwargs": _harmless("Of writing predictions."),
    "batch_dice": _harmless("Of the loss."),
    "architecture": (
        _refused(
            "Features are compared stage by stage.",
            _by(lambda seen: seen.configuration["architecture"]["arch_kwargs"].get("strides")),
            "strides per stage", in_arrays=False,
        ),
    ),
    "inherits_from": _harmless("What is inherited is compared."),
    "previous_stage": (
        _refused("A cascade's second stage has further input channels.", _entry("previous_stage"), in_arrays=False),
    ),
    "next_stage": _harmless("Of what comes after."),
    MARK: _harmless("Where a student's plan came from."),
    # plans before nnU-Net 2.5; PlansManager turns them into `architecture`
    **dict.fromkeys(
        (
            "UNet_class_name", "UNet_base_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder",
            "num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes", "unet_max_num_features",
        ),
        _harmless("Compared as architecture."),
    ),
}  # fmt: skip
"""Keys of a plan's configuration."""

DATASET: Table = {
    "channel_names": (_refused("Which image a channel is.", _channels, "channel names, in order", in_arrays=False),),
    "modality": _harmless("The former name of the entry above, read as that."),
    "labels": (
        _refused("What every head stands for.", _by(_heads), "labels", in_arrays=False),
        _warned(
            "One of them has learned nothing from voxels with that label.",
            _by(lambda seen: seen.dataset["labels"].get("ignore")), "the label to ignore",
        ),
    ),
    "regions_class_order": (
        _refused("Which label a region's head becomes.", _by(_class_order), "regions_class_order", in_arrays=False),
    ),
    "overwrite_image_reader_writer": _harmless("Of planning; the plan names the reader."),
    **dict.fromkeys(("name", "description", "reference", "citation"), _harmless("A text.")),
    **dict.fromkeys(("licence", "license", "release", "converted_by"), _harmless("A text.")),
    **dict.fromkeys(("numTraining", "numTest", "training", "test", "dataset"), _harmless("A list of files.")),
    **dict.fromkeys(("file_ending", "tensorImageSize"), _harmless("Of files; the reader decides what is in them.")),
}  # fmt: skip
"""Keys of ``dataset.json``."""

_UNKNOWN = Aspect(Verdict.WARNED, "It is not known what this entry decides.", in_arrays=False)


def compare_data(teacher: DataDescription, student: DataDescription) -> list[Difference]:
    """Everything in which the two differ and that is not harmless, what is refused first.

    Raises:
        TeacherError: the labels of one of them do not hold.
    """
    sides = (
        (PLAN, teacher.plans, student.plans),
        (CONFIGURATION, teacher.configuration, student.configuration),
        (DATASET, teacher.dataset, student.dataset),
    )
    found = [difference for side in sides for difference in _differences(*side, teacher, student)]
    return sorted(found, key=lambda difference: difference.verdict is not Verdict.REFUSED)


def _differences(
    table: Table, one: Mapping[str, Any], other: Mapping[str, Any], teacher: DataDescription, student: DataDescription
) -> Iterator[Difference]:
    for key, aspects in table.items():
        differing = ((aspect, aspect.differ(teacher, student)) for aspect in aspects if aspect.differ is not None)
        # the first aspect that differs says it all
        yield from _first([Difference(key, aspect, text) for aspect, text in differing if text is not None])
    for key in sorted({*one, *other} - {*table}):
        if not same(one.get(key), other.get(key)):
            yield Difference(key, _UNKNOWN, f"teacher {one.get(key)}, student {other.get(key)}")


def _first(found: Sequence[Difference]) -> Sequence[Difference]:
    return found[:1]
