"""What a distillation adds to nnU-Net's checkpoint, and how it comes back.

``network_weights`` and ``optimizer_state`` stay exactly what stock nnU-Net writes for the student, so that stock nnU-Net can
predict with, continue from and export every checkpoint. What objectives learned, their optimizer state, the settings and
the loss history live in one extra entry of plain dictionaries and tensors, :data:`ENTRY`.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import math
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from nnunet_kd.errors import CheckpointError
from nnunet_kd.nnunet.checkpoints import BEST, EPOCH, FINAL, LATEST, OPTIMIZER
from nnunet_kd.system.files import write_atomically

ENTRY = "nnunet_kd"
CLIPPED = "clipped_steps"
"""In :data:`ENTRY`: per epoch, the share of steps whose gradient was clipped."""
TRAINING = "training"
"""In :data:`ENTRY`: the name of the training, see :mod:`nnunet_kd.training.begun`."""
PREVIOUS = "checkpoint_previous.pth"
CONTINUED_FROM = (FINAL, LATEST, BEST, PREVIOUS)


def mean_share(shares: Sequence[float]) -> float:
    """Of the entry :data:`CLIPPED`, over the epochs of which it is known; NaN: of none."""
    known = [share for share in shares if not math.isnan(share)]
    return sum(known) / len(known) if known else float("nan")


def _numpy_data() -> list[Any]:
    """What NumPy numbers and arrays in a pickle ask for, by today's names and by those of NumPy 1: data, no code."""
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    rebuilt = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}
    named = [
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in rebuilt.items()
        for core in ("core", "_core")
    ]
    return [np.dtype, np.ndarray, *kinds, *named]


def save_with_entry(
    save: Callable[[io.BytesIO], None], entry: Mapping[str, Any], path: Path, keep: bool = True
) -> None:
    """Let nnU-Net save into memory, add ``entry``, and replace ``path`` in one step.

    Args:
        save: nnU-Net's own ``save_checkpoint``.
        entry: see :data:`ENTRY`; its ``optimizer`` is moved out of nnU-Net's optimizer state.
        path: the checkpoint's file; after an error it holds what it held before.
        keep: what ``path`` held stays as :data:`PREVIOUS`, so that the last two checkpoints always exist.
    """
    buffer = io.BytesIO()
    save(buffer)
    buffer.seek(0)
    # whatever a custom network keeps in its state; this process wrote it a moment ago
    checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
    checkpoint[OPTIMIZER], learned = split_optimizer_state(checkpoint[OPTIMIZER])
    checkpoint[ENTRY] = {**entry, "optimizer": learned, "saved_at": time.time()}
    previous = path.with_name(PREVIOUS) if keep else None
    write_atomically(path, lambda file: save_to(checkpoint, file), keep_as=previous)


def save_to(checkpoint: Mapping[str, Any], file: BinaryIO) -> None:
    """``torch.save``, whose word for a full disk is RuntimeError.

    Raises:
        OSError: the disk refused.
    """
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def read_checkpoint(path: str | Path, in_memory: bool = True) -> dict[str, Any]:
    """A checkpoint, read as data: tensors, numbers, texts and their containers.

    Args:
        path: the checkpoint's file.
        in_memory: ``False`` maps tensors from the file instead, for a look at the rest.

    Raises:
        CheckpointError: there is no such file, it is damaged (checksums are verified), or its pickle asks for anything else
            than data, which would be run as code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {broken}")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no checkpoint {path}. Is the path right, and the training finished?"
        ) from error
    except (
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        RuntimeError,
    ) as error:  # the last: encrypted, or no compression known
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: its {Path(path).stat().st_size} bytes are no whole zip archive of PyTorch "
            f"({error}). Compare its size with that of the file it was copied from."
        ) from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror or error}.") from error
    with _read_as_pytorch_does(path):
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    if foreign := [name for name in named if not _is_data(name)]:
        raise CheckpointError(
            f"the checkpoint {path} holds more than data: loading it runs {', '.join(foreign)}. If you know who made it: "
            f"`--trusted` of `nnunet-kd predict`, `soften` and `shrink` loads it all the same, and so does `--set "
            f"teacher.trusted=true` of a training whose teacher it is. For all else, take a checkpoint that holds data alone. "
            f"See docs/explanation-security.md."
        )
    with _read_as_pytorch_does(path), torch.serialization.safe_globals(_numpy_data()):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=not in_memory)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"the checkpoint {path} holds a {type(checkpoint).__name__}, but nnU-Net's hold named entries. Give one that a "
            f"trainer of nnU-Net wrote."
        )
    return checkpoint


@contextlib.contextmanager
def _read_as_pytorch_does(path: str | Path) -> Iterator[None]:
    """Whatever PyTorch makes of a zip file that ``torch.save`` did not write, TorchScript for example, is a CheckpointError."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {reason}. Is it a checkpoint that nnU-Net wrote?"
        ) from error


def _is_data(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    numpy_core = module in ("numpy.core.multiarray", "numpy._core.multiarray")
    return (numpy_core and attribute in ("scalar", "_reconstruct")) or name in ("numpy.dtype", "numpy.ndarray")


def newest_checkpoint(folder: Path, training: str | None = None) -> tuple[Path | None, dict[Path, str]]:
    """The readable checkpoint of a fold that got furthest, and what is wrong with those that cannot be read.

    Args:
        folder: the fold's.
        training: the name of the training that began there last; those of ours that do not have it are left out. ``None``: it is
            not known, and all count.

    Returns:
        ``None`` in place of the checkpoint: all are whole and of earlier trainings.

    Raises:
        CheckpointError: there is none.
    """
    readable: list[tuple[int, float, Path]] = []
    problems: dict[Path, str] = {}
    earlier: list[Path] = []
    for path in (folder / name for name in CONTINUED_FROM):
        if not path.is_file():
            continue
        try:
            content = read_checkpoint(path, in_memory=False)
        except CheckpointError as error:
            problems[path] = str(error)
            continue
        entry = content.get(ENTRY)  # stock nnU-Net, which may have gone on with this training, writes none
        if training is not None and entry is not None and entry.get(TRAINING) != training:
            earlier.append(path)
        elif EPOCH in content:
            readable.append((content[EPOCH], (entry or {}).get("saved_at", 0.0), path))
        else:
            problems[path] = f"the checkpoint {path} does not say its epoch ({EPOCH}), as nnU-Net's do."
    if not readable and earlier and not problems:
        return None, {}
    if not readable:
        told = [*problems.values(), *(f"{path.name} is of an earlier training in this folder." for path in earlier)]
        raise CheckpointError(
            f"no checkpoint in {folder} can be continued from. {' '.join(told) or 'There is none.'} "
            f"Without --c the training starts anew{' and overwrites them' if problems else ''}."
        )
    return max(readable)[-1], problems


def split_optimizer_state(state: dict[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
    """Divide an optimizer's state into nnU-Net's groups and what belongs to groups marked ``nnunet_kd``.

    Returns:
        The state without the marked groups, and the marked parameters' states numbered from 0.
    """
    marked = [index for group in state["param_groups"] if group.get(ENTRY) for index in group["params"]]
    rest = {
        "state": {index: value for index, value in state["state"].items() if index not in marked},
        "param_groups": [group for group in state["param_groups"] if not group.get(ENTRY)],
    }
    learned = {place: state["state"][index] for place, index in enumerate(marked) if index in state["state"]}
    return rest, learned


def remove_learned_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Take what :func:`add_learned_parameters` gave; the optimizer is again as nnU-Net made it, and takes its saved states."""
    for group in [group for group in optimizer.param_groups if group.get(ENTRY)]:
        optimizer.param_groups.remove(group)
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)


def add_learned_parameters(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], saved: Mapping[int, Any] | None
) -> None:
    """Give the optimizer a group of its own for what objectives learn, with its saved state if there is one."""
    optimizer.add_param_group({"params": parameters, ENTRY: True, "lr": optimizer.param_groups[0]["lr"]})
    for place, state in (saved or {}).items():
        parameter = parameters[place]
        optimizer.state[parameter] = {
            key: value.to(parameter.device) if isinstance(value, torch.Tensor) and value.ndim else value
            for key, value in state.items()
        }
