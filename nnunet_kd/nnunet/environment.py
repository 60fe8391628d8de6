"""What must be there before any command works: nnU-Net's variables, its trainers, the dataset's folders."""

from __future__ import annotations

import contextlib
import difflib
import glob
import io
import json
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_kd.errors import DataError, MissingRequirement, SettingsError
from nnunet_kd.system.counts import some
from nnunet_kd.system.shipped import shipped_folder

STOCK_TRAINER = "nnUNetTrainer"
"""nnU-Net's own, which its commands take unless they are told another."""
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def optional_folder(variable: str) -> Path | None:
    """The folder that one of nnU-Net's variables names; ``None`` if it is not set."""
    value = os.environ.get(variable)
    return Path(value) if value else None


def required_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's variables names.

    Raises:
        MissingRequirement: the variable is not set.
    """
    folder = optional_folder(variable)
    if folder is None:
        raise MissingRequirement(
            f"the environment variable {variable} is not set, so nnU-Net's folders cannot be found. Set it as nnU-Net's "
            f"documentation says, for example `export {variable}=/path/to/{variable}`. `nnunet-kd doctor` checks all three."
        )
    return folder


@contextlib.contextmanager
def variables_set_to(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables with other values for a while; ``None``: not set."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set_variables(values)
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def dataset_name(name_or_id: str) -> str:
    """``Dataset004_Hippocampus`` for itself, ``4`` or ``004``.

    Raises:
        DataError: no such dataset, or several with that number; or only a part of a name is given.
        MissingRequirement: none of nnU-Net's variables is set.
    """
    if name_or_id.startswith("Dataset"):
        beginning = _datasets_beginning(name_or_id)
        if beginning and name_or_id not in beginning:
            raise DataError(
                f"there is no dataset {name_or_id!r} in nnU-Net's folders, but {some(beginning)}. Give the whole name, or the "
                f"dataset's number."
            )
        return name_or_id
    if not name_or_id.isdigit():
        raise DataError(f"{name_or_id!r} is neither a dataset's number nor a name such as Dataset004_Hippocampus.")
    if not any(map(optional_folder, VARIABLES)):
        required_folder(VARIABLES[0])
    prefix = f"Dataset{int(name_or_id):03d}_"
    names = _datasets_beginning(prefix)
    if len(names) != 1:
        found = f"several: {', '.join(names)}; give the name" if names else "none; convert the dataset first"
        raise DataError(f"dataset {name_or_id}: looked for {prefix}* in nnU-Net's folders and found {found}.")
    return names[0]


def _datasets_beginning(prefix: str) -> list[str]:
    """Names of all datasets that begin so, in any of nnU-Net's folders."""
    places = [place for place in map(optional_folder, VARIABLES) if place is not None]
    return sorted({folder.name for place in places for folder in place.glob(f"{glob.escape(prefix)}*")})


def dataset_number(name: str) -> str:
    """``4`` of ``Dataset004_Hippocampus``, which nnU-Net's commands take whatever else the name holds."""
    number = name.removeprefix("Dataset").partition("_")[0]
    return str(int(number)) if number.isdigit() else shlex.quote(name)


def preprocessed_dataset(name_or_id: str) -> tuple[Path, dict[str, Any]]:
    """The preprocessed dataset's folder and its ``dataset.json``.

    Raises:
        MissingRequirement: ``nnUNet_preprocessed`` is not set.
        DataError: the dataset is unknown or has not been preprocessed, or its ``dataset.json`` does not hold.
    """
    folder = required_folder("nnUNet_preprocessed") / dataset_name(name_or_id)
    if not (folder / "dataset.json").is_file():
        raise DataError(
            f"{folder} has no dataset.json, so the dataset has not been preprocessed. "
            f"Run `nnUNetv2_plan_and_preprocess -d {dataset_number(folder.name)}` first."
        )
    return folder, _read_description(folder / "dataset.json")


def _read_description(path: Path) -> dict[str, Any]:
    mend = f"Correct the file, and the one in nnUNet_raw that it was copied from ({path.parent.name})."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: no valid JSON, {error.msg}. {mend}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}. Save it as UTF-8. {mend}") from error
    channels = ("channel_names", "modality")
    missing = [] if isinstance(content, dict) and any(key in content for key in channels) else [" or ".join(channels)]
    missing += ["labels"] if not isinstance(content, dict) or "labels" not in content else []
    if missing:
        raise DataError(f"{path} has no {' and no '.join(missing)}. {mend}")
    return dict(content)


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of a model's channels, in order.

    They stand under ``channel_names``, which nnU-Net plans by where it is there. The first releases of nnU-Net v2 called them
    ``modality``, which may also be something else beside it, as in other formats.

    Raises:
        DataError: neither names a channel.
    """
    entries = [dataset_json.get(key) for key in ("channel_names", "modality")]
    named = next((entry for entry in entries if isinstance(entry, Mapping) and entry), None)
    if named is None:
        raise DataError(
            'a dataset.json names no channel: it needs "channel_names": {"0": "T1", "1": "T2"}, with a number and a name for '
            "every channel. Add the entry to the dataset.json of the dataset or model."
        )
    order = sorted(named, key=int) if all(str(number).isdigit() for number in named) else named
    return [str(named[number]) for number in order]


def trainer_names() -> list[str]:
    """The trainers that this package ships."""
    return sorted(path.stem for path in shipped_folder("trainers").glob("nnUNetTrainer*.py"))


@contextlib.contextmanager
def quiet_search() -> Iterator[None]:
    """Within, nnU-Net's search for a trainer does not report where it looks.

    It imports all of nnU-Net's trainers, and with them timm, which still uses what PyTorch has deprecated. Users can do nothing
    about that.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        yield


def find_trainer(name: str) -> type[Any]:
    """Ask nnU-Net itself for a trainer class, without its report of where it looks.

    Raises:
        MissingRequirement: nnU-Net does not find it.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with quiet_search():
            found: type[Any] = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise MissingRequirement(f"nnU-Net does not find the trainer {name}. {_where_to_put(name)}") from error
    return found


def _where_to_put(trainer: str) -> str:
    searched = os.environ.get("nnUNet_extTrainer")
    if trainer in trainer_names():
        return (
            f"The start-up file nnunet_kd_autoload.pth is not active in this Python (nnUNet_extTrainer={searched!r}): install "
            f"with pip into the same environment as nnunetv2, without --target."
        )
    return (
        f"Get the Python file that defines the class {trainer} from whoever trained the model. Put it into a folder of its own, "
        f"and name that folder: `export nnUNet_extTrainer=FOLDER`. It is now {searched or 'not set'}."
    )


def method_trainer(method: str) -> str:
    """``dcd`` to ``nnUNetTrainerDCD``: the shipped trainer whose name ends so, whatever the case.

    Raises:
        SettingsError: there is none.
    """
    methods = {method_name(name): name for name in trainer_names()}
    meant = method_name(method)
    if meant != method.lower() and meant in methods:
        raise SettingsError(
            f"{method!r} is a trainer, not a method. Give {meant} (-m {meant}), or in `nnunet-kd train` -tr {methods[meant]}."
        )
    if method.lower() not in methods:
        raise SettingsError(f"there is no method {method!r}; there are {', '.join(methods)}.")
    return methods[method.lower()]


def method_name(trainer: str) -> str:
    """``nnUNetTrainerDCD`` to ``dcd``, as ``-m`` takes it."""
    return re.sub(f"^{STOCK_TRAINER}", "", trainer, flags=re.IGNORECASE).lower()


def shipped_trainer(name: str, known: Sequence[str] | None = None) -> str:
    """A trainer of this package, as the option ``-tr`` names it.

    Args:
        name: as given.
        known: those that the command can use; ``None``: all that are shipped.

    Raises:
        SettingsError: it is none of them; lists them.
    """
    trainers = {method_name(trainer): trainer for trainer in (trainer_names() if known is None else known)}
    if name in trainers.values():
        return name
    near = difflib.get_close_matches(method_name(name), trainers, n=1, cutoff=0.7)
    meant = f" (did you mean {trainers[near[0]]}?)" if near else ""
    raise SettingsError(
        f"-tr {name} is none of the trainers of this package that this command takes{meant}: {', '.join(trainers.values())}."
    )
