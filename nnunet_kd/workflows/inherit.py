"""A student with the weights that its training would start from: how good it is before any training, and on disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.starts.layer_fit import LayerFit, Progress
from nnunet_kd.distillation.starts.student import RANDOM, TEACHER
from nnunet_kd.errors import ModelError, SettingsError
from nnunet_kd.export.folder_export import FolderOptions, check_output, export_folder
from nnunet_kd.models.archive import is_archive, unpack_model
from nnunet_kd.models.folder import ModelFolder
from nnunet_kd.models.training_cases import SUMMARY
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.files import check_output as check_folder
from nnunet_kd.system.files import write_atomically
from nnunet_kd.training.gradient_shares import in_temporary_results
from nnunet_kd.training.trainer import DistillationTrainer


@dataclass(frozen=True)
class Inherited:
    """What :func:`inherit_student` found.

    Attributes:
        fits: per layer.
        teacher: the checkpoint.
        dice, teacher_dice: on the fold's validation cases, by label or region, between 0 and 1, as nnU-Net's ``summary.json`` has
            them. Empty: not measured; the teacher's: it has no validation of these cases.
    """

    fits: tuple[LayerFit, ...]
    teacher: str
    dice: dict[str, float]
    teacher_dice: dict[str, float]


def inherit_student(
    make: Callable[[], DistillationTrainer],
    output: Path | None,
    overwrite: bool,
    validated: bool,
    progress: Progress,
    tell: Callable[[str], Any],
    measured: Callable[[Inherited], Any] = lambda found: None,
) -> None:
    """Compute a student's start from its teacher, and say how good it is.

    Args:
        make: builds the trainer; its output folder is a temporary one.
        output: where the untrained student becomes a model folder, or with the ending ``.zip`` an archive; ``None``: nowhere.
        overwrite: replace what lies there.
        validated: predict the fold's validation cases.
        progress: told how far the start is.
        tell: told what is done next.
        measured: told what was found, before ``output`` is written.

    Raises:
        ModelError: there is something at ``output`` that is not replaced.
        MissingRequirement: ``output`` cannot be written.
        SettingsError: the settings name another start than the teacher.
        NnunetKdError: see :meth:`~nnunet_kd.training.started.StartedTrainer.take_start`.
    """
    if output is not None:
        check_output(output, overwrite)
        check_folder(output.expanduser().absolute().parent)
    with in_temporary_results(make) as trainer:
        if trainer.settings.start not in (TEACHER, RANDOM):  # the trainer refuses the latter itself
            raise SettingsError(
                f"start: {trainer.settings.start}: this command computes the start from the teacher. Leave start out, or set "
                f"start=teacher."
            )
        trainer.show_progress = progress
        trainer.prepare_distillation()
        pinned = trainer.settings.teachers()[0]
        of_teacher = Path(pinned.path or "") / f"fold_{pinned.fold}"
        dice, teacher_dice = {}, {}
        # what the checkpoint and prediction mirror is set where nnU-Net sets its augmentation up
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if validated:
            tell("validation cases are predicted")
            trainer.perform_actual_validation(False)
            summary = _read(Path(trainer.output_folder) / SUMMARY)
            dice, of_its_own = _means(summary), _summary_of_teacher(pinned, trainer.configuration_name)
            if pinned.checkpoint == FINAL and _cases(of_its_own) == _cases(summary):  # nnU-Net validates the final one
                teacher_dice = _means(of_its_own)
        measured(Inherited(trainer.start_fits, str(of_teacher / pinned.checkpoint), dice, teacher_dice))
        if output is not None:
            tell(f"{output} is written")
            _write(trainer, output, overwrite)


def _summary_of_teacher(pinned: TeacherSettings, configuration: str) -> dict[str, Any]:
    """What nnU-Net wrote of a teacher's validation, in its model folder or archive; empty where there is none."""
    path, member = Path(pinned.path or ""), f"fold_{pinned.fold}/{SUMMARY}"
    with tempfile.TemporaryDirectory(prefix="nnunet_kd_") as temporary:
        if is_archive(path):
            try:
                path = unpack_model(path, Path(temporary), configuration, (member,))
            except ModelError:  # a model without it
                return {}
        return _read(path / member)


def _read(summary: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    return found


def _cases(summary: Mapping[str, Any]) -> set[str]:
    """File names of the cases of a summary."""
    return {Path(str(case["reference_file"])).name for case in summary.get("metric_per_case", ())}


def _means(summary: Mapping[str, Any]) -> dict[str, float]:
    """Mean over cases by label."""
    return {label: float(values["Dice"]) for label, values in summary["mean"].items()}


def _write(trainer: DistillationTrainer, output: Path, overwrite: bool) -> None:
    base = Path(trainer.output_folder_base)
    for name, content in (("plans.json", trainer.plans_manager.plans), ("dataset.json", trainer.dataset_json)):
        text = json.dumps(content, indent=4, default=str).encode()
        write_atomically(base / name, lambda file, text=text: file.write(text))  # type: ignore[misc]
    trainer.current_epoch -= 1  # nnU-Net saves the number of the next epoch, and none was trained
    trainer.save_checkpoint(str(Path(trainer.output_folder) / FINAL))
    model = ModelFolder(base, (str(trainer.fold),), FINAL)
    export_folder(model, output, FolderOptions(overwrite=overwrite))
