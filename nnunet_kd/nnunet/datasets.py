"""nnU-Net's datasets: their numbers, the file that describes one, and their preprocessed cases."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.training.dataloading import nnunet_dataset
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunet_kd.system.cores import usable_cores
from nnunet_kd.system.files import write_atomically

Dataset = nnUNetBaseDataset
"""nnU-Net's preprocessed cases, in whichever of its formats."""


def default_processes() -> int:
    """As many as nnU-Net's own commands take (``nnUNet_def_n_proc``), but no more than there are cores for this process."""
    return max(1, min(int(default_num_processes), usable_cores()))


def block_sizes(
    shape: Sequence[int], patch_size: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and chunks that nnU-Net stores an array with, so that a patch needs few of them.

    Args:
        shape: ``(channels, *spatial)``, three spatial axes.
        patch_size: two or three axes.
        itemsize: bytes of a value.
    """
    blocks, chunks = nnunet_dataset.comp_blosc2_params(tuple(shape), tuple(patch_size), itemsize)
    return tuple(blocks), tuple(chunks)


def write_preprocessed_case(
    path: Path, data: np.ndarray, segmentation: np.ndarray, properties: dict[str, Any], patch_size: Sequence[int]
) -> None:
    """Write a case as nnU-Net's preprocessing does.

    Args:
        path: without ending.
        data: ``(C, *spatial)``, float32.
        segmentation: ``(1, *spatial)``, int8.
        properties: for loaders ``class_locations`` is enough.
        patch_size: of the configuration.
    """
    arrays = {"": data, "_seg": segmentation}
    layout: dict[str, tuple[int, ...]] = {}
    for suffix, array in arrays.items():
        blocks, chunks = block_sizes(array.shape, patch_size, array.itemsize)
        layout |= {f"blocks{suffix}": blocks, f"chunks{suffix}": chunks}
    nnunet_dataset.nnUNetDatasetBlosc2.save_case(data, segmentation, properties, str(path), **layout)


def preprocessed_cases(folder: Path, cases: Sequence[str] | None = None) -> nnUNetBaseDataset:
    """nnU-Net's dataset of a folder of preprocessed cases, of whichever of its formats; all cases, or those named."""
    chosen = None if cases is None else list(cases)
    return nnunet_dataset.infer_dataset_class(str(folder))(str(folder), chosen)


def case_shape(dataset: nnUNetBaseDataset, case: str) -> tuple[int, ...]:
    """Shape ``(channels, *spatial)`` of a preprocessed case, from the file's header alone."""
    archive = Path(dataset.source_folder, f"{case}.npz")
    if not archive.is_file():  # blocks, which are read when they are indexed
        return tuple(dataset.load_case(case)[0].shape)
    with zipfile.ZipFile(archive) as file, file.open("data.npy") as array:
        version = np.lib.format.read_magic(array)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return tuple(read(array)[0])


def image_file(folder: Path, case: str) -> Path:
    """The file with a preprocessed case's image, of whichever of nnU-Net's formats; it need not exist."""
    archive = folder / f"{case}.npz"
    return archive if archive.is_file() else folder / f"{case}.b2nd"


class JoinedDataset(nnUNetBaseDataset):
    """Several datasets as one, for nnU-Net's loaders; cases have different names.

    Args:
        parts: nnU-Net's own, of any of its formats.
    """

    def __init__(self, parts: Sequence[nnUNetBaseDataset]) -> None:
        self._part_of = {str(case): part for part in parts for case in part.identifiers}
        super().__init__(parts[0].source_folder, list(self._part_of), parts[0].folder_with_segs_from_previous_stage)

    def load_case(self, identifier: str) -> Any:
        """A case of the part that has it."""
        return self._part_of[str(identifier)].load_case(identifier)

    @staticmethod
    def save_case(data: Any, seg: Any, properties: Any, output_filename_truncated: str) -> None:
        """Refused: the parts save."""
        raise NotImplementedError

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Refused: the parts know their cases."""
        raise NotImplementedError


def case_names(folder: Path) -> list[str]:
    """Cases of a folder that :func:`preprocess_case` wrote whole, sorted."""
    return sorted(path.stem for path in folder.glob("*.pkl")) if folder.is_dir() else []


def remove_case(folder: Path, case: str) -> None:
    """Delete a case that :func:`preprocess_case` wrote; what says that it is there goes first."""
    for ending in (".pkl", ".b2nd", "_seg.b2nd"):
        (folder / f"{case}{ending}").unlink(missing_ok=True)


def preprocess_case(
    images: Sequence[Path],
    segmentation: Path | None,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    truncated: Path,
    whole: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    """nnU-Net's preprocessing of one training case, with the plan's own preprocessor.

    Args:
        images: one file a channel.
        segmentation: ``None``: the stored one is 0 (and -1 outside of the image), and no foreground is listed.
        plans, configuration, dataset_json: of the network.
        truncated: the written files' path without ending.
        whole: makes whole numbers of labels as the reader gives them, ``(1, Z, Y, X)`` float32; nnU-Net cuts off what follows
            the point.
    """
    manager = _PlansOfWholeLabels(dict(plans), whole)
    chosen = manager.get_configuration(configuration)
    chosen.preprocessor_class(verbose=False).run_case_save(
        str(truncated), [str(path) for path in images], None if segmentation is None else str(segmentation),
        manager, chosen, dict(dataset_json),
    )  # fmt: skip


class _PlansOfWholeLabels(PlansManager):
    """A plan whose reader gives segmentations as whole numbers, to whichever preprocessor asks it for one."""

    def __init__(self, plans: dict[str, Any], whole: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        super().__init__(plans)
        self._whole = whole

    @property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        own, whole = super().image_reader_writer_class, self._whole

        class OfWholeLabels(own):  # type: ignore[valid-type,misc]
            def read_seg(self, seg_fname: str) -> tuple[NDArray[Any], dict[str, Any]]:
                array, properties = super().read_seg(seg_fname)
                return whole(array), properties

        return OfWholeLabels


def write_segmentation(
    folder: Path,
    case: str,
    segmentation: NDArray[Any],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
) -> None:
    """Put a segmentation into a preprocessed case (Blosc2), with the foreground that nnU-Net's loader samples from.

    Args:
        folder, case: of the case.
        segmentation: ``(*spatial)``, labels in the network's spacing and axes; voxels outside of the image stay -1.
        plans, configuration, dataset_json: of the network.

    Raises:
        MissingRequirement: the disk refused.
    """
    manager = PlansManager(dict(plans))
    chosen = manager.get_configuration(configuration)
    labels = manager.get_label_manager(dict(dataset_json))
    path = folder / f"{case}_seg.b2nd"
    before = np.asarray(blosc2.open(urlpath=str(path), mode="r")[:])
    merged = np.where(before == -1, -1, segmentation[None]).astype(before.dtype)
    foreground = list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)
    if labels.has_ignore_label:
        foreground.append([-1, *labels.all_labels])
    properties_file = folder / f"{case}.pkl"
    properties = pickle.loads(properties_file.read_bytes())  # this package wrote it
    properties["class_locations"] = chosen.preprocessor_class._sample_foreground_locations(merged, foreground)
    blocks, chunks = block_sizes(merged.shape, chosen.patch_size, merged.itemsize)
    compressed = blosc2.asarray(
        merged, chunks=chunks, blocks=blocks, cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1}
    ).to_cframe()
    beside = folder.resolve().parent  # nnU-Net refuses a folder of cases that holds any other file
    write_atomically(path, lambda file: file.write(compressed), temporary_in=beside)
    write_atomically(properties_file, lambda file: file.write(pickle.dumps(properties)), temporary_in=beside)


def datasets_of_number(number: int) -> list[str]:
    """Names of all datasets with a number, in any of nnU-Net's folders."""
    return list(find_candidate_datasets(number))


def write_dataset_json(
    folder: Path,
    channels: Sequence[str],
    labels: Mapping[str, Any],
    training_cases: int,
    file_ending: str,
    regions_class_order: Sequence[int] | None,
    **more: Any,
) -> None:
    """``dataset.json``, checked by nnU-Net.

    Args:
        folder: that it is written to.
        channels: names, in order.
        labels: by name: a number, or the numbers of a region.
        training_cases: how many.
        file_ending: of images and segmentations.
        regions_class_order: with regions.
        more: further entries.
    """
    generate_dataset_json(
        str(folder),
        channel_names=dict(enumerate(channels)),
        labels=dict(labels),
        num_training_cases=training_cases,
        file_ending=file_ending,
        regions_class_order=regions_class_order,
        **more,
    )
