"""BraTS 2024 GLI (post-treatment glioma): one folder per time point, four MRI channels, up to four labels.

``BraTS-GLI-00005-100/BraTS-GLI-00005-100-{t1n,t1c,t2w,t2f,seg}.nii.gz`` is time point 100 of patient 00005. Labels, regions
and challenge: de Verdier et al., "The 2024 Brain Tumor Segmentation (BraTS) Challenge: Glioma Segmentation on Post-treatment
MRI", arXiv:2405.18368.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nnunet_kd.datasets.case import (
    BRATS2024_ID,
    LABEL,
    Case,
    ConversionOptions,
    DatasetDescription,
    Volume,
    add_file,
    folders_below,
    mark_duplicates,
    nifti_stem,
    readable_folders,
)
from nnunet_kd.datasets.conversion import ConversionSummary, convert
from nnunet_kd.errors import DataError

CHANNELS = {"T1n": "t1n", "T1c": "t1c", "T2w": "t2w", "T2f": "t2f"}
"""nnU-Net's channel names, in order, and the endings of the files."""
LABELS: dict[str, int | tuple[int, ...]] = {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
"""Non-enhancing tumour core, surrounding non-enhancing FLAIR hyperintensity, enhancing tissue, resection cavity."""
REGIONS: dict[str, int | tuple[int, ...]] = {
    "background": 0,
    "WT": (1, 2, 3),
    "TC": (1, 3),
    "ET": (3,),
    "RC": (4,),
}
"""The challenge's regions: whole tumour contains tumour core contains enhancing tissue; the cavity lies outside of them."""
REGIONS_CLASS_ORDER = (2, 1, 3, 4)
"""The label each region writes, outermost first: WT leaves SNFH (2), TC over it NETC (1), ET over that 3; RC 4."""

_NAME = re.compile(r"BraTS-GLI-(?P<patient>\d{5})-(?P<time_point>\d{3})")


def convert_brats2024(
    sources: Sequence[str | Path],
    *,
    dataset_id: int = BRATS2024_ID,
    regions: bool = False,
    options: ConversionOptions | None = None,
) -> ConversionSummary:
    """Convert BraTS 2024 GLI into ``nnUNet_raw/Dataset501_BraTS2024``, with patient-grouped splits.

    Args:
        sources: extracted folders (``training_data1_v2``, ``training_data_additional``, ``validation_data``), or folders
            that contain them. In a folder where no case has a ``seg``, the cases become ``imagesTs``, also of a dataset that
            an earlier run has made.
        dataset_id: nnU-Net's number of the dataset.
        regions: write the nested regions WT, TC, ET, RC instead of the four labels; the segmentations stay the same.
        options: see ``ConversionOptions``.

    Raises:
        BadCasesError: cases that do not hold, all listed.
        DataError: sources, target or splits do not hold.
        MissingRequirement: ``nnUNet_raw`` is not set.
    """
    folders = readable_folders([Path(source) for source in sources])
    return convert(find_cases(folders), describe(dataset_id, regions), folders, options or ConversionOptions())


def describe(dataset_id: int = BRATS2024_ID, regions: bool = False) -> DatasetDescription:
    """The dataset as ``dataset.json`` will have it."""
    return DatasetDescription(
        dataset_id=dataset_id,
        name="BraTS2024",
        channels=tuple(CHANNELS),
        labels=REGIONS if regions else LABELS,
        regions_class_order=REGIONS_CLASS_ORDER if regions else None,
        grids=((*CHANNELS, LABEL),),
        licence="BraTS 2024 data terms, see https://www.synapse.org/Synapse:syn53708249/wiki/627508",
        reference="de Verdier et al. 2024, https://arxiv.org/abs/2405.18368; https://www.synapse.org/Synapse:syn53708249",
        description="BraTS 2024 GLI: post-treatment glioma, T1n, T1c, T2w and T2-FLAIR, 1 mm, skull-stripped",
    )


def find_cases(folders: Sequence[Path]) -> list[Case]:
    """Every folder below ``folders`` that holds NIfTI files, or should by its name, as a case; nothing is read.

    Raises:
        DataError: there is none, or a folder cannot be listed.
    """
    found = [case for folder in folders for case in _walk(folder)]
    if not found:
        raise DataError(
            f"No case was found in {', '.join(str(folder) for folder in folders)}: expected folders such as "
            "BraTS-GLI-00005-100 with BraTS-GLI-00005-100-t1n.nii.gz in them. Is the download extracted?"
        )
    with_labels = {case.folder.parent for case in found if case.label is not None}
    for position, case in enumerate(found):
        if case.label is None and case.channels and case.folder.parent in with_labels:
            problem = "seg: missing, though other cases beside it have one (validation data belong into a folder of their own)"
            found[position] = case.with_problem(problem)
    return mark_duplicates(found)


def _walk(source: Path) -> list[Case]:
    images: dict[Path, list[Path]] = {}
    for folder, subfolders, files in folders_below(source):
        # some programs unpack x.nii.gz into a folder of that name, with x.nii in it
        case_folder = folder.parent if nifti_stem(folder) and folder != source else folder
        found = [folder / name for name in files if nifti_stem(Path(name))]
        nothing_at_all = _NAME.fullmatch(folder.name) and not subfolders
        if found or nothing_at_all:
            images.setdefault(case_folder, []).extend(found)
    return [_case(folder, paths) for folder, paths in images.items()]


def _case(folder: Path, images: list[Path]) -> Case:
    parsed = _NAME.fullmatch(folder.name)
    if parsed is None:
        problem = "the folder's name does not parse: expected BraTS-GLI-<5 digits>-<3 digits>, patient and time point"
        return Case(folder.name, folder.name, folder, {}, None, (problem,))
    files: dict[str, Path] = {}
    problems = []
    for path in images:
        ending = (nifti_stem(path) or "").removeprefix(f"{folder.name}-")
        if ending not in (*CHANNELS.values(), "seg"):
            problems.append(f"{path.name}: the name does not parse, expected {folder.name}-<t1n, t1c, t2w, t2f or seg>")
        elif (second := add_file(files, ending, path)) is not None:
            problems.append(second)
    channels = {name: Volume(files[ending]) for name, ending in CHANNELS.items() if ending in files}
    return Case(folder.name, parsed["patient"], folder, channels, files.get("seg"), tuple(problems))
