"""The proof: what a student learns from a teacher in so many minutes, on two datasets (docs/explanation-proof.md).

    python benchmarks/proof.py prepare --data .../Task04_Hippocampus --teacher .../teacher --acdc .../acdc
        Both datasets, preprocessed with their teachers' plans and splits; both teachers and their predictions.
    python benchmarks/proof.py train [--only hippocampus,acdc] [--jobs 2] --keep benchmarks/results
        Every sweep of the queue, in its order. The same command goes on where it stopped. What is finished is kept every ten
        minutes, and what is kept is not trained again, also on another machine.
    python benchmarks/proof.py keep --keep benchmarks/results
        The values of every training that is finished now, while others go on.

``proof.sh`` runs all of it. Needs nnU-Net's three variables. Give ``train`` a clone of its own: the trainings of all tables come
from the same code.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from long_commands import code_of
from proof_datasets import FOLD, QUEUE, Dataset, check_teacher, prepare
from proof_keep import keep, kept_seeds, name_origins, sweep_folder
from proof_origin import (
    HERE,
    check_origin,
    origins_kept,
    origins_on_disk,
    prepare_environment,
    present_origin,
    use_this_python,
    write_origin,
)

from nnunet_kd.errors import NnunetKdError
from nnunet_kd.workflows.sweep.description import SweepDescription, Variant, describe_sweep

NNUNET_KD = Path(sys.executable).with_name("nnunet-kd")
KEEPING = 600.0
"""Seconds between two looks for finished trainings."""
MIRRORED = re.compile(r"_(not_)?mirrored")


def described(name: str) -> SweepDescription | None:
    """A sweep of the queue; ``None`` where it is not written yet."""
    path = HERE / f"proof-{name}.yaml"
    return describe_sweep(path, {}) if path.is_file() else None


def train(name: str, description: SweepDescription, options: argparse.Namespace) -> list[str]:
    """What is missing of one sweep; returns what failed, in words."""
    dataset = QUEUE[name]
    check_teacher(dataset)
    origin = present_origin(options.jobs, options.device)
    kept = origins_kept(options.keep) if options.keep is not None else []
    check_origin(origin, [*origins_on_disk(map(sweep_folder, QUEUE)), *kept])
    name_origins(name)
    write_origin(sweep_folder(name), origin)
    failed = []

    def look() -> list[str]:
        if present_origin(options.jobs, options.device)["code"] != origin["code"]:
            sys.exit("the code has changed while it trained. Train from a clone that nobody edits.")
        problems = keep(name, options.keep) if options.keep is not None else []
        for problem in problems:
            print(f"not kept: {problem}", file=sys.stderr, flush=True)
        return problems

    for rows, seeds in missing(description, kept_seeds(name, options.keep)):
        for mirroring in sorted(soft_label_choices([description.rows()[row] for row in rows])):
            if soften(dataset, mirroring, options.device):
                return [f"{name}: soft labels"]
        command = (NNUNET_KD, "sweep", HERE / f"proof-{name}.yaml", "-t", dataset.teacher, "-device", options.device)
        told = ("--methods", ",".join(rows), "--seeds", ",".join(map(str, seeds)))
        jobs = ("--jobs", str(options.jobs)) if options.jobs > 1 else ()
        if code_of(*command, *told, *jobs, every=KEEPING, meanwhile=look):
            failed.append(f"{name}: {', '.join(rows)}")
    return failed + look()


def missing(description: SweepDescription, kept: Mapping[str, set[int]]) -> list[tuple[list[str], list[int]]]:
    """Rows beside each other that lack the same seeds, with these, in the sweep's order."""
    lacking = {
        row: tuple(seed for seed in description.seeds if seed not in kept.get(row, ())) for row in description.rows()
    }
    grouped = groupby((row for row in lacking if lacking[row]), key=lacking.__getitem__)
    return [(list(rows), list(seeds)) for seeds, rows in grouped]


def soften(dataset: Dataset, mirroring: bool, device: str) -> int:
    """Soft labels of the fold's own teacher; those that are there stay. Returns the exit code."""
    told = ("-p", dataset.plans, "-t", dataset.teacher, "-device", device)
    choice = () if mirroring else ("--no-mirroring",)
    return code_of(NNUNET_KD, "soften", dataset.number, "3d_fullres", FOLD, *told, *choice)


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
    parser.add_argument("--keep", type=Path, help="add every finished training's values to this folder")
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
        prepare(options.data, options.teacher, options.acdc, options.device)
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
