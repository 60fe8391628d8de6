"""Archives of trained models, as ``nnUNetv2_export_model_to_zip`` and ``nnunet-kd export`` write them."""

from __future__ import annotations

import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from nnunet_kd.errors import MissingRequirement, ModelError
from nnunet_kd.system.files import free_space

_PLAN = "plans.json"


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name. Not by its content: checkpoints are zip files, too."""
    return path.suffix.lower() == ".zip" and path.is_file()


def unpack_model(
    archive: Path, target: Path, configuration: str | None = None, members: Collection[str] | None = None
) -> Path:
    """Unpack the one model that an archive holds, or holds of a configuration.

    Args:
        archive: the zip.
        target: an existing folder.
        configuration: of the model; ``None``: any.
        members: the files to take, as they are called within the model folder; the model must have them all.
            ``None``: all it has.

    Returns:
        The model folder below ``target``.

    Raises:
        ModelError: the archive is damaged, encrypted or compressed in an unknown way, holds none or several such models, or
            files that lie outside of every folder.
        MissingRequirement: the disk refused (full, read-only), or the archive cannot be opened.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
            _refuse_paths_that_leave(archive, names)
            prefix = _choose(archive, names, configuration, members or ())
            model = target / (prefix.rstrip("/").split("/")[-1] or archive.stem)
            for name in names:
                inside = name.removeprefix(prefix)
                within = name.startswith(prefix) and not name.endswith("/")
                if within and (members is None or inside in members):
                    copy = model / inside
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(name) as source, copy.open("wb") as written:
                        shutil.copyfileobj(source, written)
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(archive, error) from error
    except RuntimeError as error:  # encrypted, or compressed as this Python cannot read it (NotImplementedError)
        raise ModelError(
            f"{archive} cannot be unpacked: {error}. Unpack it with another program and give the folder, or export the model "
            f"once more."
        ) from error
    except OSError as error:
        if error.errno is None:  # what bz2 says of damaged data
            raise _damaged(archive, error) from error
        raise MissingRequirement(
            f"{archive} could not be unpacked to {target}: {error.strerror or error}. {free_space(target)}"
        ) from error
    return model


def files_of_model(archive: Path, configuration: str | None = None) -> list[str] | None:
    """What the one model of an archive holds, whichever folds these are of.

    Args:
        archive: the zip.
        configuration: of the model; ``None``: any.

    Returns:
        Files as they are called within the model folder; ``None``: the archive cannot be read, or holds none or several models.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
        prefix = _choose(archive, names, configuration, ())
    except (zipfile.BadZipFile, OSError, ModelError):
        return None
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix) and not name.endswith("/")]


def _damaged(archive: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{archive} is not a complete zip archive ({archive.stat().st_size} bytes, {error}). Compare its size with "
        f"that of the file it was copied from, or export the model once more."
    )


def _choose(archive: Path, names: list[str], configuration: str | None, members: Collection[str]) -> str:
    """Path of the one model within the archive, empty or with a slash at its end."""
    models = [
        name.removesuffix(_PLAN) for name in names if name.split("/")[-1] == _PLAN and _has_checkpoint(name, names)
    ]
    # of several models, the folder's name says which has the configuration; a single one may be called anything
    of_configuration = [model for model in models if configuration and model.endswith(f"__{configuration}/")]
    named = [model for model in models if len(model.rstrip("/").split("/")[-1].split("__")) == 3]
    candidates = of_configuration or [model for model in models if not configuration or model not in named]
    fitting = [model for model in candidates if all(f"{model}{member}" in names for member in members)]
    if len(fitting) == 1:
        return fitting[0]
    wanted = f" of configuration {configuration}" * bool(configuration) + f" with {', '.join(members)}" * bool(members)
    advice = "Unpack it and give the folder of one" if len(fitting) > 1 else "Give another, or export the model again"
    raise ModelError(
        f"{archive} holds {len(fitting)} nnU-Net models{wanted}, but one is needed. Its plans and checkpoints: "
        f"{', '.join(name for name in names if name.split('/')[-1] == _PLAN or name.endswith('.pth')) or 'none'}. {advice}."
    )


def _has_checkpoint(plan: str, names: list[str]) -> bool:
    """Whether checkpoints lie beside a plan; those in folders of a cross-validation have none."""
    folder = re.escape(plan.removesuffix(_PLAN))
    return any(re.match(rf"{folder}fold_[^/]+/[^/]+\.pth$", name) for name in names)


def _refuse_paths_that_leave(archive: Path, names: list[str]) -> None:
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise ModelError(
                f"{archive} holds a file {name!r}, which lies outside of the folder that it is unpacked to. No model of "
                f"nnU-Net has such files: do not use this archive."
            )
