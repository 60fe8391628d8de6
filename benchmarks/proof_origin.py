"""Which code, packages and machine a training of the proof comes from; rows of one table must not mix the first two."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sweep_trainings import begun_trainings

import nnunet_kd
from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE
from nnunet_kd.system.cores import usable_cores
from nnunet_kd.system.files import write_atomically
from nnunet_kd.system.processor import processor_name

HERE = Path(__file__).resolve().parent
ORIGIN = "origin.json"
"""In a sweep's folder: of the trainings that run; in a fold's folder: of that training."""
CODE = ("nnunet_kd", "trainers", "plans")
"""What decides a training's numbers."""
COMPARED = ("code", "workers", "device", "nnunetv2", "torch")
"""What all rows of the proof have in common. The other columns are written down only."""
COLUMNS = (*COMPARED, "commit", "processor", "threads", "numpy", "python")
LOADERS, THREADS = "nnUNet_n_proc_DA", "OMP_NUM_THREADS"


def use_this_python() -> None:
    """This environment's commands before others, with bytecode: without it every process compiles all packages anew."""
    for name in ("PYTHONDONTWRITEBYTECODE", LOADERS):  # nnU-Net's planning refuses 0 loader processes
        os.environ.pop(name, None)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def prepare_environment(jobs: int) -> None:
    """Set what trainings take from the environment; end where the caller's contradicts the protocol.

    No loader processes, so that a seed's batches are always the same. Few processes that write segmentations. No settings from
    elsewhere than the sweeps' files. All threads that a training's share of the cores allows.
    """
    if (loaders := os.environ.get(LOADERS, "0")) != "0":
        sys.exit(f"{LOADERS}={loaders}: the proof's trainings have no loader processes. Unset it.")
    share = str(max(1, usable_cores() // jobs))
    if (threads := os.environ.get(THREADS, share)) != share:
        sys.exit(f"{THREADS}={threads}: {jobs} trainings at once have {share} each on this machine. Unset it.")
    for name in (CONFIG_VARIABLE, SET_VARIABLE):
        if name in os.environ:
            sys.exit(f"{name} is set, but every row of the proof sets all that is its own. Unset it.")
    use_this_python()
    os.environ[LOADERS] = "0"
    os.environ.setdefault("nnUNet_def_n_proc", "2")


def present_origin(jobs: int, device: str) -> dict[str, str]:
    """Of trainings that start now; ends if the code is not that of this clone, or is not committed."""
    installed = Path(nnunet_kd.__file__).resolve()
    if installed.parent != HERE.parent / "nnunet_kd":  # an installation that is not editable has older code
        sys.exit(f"the installed package is {installed}, not that of this clone, whose commit is written down.")
    if changed := git("status", "--porcelain", "--", *CODE):
        sys.exit(f"not committed:\n{changed}\nTrain from a clean clone, so that every run's commit can be recorded.")
    trees = git("rev-parse", *(f"HEAD:{name}" for name in CODE))
    return {
        "code": hashlib.sha256(trees.encode()).hexdigest()[:16],
        "workers": os.environ[LOADERS],
        "device": device_name(device),
        **{name: version(name) for name in ("nnunetv2", "torch")},
        "commit": git("rev-parse", "HEAD"),
        "processor": processor_name(),
        "threads": os.environ.get(THREADS) or str(max(1, usable_cores() // jobs)),
        "numpy": version("numpy"),
        "python": sys.version.split()[0],
    }


def device_name(device: str) -> str:
    """The processor is named apart; a GPU by what CUDA calls it."""
    if device != "cuda":
        return device
    import torch

    return torch.cuda.get_device_name()


def git(*arguments: str) -> str:
    """Output of git, of the repository that this file lies in."""
    return subprocess.run(
        ["git", *arguments], cwd=HERE.parent, check=True, capture_output=True, text=True
    ).stdout.strip()


def check_origin(origin: Mapping[str, str], others: Iterable[tuple[str, Mapping[str, str]]]) -> None:
    """End if one of the others has other code, packages or workers; they come with the place they were read from."""
    for place, other in others:
        if told := unlike(COMPARED, origin, other):
            sys.exit(
                f"{place} has trainings of another origin ({told}). Rows of the proof come from one. Keep them apart."
            )


def unlike(names: Iterable[str], now: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What differs, in words; empty: nothing."""
    different = [name for name in names if there.get(name) != now[name]]
    return "; ".join(f"{name}: {there.get(name)} there, {now[name]} now" for name in different)


def origins_on_disk(sweeps: Iterable[Path]) -> list[tuple[str, dict[str, str]]]:
    """Of sweeps' folders; ends at one with trainings and no origin."""
    found = []
    for folder in sweeps:
        if (folder / ORIGIN).is_file():
            found.append((str(folder), json.loads((folder / ORIGIN).read_text())))
        elif next(folder.glob("*/seed_*"), None) is not None:
            sys.exit(f"{folder} has trainings, and nothing says which code they come from. Move it away.")
    return found


def continue_origins(sweep: Path, origin: Mapping[str, str]) -> None:
    """Trainings that are not finished go on where ``origin`` says; what differs from where they began is written behind it."""
    for folder in begun_trainings(sweep):
        if (before := read_origin(folder)) is None or (folder / "validation" / "summary.json").is_file():
            continue
        told = {name: told_once(before.get(name, ""), value) for name, value in origin.items()}
        if told != before:
            write_origin(folder, told)


def told_once(before: str, now: str) -> str:
    """``now`` behind ``before``, unless it stands there already."""
    return before if now in before.split("; ") else f"{before}; {now}"


def origins_kept(target: Path) -> list[tuple[str, dict[str, str]]]:
    """Of every training in the ``runs.csv`` files below a folder of results."""
    found = []
    for path in sorted(target.glob("proof-*/runs.csv")):
        with path.open(newline="") as file:
            found += [(str(path), {name: row[name] for name in COLUMNS}) for row in csv.DictReader(file)]
    return found


def write_origin(folder: Path, origin: Mapping[str, str]) -> None:
    """Into a sweep's or a fold's folder."""
    write_json(folder / ORIGIN, origin)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1).encode()
    write_atomically(path, lambda file: file.write(text))


def read_origin(folder: Path) -> dict[str, str] | None:
    """What :func:`write_origin` wrote; ``None`` if there is nothing."""
    path = folder / ORIGIN
    return json.loads(path.read_text()) if path.is_file() else None
