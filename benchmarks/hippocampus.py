"""Which method is worth using: the runs behind docs/results.md, through ``nnunet-kd sweep`` and ``nnunet-kd compare``.

Commands, each of which goes on where it stopped when it is given again:
    ``python benchmarks/hippocampus.py prepare --data .../Task04_Hippocampus --teacher .../Dataset004_Hippocampus``
        nnU-Net's dataset, preprocessed with the teacher's plan and split, the teacher and its predictions.
        ``--teacher`` is the folder that holds the model folder ``nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres`` and its
        ``splits_final.json``.
    ``python benchmarks/hippocampus.py methods``
        the student without a teacher and with every objective, trained and compared.
    ``python benchmarks/hippocampus.py methods --methods student,dcd,... --seeds 0,12345``
        some of them with more seeds.
    ``python benchmarks/hippocampus.py weights``
        how heavy DCD, CWD, FiGKD and logits should be, on a part of the training cases.
    ``python benchmarks/hippocampus.py ablation``
        the same as ``methods`` for DCD's choices.
    ``python benchmarks/hippocampus.py teacher``
        the teacher of fold 5 (``hippocampus_teacher.py``), for the five below.
    ``python benchmarks/hippocampus.py starts``, ``starts-again``, ``soft``, ``best``, ``balance``
        how students start inside that teacher, learn from its stored soft labels, from these and DCD, and from its logits.
    ``python benchmarks/hippocampus.py inherited``, ``soft-final``
        what was chosen, on fold 0.

Needs nnU-Net's three variables. Tables, report and values per case lie in
``$nnUNet_results/Dataset004_Hippocampus/sweeps/comparison-WHAT``. ``--keep FOLDER`` adds every training's values (by case, its
command and hash, its epochs) to those already in ``FOLDER/SWEEP``, row by row as they finish, so that models and predictions need
not stay on disk. What another machine has trained and kept is not trained again. ``--dry-run`` shows the rows and checks their
settings. ``result_tables.py`` compares what is kept and makes the documentation's tables of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hippocampus_keep import keep_finished, trained_elsewhere
from hippocampus_teacher import provide_teacher
from long_commands import KEEPING, code_of, run

from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.system.files import folder_beside, write_atomically

DATASET = "Dataset004_Hippocampus"
TEACHER = "nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres"
HERE = Path(__file__).resolve().parent
ON_FOLD_5, ON_FOLD_0 = ("starts", "starts-again", "soft", "best", "balance"), ("inherited", "soft-final")
DESCRIPTIONS = {
    "methods": HERE / "hippocampus.yaml",
    "weights": HERE / "hippocampus-weights.yaml",
    "ablation": HERE / "hippocampus-ablation.yaml",
    **{name: HERE / f"hippocampus-{name}.yaml" for name in ON_FOLD_5 + ON_FOLD_0},
}
SOFT_LABELS: dict[str, tuple[tuple[str, ...], ...]] = {
    "soft": (("5", "--mirroring"), ("5", "--no-mirroring")),
    "best": (("5", "--no-mirroring"),),
    "soft-final": (("0", "--no-mirroring"),),
}
"""Fold and choices of every set of soft labels that a sweep reads."""
SEARCH_FOLD = "5"
SEARCH_SHARE = 5
"""Every so manieth training case of fold 0 is a validation case of the search for weights."""


def folder_of(variable: str) -> Path:
    """The dataset's folder below one of nnU-Net's variables."""
    if variable not in os.environ:
        sys.exit(f"{variable} is not set; nnU-Net's three variables are needed.")
    return Path(os.environ[variable]) / DATASET


def prepare(data: Path, teacher: Path, device: str, predict: bool = True) -> None:
    """Dataset, plan, split, teacher and, if need be, its predictions; what is there already is kept."""
    preprocessed, results = folder_of("nnUNet_preprocessed"), folder_of("nnUNet_results")
    if not is_preprocessed(preprocessed / "nnUNetPlans_3d_fullres", folder_of("nnUNet_raw")):
        convert(data)
        run("nnUNetv2_extract_fingerprint", "-d", "4")
        run("nnUNetv2_plan_experiment", "-d", "4")
        shutil.copy(
            teacher / TEACHER / "plans.json", preprocessed / "nnUNetPlans.json"
        )  # batch 2, as the teacher was trained
        shutil.copy(teacher / "splits_final.json", preprocessed)
        run("nnUNetv2_preprocess", "-d", "4", "-c", "3d_fullres")
    if not (results / TEACHER).is_dir():
        copy_folder(teacher / TEACHER, results / TEACHER)
    validation = json.loads((preprocessed / "splits_final.json").read_text())[0]["val"]
    predicted = results / TEACHER / "fold_0" / "validation"
    if predict and not all(
        (predicted / f"{case}.nii.gz").is_file() for case in validation
    ):  # for the table's first row
        run("nnUNetv2_train", "4", "3d_fullres", "0", "-tr", TEACHER.split("__")[0], "--val", "-device", device)
    add_search_fold(preprocessed / "splits_final.json")


def convert(data: Path) -> None:
    """The dataset as nnU-Net has it; what a kill left half written goes.

    nnU-Net refuses a number that any of its folders has, that of an installed student for example.
    """
    raw = folder_of("nnUNet_raw")
    if (raw / "dataset.json").is_file():  # written last
        return
    shutil.rmtree(raw, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory() as empty,
        variables_set_to({"nnUNet_preprocessed": empty, "nnUNet_results": empty}),
    ):
        run("nnUNetv2_convert_MSD_dataset", "-i", data)


def copy_folder(source: Path, target: Path) -> None:
    """The whole folder or nothing: an interrupted copy lies under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(target) as temporary:
        shutil.copytree(source, temporary / "copy")
        (temporary / "copy").rename(target)


def is_preprocessed(folder: Path, raw: Path) -> bool:
    """Whether nnU-Net's preprocessing has come to its end: it writes a case's properties last."""
    return len(list(folder.glob("*.pkl"))) == len(list((raw / "labelsTr").glob("*"))) > 0


def add_search_fold(path: Path) -> None:
    """Fold 5: a part of fold 0's training cases is what the search for weights is validated on."""
    splits = json.loads(path.read_text())
    cases = sorted(splits[0]["train"])
    validated = cases[::SEARCH_SHARE]
    search = {"train": [case for case in cases if case not in validated], "val": validated}
    if search not in splits:
        content = json.dumps([*splits, search], indent=4).encode()
        write_atomically(path, lambda file: file.write(content))


def train_and_compare(what: str, options: argparse.Namespace) -> None:
    """Train what is missing of a sweep, row by row, then compare what is finished."""
    description = DESCRIPTIONS[what]
    results = folder_of("nnUNet_results")
    described = yaml.safe_load(description.read_text())
    every = [*described.get("methods", []), *described.get("variants", {})]
    teacher = ("-t", results / TEACHER)
    sweep = results / "sweeps" / described.get("name", description.stem)
    told = options.seeds.split(",") if options.seeds else described.get("seeds", [0])
    elsewhere = trained_elsewhere(sweep, options.keep, [int(seed) for seed in told])
    variants = options.methods.split(",") if options.methods else [name for name in every if name not in elsewhere]
    if not variants:
        print(f"every row is kept in {options.keep / sweep.name}; name with --methods what is to be trained again")
        return
    command: tuple[Any, ...] = ("nnunet-kd", "sweep", description, *teacher, "-device", options.device)
    command += ("--seeds", options.seeds) if options.seeds else ()
    if options.dry_run:
        run(*command, "--methods", ",".join(variants), "--dry-run")
        return
    for choices in SOFT_LABELS.get(what, ()):
        run("nnunet-kd", "soften", "4", "3d_fullres", *choices, *teacher, "-device", options.device)
    label = f"{what}-seeds" if options.seeds else what
    output, fold = sweep.with_name(f"comparison-{label}"), str(described.get("folds", [0])[0])

    def look() -> None:
        if options.keep is not None:
            keep_finished(sweep, options.keep, DATASET, fold)

    if options.jobs > 1:  # every row at once; those that fail are tried again below
        jobs = ("--methods", ",".join(variants), "--jobs", str(options.jobs))
        code_of(*command, *jobs, every=KEEPING, meanwhile=look)
    failed = []
    for variant in variants:
        failed += [variant] if code_of(*command, "--methods", variant) else []  # the other rows do not need it
        look()
    compared = [name for name in variants if name not in failed]
    if len(compared) > 1:
        focus = ("--focus", "dcd") if "dcd" in compared else ()  # whose best and worst cases the report shows
        # where the student was trained elsewhere, only what is kept can be compared with it
        reference = "student" if "student" in compared else compared[0]
        told = ("--variants", ",".join(compared), "--reference", reference, *focus, "--fold", fold)
        run("nnunet-kd", "compare", "--sweep", sweep, *told, "-o", output)
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}. The same command again tries them once more.")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "teacher", *DESCRIPTIONS])
    parser.add_argument("--data", type=Path, help="prepare: the task in MSD layout")
    parser.add_argument("--teacher", type=Path, help="prepare: the folder with the teacher's model folder and split")
    parser.add_argument("--methods", help="only these of the description, such as student,dcd")
    parser.add_argument("--seeds", help="such as 0,12345; default: the description's")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="show the rows; train nothing")
    parser.add_argument("--keep", type=Path, help="add every training's values, or the teacher, to this folder")
    options = parser.parse_args()
    if options.what == "teacher":
        provide_teacher(folder_of("nnUNet_results") / TEACHER, SEARCH_FOLD, options.device, options.keep)
    elif options.what != "prepare":
        train_and_compare(options.what, options)
    elif options.data and options.teacher:
        prepare(options.data, options.teacher, options.device)
    else:
        parser.error("prepare needs --data and --teacher")


if __name__ == "__main__":
    main()
