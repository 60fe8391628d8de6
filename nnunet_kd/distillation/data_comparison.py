"""Do a teacher and a student see the same numbers, and do their heads mean the same?

The criterion: the same files through both preprocessors give the same arrays (1e-6), and every head stands for the same label
or region. :data:`PLAN`, :data:`CONFIGURATION` and :data:`DATASET` say for every key that nnU-Net writes what a difference in it
means. They were made by reading nnU-Net's preprocessing (``DefaultPreprocessor.run_case``), its ``LabelManager`` and what its
trainers do to a patch before the network sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nnunet_kd.distillation.data_description import (
    DataDescription,
    Differ,
    channels_differ,
    class_order,
    compared,
    configuration_entry,
    ct_statistics_differ,
    heads,
    in_cascade,
    masks,
    plan_entry,
    reader,
    reader_name,
    resampling_arguments,
    same,
    statistics_of_own_schemes,
)
from nnunet_kd.models.plans import MARK


class Verdict(Enum):
    """What a difference between teacher and student means."""

    REFUSED = "refused"
    WARNED = "warned of"
    HARMLESS = "harmless"


@dataclass(frozen=True)
class Aspect:
    """One thing that a key decides.

    Attributes:
        verdict: on a difference.
        why: what the key decides, or where it is used; one short sentence.
        differ: finds the difference; ``None`` for what is harmless, whatever it is.
        what: names it for people; empty: the key.
        in_arrays: whether a difference shows in preprocessed arrays. What is refused without that is beside the criterion: it
            decides what a patch is, which image is which, what heads mean, or how large stages are.
        of_stages: whether it counts only where features are compared, stage by stage. Logits have the image's size.
    """

    verdict: Verdict
    why: str
    differ: Differ | None = None
    what: str = ""
    in_arrays: bool = True
    of_stages: bool = False


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
    differ = compared(resampling_arguments(key)) if what.endswith("arguments") else configuration_entry(key)
    return (
        _refused("The second stage of a cascade sees the first one's segmentation.", in_cascade(differ), what, False),
        _warned("The teacher learned from labels that were resampled in another way.", differ, what),
    )


PLAN: Table = {
    "dataset_name": _harmless("A name."),
    "plans_name": _harmless("A name."),
    "comment": _harmless("A text."),
    "original_median_spacing_after_transp": _harmless("Of planning."),
    "original_median_shape_after_transp": _harmless("Of planning."),
    "image_reader_writer": (
        _refused("The reader decides orientation and values.", compared(reader, reader_name), "reader (image_reader_writer)"),
        _warned(
            "Both readers give the same array where both read a file.",
            compared(reader_name), "reader (image_reader_writer)",
        ),
    ),
    "transpose_forward": (
        _refused("The order of the axes.", plan_entry("transpose_forward"), "axis order (transpose_forward)"),
    ),
    "transpose_backward": _harmless("Of writing predictions."),
    "experiment_planner_used": _harmless("Of planning."),
    "label_manager": (
        _refused("It decides what heads mean.", plan_entry("label_manager", "LabelManager"), in_arrays=False),
    ),
    "foreground_intensity_properties_per_channel": (
        _refused(
            "CT normalisation clips and shifts by them.", ct_statistics_differ,
            "intensities for CT normalisation (foreground_intensity_properties_per_channel)",
        ),
        _warned(
            "A normalisation that is not nnU-Net's own may use them.", compared(statistics_of_own_schemes),
            "intensities of channels with an own normalisation",
        ),
    ),
    "foreground_intensity_properties_by_modality": _harmless("The former name of the entry above, read as that."),
    "configurations": _harmless("Only the one in use counts, by its entries."),
}  # fmt: skip
"""Keys of a plan."""

CONFIGURATION: Table = {
    "data_identifier": _harmless("A name."),
    "preprocessor_name": (_refused("Another preprocessor may compute anything.", configuration_entry("preprocessor_name")),),
    "batch_size": _harmless("Of training."),
    "patch_size": (
        _refused("How much a network sees at once.", configuration_entry("patch_size"), "patch size", in_arrays=False),
    ),
    "median_image_size_in_voxels": _harmless("Of planning."),
    "spacing": (_refused("Images are resampled to it.", configuration_entry("spacing"), "spacing"),),
    "normalization_schemes": (
        _refused("How intensities are normalised.", compared(lambda seen: seen.schemes), "normalization"),
    ),
    "use_mask_for_norm": (
        _refused("Z-scores are of the masked voxels.", compared(masks(decides=True)), "use_mask_for_norm"),
        _warned("In training, nnU-Net sets voxels outside of it to 0.", compared(masks(decides=False)), "use_mask_for_norm"),
    ),
    "resampling_fn_data": (_refused("How images are resampled.", configuration_entry("resampling_fn_data")),),
    "resampling_fn_data_kwargs": (
        _refused("How images are resampled.", compared(resampling_arguments("resampling_fn_data")), "resampling_fn_data_kwargs"),
    ),
    "resampling_fn_seg": _resampled("resampling_fn_seg", "resampling_fn_seg"),
    "resampling_fn_seg_kwargs": _resampled("resampling_fn_seg", "resampling_fn_seg's arguments"),
    "resampling_fn_probabilities": _harmless("Of writing predictions."),
    "resampling_fn_probabilities_kwargs": _harmless("Of writing predictions."),
    "batch_dice": _harmless("Of the loss."),
    "architecture": (
        Aspect(
            Verdict.REFUSED, "Features are compared stage by stage.",
            compared(lambda seen: seen.configuration["architecture"]["arch_kwargs"].get("strides")),
            "strides per stage", in_arrays=False, of_stages=True,
        ),
    ),
    "inherits_from": _harmless("What is inherited is compared."),
    "previous_stage": (
        _refused("A cascade's second stage has further input channels.", configuration_entry("previous_stage"), in_arrays=False),
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
    "channel_names": (_refused("Which image a channel is.", channels_differ, "channel names, in order", in_arrays=False),),
    "modality": _harmless("The former name of the entry above, read as that."),
    "labels": (
        _refused("What every head stands for.", compared(heads), "labels", in_arrays=False),
        _warned(
            "One of them has learned nothing from voxels with that label.",
            compared(lambda seen: seen.dataset["labels"].get("ignore")), "the label to ignore",
        ),
    ),
    "regions_class_order": (
        _refused("Which label a region's head becomes.", compared(class_order), "regions_class_order", in_arrays=False),
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
        yield from [Difference(key, aspect, text) for aspect, text in differing if text is not None][:1]
    for key in sorted({*one, *other} - {*table}):
        if not same(one.get(key), other.get(key)):
            yield Difference(key, _UNKNOWN, f"teacher {one.get(key)}, student {other.get(key)}")
