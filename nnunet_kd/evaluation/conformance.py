"""Stock nnU-Net and nnunet-kd-runtime on the same images: what differs, and what each costs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from packaging.requirements import Requirement

from nnunet_kd.errors import ModelError
from nnunet_kd.evaluation.page import write_page
from nnunet_kd.evaluation.tables import Table
from nnunet_kd.export.onnx_export import OnnxOptions, export_onnx
from nnunet_kd.inference.cases import InputCase, check_headers, check_previous_stage, find_cases
from nnunet_kd.inference.record import ModelOrigin, PredictionRecord
from nnunet_kd.models.folder import ModelFolder
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import check_output, write_atomically, write_csv
from nnunet_kd.system.requirements import require
from nnunet_kd.volumes.reading import check_file, dataset_reader, read_segmentation

LEAST_AGREEMENT = 0.9999
"""Share of voxels that must be equal in every case."""
_RUN = "import runpy, sys; sys.path.pop(0); runpy.run_path(sys.argv[1], run_name='__main__')"
"""Runs a file without its folder, or the current one, on the path: modules there have names of the standard library's."""
STOCK, RUNTIME = "nnunetv2", "nnunet-kd-runtime"


@dataclass(frozen=True)
class CaseResult:
    """One case by both programs.

    Attributes:
        name: the case.
        voxels: of the image.
        differing: that have different labels.
        dice: between the two segmentations, the mean over labels that one of them has.
        stock_seconds, runtime_seconds: reading to writing, the model loaded before.
    """

    name: str
    voxels: int
    differing: int
    dice: float
    stock_seconds: float
    runtime_seconds: float

    @property
    def agreement(self) -> float:
        """Share of equal voxels."""
        return 1 - self.differing / self.voxels


@dataclass(frozen=True)
class Conformance:
    """All cases and what the programs take.

    Attributes:
        cases: in the images' order.
        peak_bytes: largest memory of each program's process; ``None`` where the system does not say.
        installed_bytes: of each program's distribution with all it requires, in this environment.
        threads: of both.
        backend: of the runtime.
    """

    cases: tuple[CaseResult, ...]
    peak_bytes: dict[str, int | None]
    installed_bytes: dict[str, int]
    threads: int
    backend: str

    @property
    def least_agreement(self) -> float:
        """The worst case's share of equal voxels."""
        return min(case.agreement for case in self.cases)

    def table(self) -> Table:
        """A row a case, then a row of what each program takes."""
        rows = [
            (
                case.name,
                f"{case.voxels}",
                f"{case.differing}",
                f"{100 * case.agreement:.4f}",
                f"{case.dice:.5f}",
                f"{case.stock_seconds:.2f}",
                f"{case.runtime_seconds:.2f}",
            )
            for case in self.cases
        ]
        header = ("case", "voxels", "differing", "equal (%)", "Dice", "nnU-Net (s)", "runtime (s)")
        return Table("Conformance", header, tuple(rows), self._note())

    def _note(self) -> str:
        identical = sum(case.differing == 0 for case in self.cases)
        stock, runtime = (
            np.median([getattr(case, f"{side}_seconds") for case in self.cases]) for side in ("stock", "runtime")
        )
        memory = ", ".join(f"{_megabytes(size)} {name}" for name, size in self.peak_bytes.items())
        installed = ", ".join(f"{_megabytes(size)} {name}" for name, size in self.installed_bytes.items())
        return (
            f"{identical} of {counted(len(self.cases), 'case')} identical; at least {100 * self.least_agreement:.4f}% "
            f"of voxels are "
            f"equal in every case. Median seconds a case, {counted(self.threads, 'thread')}: {stock:.2f} {STOCK}, "
            f"{runtime:.2f} {RUNTIME} "
            f"with {self.backend}. Peak memory: {memory}. Installed with all requirements: {installed}. Dice is between the two "
            f"programs' segmentations."
        )


@dataclass(frozen=True)
class ConformanceRequest:
    """What to compare.

    Attributes:
        images: folder, as nnU-Net takes it.
        output: folder for the export, both programs' segmentations, tables and page.
        threads: of both programs.
        backend: of the runtime.
        mirroring: of both.
        previous_stage: folder with the first stage's segmentations, for a cascade.
        overwrite: replace what another model's comparison left in the output folder.
    """

    images: Path
    output: Path
    threads: int = 1
    backend: str = "onnxruntime"
    mirroring: bool = True
    previous_stage: Path | None = None
    overwrite: bool = False


def conform(model: ModelFolder, given: ConformanceRequest) -> Conformance:
    """Export the model, predict with both programs, compare, and write ``conformance.csv``, ``.md`` and ``.html``.

    Raises:
        ModelError: the model cannot be exported, or a program failed; its last line is the reason.
        DataError: no images, or images that do not fit, or the output folder holds another model's results.
        MissingRequirement: the runtime is not installed, or the output folder cannot be written to.
    """
    require("nnunet_kd_runtime")
    check_output(given.output)
    cases = find_cases([given.images], given.output / "stock", model.dataset_json())
    record, origin = PredictionRecord(given.output), ModelOrigin.of(model.source or model.folder, model)
    if not given.overwrite:
        record.refuse_others(cases, origin, model.plans())
    previous = PlansManager(model.plans()).get_configuration(model.configuration()).previous_stage_name
    check_previous_stage(previous, cases, given.previous_stage, model.dataset_json())
    reader = dataset_reader(model.dataset_json(), model.plans())
    channels = channel_names(model.dataset_json())
    for case in cases:
        check_headers(case, channels, reader)
        for path in case.images:
            check_file(path, reader)
    given.output.mkdir(parents=True, exist_ok=True)
    onnx = given.output / "student.onnx"
    export_onnx(model, onnx, OnnxOptions(overwrite=True))
    for case in cases:  # before there is any, so that a run that was stopped can be repeated; none from before is kept
        record.add(case.name, origin)
    checkpoint = {"model": str(model.folder), "folds": list(model.folds), "checkpoint": model.checkpoint}
    stock = _measured("stock", checkpoint, cases, given)
    runtime = _measured("runtime", {"model": str(onnx), "backend": given.backend}, cases, given)
    results = []
    for number, case in enumerate(cases):
        first, second = (
            read_segmentation(given.output / side / case.output.name, reader)[0].astype(np.int64)
            for side in ("stock", "runtime")
        )
        results.append(
            CaseResult(
                case.name,
                first.size,
                int(np.sum(first != second)),
                mean_dice(first, second),
                stock["seconds"][number],
                runtime["seconds"][number],
            )
        )
    found = Conformance(
        tuple(results),
        {STOCK: stock["peak_bytes"], RUNTIME: runtime["peak_bytes"]},
        {name: installed_bytes(name) for name in (STOCK, RUNTIME)},
        given.threads,
        given.backend,
    )
    _write(found, given.output)
    return found


def mean_dice(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Mean over the labels, background aside, that at least one has; 1 if none has any."""
    labels = [label for label in np.union1d(np.unique(first), np.unique(second)) if label != 0]
    scores = [
        2 * np.sum((first == label) & (second == label)) / (np.sum(first == label) + np.sum(second == label))
        for label in labels
    ]
    return float(np.mean(scores)) if scores else 1.0


def installed_bytes(distribution: str) -> int:
    """Bytes of a distribution's files and of everything it requires without extras, as installed here."""
    todo, seen, total = [distribution], set(), 0
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system or Python
        for file in found.files or ():
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
        for text in found.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return total


def _measured(
    predictor: str, model: dict[str, Any], cases: Sequence[InputCase], given: ConformanceRequest
) -> dict[str, Any]:
    output = given.output / predictor
    output.mkdir(exist_ok=True)
    for case in cases:
        (output / case.output.name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="nnunet_kd_conform_") as temporary:
        description, result = Path(temporary) / "given.json", Path(temporary) / "result.json"
        description.write_text(
            json.dumps(
                {
                    **model,
                    "predictor": predictor,
                    "cases": [{"name": case.name, "images": [str(path) for path in case.images]} for case in cases],
                    "output": str(output),
                    "threads": given.threads,
                    "mirroring": given.mirroring,
                    "previous_stage": str(given.previous_stage) if given.previous_stage else None,
                    "result": str(result),
                }
            ),
            encoding="utf-8",
        )
        program = Path(__file__).with_name("measured_prediction.py")
        command = [sys.executable, "-c", _RUN, str(program), str(description)]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode != 0 or not result.is_file():
            lines = finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"]
            raise ModelError(
                f"{'nnU-Net' if predictor == 'stock' else RUNTIME} could not predict these images: {lines[-1]}"
            )
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return measured


def _write(found: Conformance, folder: Path) -> None:
    table = found.table()
    write_csv(folder / "conformance.csv", table.header, table.rows)
    markdown = table.markdown()
    write_atomically(folder / "conformance.md", lambda file: file.write(markdown.encode()))
    write_page(
        "conformance.html.j2",
        {"table": table, "least": LEAST_AGREEMENT, "found": found},
        folder / "conformance.html",
    )


def _megabytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1e6:.0f} MB"
