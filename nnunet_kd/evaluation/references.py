"""What predictions are measured against: reference segmentations, their labels and folds, and the images behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.calibration import Calibration, evaluate_probabilities, has_probabilities
from nnunet_kd.evaluation.folders import evaluate_folder, find_plans
from nnunet_kd.evaluation.labels import LabelSet, read_dataset_json, read_labels
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.pairs import CasePair, find_pairs
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.evaluation.runs import Method, Split, fold_cases, nnunet_folder, read_splits
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.system.counts import some
from nnunet_kd.system.files import why_no_folder
from nnunet_kd.volumes.reading import dataset_reader


@dataclass(frozen=True)
class References:
    """One dataset's references.

    Attributes:
        segmentations: their folder.
        dataset_json: nnU-Net's, for labels and file ending.
        splits: of the dataset; ``None`` if not known.
        raw: the dataset's folder in ``nnUNet_raw``; ``None`` if there is none.
    """

    segmentations: Path
    dataset_json: Path
    splits: Sequence[Split] | None
    raw: Path | None

    @cached_property
    def labels(self) -> LabelSet:
        """The dataset's."""
        return read_labels(read_dataset_json(self.dataset_json), self.dataset_json)

    def cases(self, predictions: Path, fold: str | None) -> set[str] | None:
        """A fold's validation cases; ``None``: all that have a reference.

        nnU-Net makes a random split of its own for a fold that the splits do not have: its cases are those that were predicted.

        Raises:
            DataError: of a fold without splits.
            SettingsError: the splits have no such fold, and the predictions do not lie in one of that name.
        """
        if self.splits is None:
            if fold in (None, "all"):
                return None
            raise DataError(
                f"which cases belong to fold {fold} is not known. Give nnU-Net's splits_final.json with --splits."
            )
        own = any(parent.name == f"fold_{fold}" for parent in predictions.resolve().parents)
        if fold is not None and own and fold.isdigit() and int(fold) >= len(self.splits):
            ending = self.labels.file_ending
            found = predictions.glob(f"[!.]*{ending}")
            return {path.name.removesuffix(ending) for path in found}
        return None if fold is None else fold_cases(self.splits, fold, "val")

    def pairs(self, predictions: Path, fold: str | None) -> list[CasePair]:
        """Predictions with their references; see :func:`find_pairs`."""
        return find_pairs(predictions, self.segmentations, self.labels.file_ending, self.cases(predictions, fold))

    def reader(self, pairs: Sequence[CasePair]) -> BaseReaderWriter:
        """The dataset's, for segmentations and images."""
        plans = find_plans(pairs[0].prediction.parent, self.dataset_json.parent)
        return dataset_reader(read_dataset_json(self.dataset_json), plans, [pair.reference for pair in pairs])

    def evaluate(
        self, predictions: Path, fold: str | None, options: MetricOptions, pool: ProcessPoolExecutor | None, title: str
    ) -> Evaluation:
        """Every case of the fold measured; see :func:`evaluate_folder`."""
        return evaluate_folder(
            predictions, self.segmentations, self.dataset_json, options, self.cases(predictions, fold), pool, title
        )

    def has_probabilities(self, predictions: Path, fold: str | None) -> bool:
        """Whether every case of the fold has its probabilities saved."""
        return has_probabilities(self.pairs(predictions, fold), self.labels.file_ending)

    def calibration(self, predictions: Path, fold: str | None, pool: ProcessPoolExecutor | None) -> Calibration:
        """Of the fold's probabilities; see :func:`~nnunet_kd.evaluation.calibration.evaluate_probabilities`."""
        return evaluate_probabilities(
            predictions, self.segmentations, self.dataset_json, self.cases(predictions, fold), pool
        )

    def image_finder(self, given: Path | None, channel: int, cases: Sequence[str]) -> Callable[[str], Path] | None:
        """A case's image file; ``None`` if no folder was given and the dataset's own do not hold all cases.

        Args:
            given: folder with images of that channel.
            channel: from 0.
            cases: all whose image may be asked for.

        Raises:
            DataError: the folder given lacks cases; names them.
        """
        suffix = f"_{channel:04d}{self.labels.file_ending}"
        if given is not None:
            missing = [f"{case}{suffix}" for case in cases if not (given / f"{case}{suffix}").is_file()]
            if missing:
                raise DataError(f"{given} lacks {some(missing, 8)}. Give another -i or --channel.")
            return partial(_image_in, given, suffix)
        for folder in (self.raw / "imagesTr", self.raw / "imagesTs") if self.raw is not None else ():
            if all((folder / f"{case}{suffix}").is_file() for case in cases):
                return partial(_image_in, folder, suffix)
        return None


def _image_in(folder: Path, suffix: str, case: str) -> Path:
    return folder / f"{case}{suffix}"


def find_references(
    methods: Sequence[Method],
    segmentations: Path | None = None,
    dataset_json: Path | None = None,
    splits: Path | None = None,
) -> References:
    """The references of methods whose runs name a dataset below nnU-Net's folders, or those given.

    Args:
        methods: what is to be measured.
        segmentations: default: ``labelsTr`` of the dataset in ``nnUNet_raw``.
        dataset_json: default: beside predictions or references.
        splits: default: ``splits_final.json`` of the dataset in ``nnUNet_preprocessed``.

    Raises:
        DataError: segmentations or ``dataset.json`` are not found, or the splits cannot be read.
    """
    dataset = next((method.run.dataset_name for method in methods if method.run is not None), None)
    raw, preprocessed = (
        nnunet_folder(variable, dataset) if dataset else None for variable in ("nnUNet_raw", "nnUNet_preprocessed")
    )
    segmentations = segmentations or (raw / "labelsTr" if raw is not None else None)
    if segmentations is None or not segmentations.is_dir():
        where = (
            "are not known"
            if segmentations is None
            else f"are not in {segmentations}, which {why_no_folder(segmentations)}"
        )
        raise DataError(f"the reference segmentations {where}. Give their folder with --ground-truth.")
    labels_from = find_dataset_json(dataset_json, *(method.predictions for method in methods), segmentations)
    if splits is None and preprocessed is not None and (preprocessed / SPLITS_FILE).is_file():
        splits = preprocessed / SPLITS_FILE
    return References(segmentations, labels_from, read_splits(splits) if splits is not None else None, raw)


def find_dataset_json(given: Path | None, *beside: Path) -> Path:
    """The file given, or the first ``dataset.json`` in a folder or the one above it.

    Raises:
        DataError: there is none.
    """
    if given is not None:
        return given
    candidates = [folder / "dataset.json" for place in beside for folder in (place, place.resolve().parent)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(
        f"no dataset.json in {', '.join(str(candidate.parent) for candidate in candidates)}; the labels are read from "
        f"it. Give it with --dataset-json."
    )
