"""Whether a dataset may be written where it is to be: its id, its folder, what lies there, and the room on the disk."""

from __future__ import annotations

from pathlib import Path
from shutil import disk_usage

from nnunet_kd.datasets.case import Case, DatasetDescription
from nnunet_kd.datasets.splits import splits_files
from nnunet_kd.datasets.writing import JOURNAL, targets
from nnunet_kd.errors import DataError, MissingRequirement
from nnunet_kd.nnunet.datasets import datasets_of_number
from nnunet_kd.system.counts import counted
from nnunet_kd.volumes.naming import NIFTI_ENDINGS, volumes_in
from nnunet_kd.volumes.wholeness import is_gzip

SUBFOLDERS = ("imagesTr", "labelsTr", "imagesTs")


def refuse_wrong_folder(folder: Path, description: DatasetDescription, sources: list[Path]) -> None:
    """Raise a DataError if the id is taken, a source would be written into, or the folder is not from this command."""
    others = [name for name in datasets_of_number(description.dataset_id) if name != description.folder_name]
    if others:
        raise DataError(
            f"Dataset id {description.dataset_id} is taken by {', '.join(others)} (in nnUNet_raw, nnUNet_preprocessed or "
            "nnUNet_results), and nnU-Net wants ids unique. Choose another with --dataset-id."
        )
    splits_folders = (path.parent for path in splits_files(description.folder_name))
    for target in (folder, *(folder / name for name in SUBFOLDERS), *splits_folders):
        inside = target.resolve()
        for source in sources:
            if inside == source or source in inside.parents or inside in source.parents:
                raise DataError(
                    f"{target} and the source {source} overlap, and nothing may be written into a source. "
                    "Point nnUNet_raw and nnUNet_preprocessed, or the source, to another folder."
                )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).is_file():
        raise DataError(
            f"{folder} exists and was not made by this command (it has no {JOURNAL}). "
            "Move it away, or choose another --dataset-id."
        )


def refuse_unknown_files(folder: Path, usable: list[Case], description: DatasetDescription) -> None:
    """Files that training or prediction would take for the dataset's; folders that this run writes nothing to are not its own."""
    expected = {place for case in usable for place in targets(case, description).values()}
    present = {
        f"{name}/{path.name}"
        for name in {Path(place).parent.name for place in expected}
        for ending in NIFTI_ENDINGS
        if (folder / name).is_dir()
        for path in volumes_in(folder / name, ending)
    }
    unknown = sorted(present - expected)
    if unknown:
        raise DataError(
            f"{folder} holds {counted(len(unknown), 'file')} of other cases than those given now, for example "
            f"{', '.join(unknown[:3])}. "
            "Give all sources together, or move these files away, or choose another --dataset-id."
        )


def require_room(folder: Path, cases: list[Case]) -> None:
    """Raise a MissingRequirement if the disk has no room for copies of these cases."""
    # a file of four dimensions holds several volumes; what is not compressed yet gets smaller
    files = {volume.path for case in cases for volume in case.volumes().values() if is_gzip(volume.path)}
    needed = sum(path.stat().st_size for path in files)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = disk_usage(there).free
    if needed > free:
        raise MissingRequirement(
            f"{there} has {free / 1e9:.1f} GB free, but the copies need at least {needed / 1e9:.1f} GB. "
            "Make room, or use --link (symlinks instead of copies)."
        )
