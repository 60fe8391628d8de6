"""The proof: what a student learns from a teacher in so many minutes, on two datasets (docs/explanation-proof.md).

    python benchmarks/proof.py prepare --data .../Task04_Hippocampus --teacher .../teacher --acdc .../acdc \\
            [--keep benchmarks/results]
        Both datasets, preprocessed with their teachers' plans and splits; both teachers. A teacher whose values are not kept
        predicts its validation cases, and is measured.
    python benchmarks/proof.py train [--only hippocampus,acdc] [--jobs 2] --keep benchmarks/results
        Every sweep of the queue, in its order. The same command goes on where it stopped. What is finished is kept within a
        minute, and what is kept is not trained again, also on another machine.
    python benchmarks/proof.py keep --keep benchmarks/results
        The values of every training that is finished now, while others go on.

``proof.sh`` runs all of it. Needs nnU-Net's three variables. Give ``train`` a clone of its own: the trainings of all tables come
from the same code.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from long_commands import KEEPING, code_of
from proof_datasets import FOLD, QUEUE, Dataset, check_teacher, prepare
from proof_keep import (
    contradiction,
    finished_seeds,
    keep,
    keep_teacher,
    kept_seeds,
    kept_teacher,
    name_origins,
    sweep_folder,
)
from proof_origin import (
    HERE,
    check_origin,
    continue_origins,
    origins_kept,
    origins_on_disk,
    prepare_environment,
    present_origin,
    use_this_python,
    write_origin,
)
from proof_values import BEST, LONGER, wanted_epochs

from nnunet_kd.errors import NnunetKdError
from nnunet_kd.workflows.sweep.description import SweepDescription, Variant, describe_sweep

NNUNET_KD = Path(sys.executable).with_name("nnunet-kd")
MIRRORED = re.compile(r"_(not_)?mirrored")


def described(name: str) -> SweepDescription | None:
    """A sweep of the queue; ``None`` where it is not written yet."""
    path = HERE / f"proof-{name}.yaml"
    return describe_sweep(path, {}) if path.is_file() else None


def train(name: str, description: SweepDescription, options: argparse.Namespace) -> list[str]:
    """What is missing of one sweep; returns what failed, in words."""
    dataset = QUEUE[name]
    check_teacher(dataset, predicted=kept_teacher(dataset, options.keep) is None)
    origin = present_origin(options.jobs, options.device)
    kept = origins_kept(options.keep) if options.keep is not None else []
    check_origin(origin, [*origins_on_disk(map(sweep_folder, QUEUE)), *kept])
    name_origins(name)
    continue_origins(sweep_folder(name), origin)
    write_origin(sweep_folder(name), origin)
    check_longer(name, description, options.keep)
    failed = []

    def look() -> list[str]:
        if present_origin(options.jobs, options.device)["code"] != origin["code"]:
            sys.exit("the code has changed while it trained. Train from a clone that nobody edits.")
        try:
            problems = keep(name, options.keep) if options.keep is not None else []
        except (NnunetKdError, OSError) as error:  # a full disk must not end trainings that can be kept later
            problems = [f"{name}: {error}"]
        for problem in problems:
            print(f"not kept: {problem}", file=sys.stderr, flush=True)
        return problems

    for rows, seeds in queue(name, description, options.keep):
        told = [contradiction(name, row, description, options.keep) for row in rows]
        if problems := [problem for problem in told if problem is not None]:
            failed += problems  # hours of training would not be kept
            continue
        choices = sorted(soft_label_choices([description.rows()[row] for row in rows]))
        if any(soften(dataset, mirroring, options.device) for mirroring in choices):
            failed.append(f"{name}, {', '.join(rows)}: soft labels")
            continue
        sweep = HERE / f"proof-{name}.yaml"
        command: tuple[str | Path, ...] = (NNUNET_KD, "sweep", sweep, "-t", dataset.teacher, "-device", options.device)
        command += ("--methods", ",".join(rows), "--seeds", ",".join(map(str, seeds)))
        command += ("--jobs", str(options.jobs)) if options.jobs > 1 else ()
        if code_of(*command, every=KEEPING, meanwhile=look):
            failed.append(f"{name}: {', '.join(rows)}")
    return failed + look()


def check_longer(name: str, description: SweepDescription, target: Path | None) -> None:
    """End where ``plain-longer`` has other epochs than the best row's minutes hold: those were measured on this machine."""
    path = target / f"proof-{name}" / "minutes.json" if target is not None else None
    row = description.rows().get(LONGER)
    if path is None or not path.is_file() or row is None or BEST is None:
        return
    wanted = wanted_epochs(json.loads(path.read_text()), BEST, description.settings["iterations_per_epoch"])
    if (epochs := row.settings["epochs"]) != wanted:
        sys.exit(
            f"proof-{name}.yaml: {LONGER} has {epochs} epochs, and by {path} the minutes of {BEST} hold {wanted} here. Write "
            f"epochs: {wanted} there, then give the same command again."
        )


def queue(name: str, description: SweepDescription, target: Path | None) -> list[tuple[list[str], list[int]]]:
    """What is missing of one sweep; rows that read no soft labels first, since these take long to make."""
    kept, finished = kept_seeds(name, target), finished_seeds(name)
    reading = {row: bool(soft_label_choices([variant])) for row, variant in description.rows().items()}
    parts = [[row for row in reading if reading[row] is choice] for choice in (False, True)]
    return [one for rows in parts for one in missing(description, rows, kept, finished)]


def missing(
    description: SweepDescription, rows: list[str], kept: Mapping[str, set[int]], finished: Mapping[str, set[int]]
) -> list[tuple[list[str], list[int]]]:
    """Rows with the seeds that they lack, in the sweep's order.

    One sweep over all of them leaves no core without work between two rows. So they are divided, by the seeds that they lack,
    only where a training was kept and is not on this disk: the sweep would train it again.
    """
    lacking = {row: tuple(seed for seed in description.seeds if seed not in kept.get(row, ())) for row in rows}
    lacking = {row: seeds for row, seeds in lacking.items() if seeds}
    union = [seed for seed in description.seeds if any(seed in seeds for seeds in lacking.values())]
    if all(seed in lacking[row] or seed in finished.get(row, ()) for row in lacking for seed in union):
        return [(list(lacking), union)] if lacking else []
    return [(list(some), list(seeds)) for seeds, some in groupby(lacking, key=lacking.__getitem__)]


def soften(dataset: Dataset, mirroring: bool, device: str, part: tuple[str, ...] = ()) -> int:
    """Soft labels of the fold's own teacher, of all cases or a part; those that are there stay. Returns the exit code."""
    told = ("-p", dataset.plans, "-t", dataset.teacher, "-device", device)
    choice = "--mirroring" if mirroring else "--no-mirroring"
    return code_of(NNUNET_KD, "soften", dataset.number, "3d_fullres", FOLD, *told, choice, *part)


def soft_label_choices(rows: list[Variant]) -> set[bool]:
    """Whether stored soft labels of these rows are mirrored, as their names say; empty where no row reads any."""
    choices = set()
    for row in rows:
        soft = row.settings.get("objectives", {}).get("soft")
        if soft is None and row.method != "soft":
            continue
        found = MIRRORED.search((soft or {}).get("maps") or "")
        if found is None:
            sys.exit(
                f"method {row.method}: name the soft labels (objectives.soft.maps), with _mirrored or _not_mirrored."
            )
        choices.add(found[1] is None)
    return choices


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "train", "keep"])
    parser.add_argument("--data", type=Path, help="prepare: the hippocampus task as the Decathlon has it")
    parser.add_argument("--teacher", type=Path, help="prepare: the folder with the hippocampus teacher and its split")
    parser.add_argument(
        "--acdc", type=Path, help="prepare: the folder with the cardiac data, its plan, split and teacher"
    )
    parser.add_argument("--only", default=",".join(QUEUE), help=f"sweeps, with commas; default: {','.join(QUEUE)}")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--keep", type=Path, help="add every finished training's values, and the teachers', to this folder"
    )
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in QUEUE]:
        parser.error(f"--only: there is no sweep {unknown[0]!r}; there are {', '.join(QUEUE)}")
    if options.what == "prepare" and not (options.data and options.teacher and options.acdc):
        parser.error("prepare needs --data, --teacher and --acdc")
    if options.what == "keep" and options.keep is None:
        parser.error("keep needs --keep")
    try:
        failed = work(names, options)
    except NnunetKdError as error:
        sys.exit(str(error))
    if failed:
        sys.exit("not finished:\n" + "\n".join(failed) + "\nThe same command again tries them once more.")


def work(names: list[str], options: argparse.Namespace) -> list[str]:
    """Do what the command line asks for; returns what failed, in words."""
    if options.what == "prepare":
        use_this_python()
        datasets = {*QUEUE.values()}
        measured = [dataset for dataset in datasets if kept_teacher(dataset, options.keep) is not None]
        prepare(options.data, options.teacher, options.acdc, options.device, measured)
        for dataset in datasets if options.keep is not None else ():
            keep_teacher(dataset, options.keep)
        return []
    prepare_environment(options.jobs)
    failed: list[str] = []
    for name in names:
        if options.what == "keep":
            failed += keep(name, options.keep)
        elif (description := described(name)) is None:
            print(f"{name}: not described yet (proof-{name}.yaml), so not trained", flush=True)
        else:
            failed += train(name, description, options)
    return failed


if __name__ == "__main__":
    main()
