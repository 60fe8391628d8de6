"""Minutes of the proof's rows: all that a user waits for before and in the iterations (docs/explanation-proof.md).

    python benchmarks/proof_minutes.py --keep benchmarks/results [--only hippocampus,acdc,hippocampus-objectives]

Nothing else may run. Through the real data, teachers, loaders and commands: what is done once before the first iteration (median
of three times), what ``nnunet-kd soften`` takes (an eighth of the training cases, and one alone: a straight line), and three
times 100 iterations of every row in turn. Minutes = once + iterations x median. Written to ``proof-SWEEP/minutes.json``, which
also says how many iterations of the plain student take as long as each row. What soft labels take is written as soon as it is
known (``proof-SWEEP/soften.json``), so that a stop does not lose it.

The other objectives are measured in turn with ``plain`` and ``inherited``. FreeKD tunes its prompts in its first iterations; what
these take longer than its later ones counts as done once.

Needs what ``proof.py prepare`` made, and nnU-Net's three variables.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from proof import described, soft_label_choices, soften
from proof_datasets import FOLD, QUEUE, Dataset, check_teacher
from proof_origin import COLUMNS, check_origin, origins_kept, prepare_environment, present_origin, unlike, write_json
from proof_values import INHERITED, LONGER, MACHINE, PLAIN

from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE, merge
from nnunet_kd.distillation.soft_labels.student import sets_folder
from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.nnunet.environment import method_trainer, variables_set_to
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.system.memory import freed_memory_kept
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.sweep.description import SweepDescription, Variant
from nnunet_kd.workflows.sweep.runs import assignments

MEASURED = ("hippocampus", "acdc", "hippocampus-objectives")
ITERATIONS, ROUNDS, STARTS = 100, 3, 3
PARTS = 8
"""Of so many parts of the cases, one is softened for the minutes."""
BUSY = 0.7
"""Load average of the last minute above which something else runs."""
TUNED = {"freekd": "prompt_iterations"}
"""Methods whose first iterations are others than the rest, with the setting that says how many."""


def ready_trainer(
    dataset: Dataset, shared: Mapping[str, Any], row: Variant, results: Path
) -> tuple[DistillationTrainer, float]:
    """A row's trainer before its first iteration, and the seconds that this took.

    Args:
        dataset: of the sweep.
        shared: settings of all rows.
        row: method, recipe and settings.
        results: its ``nnUNet_results``.
    """
    pinned = {"teacher": {"path": str(dataset.teacher)}} if row.method != "student" else {}
    told = merge(merge(shared, row.settings), {"seed": 0, **pinned})
    variables = {
        SET_VARIABLE: json.dumps(assignments(told)),
        CONFIG_VARIABLE: row.recipe,
        "nnUNet_results": str(results),
    }
    with variables_set_to(variables):
        began = time.perf_counter()
        made: DistillationTrainer = trainer_of_dataset(
            dataset.name, "3d_fullres", int(FOLD), method_trainer(row.method), dataset.plans, torch.device("cpu")
        )
        made.disable_checkpointing = True
        made.on_train_start()
        made.on_train_epoch_start()
        return made, time.perf_counter() - began


def started_thrice(
    dataset: Dataset, shared: Mapping[str, Any], row: Variant, results: Path
) -> tuple[DistillationTrainer, float]:
    """The last of several trainers of a row, and the median of their seconds."""
    made, first = ready_trainer(dataset, shared, row, results / "0")
    seconds = [first]
    for number in range(1, STARTS):
        made.on_train_end()
        made, one = ready_trainer(dataset, shared, row, results / str(number))
        seconds.append(one)
    return made, statistics.median(seconds)


def iterate(made: DistillationTrainer, iterations: int) -> float:
    """Iterations with their loader; returns their seconds."""
    began = time.perf_counter()
    for _ in range(iterations):
        made.train_step(next(made.dataloader_train))
    return time.perf_counter() - began


def soften_seconds(dataset: Dataset, mirroring: bool) -> float:
    """Of ``nnunet-kd soften`` for all training cases of the fold: on the line through one case and an eighth of them."""
    cases = len(dataset.training_cases)
    some = len(range(0, cases, PARTS))  # the command gives every PARTS-th case to part 0
    return line_at(
        cases, (1, seconds_of_part(dataset, mirroring, cases)), (some, seconds_of_part(dataset, mirroring, PARTS))
    )


def line_at(where: int, first: tuple[int, float], second: tuple[int, float]) -> float:
    """Seconds of ``where`` cases, from the seconds of two other numbers of cases."""
    each = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] + (where - first[0]) * each


def seconds_of_part(dataset: Dataset, mirroring: bool, parts: int) -> float:
    """Of ``nnunet-kd soften`` for the first of so many parts of the cases, where no soft labels lie yet."""
    preprocessed = Path(os.environ["nnUNet_preprocessed"], dataset.name)
    with tempfile.TemporaryDirectory(dir=preprocessed.parent) as folder:
        beside = Path(folder, dataset.name)
        beside.mkdir()
        for path in preprocessed.iterdir():
            if path.name != sets_folder(preprocessed / "any").parent.name:
                (beside / path.name).symlink_to(path)
        with variables_set_to({"nnUNet_preprocessed": folder}):
            began = time.perf_counter()
            end_if_failed(soften(dataset, mirroring, "cpu", ("--num-parts", str(parts), "--part-id", "0")))
            return time.perf_counter() - began


def softened(dataset: Dataset, mirroring: bool, path: Path, origin: Mapping[str, str]) -> float:
    """Seconds of :func:`soften_seconds`, kept in ``path`` with where they come from; measured where they are not there.

    The maps that the rows read are made, too, without looking at the clock.
    """
    end_if_failed(soften(dataset, mirroring, "cpu"))
    choice = "mirrored" if mirroring else "not_mirrored"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if {name: kept.get(choice, {}).get(name) for name in COLUMNS} != dict(origin):
        kept[choice] = {**origin, "seconds": soften_seconds(dataset, mirroring)}
        write_json(path, kept)
    return float(kept[choice]["seconds"])


def end_if_failed(code: int) -> None:
    """Of a command."""
    if code:
        sys.exit(code)


def rows_of(name: str, description: SweepDescription) -> dict[str, Variant]:
    """What is measured in turn: the sweep's rows; of other sweeps than the core's, also plain and inherited."""
    rows = {row: variant for row, variant in description.rows().items() if row != LONGER}
    core = described(name.split("-")[0])
    assert core is not None  # it lies in the repository
    return {row: one for row, one in core.rows().items() if row in (PLAIN, INHERITED)} | rows


def starts_inside(row: Variant) -> bool:
    """Whether this row computes its first weights from the teacher's."""
    return bool(row.settings.get("start") == "teacher")


def measure(name: str, description: SweepDescription, place: Path, origin: Mapping[str, str]) -> dict[str, Any]:
    """All rows of one sweep."""
    dataset, rows, shared = QUEUE[name], rows_of(name, description), description.settings
    choices = soft_label_choices(list(rows.values()))
    making = {choice: softened(dataset, choice, place / "soften.json", origin) for choice in choices}
    trainers: dict[str, DistillationTrainer] = {}
    setup: dict[str, float] = {}
    tuning: dict[str, tuple[int, float]] = {}
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet, freed_memory_kept():  # as trainings on a CPU run
        # nnU-Net's search for trainers and cold files would otherwise count for the first row
        ready_trainer(dataset, shared, rows[PLAIN], Path(folder, "first"))[0].on_train_end()
        for row, variant in rows.items():
            trainers[row], setup[row] = started_thrice(dataset, shared, variant, Path(folder, row))
            if variant.method in TUNED:
                count = variant.settings["objectives"][variant.method][TUNED[variant.method]]
                tuning[row] = (count, iterate(trainers[row], count))
        timings = time_in_turn(
            {row: partial(iterate, one, ITERATIONS) for row, one in trainers.items()}, ROUNDS, title=name
        )
        for one in trainers.values():
            one.on_train_end()
    iterations = shared["epochs"] * shared["iterations_per_epoch"]
    each = {row: timing.median / ITERATIONS for row, timing in timings.items()}
    start = setup[INHERITED] - setup[PLAIN] if INHERITED in setup else 0.0
    found: dict[str, Any] = {}
    for row, variant in rows.items():
        made = sum(making[choice] for choice in soft_label_choices([variant]))
        count, tuned = tuning.get(row, (0, 0.0))
        once = setup[row] + made + tuned - count * each[row]
        seconds = once + iterations * each[row]
        found[row] = {
            "once_seconds": once,
            "shareable_seconds": made + (start if starts_inside(variant) else 0.0),
            "seconds_per_100": timings[row].seconds,
            "minutes": seconds / 60,
            "plain_iterations": round((seconds - setup[PLAIN]) / each[PLAIN]),
            "variant": variant_told(variant, shared),
        }
    return {"iterations": iterations, "soften_seconds": sum(making.values()), "start_seconds": start, "rows": found}


def variant_told(variant: Variant, shared: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a row's minutes, as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps({**variant.model_dump(mode="json"), "shared": dict(shared)}))
    return found


def measured_already(path: Path, name: str, description: SweepDescription) -> bool:
    """Whether the minutes of all rows are there, of the rows as they are described now."""
    known = json.loads(path.read_text())["rows"] if path.is_file() else {}
    return all(
        known.get(row, {}).get("variant") == variant_told(variant, description.settings)
        for row, variant in rows_of(name, description).items()
    )


def of_another_machine(origin: Mapping[str, str], name: str, keep: Path) -> str | None:
    """Which sweep of the same dataset was measured on another machine, in words: their minutes would not be read together."""
    for path in sorted(keep.glob(f"proof-{name.split('-')[0]}*/minutes.json")):
        told = unlike(MACHINE, origin, json.loads(path.read_text()))
        if told and path.parent.name != f"proof-{name}":
            return f"{path} is of another machine ({told})"
    return None


def wait_until_idle() -> None:
    """Until what ran before has left the load average; end if something else keeps running."""
    for _ in range(30):
        if os.getloadavg()[0] < BUSY:
            return
        time.sleep(10)
    sys.exit(
        f"something else runs on this machine (load average {os.getloadavg()[0]:.1f}). Minutes are measured alone."
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MEASURED), help="sweeps, with commas")
    parser.add_argument("--keep", type=Path, required=True, help="where proof-SWEEP/minutes.json is written")
    options = parser.parse_args()
    if unknown := [name for name in options.only.split(",") if name not in MEASURED]:
        sys.exit(f"--only: there is no sweep {unknown[0]!r}; there are {', '.join(MEASURED)}")
    prepare_environment(jobs=1)
    origin = present_origin(jobs=1, device="cpu")
    check_origin(origin, origins_kept(options.keep))
    for name in options.only.split(","):
        if (description := described(name)) is None:
            print(f"{name}: not described yet (proof-{name}.yaml), so not measured")
            continue
        path = options.keep / f"proof-{name}" / "minutes.json"
        if measured_already(path, name, description):
            print(f"{name}: measured already ({path})")
            continue
        if (other := of_another_machine(origin, name, options.keep)) is not None:
            print(f"{name}: not measured. {other}. To measure all on this one, delete it.")
            continue
        check_teacher(QUEUE[name], predicted=False)
        wait_until_idle()
        found = {**origin, **measure(name, description, path.parent, origin)}
        write_json(path, found)
        for row, values in found["rows"].items():
            print(f"{name}, {row}: {values['minutes']:.1f} minutes")


if __name__ == "__main__":
    main()
