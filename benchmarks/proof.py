"""The proof: what a student learns from a teacher in so many minutes, on two datasets (docs/explanation-proof.md).

    python benchmarks/proof.py prepare --data .../Task04_Hippocampus --teacher .../teacher --acdc .../acdc
        Both datasets, preprocessed with their teachers' plans and splits; both teachers and their predictions.
    python benchmarks/proof.py train [--only hippocampus,acdc] [--jobs 2] --keep benchmarks/results
        Every sweep of the queue, in its order. The same command goes on where it stopped. What is finished is kept at the end.
    python benchmarks/proof.py keep --keep benchmarks/results
        The values of every training that is finished now, while others go on.

Needs nnU-Net's three variables. Give ``train`` a clone of its own: trainings of one sweep must come from one commit.
``--descriptions`` names the folder with the sweeps' files (default: this one). So a row whose choice is made later is added
without another commit of the code.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hippocampus
import yaml
from hippocampus import SOFTWARE, add_rows, code_of, run

import nnunet_kd
from nnunet_kd.evaluation.folders import evaluate_folder
from nnunet_kd.evaluation.kept import read_kept, write_kept
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.cores import usable_cores
from nnunet_kd.system.files import sha256, write_atomically
from nnunet_kd.system.processor import processor_name
from nnunet_kd.workflows.comparison import CASES_BY_SEED
from nnunet_kd.workflows.sweep.record import epoch_seconds, read_record

HERE = Path(__file__).resolve().parent
FOLD = "0"
ORIGIN = "origin.json"
"""In a sweep's folder: the commit that its trainings come from, and on what they run."""
CODE = ("nnunet_kd", "plans", "pyproject.toml", "constraints.txt")
"""What a training depends on."""
INTERRUPTED = 130
NNUNET_KD = Path(sys.executable).with_name("nnunet-kd")


@dataclass(frozen=True)
class Dataset:
    """One of the two datasets.

    Attributes:
        name: nnU-Net's.
        plans: the teacher's plan.
        nsd_tolerance: mm, fixed beforehand.
    """

    name: str
    plans: str
    nsd_tolerance: float

    @property
    def teacher(self) -> Path:
        """The teacher's model folder."""
        model = f"nnUNetTrainer_20epochs__{self.plans}__3d_fullres"
        return Path(os.environ["nnUNet_results"], self.name, model)

    @property
    def number(self) -> str:
        """As nnU-Net's commands take it."""
        return str(int(self.name[len("Dataset") :].split("_")[0]))


HIPPOCAMPUS = Dataset(hippocampus.DATASET, "nnUNetPlans", 1.0)
ACDC = Dataset("Dataset027_ACDC", "nnUNetPlans3mm", 1.5)
QUEUE = {
    "hippocampus": HIPPOCAMPUS,
    "acdc": ACDC,
    "hippocampus-curves": HIPPOCAMPUS,
    "acdc-curves": ACDC,
    "hippocampus-objectives": HIPPOCAMPUS,
    "hippocampus-long": HIPPOCAMPUS,
}
"""Sweeps in the order in which they are trained, so that what does not fit is left out from the bottom."""


def prepare_acdc(source: Path, device: str) -> None:
    """Dataset, plan, split, teacher and its predictions, as the data's README says; what is there already is kept."""
    raw, preprocessed = (Path(os.environ[name], ACDC.name) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    if not (preprocessed / f"{ACDC.plans}_3d_fullres").is_dir():
        if not raw.is_dir():
            shutil.copytree(source / ACDC.name, raw)
        run("nnUNetv2_extract_fingerprint", "-d", ACDC.number)
        spacing = ("-overwrite_target_spacing", "10", "3", "3")
        run("nnUNetv2_plan_experiment", "-d", ACDC.number, *spacing, "-overwrite_plans_name", ACDC.plans)
        for name in (f"{ACDC.plans}.json", "splits_final.json"):
            shutil.copy(source / name, preprocessed)
        run("nnUNetv2_preprocess", "-d", ACDC.number, "-c", "3d_fullres", "-plans_name", ACDC.plans)
    if not ACDC.teacher.is_dir():
        shutil.copytree(source / "teacher" / ACDC.name / ACDC.teacher.name, ACDC.teacher)
    validation = ACDC.teacher / f"fold_{FOLD}" / "validation"
    if all((validation / f"{case}.nii.gz").is_file() for case in validation_cases(ACDC)):
        return
    # not by `nnUNetv2_train --val`: the checkpoint has no optimizer state
    with tempfile.TemporaryDirectory() as images:
        for case in validation_cases(ACDC):
            name = f"{case}_0000.nii.gz"
            Path(images, name).symlink_to((raw / "imagesTr" / name).resolve())
        told = ("-d", ACDC.number, "-c", "3d_fullres", "-p", ACDC.plans, "-tr", ACDC.teacher.name.split("__")[0])
        run("nnUNetv2_predict", "-i", images, "-o", validation, *told, "-f", FOLD, "-device", device)


def validation_cases(dataset: Dataset) -> list[str]:
    """Of the fold."""
    splits = Path(os.environ["nnUNet_preprocessed"], dataset.name, "splits_final.json")
    found: list[str] = json.loads(splits.read_text())[int(FOLD)]["val"]
    return found


def train(name: str, options: argparse.Namespace) -> int:
    """One sweep of the queue; returns its exit code."""
    description, dataset = options.descriptions / f"proof-{name}.yaml", QUEUE[name]
    described = yaml.safe_load(description.read_text())
    if needs_soft_labels(described) and (code := soften(dataset, options.no_mirroring, options.device)):
        return code
    os.environ.setdefault("nnUNet_n_proc_DA", "0")  # batches of a seed are then always the same
    note_origin(sweep_folder(name), options.jobs)
    jobs = ("--jobs", str(options.jobs)) if options.jobs > 1 else ()
    return code_of(NNUNET_KD, "sweep", description, "-t", dataset.teacher, "-device", options.device, *jobs)


def soften(dataset: Dataset, no_mirroring: bool, device: str) -> int:
    """Soft labels of the fold's own teacher; those that are there stay. Returns the exit code."""
    told = ("-p", dataset.plans, "-t", dataset.teacher, "-device", device)
    choice = ("--no-mirroring",) if no_mirroring else ()
    return code_of(NNUNET_KD, "soften", dataset.number, "3d_fullres", FOLD, *told, *choice)


def needs_soft_labels(described: Mapping[str, Any]) -> bool:
    """Whether a row reads stored soft labels."""
    return any(
        "soft" in {variant["method"], *(variant.get("settings") or {}).get("objectives", {})}
        for variant in (described.get("variants") or {}).values()
    )


def sweep_folder(name: str) -> Path:
    """Where a sweep's trainings lie."""
    return Path(os.environ["nnUNet_results"], QUEUE[name].name, "sweeps", f"proof-{name}")


def note_origin(folder: Path, jobs: int) -> None:
    """Write down the commit and the machine; end where the code has changed since, or is not committed."""
    if not Path(nnunet_kd.__file__).is_relative_to(HERE.parent):
        sys.exit(
            f"the installed package is {nnunet_kd.__file__}, not that of this clone, whose commit is written down."
        )
    if changed := git("status", "--porcelain", "--", *CODE):
        sys.exit(f"not committed:\n{changed}\nTrain from a clean clone, so that every run's commit can be recorded.")
    origin = {
        "commit": git("rev-parse", "HEAD"),
        "processor": processor_name(),
        "threads": os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // jobs)),
        "workers": os.environ["nnUNet_n_proc_DA"],
    }
    path = folder / ORIGIN
    if path.is_file() and (before := json.loads(path.read_text())) != origin:
        sys.exit(
            f"{path}: trained with {before}, now {origin}. Rows of one table come from one commit and kind of machine."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(json.dumps(origin, indent=1).encode()))


def git(*arguments: str) -> str:
    """Output of git, of the repository that this file lies in."""
    return subprocess.run(
        ["git", *arguments], cwd=HERE.parent, check=True, capture_output=True, text=True
    ).stdout.strip()


def finished_trainings(name: str) -> Iterator[tuple[str, int, Path]]:
    """Variant, seed and fold's folder of what is trained and validated."""
    for folder in sorted(sweep_folder(name).glob(f"*/seed_*/Dataset*/*__*__*/fold_{FOLD}")):
        record = read_record(folder)
        if record is not None and record.state == "done":
            variant, seed = folder.relative_to(sweep_folder(name)).parts[:2]
            yield variant, int(seed.removeprefix("seed_")), folder


def keep(name: str, target: Path) -> None:
    """Add what is finished and not yet kept to ``target/proof-NAME``, without this machine's paths."""
    place = target / f"proof-{name}"
    kept = place / CASES_BY_SEED
    values = read_kept([kept]) if kept.is_file() else {}
    new = [one for one in finished_trainings(name) if one[1] not in values.get(one[0], {})]
    if not new:
        return
    place.mkdir(parents=True, exist_ok=True)
    dataset, root = QUEUE[name], str(Path(os.environ["nnUNet_results"]))
    origin = json.loads((sweep_folder(name) / ORIGIN).read_text())
    if others := commits_of(target) - {origin["commit"]}:
        sys.exit(
            f"{target} has trainings of the commit {others.pop()}, these are of {origin['commit']}. Keep them apart."
        )
    if "teacher" not in values:
        values["teacher"] = {None: evaluate(dataset, dataset.teacher / f"fold_{FOLD}")}
    runs: list[tuple[str, ...]] = []
    epochs: list[tuple[str, ...]] = []
    for variant, seed, folder in new:
        values.setdefault(variant, {})[seed] = evaluate(dataset, folder)
        record = read_record(folder)
        assert record is not None  # the sweep has written one
        seconds = (f"{record.training_seconds:.0f}", f"{statistics.median(epoch_seconds(folder)):.3g}")
        versions = (record.software[software] for software in SOFTWARE)
        command = shlex.join(record.command).replace(root, "$nnUNet_results")
        checkpoint = folder / FINAL
        runs.append((variant, str(seed), *origin.values(), sha256(checkpoint), *seconds, *versions, command))
        logged = read_checkpoint(checkpoint, in_memory=False)["logging"]
        pairs = zip(logged["train_losses"], logged["mean_fg_dice"], strict=True)
        epochs += (
            (variant, str(seed), str(n), f"{loss:.6f}", f"{dice:.6f}") for n, (loss, dice) in enumerate(pairs, 1)
        )
        print(f"kept: {name}, {variant}, seed {seed}", flush=True)
    measured = ("checkpoint_sha256", "training_seconds", "median_epoch_seconds")
    add_rows(place / "runs.csv", ("variant", "seed", *origin, *measured, *SOFTWARE, "command"), runs)
    add_rows(place / "epochs.csv", ("variant", "seed", "epoch", "training_loss", "pseudo_dice"), epochs)
    write_kept(values, kept)  # last: what is in it is not looked at again


def commits_of(target: Path) -> set[str]:
    """Of all trainings of the proof that are kept there."""
    found: set[str] = set()
    for path in target.glob("proof-*/runs.csv"):
        with path.open(newline="") as file:
            found |= {row["commit"] for row in csv.DictReader(file)}
    return found


def evaluate(dataset: Dataset, fold_folder: Path) -> Evaluation:
    """Of a model's predictions of the fold's validation cases."""
    raw, options = Path(os.environ["nnUNet_raw"], dataset.name), MetricOptions(nsd_tolerance=dataset.nsd_tolerance)
    predictions, cases = fold_folder / "validation", validation_cases(dataset)
    return evaluate_folder(predictions, raw / "labelsTr", raw / "dataset.json", options, cases)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "train", "keep"])
    parser.add_argument("--data", type=Path, help="prepare: the hippocampus task in MSD layout")
    parser.add_argument(
        "--teacher", type=Path, help="prepare: the folder with Dataset004_Hippocampus's teacher and split"
    )
    parser.add_argument(
        "--acdc", type=Path, help="prepare: the folder with Dataset027_ACDC, its plan, split and teacher"
    )
    parser.add_argument("--only", default=",".join(QUEUE), help=f"sweeps, with commas; default: {','.join(QUEUE)}")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--no-mirroring", action="store_true", help="soft labels without mirrored passes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--descriptions", type=Path, default=HERE, help="the folder with proof-*.yaml")
    parser.add_argument("--keep", type=Path, help="add every finished training's values to this folder")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in QUEUE]:
        parser.error(f"--only: there is no sweep {unknown[0]!r}; there are {', '.join(QUEUE)}")
    if options.what == "prepare":
        if not (options.data and options.teacher and options.acdc):
            parser.error("prepare needs --data, --teacher and --acdc")
        hippocampus.prepare(options.data, options.teacher, options.device)
        prepare_acdc(options.acdc, options.device)
        return
    if options.what == "keep" and options.keep is None:
        parser.error("keep needs --keep")
    failed = []
    for name in names:
        if options.what == "train" and (options.descriptions / f"proof-{name}.yaml").is_file():
            code = train(name, options)
            failed += [name] if code else []
        else:
            code = 0
        if options.keep is not None:
            keep(name, options.keep)
        if code == INTERRUPTED:
            sys.exit(code)
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}. The same command again tries them once more.")


if __name__ == "__main__":
    main()
