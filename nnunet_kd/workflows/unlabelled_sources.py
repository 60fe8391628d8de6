"""What cases without labels were made of, so that other images of the same name, and another plan, are noticed.

The record is one JSON file beside the folder of the cases, in which nnU-Net allows nothing else. Cases that versions before it
added have no entry; they are believed to be what a folder of images says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_kd.distillation.soft_labels.description import data_of
from nnunet_kd.errors import DataError
from nnunet_kd.inference.image_folders import ImageCase
from nnunet_kd.system.counts import counted, some
from nnunet_kd.system.files import sha256, write_atomically


@dataclass(frozen=True)
class CaseSource:
    """What a preprocessed case was made of.

    Attributes:
        images: SHA-256 of every file, in the channels' order.
        preprocessing: SHA-256 of what the plan says about it, from :func:`preprocessing_of`.
    """

    images: tuple[str, ...]
    preprocessing: str

    @classmethod
    def of(cls, case: ImageCase, preprocessing: str) -> CaseSource:
        """Of a case whose images are read now."""
        return cls(tuple(sha256(path) for path in case.images), preprocessing)


def preprocessing_of(plans: Mapping[str, Any], configuration: str) -> str:
    """Hash of what decides the arrays that an image becomes; see :func:`~.description.data_of`."""
    return hashlib.sha256(json.dumps(data_of(plans, configuration), sort_keys=True).encode()).hexdigest()


def sources_path(folder: Path) -> Path:
    """The record of a folder of preprocessed cases."""
    return folder.with_name(f"{folder.name}.json")


def read_sources(folder: Path) -> dict[str, CaseSource]:
    """Of the cases of a folder, by name; cases of older versions are not among them.

    Raises:
        DataError: the record cannot be read.
    """
    path = sources_path(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return {
            str(name): CaseSource(tuple(map(str, one["images"])), str(one["preprocessing"]))
            for name, one in content.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). It says of which images the cases in {folder.name} were made. Delete it if they "
            f"are those that you mean; if not, delete {folder}, too."
        ) from error


def write_sources(folder: Path, sources: Mapping[str, CaseSource]) -> None:
    """Replace the record.

    Raises:
        MissingRequirement: the disk refused.
    """
    content = {"version": 1, "cases": {name: asdict(one) for name, one in sorted(sources.items())}}
    text = json.dumps(content, indent=1).encode()
    write_atomically(sources_path(folder), lambda file: file.write(text))


def refuse_other_images(
    images: Path, folder: Path, there: Iterable[str], known: Mapping[str, CaseSource], now: Mapping[str, CaseSource]
) -> None:
    """Raise a DataError for images that are not those which the case of the same name was made of.

    Args:
        images: the folder that they are from.
        folder, there: of the preprocessed cases, and their names.
        known: what these were made of, as far as it is known.
        now: what they would be made of.
    """
    others = sorted(name for name in there if name in known and name in now and known[name].images != now[name].images)
    if others:
        raise DataError(
            f"{images}: {counted(len(others), 'image')} of the same name as one that was added before, but with other content: "
            f"{some(others)}. Rename them if they are other cases. To put them in the place of those from before, delete "
            f"{some([f'{name}.pkl' for name in others])} in {folder}, then run this again."
        )


def refuse_other_preprocessing(folder: Path, cases: Iterable[str], preprocessing: str) -> None:
    """Raise a DataError for cases of a folder that were preprocessed as another plan says.

    Args:
        folder: of the preprocessed cases.
        cases: which of them.
        preprocessing: of the plan, from :func:`preprocessing_of`.
    """
    known = read_sources(folder)
    others = [name for name in sorted(cases) if name in known and known[name].preprocessing != preprocessing]
    if others:
        raise DataError(
            f"{folder}: {counted(len(others), 'case')} without labels preprocessed before the plan was changed: {some(others)}. "
            f"Give their images again with -i, or move that folder away to train without them."
        )
