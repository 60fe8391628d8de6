"""The teacher of the hippocampus' fold 5, on which all choices are made: kept with the code, and how it was made.

    python benchmarks/hippocampus.py teacher
        installs what is kept into ``nnUNet_results``. Where nothing is kept, or a training has begun, it trains: 5000 iterations,
        as fold 0's teacher was. Then it rounds the weights to half precision, and validates them.
    python benchmarks/hippocampus.py teacher --keep benchmarks/results
        and keeps it in ``FOLDER/teachers``.

Rounded weights stay float32, so that every program reads them as before. In an archive they take less than two thirds
of the room.
"""

from __future__ import annotations

from pathlib import Path

import torch
from long_commands import run

from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.models.checkpoint import read_checkpoint, save_to
from nnunet_kd.models.folder import open_model
from nnunet_kd.nnunet.checkpoints import FINAL, LATEST, WEIGHTS
from nnunet_kd.system.files import write_atomically

ARCHIVE = "hippocampus-fold-5.zip"
LICENCE = "CC-BY-SA-4.0"
"""That of the data (Medical Segmentation Decathlon)."""
KEPT = Path(__file__).resolve().parent / "results" / "teachers" / ARCHIVE


def provide_teacher(model: Path, fold: str, device: str, keep: Path | None = None, kept: Path = KEPT) -> None:
    """A trained and validated teacher in ``model``; what is there already stays, and a training that is begun is continued.

    Args:
        model: its model folder, under ``nnUNet_results``.
        fold: that it is trained on.
        device: to train on.
        keep: folder of results that takes it; ``None``: none.
        kept: archive to take it from, if it is there.
    """
    folder = model / f"fold_{fold}"
    if not (folder / FINAL).is_file() and not (folder / LATEST).is_file() and kept.is_file():
        run("nnUNetv2_install_pretrained_model_from_zip", kept)
        return
    trainer, plans, configuration = model.name.split("__")
    command = ("nnUNetv2_train", model.parent.name, configuration, fold, "-tr", trainer, "-p", plans, "-device", device)
    if not (folder / FINAL).is_file():
        run(*command, "--c")
    if round_weights(folder / FINAL) or not (folder / "validation" / "summary.json").is_file():
        run(*command, "--val")
    archive = None if keep is None else keep / "teachers" / ARCHIVE
    if archive is not None and not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with open_model(model, (fold,)) as found:
            export_folder(found, archive, FolderOptions(licence=LICENCE))
        run("nnUNetv2_install_pretrained_model_from_zip", archive)  # so that all machines have the same file


def round_weights(path: Path) -> bool:
    """Round a checkpoint's weights to half precision, in place; tensors that share their memory still do.

    Returns:
        Whether that has changed them.
    """
    checkpoint = read_checkpoint(path)
    changed = False
    for tensor in checkpoint[WEIGHTS].values():
        rounded = tensor.half().to(tensor.dtype) if torch.is_floating_point(tensor) else tensor
        changed |= not torch.equal(tensor, rounded)
        tensor.copy_(rounded)
    if changed:
        write_atomically(path, lambda file: save_to(checkpoint, file))
    return changed
