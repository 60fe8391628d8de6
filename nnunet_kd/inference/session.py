"""One prediction run: the model opened with its backend, what is left to do, and its progress."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.inference.cases import InputCase, check_headers, check_previous_stage, find_cases
from nnunet_kd.inference.onnx_metadata import read_onnx_model
from nnunet_kd.inference.predictor import CasePredictor
from nnunet_kd.inference.record import ModelOrigin, PredictionRecord
from nnunet_kd.inference.runtime_network import open_backend
from nnunet_kd.models.folder import load_predictor, open_model, refuse_other_checkpoint
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.nnunet.datasets import default_processes
from nnunet_kd.nnunet.devices import check_device
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.system.files import check_output, write_atomically
from nnunet_kd.system.memory import freed_memory_kept
from nnunet_kd.volumes.naming import shadow_of, shadowed_by


@dataclass(frozen=True)
class RunOptions:
    """How a run predicts.

    Attributes:
        backend: torch, onnxruntime or openvino; ``None``: torch for model folders and archives, onnxruntime for ONNX.
        device: cpu, cuda or mps.
        folds: of a model folder; empty: all trained ones, or the one that the path is of.
        checkpoint: file name within a model folder's folds; ``None``: the final one, or the one that the path is of.
        mirroring: average over the mirror axes of the training.
        step: distance of patches as a share of the patch.
        threads: on the CPU; ``None``: all cores (PyTorch: at most as many as ``nnUNet_def_n_proc``, nnU-Net's own limit).
        probabilities: also write ``.npz`` and ``.pkl``.
        overwrite: predict cases again that have their segmentation, another model's too.
        previous_stage: folder with the first stage's segmentations, for a cascade.
        trusted: load checkpoints that hold more than data.
    """

    backend: str | None = None
    device: str = "cpu"
    folds: tuple[str, ...] = ()
    checkpoint: str | None = None
    mirroring: bool = True
    step: float = 0.5
    threads: int | None = None
    probabilities: bool = False
    overwrite: bool = False
    previous_stage: Path | None = None
    trusted: bool = False


@dataclass(frozen=True)
class RunResult:
    """What a run did: ``predicted`` cases, those ``kept`` from before, and the ``backend`` used."""

    predicted: int
    kept: int
    backend: str


def predict(inputs: Sequence[Path], output: Path, model: Path, options: RunOptions) -> RunResult:
    """Segment a folder of images or one case.

    All that file names and headers can tell is checked before the network runs.

    Args:
        inputs: a folder of ``CASE_0000.ending`` files, or one case's files in the channels' order.
        output: a folder; for one case also a file. See :func:`nnunet_kd.inference.cases.find_cases`.
        model: model folder, checkpoint, exported zip, or ``.onnx`` with its JSON.
        options: how.

    Raises:
        ModelError, DataError, SettingsError, MissingRequirement: see there; finished cases stay.
    """
    with open_predictor(model, options) as opened:
        predictor = opened.predictor
        cases = find_cases(inputs, output, predictor.dataset_json)
        todo = [case for case in cases if options.overwrite or not _finished(case, options.probabilities)]
        for folder in sorted({case.output.parent for case in todo}):
            check_output(folder, "-o")
        record = PredictionRecord(cases[0].output.parent)
        context = _context(predictor) if record.folder == output else {}  # beside a single file nobody looks for a plan
        if not options.overwrite:
            record.refuse_others(cases, opened.origin, predictor.plans_manager.plans, bool(context))
            _refuse_to_replace(context, output)
        for case in todo:
            _check_output(case)
            check_headers(case, channel_names(predictor.dataset_json), predictor.reader)
        needed = predictor.configuration_manager.previous_stage_name
        check_previous_stage(needed, todo, options.previous_stage, predictor.dataset_json)
        for folder in {case.output.parent for case in todo}:
            folder.mkdir(parents=True, exist_ok=True)
        if todo:
            _write(context, output)
        predictor.written = lambda case: record.add(case.name, opened.origin)
        with freed_memory_kept(opened.backend == "torch" and options.device == "cpu"):
            _run(predictor, todo, len(cases), options)
    return RunResult(len(todo), len(cases) - len(todo), opened.backend)


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to predict.

    Attributes:
        predictor: with its weights loaded.
        backend: what runs the network.
        origin: by which its results are told apart from other models'.
    """

    predictor: CasePredictor
    backend: str
    origin: ModelOrigin


@contextmanager
def open_predictor(model: Path, options: RunOptions) -> Iterator[OpenedModel]:
    """A predictor ready to use.

    Raises:
        ModelError, SettingsError, MissingRequirement: the model is damaged, or backend and device do not fit it, or it has not
            the folds or the checkpoint that were asked for.
    """
    exported = model.suffix == ".onnx"
    backend = options.backend or ("onnxruntime" if exported else "torch")
    if (backend == "torch") == exported:
        raise SettingsError(
            f"--backend {backend} cannot run {model}: "
            + (
                "an ONNX file needs onnxruntime or openvino."
                if exported
                else f"it needs an ONNX file. Write one with: nnunet-kd export {shlex.quote(str(model))} OUT.onnx --to onnx"
            )
        )
    if exported:
        _refuse_choice_of_weights(model, options)
    elif options.checkpoint is not None:
        refuse_other_checkpoint(model, options.checkpoint, f"-chk {options.checkpoint}")
    if backend == "torch":
        check_device(options.device)
    torch.set_num_threads(options.threads or default_processes())
    device = torch.device("cpu" if exported else options.device)
    predictor = CasePredictor(device, options.mirroring, options.step)
    if exported:
        network = read_onnx_model(model)
        predictor.initialize_from_onnx(network, open_backend(backend, network, options.device, options.threads))
        yield OpenedModel(predictor, backend, ModelOrigin(str(model), network.description["onnx"]["sha256"]))
        return
    with open_model(model, options.folds, options.checkpoint or FINAL) as folder:
        load_predictor(folder, predictor, options.trusted)
        origin = ModelOrigin.of(model, folder)
    yield OpenedModel(predictor, backend, origin)


def _refuse_choice_of_weights(model: Path, options: RunOptions) -> None:
    """Of an ONNX file, which is one network."""
    given = [*(["-f"] if options.folds else []), *(["-chk"] if options.checkpoint is not None else [])]
    if given:
        raise SettingsError(
            f"{' and '.join(given)}: {model} holds the weights that it was exported with, and no others. Leave "
            f"{' and '.join(given)} out, or export the others."
        )


def _run(predictor: CasePredictor, todo: list[InputCase], total: int, options: RunOptions) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not todo) as progress:
        # hundredths of a case while it runs, so that one large case has an ETA too
        task = progress.add_task(todo[0].name if todo else "", total=total, completed=total - len(todo))
        predictor.progress = lambda share: progress.advance(task, share)
        for number, _ in enumerate(predictor.predict_cases(todo, options.probabilities, options.previous_stage), 1):
            following = todo[number].name if number < len(todo) else "writing"
            progress.update(task, completed=total - len(todo) + number, description=following)


def _finished(case: InputCase, probabilities: bool) -> bool:
    extra = case.output.parent / f"{case.name}.npz"
    return case.output.is_file() and (not probabilities or extra.is_file())


def _check_output(case: InputCase) -> None:
    if (other := shadow_of(case.output)) is not None:
        raise DataError(
            f"{other} would lie beside the new {case.output.name}, and ITK would read its voxels in place of the new ones. "
            f"Move it away, or choose another place with -o."
        )
    if (other := shadowed_by(case.output)) is not None:
        raise DataError(
            f"the new {case.output.name} would lie beside {other}. Asked for that one, ITK would read the new voxels. Move it "
            f"away, or choose another place with -o."
        )


def _context(predictor: CasePredictor) -> dict[str, Any]:
    """What nnU-Net's postprocessing and evaluation look for beside predictions: file and content."""
    return {"dataset.json": predictor.dataset_json, "plans.json": predictor.plans_manager.plans}


def _as_text(content: Any) -> bytes:
    return json.dumps(content, indent=4).encode()


def _write(context: Mapping[str, Any], folder: Path) -> None:
    for name, content in context.items():
        text = _as_text(content)
        write_atomically(folder / name, lambda file, text=text: file.write(text))  # type: ignore[misc]


def _refuse_to_replace(context: Mapping[str, Any], folder: Path) -> None:
    for path in (folder / name for name in context):
        try:
            same = not path.exists() or json.loads(path.read_text(encoding="utf-8")) == json.loads(
                _as_text(context[path.name])
            )
        except (OSError, ValueError):
            same = False
        if not same:
            raise DataError(
                f"{path} has other content than the model's {path.name}, which is written beside predictions. If {folder} is a "
                f"dataset or a model, or has another model's predictions, choose another place with -o. Otherwise replace that "
                f"file with --overwrite."
            )
