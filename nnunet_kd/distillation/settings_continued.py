"""What the settings of a run that is continued (``--c``) say against those that its files give now."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_kd.distillation.settings import Settings, TeacherSettings, validate_settings
from nnunet_kd.distillation.settings_model import yaml_text
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.folds import is_fold, parse_fold, split_model_path

START = ("start", "start_sha256")


def without_known_teacher(layer: dict[str, Any], saved: dict[str, Any], source: str) -> dict[str, Any]:
    """A continued run's settings say exactly which teachers it has; a file that means the same may say less."""
    meant, known = (validate_settings(values, source).teachers() for values in (layer, saved))
    meant = [_of_model(one) for one in meant]
    same = len(meant) == len(known) and all(
        (one.path is None or str(Path(one.path).expanduser().resolve()) == other.path)
        and (one.fold is None or one.fold == other.fold)
        and (one.sha256 is None or one.sha256 == other.sha256)
        and one.checkpoint == other.checkpoint
        for one, other in zip(meant, known, strict=True)
    )
    return {key: value for key, value in layer.items() if key != "teacher"} if same or "teacher" not in layer else layer


def _of_model(teacher: TeacherSettings) -> TeacherSettings:
    """The same checkpoint, with the model folder as its path, as a run saves it."""
    folder, fold, checkpoint = split_model_path(Path(teacher.path or ""))
    if fold is None or not is_fold(fold):
        return teacher
    said = {"path": str(folder), "fold": parse_fold(fold), "checkpoint": checkpoint or teacher.checkpoint}
    return teacher.model_copy(update=said)


def without_known_start(layer: dict[str, Any], saved: dict[str, Any], source: str) -> dict[str, Any]:
    """A continued run's settings say what it started from; a file may say it in other words, or merely prefer it.

    Random is also what is left of a start that was not possible, or that ``-pretrained_weights`` replaced. So whatever a file
    prefers says nothing against such a run.
    """
    begun, wanted = (validate_settings(values, source).start for values in (saved, layer))
    known: set[str] = set()
    if begun == Settings.model_fields["start"].default:
        known = set(START)
    elif "start" in layer and str(Path(wanted).expanduser().resolve()) == begun:
        known = {"start"}
    return {key: value for key, value in layer.items() if key not in known}


def without_known_maps(layer: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """A continued run's settings say exactly where its soft labels lie; a file may say how their folder's name begins."""
    own, known = ((values.get("objectives") or {}).get("soft") or {} for values in (layer, saved))
    if (
        not known.get("maps_sha256")
        or own.get("maps") is None
        or own.get("maps_sha256", known["maps_sha256"]) != (known["maps_sha256"])
    ):
        return layer
    if not Path(str(known["maps"])).name.startswith(Path(str(own["maps"])).name):
        return layer
    soft = {key: value for key, value in own.items() if key not in ("maps", "maps_sha256")}
    return {**layer, "objectives": {**layer["objectives"], "soft": soft}}


def refuse_changes(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a SettingsError unless both are the same settings; both already hold what ``--set`` changes."""
    before, after = _flatten(saved), _flatten(now)
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    if changed:
        differences = "; ".join(f"{key}: was {before.get(key)}, now {after.get(key)}" for key in changed)
        raise SettingsError(
            f"the run to continue was started with other settings than the files give now ({differences}). "
            f"Restore the files, or say what you want with --set, for example --set "
            f"{shlex.quote(f'{changed[0]}={yaml_text(before.get(changed[0]))}')}."
        )


def refuse_another_network(saved: dict[str, Any], assignments: dict[str, Any]) -> None:
    """Raise a SettingsError if ``--set`` asks for another reduction than the run was started with."""
    before = validate_settings(saved, "settings").reduction
    if assignments.get("reduction", before) != before:
        raise SettingsError(
            f"--set reduction={assignments['reduction']}: the run to continue has a student of reduction {before:g}, whose "
            f"weights another network cannot take. Leave it out, or start a new run (without --c)."
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
