"""What a reader of a comparison must know of how its models were trained."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_kd.distillation.soft_labels.description import Description, unknown_teachers
from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.evaluation.runs import Method, Run, Split, fold_cases, knows_fold
from nnunet_kd.system.counts import counted


def find_warnings(methods: Sequence[Method], cases: Sequence[str], splits: Sequence[Split] | None) -> list[str]:
    """What a reader of a comparison must know: models and teachers that had seen the cases, different teachers, mirroring."""
    warnings = []
    hashes: dict[str, tuple[str, ...]] = {}
    for method in methods:
        if method.run is None:
            continue
        teachers = method.run.teachers
        warnings += _seen(method.name, method.run.fold, cases, splits)
        for number, teacher in enumerate(teachers, 1):
            if knows_fold(teacher):
                who = f"teacher {number} of {method.name}" if len(teachers) > 1 else f"the teacher of {method.name}"
                warnings += _teacher_seen(who, method, str(teacher["fold"]), cases, splits)
        maps = method.run.soft_labels()
        warnings += _soft_labels_seen(method.name, method.run, maps, cases)
        digests = {str(teacher["sha256"]) for teacher in teachers if teacher.get("sha256")}
        digests |= {teacher.sha256 for teacher in maps.teachers} if maps is not None else set()
        if digests:
            hashes[method.name] = tuple(sorted(digests))
    if len(set(hashes.values())) > 1:
        listed = ", ".join(
            f"{name} {' and '.join(digest[:12] for digest in digests)}" for name, digests in hashes.items()
        )
        warnings.append(f"the students had different teachers (SHA-256 {listed}).")
    return warnings + _mirrored_otherwise(methods)


def _mirrored_otherwise(methods: Sequence[Method]) -> list[str]:
    axes = {m.name: m.run.mirror_axes for m in methods if m.run is not None and m.run.mirror_axes is not None}
    if len(set(axes.values())) < 2:
        return []
    listed = "; ".join(f"{name} {', '.join(map(str, mirrored)) or 'none'}" for name, mirrored in axes.items())
    return [
        f"the models mirror different axes in training and prediction, so they differ in more than the method: {listed}."
    ]


def _teacher_seen(
    who: str, method: Method, fold: str, cases: Sequence[str], splits: Sequence[Split] | None
) -> list[str]:
    if splits is not None or method.run is None or fold == "all":
        return _seen(who, fold, cases, splits)
    if fold == method.run.fold:
        return []
    return [
        f"{who} is of fold {fold}, {method.name} of fold {method.run.fold}: the teacher had seen validation cases in "
        f"training, so the results look better than they are."
    ]


def _soft_labels_seen(name: str, run: Run, maps: Description | None, cases: Sequence[str]) -> list[str]:
    """What the teachers of a student's soft labels had seen, as their description says, and whether that was allowed."""
    if not run.reads_maps:
        return []
    found, seen = [], set()
    if maps is None and not run.allows_leak:
        found.append(
            f"whether teachers of {name}'s soft labels had seen the cases cannot be told: they are not where they were."
        )
    if maps is not None:
        seen = {case for teacher in maps.teachers for case in teacher.trained_on or ()} & set(cases)
        if unknown := unknown_teachers(maps):
            found.append(f"whether {', '.join(unknown)}, of {name}'s soft labels, had seen the cases cannot be told.")
    if seen:
        found.append(
            f"teachers of {name}'s soft labels had seen {len(seen)} of the {counted(len(cases), 'case')} in training, so the "
            f"results look better than they are."
        )
    if run.allows_leak:
        known = maps is not None and not unknown_teachers(maps)
        they = "had seen" if seen else ("had seen none of" if known else "may have seen")
        found.append(
            f"{name} was trained with objectives.soft.allow_leak=true: teachers of its soft labels {they} these cases in "
            f"training."
        )
    return found


def _seen(who: str, fold: str, cases: Sequence[str], splits: Sequence[Split] | None) -> list[str]:
    if splits is None:
        known = fold == "all"
        return [f"{who} was trained on all cases (fold all), so it had seen these in training."] if known else []
    try:
        seen = fold_cases(splits, fold, "train") & set(cases)
    except (DataError, SettingsError) as error:
        return [f"whether {who} had seen the cases cannot be told: {error}"]
    if not seen:
        return []
    return [
        f"{who} (fold {fold}) had seen {len(seen)} of the {counted(len(cases), 'case')} in training, so the results look better "
        f"than they are."
    ]
