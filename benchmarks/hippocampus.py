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
        the teacher of fold 5, trained as the one of fold 0 was (5000 iterations), for the three below.
    ``python benchmarks/hippocampus.py starts``, ``soft``, ``balance``
        how students start inside that teacher, learn from its stored soft labels, and from its logits.
    ``python benchmarks/hippocampus.py inherited``, ``soft-final``
        what was chosen, on fold 0.

Needs nnU-Net's three variables. Tables, report and values per case lie in
``$nnUNet_results/Dataset004_Hippocampus/sweeps/comparison-WHAT``. ``--keep FOLDER`` adds every training's values (by case, its
command and hash, its epochs) to those already in ``FOLDER/SWEEP``, row by row as they finish, so that models and predictions need
not stay on disk; ``--dry-run`` shows the rows and checks their settings;
``result_tables.py`` compares what is kept and makes the documentation's tables of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from long_commands import code_of, run

from nnunet_kd.evaluation.kept import read_kept, write_kept
from nnunet_kd.models.checkpoint import CLIPPED, ENTRY, mean_share, read_checkpoint
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.files import folder_beside, sha256, write_atomically, write_csv
from nnunet_kd.workflows.comparison import CASES_BY_SEED
from nnunet_kd.workflows.sweep.finished import find_finished
from nnunet_kd.workflows.sweep.record import epoch_seconds, read_record

DATASET = "Dataset004_Hippocampus"
TEACHER = "nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres"
HERE = Path(__file__).resolve().parent
DESCRIPTIONS = {
    "methods": HERE / "hippocampus.yaml",
    "weights": HERE / "hippocampus-weights.yaml",
    "ablation": HERE / "hippocampus-ablation.yaml",
    **{name: HERE / f"hippocampus-{name}.yaml" for name in ("starts", "soft", "balance", "inherited", "soft-final")},
}
SOFT_LABELS: dict[str, tuple[tuple[str, ...], ...]] = {
    "soft": (("5",), ("5", "--no-mirroring")),
    "soft-final": (("0",),),
}
"""Fold and choices of every set of soft labels that a sweep reads."""
SEARCH_FOLD = "5"
SEARCH_SHARE = 5
"""Every so manieth training case of fold 0 is a validation case of the search for weights."""

SOFTWARE = ("nnunetv2", "torch")
"""Whose versions are kept with every training."""


def folder_of(variable: str) -> Path:
    """The dataset's folder below one of nnU-Net's variables."""
    if variable not in os.environ:
        sys.exit(f"{variable} is not set; nnU-Net's three variables are needed.")
    return Path(os.environ[variable]) / DATASET


def prepare(data: Path, teacher: Path, device: str) -> None:
    """Dataset, plan, split, teacher and its predictions; what is there already is kept."""
    preprocessed, results = folder_of("nnUNet_preprocessed"), folder_of("nnUNet_results")
    if not is_preprocessed(preprocessed / "nnUNetPlans_3d_fullres", folder_of("nnUNet_raw")):
        run("nnUNetv2_convert_MSD_dataset", "-i", data)
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
    if not all((predicted / f"{case}.nii.gz").is_file() for case in validation):  # for the table's first row
        run("nnUNetv2_train", "4", "3d_fullres", "0", "-tr", TEACHER.split("__")[0], "--val", "-device", device)
    add_search_fold(preprocessed / "splits_final.json")


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


def train_teacher(device: str) -> None:
    """Fold 5's, as fold 0's was trained; one that is begun is continued."""
    finished = folder_of("nnUNet_results") / TEACHER / f"fold_{SEARCH_FOLD}" / "validation" / "summary.json"
    if not finished.is_file():
        trainer = TEACHER.split("__")[0]
        run("nnUNetv2_train", "4", "3d_fullres", SEARCH_FOLD, "-tr", trainer, "-device", device, "--c")


def train_and_compare(what: str, options: argparse.Namespace) -> None:
    """Train what is missing of a sweep, row by row, then compare what is finished."""
    description = DESCRIPTIONS[what]
    results = folder_of("nnUNet_results")
    described = yaml.safe_load(description.read_text())
    every = [*described.get("methods", []), *described.get("variants", {})]
    variants = options.methods.split(",") if options.methods else every
    teacher = ("-t", results / TEACHER)
    sweep = results / "sweeps" / described.get("name", description.stem)
    command: tuple[Any, ...] = ("nnunet-kd", "sweep", description, *teacher, "-device", options.device)
    command += ("--seeds", options.seeds) if options.seeds else ()
    if options.dry_run:
        run(*command, "--methods", ",".join(variants), "--dry-run")
        return
    for choices in SOFT_LABELS.get(what, ()):
        run("nnunet-kd", "soften", "4", "3d_fullres", *choices, *teacher, "-device", options.device)
    label = f"{what}-seeds" if options.seeds else what
    output, fold = sweep.with_name(f"comparison-{label}"), str(described.get("folds", [0])[0])
    # where the student was trained elsewhere, only what is kept can be compared with it
    reference = "student" if "student" in variants else variants[0]

    def compare(chosen: Sequence[str], folder: Path) -> None:
        focus = ("--focus", "dcd") if "dcd" in chosen else ()  # whose best and worst cases the report shows
        told = ("--variants", ",".join(chosen), "--reference", reference, *focus, "--fold", fold)
        run("nnunet-kd", "compare", "--sweep", sweep, *told, "-o", folder)
        if options.keep is not None:
            keep(sweep, folder / CASES_BY_SEED, options.keep / sweep.name, fold, chosen)

    if options.jobs > 1:  # every row at once; those that fail are tried again below
        code_of(*command, "--methods", ",".join(variants), "--jobs", str(options.jobs))
    run(*command, "--methods", reference)
    trained = [reference]
    for variant in (name for name in variants if name != reference):
        if code_of(*command, "--methods", variant):
            continue  # the other rows do not need it
        trained.append(variant)
        if options.keep is not None:  # a comparison needs two
            compare((reference, variant), output.with_name(f"{output.name}-rows") / variant)
    compare([name for name in variants if name in trained], output)
    if options.keep is not None:  # what `compare` measures on files that are not kept, such as calibration
        shutil.copy(output / "tables.md", options.keep / sweep.name / "tables.md")
    if failed := [name for name in variants if name not in trained]:
        sys.exit(f"not finished: {', '.join(failed)}. The same command again tries them once more.")


def keep(sweep: Path, cases: Path, target: Path, fold: str, variants: Sequence[str]) -> None:
    """Add finished trainings to what is kept with the code, without this machine's paths; in place of what was kept of them."""
    target.mkdir(parents=True, exist_ok=True)
    kept = target / CASES_BY_SEED
    values = read_kept([kept]) if kept.is_file() else {}
    for method, by_seed in read_kept([cases]).items():
        values[method] = values.get(method, {}) | by_seed
    write_kept(values, kept)
    root = str(folder_of("nnUNet_results").parent)
    runs: list[tuple[str, ...]] = []
    epochs: list[tuple[str, ...]] = []
    clipped: list[tuple[str, ...]] = []
    for (variant, seed, _), folder in find_finished(sweep, fold, variants).fold_folders.items():
        record = read_record(folder)
        assert record is not None  # what is finished has one
        command = shlex.join(record.command).replace(root, "$nnUNet_results")
        seconds = (f"{record.training_seconds:.0f}", f"{statistics.median(epoch_seconds(folder)):.3g}")
        versions = (record.software[name] for name in SOFTWARE)
        checkpoint = folder / FINAL
        runs.append((variant, str(seed), sha256(checkpoint), *seconds, *versions, command))
        content = read_checkpoint(checkpoint, in_memory=False)
        logged = content["logging"]
        if shares := content.get(ENTRY, {}).get(CLIPPED):
            clipped.append((variant, str(seed), f"{mean_share(shares):.4f}"))
        pairs = zip(logged["train_losses"], logged["mean_fg_dice"], strict=True)
        epochs += (
            (variant, str(seed), str(n), f"{loss:.6f}", f"{dice:.6f}") for n, (loss, dice) in enumerate(pairs, 1)
        )
    columns = ("variant", "seed", "checkpoint_sha256", "training_seconds", "median_epoch_seconds", *SOFTWARE, "command")
    add_rows(target / "runs.csv", columns, runs)
    add_rows(target / "clipped.csv", ("variant", "seed", "share_of_steps"), clipped)
    add_rows(target / "epochs.csv", ("variant", "seed", "epoch", "training_loss", "pseudo_dice"), epochs)


def add_rows(path: Path, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Add rows to a CSV file whose first two columns are variant and seed; rows of the same variant and seed are replaced."""
    new = {row[:2] for row in rows}
    before: list[tuple[str, ...]] = []
    if path.is_file():
        with path.open(newline="") as file:
            header, *before = (tuple(row) for row in csv.reader(file))
        if header != tuple(columns):
            sys.exit(f"{path} has other columns than are written now: {', '.join(header)}.")
    write_csv(path, columns, [*(row for row in before if row[:2] not in new), *rows])


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
    parser.add_argument("--keep", type=Path, help="add every training's values to this folder")
    options = parser.parse_args()
    if options.what == "teacher":
        train_teacher(options.device)
    elif options.what != "prepare":
        train_and_compare(options.what, options)
    elif options.data and options.teacher:
        prepare(options.data, options.teacher, options.device)
    else:
        parser.error("prepare needs --data and --teacher")


if __name__ == "__main__":
    main()
