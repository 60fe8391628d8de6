"""The demonstration, step by step, through the commands that a user types."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import DataError
from nnunet_kd.models.plans import build_meta_network, parameter_count, read_plans
from nnunet_kd.nnunet.environment import STOCK_TRAINER, channel_names
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.nnunet.scoring import write_summary
from nnunet_kd.system.files import check_output, write_atomically
from nnunet_kd.workflows.demo.commands import run_with_progress, script
from nnunet_kd.workflows.demo.figure import draw
from nnunet_kd.workflows.demo.phantom import write_dataset

CONFIGURATION = "3d_fullres"
EPOCHS = 6
DCD_FROM = 2
"""Epoch from which DCD's weight rises to the end, as the recipes that accompany its paper let it rise late."""
LEARNING_RATE = 0.1
"""Ten times nnU-Net's, which is made for a thousand epochs: a few hundred iterations are to reach the thin structures."""
START_VOXELS = 300_000
"""For the start inside the teacher; a seventh of the default."""
SEED = 1
"""Of the students' first weights. Those of seed 0 learn slowly, and chance then decides so short a training
(docs/explanation-short-trainings.md)."""
PROGRAMS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_predict", "nnunet-kd")
"""Commands that every demonstration runs."""
CONVERTER = "nnUNetv2_convert_MSD_dataset"
MODELS = {"teacher": STOCK_TRAINER, "student": "nnUNetTrainerStudent", "student with DCD": "nnUNetTrainerDCD"}


@dataclass(frozen=True)
class ModelResult:
    """A row of the demonstration's table: parameters, mean Dice per class, seconds per test case."""

    name: str
    parameters: int
    dice: dict[str, float]
    seconds_per_case: float


class Demonstration:
    """Runs the demonstration in a folder of its own.

    Args:
        output: everything is written here; an earlier demonstration's folder is replaced.
        data: a dataset in MSD layout; default the phantom.
        iterations: of each student's training; the wide teacher learns in a sixth of them.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, output: Path, data: Path | None = None, iterations: int = 300, device: str = "cpu") -> None:
        if data is not None and not (data / "dataset.json").is_file():
            raise DataError(f"{data} has no dataset.json, so it is not a dataset in MSD layout (imagesTr, labelsTr).")
        if data is not None and not data.name.startswith("Task"):
            raise DataError(f"nnU-Net's converter needs an MSD folder named TaskXX_Name; {data} is not.")
        self.output = output.absolute()
        self.data = data.absolute() if data is not None else None
        self.iterations = max(EPOCHS, iterations)
        self.device = device
        self.variables = {
            name: str(self.output / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        }
        number = 999 if self.data is None else int(self.data.name.split("_")[0].removeprefix("Task"))
        self.dataset = "Dataset999_Phantom" if data is None else f"Dataset{number:03d}_{data.name.split('_', 1)[1]}"
        self.raw = self.output / "nnUNet_raw" / self.dataset

    def run(self) -> list[ModelResult]:
        """All steps; returns the table's rows.

        Raises:
            DataError: the folder holds other things.
            MissingRequirement: it cannot be written to, or a command is missing.
            RunFailed: a command failed.
        """
        for program in PROGRAMS if self.data is None else (*PROGRAMS, CONVERTER):
            script(program)
        check_output(self.output)
        self._prepare_folder()
        self._get_data()
        self._plan()
        self._train()
        seconds = self._predict()
        return self._evaluate(seconds)

    def _prepare_folder(self) -> None:
        mark = self.output / ".nnunet-kd-demo"
        if self.output.exists() and any(self.output.iterdir()) and not mark.exists():
            raise DataError(f"{self.output} is not empty and not an earlier demonstration's; give another --output.")
        shutil.rmtree(self.output, ignore_errors=True)
        for folder in (*self.variables.values(), str(self.output / "logs")):
            Path(folder).mkdir(parents=True, exist_ok=True)
        mark.touch()

    def _get_data(self) -> None:
        if self.data is None:
            write_dataset(self.raw, training=24, test=4)
            return
        self._command("convert", CONVERTER, "-i", str(self.data), "-np", "2")
        # MSD's own test cases have no labels: a tenth of the labelled ones are held out instead
        shutil.rmtree(self.raw / "imagesTs", ignore_errors=True)
        for folder in ("imagesTs", "labelsTs"):
            (self.raw / folder).mkdir(exist_ok=True)
        labels = sorted((self.raw / "labelsTr").iterdir())
        for label in labels[:: max(2, len(labels) // 20)][:20]:
            case = label.name.split(".")[0]
            for image in (self.raw / "imagesTr").glob(f"{case}_????.*"):
                image.rename(self.raw / "imagesTs" / image.name)
            label.rename(self.raw / "labelsTs" / label.name)
        description = self._description()
        description["numTraining"] = len(list((self.raw / "labelsTr").iterdir()))
        write_atomically(self.raw / "dataset.json", lambda file: file.write(json.dumps(description).encode()))

    def _plan(self) -> None:
        number = self.dataset[7:10]
        self._command(
            "plan and preprocess", "nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-np", "2", "-npfp", "2",
            "--verify_dataset_integrity",
        )  # fmt: skip
        folder = self.output / "nnUNet_preprocessed" / self.dataset
        plans = read_plans(folder / "nnUNetPlans.json")
        configuration = plans["configurations"][CONFIGURATION]
        configuration["batch_size"] = 2  # nnU-Net plans for a GPU
        write_atomically(folder / "nnUNetPlans.json", lambda file: file.write(json.dumps(plans).encode()))
        cases = sorted(path.name.split(".")[0] for path in (folder / "gt_segmentations").iterdir())
        split = [{"train": cases[2:], "val": cases[:2]}]
        write_atomically(folder / SPLITS_FILE, lambda file: file.write(json.dumps(split).encode()))

    def _train(self) -> None:
        per_epoch = self.iterations // EPOCHS
        schedule = [f"epochs={EPOCHS}", f"iterations_per_epoch={per_epoch}", "validation_iterations=2", f"seed={SEED}"]
        schedule.append(f"learning_rate={LEARNING_RATE}")
        assignments = [argument for setting in schedule for argument in ("--set", setting)]
        common = (self.dataset, CONFIGURATION, "0", "-device", self.device)
        training = {"steps": EPOCHS, "is_step": lambda line: "Epoch time" in line}
        self._command(
            "train the teacher (stock nnU-Net)", sys.executable, "-m", "nnunet_kd.workflows.demo.stock_teacher", self.dataset,
            "--epochs", str(EPOCHS), "--iterations", str(max(1, per_epoch // 6)),
            "--learning-rate", str(LEARNING_RATE), "--device", self.device, **training,
        )  # fmt: skip
        ramp = f"objectives.dcd.schedule={{kind: cosine, start: {DCD_FROM}, length: {EPOCHS - DCD_FROM}}}"
        with_dcd = ("--set", ramp, "--set", f"inheritance.voxels={START_VOXELS}")
        for name, method, own in (("student", "student", ()), ("student with DCD", "dcd", with_dcd)):
            self._command(
                f"train the {name}", "nnunet-kd", "train", *common, "-m", method, *assignments, *own, **training
            )

    def _predict(self) -> dict[str, float]:
        seconds = {}
        for name, trainer in MODELS.items():
            lines = self._command(
                f"predict with the {name} (stock nnU-Net)", "nnUNetv2_predict", "-i", str(self.raw / "imagesTs"),
                "-o", str(self._predictions(name)), "-d", self.dataset, "-c", CONFIGURATION, "-f", "0", "-tr", trainer,
                "-device", self.device, "-npp", "1", "-nps", "1",
                steps=self._test_count(), is_step=lambda line: line.startswith("done with"),
            )  # fmt: skip
            starts = [at for at, line in lines if line.startswith("Predicting ")]
            ends = [at for at, line in lines if line.startswith("sending off")]
            seconds[name] = float(np.median(np.subtract(ends, starts)))
        return seconds

    def _evaluate(self, seconds: dict[str, float]) -> list[ModelResult]:
        labels = {name: value for name, value in self._description()["labels"].items() if value != 0}
        results = []
        for name, trainer in MODELS.items():
            folder = self._predictions(name)
            summary = write_summary(self.raw / "labelsTs", folder, list(labels.values()), 2)
            means = json.loads(summary.read_text(encoding="utf-8"))["mean"]
            model = self.output / "nnUNet_results" / self.dataset / f"{trainer}__nnUNetPlans__{CONFIGURATION}"
            results.append(
                ModelResult(
                    name=name,
                    parameters=_parameters(read_plans(model / "plans.json"), self._description()),
                    dice={label: means[str(value)]["Dice"] for label, value in labels.items()},
                    seconds_per_case=seconds[name],
                )
            )
        images = sorted((self.raw / "imagesTs").glob("*_0000.*"))[:3]
        predictions = {name: self._predictions(name) for name in MODELS}
        draw(images, self.raw / "labelsTs", predictions, labels, self.output / "demo.png")
        return results

    def _predictions(self, model: str) -> Path:
        return self.output / "predictions" / model.replace(" ", "_")

    def _description(self) -> dict[str, Any]:
        return dict(json.loads((self.raw / "dataset.json").read_text(encoding="utf-8")))

    def _test_count(self) -> int:
        return len(list((self.raw / "labelsTs").iterdir()))

    def _command(self, title: str, program: str, *arguments: str, **progress: Any) -> list[tuple[float, str]]:
        log = self.output / "logs" / f"{title.split(' (')[0].replace(' ', '_')}.log"
        variables = {
            **self.variables,
            "nnUNet_n_proc_DA": os.environ.get("nnUNet_n_proc_DA", "1"),
            "nnUNet_def_n_proc": "2",
        }
        return run_with_progress(title, [script(program), *arguments], log, variables, **progress)


def _parameters(plans: dict[str, Any], description: dict[str, Any]) -> int:
    heads = PlansManager(plans).get_label_manager(description).num_segmentation_heads
    return parameter_count(build_meta_network(plans, CONFIGURATION, len(channel_names(description)), heads))
