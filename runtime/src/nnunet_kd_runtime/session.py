"""One run of ``kd-segment``: what is left to do, one case read ahead and one written behind, whole files or none."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.arrays import open_predictor
from nnunet_kd_runtime.cases import Case, find_cases
from nnunet_kd_runtime.description import Model, json_path
from nnunet_kd_runtime.errors import DataError, MissingRequirement, SegmentationError, SettingsError
from nnunet_kd_runtime.files import complete_files
from nnunet_kd_runtime.memory import needed_bytes
from nnunet_kd_runtime.postprocessing import Step, postprocess, steps_of
from nnunet_kd_runtime.preprocessing import Grid, grid_of, preprocess
from nnunet_kd_runtime.readers import prepare, read_case, read_geometry, write_segmentation
from nnunet_kd_runtime.record import PredictionRecord, same_content
from nnunet_kd_runtime.segmentation import Predictor

IN_FLIGHT = 3
"""Cases in memory at once: one read ahead, one predicted, one written."""


@dataclass(frozen=True)
class Options:
    """How a run predicts.

    Attributes:
        backend: onnxruntime or openvino.
        device: cpu or cuda.
        threads: on the CPU; ``None``: all cores.
        mirroring: average over the mirror axes of the training.
        step: distance of patches as a share of the patch.
        probabilities: also write ``.npz`` and ``.pkl``, as nnU-Net does.
        postprocessing: apply the model's.
        overwrite: predict cases again that have their segmentation.
        previous_stage: folder with the first stage's segmentations, for a cascade.
        memory: gibibytes that may be used; ``None``: what is available.
    """

    backend: str = "onnxruntime"
    device: str = "cpu"
    threads: int | None = None
    mirroring: bool = True
    step: float = 0.5
    probabilities: bool = False
    postprocessing: bool = False
    overwrite: bool = False
    previous_stage: Path | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Counts:
    """Cases ``predicted`` and those ``kept`` from before."""

    predicted: int
    kept: int


Progress = Callable[[str, float, int, int], None]
"""Told the case's name, the cases done (with fractions), all cases of this run, and those kept."""


@dataclass(frozen=True)
class _Prepared:
    data: NDArray[np.float32]
    grid: Grid
    properties: dict[str, Any]


def run(
    model: Path,
    inputs: Sequence[Path],
    output: Path,
    options: Options,
    progress: Progress = lambda name, done, total, kept: None,
) -> Counts:
    """Segment images. All that file names and headers can tell is checked before the network runs.

    Args:
        model: ``.onnx`` with its JSON.
        inputs, output: see :func:`~nnunet_kd_runtime.cases.find_cases`.
        options: how.
        progress: see :data:`Progress`.

    Raises:
        SegmentationError: see :mod:`nnunet_kd_runtime.errors`; finished cases stay, the one that failed has no file.
    """
    predictor = open_predictor(
        model,
        backend=options.backend,
        device=options.device,
        threads=options.threads,
        mirroring=options.mirroring,
        step=options.step,
        memory=options.memory,
    )
    cases = find_cases(inputs, output, predictor.model)
    return Run(predictor, options).cases(cases, progress, whole_folder=cases[0].output != output)


PROBABILITIES = (".npz", ".pkl")
"""Endings of what nnU-Net's ensembling reads beside a segmentation."""


class Run:
    """A predictor at work on files."""

    def __init__(self, predictor: Predictor, options: Options) -> None:
        """Check what the options ask of the model.

        Raises:
            SettingsError: postprocessing, or a previous stage, that the model does not have.
            ModelError: its postprocessing is damaged, or another function than nnU-Net's.
            DataError: the model's reader does not read the model's file ending.
        """
        self._predictor, self._model, self._options = predictor, predictor.model, options
        self._postprocessing = _postprocessing(self._model) if options.postprocessing else []
        if (options.previous_stage is None) != (self._model.previous_stage is None):
            raise SettingsError(
                "--previous-stage is for cascades; this model is none."
                if self._model.previous_stage is None
                else f"the model is the second stage of a cascade: segment with {self._model.previous_stage} first and give "
                f"that folder as --previous-stage."
            )
        prepare(self._model.reader, self._model.file_ending)

    def cases(self, cases: Sequence[Case], progress: Progress, whole_folder: bool) -> Counts:
        """Predict what is not there yet; see :func:`run`.

        Args:
            cases: of one output folder.
            progress: see :data:`Progress`.
            whole_folder: whether that folder is the run's output, and not only a file in it.
        """
        folder = cases[0].output.parent
        self._record = PredictionRecord(folder, self._model)
        self._context_missing = whole_folder  # beside a single file nobody looks for a plan
        self._predictor = replace(self._predictor, budget=self._predictor.budget.beside(folder))
        if not self._options.overwrite:
            self._record.refuse_others(cases, whole_folder)
            if whole_folder:
                self._refuse_to_replace(folder)
        todo = [case for case in cases if self._options.overwrite or not self._finished(case)]
        needed = max((self._check(case) for case in todo), default=0)
        limit = self._predictor.budget.limit
        ahead = limit is None or IN_FLIGHT * needed <= limit
        kept = len(cases) - len(todo)
        written: Future[None] | None = None
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            upcoming = reader.submit(self._prepare, todo[0]) if todo else None
            for number, case in enumerate(todo):
                assert upcoming is not None
                prepared = upcoming.result()
                following = todo[number + 1] if number + 1 < len(todo) else None
                if following and ahead:
                    upcoming = reader.submit(self._prepare, following)
                done = float(number)

                def advance(share: float, name: str = case.name) -> None:
                    nonlocal done
                    done += share
                    progress(name, done, len(todo), kept)

                logits = self._named(case, partial(self._predictor.logits, prepared.data, advance))
                if written is not None:
                    written.result()
                written = writer.submit(self._write, case, logits, prepared)
                del prepared, logits
                if following and not ahead:
                    written.result()
                    upcoming = reader.submit(self._prepare, following)
            if written is not None:
                written.result()
        return Counts(len(todo), kept)

    def _check(self, case: Case) -> int:
        """What headers tell: readable, one grid, enough memory. Returns the bytes that the case needs."""
        model = self._model
        geometry = self._named(case, lambda: read_geometry(model.reader, model.file_ending, case.images))
        if self._options.previous_stage is not None and not self._previous(case).is_file():
            raise DataError(f"{self._options.previous_stage} has no segmentation {self._previous(case).name}.")
        if geometry is None:
            return 0
        shape, spacing = geometry.shape[::-1], geometry.spacing[::-1]
        if len(shape) == 2:
            shape, spacing = (1, *shape), (max(spacing) * 999, *spacing)
        turned = [shape[axis] for axis in model.transpose_forward]
        whole = tuple(slice(0, size) for size in turned)
        grid = grid_of(model, turned, [spacing[axis] for axis in model.transpose_forward], whole)
        self._predictor.budget.check(model.input_channels, shape, grid.resampled, case.name)
        return needed_bytes(model.input_channels, shape, grid.resampled)

    def _prepare(self, case: Case) -> _Prepared:
        prepared: _Prepared = self._named(case, lambda: self._read(case))
        return prepared

    def _read(self, case: Case) -> _Prepared:
        model = self._model
        volume = read_case(model.reader, model.file_ending, case.images)
        previous = None
        if self._options.previous_stage is not None:
            previous = read_case(model.reader, model.file_ending, [self._previous(case)]).array[0]
        data, grid = preprocess(model, volume.array, volume.properties["spacing"], previous)
        return _Prepared(data, grid, volume.properties)

    def _write(self, case: Case, logits: NDArray[np.float16], prepared: _Prepared) -> None:
        model, options = self._model, self._options
        result = self._named(case, lambda: self._predictor.finish(logits, prepared.grid, options.probabilities))
        segmentation = postprocess(result.segmentation, self._postprocessing)
        replaced = case.output.exists()
        with complete_files(case.output) as folder:
            if replaced and result.probabilities is None:  # what lies beside the old segmentation is of what made that
                for ending in PROBABILITIES:
                    (case.output.parent / f"{case.name}{ending}").unlink(missing_ok=True)
            if result.probabilities is not None:
                np.savez_compressed(folder / f"{case.name}.npz", probabilities=result.probabilities)
                (folder / f"{case.name}.pkl").write_bytes(pickle.dumps(_nnunet_properties(prepared)))
            name = folder / case.output.name
            write_segmentation(model.reader, model.file_ending, segmentation, name, prepared.properties)
            if self._context_missing:  # here, where the first segmentation is whole
                self._write_context(case.output.parent)
                self._context_missing = False
        self._record.add(case.name)

    def _previous(self, case: Case) -> Path:
        assert self._options.previous_stage is not None
        return self._options.previous_stage / f"{case.name}{self._model.file_ending}"

    def _finished(self, case: Case) -> bool:
        extra = case.output.parent / f"{case.name}.npz"
        return case.output.is_file() and (not self._options.probabilities or extra.is_file())

    def _context(self) -> dict[str, Any]:
        """What nnU-Net's postprocessing and evaluation look for beside segmentations: file and content."""
        description = self._model.description
        return {"dataset.json": description["dataset_json"], "plans.json": description["plans"]}

    def _refuse_to_replace(self, folder: Path) -> None:
        for name, content in self._context().items():
            path = folder / name
            if path.exists() and not same_content(path, content):
                raise DataError(
                    f"{path} has other content than the model's {name}, which is written beside segmentations. If {folder} is a "
                    f"dataset or a model, or has another model's segmentations, choose another place with -o. Otherwise replace "
                    f"that file with --overwrite."
                )

    def _write_context(self, folder: Path) -> None:
        for name, content in self._context().items():
            with complete_files(folder / name) as temporary:
                (temporary / name).write_text(json.dumps(content, indent=4), encoding="utf-8")

    def _named(self, case: Case, work: Callable[[], Any]) -> Any:
        """Errors that say which case they are of. What ``work`` raises names no case."""
        try:
            return work()
        except MemoryError as error:
            raise MissingRequirement(f"case {case.name} does not fit into memory. Use a larger machine.") from error
        except SegmentationError as error:
            raise type(error)(f"case {case.name}: {error}") from error


def _postprocessing(model: Model) -> list[Step]:
    if model.postprocessing is None:
        raise SettingsError(
            "the model has no postprocessing. nnUNetv2_find_best_configuration determines it; then export again."
        )
    return steps_of(model.postprocessing, json_path(model.path))


def _nnunet_properties(prepared: _Prepared) -> dict[str, Any]:
    """The properties that nnU-Net's ensembling reads beside probabilities."""
    grid = prepared.grid
    return {
        **prepared.properties,
        "shape_before_cropping": grid.whole,
        "bbox_used_for_cropping": [[side.start, side.stop] for side in grid.box],
        "shape_after_cropping_and_before_resampling": grid.cropped,
    }
