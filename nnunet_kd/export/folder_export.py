"""A model folder, or an archive of one, that stock nnU-Net predicts with where this package is not installed."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.progress import Progress

from nnunet_kd.errors import ModelError
from nnunet_kd.export.model_card import FoldSummary, summarise_fold, write_card
from nnunet_kd.export.stock_trainer import stock_trainer_name
from nnunet_kd.export.weights import check_weights, told_weights
from nnunet_kd.models.checkpoint import ENTRY, save_to
from nnunet_kd.models.folder import ModelFolder, read_json
from nnunet_kd.nnunet.checkpoints import GRADIENT_SCALER, OPTIMIZER, TRAINER, trained_configuration
from nnunet_kd.system.files import folder_beside, write_atomically

_TRAINING_ONLY = (OPTIMIZER, GRADIENT_SCALER)
_CARD = "README.md"


@dataclass(frozen=True)
class FolderOptions:
    """How a model folder is exported.

    Attributes:
        weights: final, best, or ema (as final, but refused unless it is a moving average); which checkpoint is exported, the
            model says.
        keep_optimizer: keep what only continuing a training needs.
        licence: of the weights, for the card.
        overwrite: replace what lies at the output.
    """

    weights: str = "final"
    keep_optimizer: bool = False
    licence: str = ""
    overwrite: bool = False


def export_folder(model: ModelFolder, output: Path, options: FolderOptions) -> Path:
    """Write ``output``, a folder, or with the ending ``.zip`` an archive for ``nnUNetv2_install_pretrained_model_from_zip``.

    Checkpoints name a trainer that nnU-Net ships, hold nothing of this package, and predict the same bit for bit. Paths in
    ``summary.json`` are cut to file names. ``README.md`` is the model card. After an error, what was at ``output`` is there
    still; so it is if the process is killed, but for the moment in which a folder is exchanged: then it lies beside, as
    ``.NAME.xxxxxxxx.old``.

    Raises:
        ModelError: the output exists already, or is, holds or lies in the model; the model is damaged, or stock nnU-Net cannot
            build its network.
        MissingRequirement: the output cannot be written.
    """
    output = output.expanduser().absolute()
    archived = output.suffix == ".zip"
    _refuse_source(model, output, archived)
    check_output(output, options.overwrite)
    with folder_beside(output) as temporary:
        folder = temporary / "model"
        folder.mkdir()
        name = _fill(model, folder, options)
        if archived:
            write_atomically(output, lambda file: _archive(folder, name, file))
        else:
            _move_into_place(folder, output, temporary)
    return output


def check_output(output: Path, overwrite: bool) -> None:
    """Whether an export may be written to a place.

    Raises:
        ModelError: what lies there is not replaced.
    """
    output = output.expanduser().absolute()
    archived = output.suffix == ".zip"
    if output.exists() and not overwrite:
        raise ModelError(f"{output} exists already. Choose another name, or replace it with --overwrite.")
    if output.exists() and output.is_dir() == archived:
        raise ModelError(f"{output} is a {'folder' if archived else 'file'}, which is not replaced by the export.")
    # a plan alone lies beside predictions, too
    is_model = (output / "plans.json").is_file() and any(output.glob("fold_*/*.pth"))
    if not archived and output.is_dir() and any(output.iterdir()) and not is_model:
        raise ModelError(
            f"{output} is a folder with other content than a model, so it is not replaced. Choose another."
        )


def _refuse_source(model: ModelFolder, output: Path, archived: bool) -> None:
    """An export leaves out what continuing a training needs, and everything that is not one of its folds."""
    source, target = (model.source or model.folder).resolve(), output.resolve()
    inside = source in target.parents and not archived
    if source == target or target in source.parents or inside:
        how = "is" if source == target else "lies in" if inside else "holds"
        raise ModelError(
            f"{output} {how} the model {source}, which an export never replaces: checkpoints there keep what continuing a "
            f"training needs. Choose a place outside of it."
        )


def _move_into_place(folder: Path, output: Path, temporary: Path) -> None:
    if not output.exists():
        os.replace(folder, output)
        return
    old = temporary.with_name(f"{temporary.name}.old")  # which no failure deletes
    os.replace(output, old)
    try:
        os.replace(folder, output)
    except BaseException:
        os.replace(old, output)
        raise
    if old.is_symlink():
        old.unlink()  # what it points to is not the output
    else:
        shutil.rmtree(old, ignore_errors=True)


def _archive(folder: Path, name: str, file: BinaryIO) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{name}/{path.relative_to(folder)}")


def _fill(model: ModelFolder, folder: Path, options: FolderOptions) -> str:
    """Write everything into ``folder``; returns its place under ``nnUNet_results``."""
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)
    summaries: list[FoldSummary] = []
    configurations = set()
    with Progress(transient=True) as progress:
        for fold in progress.track(model.folds, description="folds"):
            checkpoint = model.read_checkpoint(fold)
            check_weights(checkpoint, options.weights, model.checkpoint_path(fold))
            target = folder / f"fold_{fold}"
            target.mkdir()
            configurations.add(trained_configuration(checkpoint))
            validation = _copy_results(model.folder / f"fold_{fold}", target)
            summaries.append(summarise_fold(fold, checkpoint, validation))
            stock = _stock_checkpoint(model, checkpoint, options)
            with (target / model.checkpoint).open("wb") as file:
                save_to(stock, file)
    if len(configurations) != 1:
        raise ModelError(f"the folds of {model.folder} are of several configurations: {', '.join(configurations)}.")
    _copy_cross_validation(model, folder)
    configuration = configurations.pop()
    place = install_name(model, configuration, summaries[0].trainer)
    card = write_card(
        model, configuration, summaries, told_weights(options.weights, model.checkpoint), options.licence, place
    )
    (folder / _CARD).write_text(card, encoding="utf-8")
    return place


def install_name(model: ModelFolder, configuration: str, trainer: str) -> str:
    """``Dataset.../Trainer__Plans__configuration``: the folder's own name where it has that form.

    The trainer's name stays, so that installing a student never overwrites its teacher; for ``nnUNetv2_predict -tr`` it is
    no more than a part of the folder's name.
    """
    plans = model.plans()
    named = model.folder.name.split("__")
    name = model.folder.name if len(named) == 3 else f"{trainer}__{plans['plans_name']}__{configuration}"
    return f"{plans['dataset_name']}/{name}"


def _stock_checkpoint(model: ModelFolder, checkpoint: dict[str, Any], options: FolderOptions) -> dict[str, Any]:
    left_out = (ENTRY,) if options.keep_optimizer else (ENTRY, *_TRAINING_ONLY)
    kept = {key: value for key, value in checkpoint.items() if key not in left_out}
    kept[TRAINER] = stock_trainer_name(model, checkpoint)
    return kept


def _copy_results(source: Path, target: Path) -> dict[str, Any] | None:
    """``progress.png`` and the validation's summary, which nnU-Net's own export asks for; returns the summary."""
    if (source / "progress.png").is_file():
        shutil.copyfile(source / "progress.png", target / "progress.png")
    summary = source / "validation" / "summary.json"
    if not summary.is_file():
        return None
    content = read_json(summary, "the validation's summary", "Validate again with nnUNetv2_train ... --val.")
    (target / "validation").mkdir()
    _write_json(_without_folders(content), target / "validation" / "summary.json")
    return content


def _copy_cross_validation(model: ModelFolder, folder: Path) -> None:
    """The postprocessing that nnU-Net found for exactly these folds."""
    source = model.cross_validation()
    if source is None:
        return
    for name in ("postprocessing.pkl", "postprocessing.json", "summary.json", "plans.json", "dataset.json"):
        if (source / name).is_file():
            (folder / source.name).mkdir(exist_ok=True)
            if name == "summary.json":
                content = read_json(source / name, "the cross-validation's summary", "Run it again.")
                _write_json(_without_folders(content), folder / source.name / name)
            else:
                shutil.copyfile(source / name, folder / source.name / name)


def _without_folders(summary: dict[str, Any]) -> dict[str, Any]:
    """Cases named by file name alone: the folders are those of the machine that trained."""
    cases = [
        {**case, **{key: Path(case[key]).name for key in ("prediction_file", "reference_file") if key in case}}
        for case in summary.get("metric_per_case", [])
    ]
    return {**summary, "metric_per_case": cases}


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
