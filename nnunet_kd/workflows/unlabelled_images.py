"""Images without labels for a student's training: preprocessed with its plan, beside the dataset's own cases."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnunet_kd.errors import DataError, MissingRequirement
from nnunet_kd.inference.cases import check_headers
from nnunet_kd.inference.image_folders import check_numbers, find_images
from nnunet_kd.nnunet.datasets import case_names, preprocessed_cases, remove_case
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.system.files import remove_leftover_folders
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.training.unlabelled import unlabelled_folder
from nnunet_kd.volumes.reading import check_file, dataset_reader
from nnunet_kd.workflows.preprocessing import Arrays, preprocess_arrays
from nnunet_kd.workflows.unlabelled_sources import (
    CaseSource,
    preprocessing_of,
    read_sources,
    refuse_other_images,
    write_sources,
)

Progress = Callable[[int, int, str], object]


def add_images(trainer: DistillationTrainer, folder: Path, progress: Progress) -> list[str]:
    """Preprocess every image of a folder that is not there yet; soft labels are made of them next.

    What was preprocessed as an older plan says is preprocessed again. Of several processes that are told the same, the first
    does it and the others wait.

    Args:
        trainer: of the student.
        folder: images, see :func:`~nnunet_kd.inference.image_folders.find_images`.
        progress: told how many are done, of how many, and which is next.

    Returns:
        The names of all cases of the folder.

    Raises:
        DataError: the images do not hold, one is called as a case of the dataset or as another image that was added before, or
            the configuration is the second stage of a cascade.
        MissingRequirement: the disk refused, or has no file locks.
    """
    plans, dataset = trainer.plans_manager.plans, trainer.dataset_json
    if trainer.is_cascaded:
        raise DataError(
            f"{trainer.configuration_name} is the second stage of a cascade, which needs the first one's segmentations. Images "
            f"without labels can be added to a first stage or a configuration that works alone."
        )
    reader = dataset_reader(dataset, plans)
    found = find_images(folder, dataset, reader)
    own = {str(case) for case in preprocessed_cases(Path(trainer.preprocessed_dataset_folder)).identifiers}
    if same := [case.name for case in found if case.name in own]:
        raise DataError(
            f"{folder} has images called as cases of the dataset, for example {same[0]}. If they are the same, take them out; "
            f"they have labels. If not, rename them."
        )
    target = unlabelled_folder(trainer)
    target.mkdir(parents=True, exist_ok=True)

    preprocessing = preprocessing_of(plans, trainer.configuration_name)
    now = {}
    for place, case in enumerate(found):
        progress(place, len(found), case.name)
        now[case.name] = CaseSource.of(case, preprocessing)

    def show(done: float, total: float, what: str) -> Any:
        return progress(int(done), int(total), what)

    with _sole_use(target, lambda: progress(0, len(found), "waiting for another process that adds images")):
        remove_leftover_folders(target)
        there, known = set(case_names(target)), read_sources(target)
        refuse_other_images(folder, target, there, known, now)
        older = {name for name in there & known.keys() & now.keys() if known[name].preprocessing != preprocessing}
        todo = [case for case in found if case.name not in there or case.name in older]
        for case in todo:
            check_headers(case.predicted_to(target, ""), channel_names(dataset), reader, segmented=False)
            for path in case.images:
                check_file(path, reader)
            check_numbers(case, reader)
        for name in sorted(older):
            remove_case(target, name)
        if todo:  # first: a case that is there is then always the one that the record names
            kept = {name: source for name, source in known.items() if name in there}
            write_sources(target, kept | {case.name: now[case.name] for case in todo})
        arrays = [Arrays(case.name, case.images, None, target) for case in todo]
        preprocess_arrays(arrays, plans, trainer.configuration_name, dataset, show)
    return [case.name for case in found]


@contextlib.contextmanager
def _sole_use(target: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Within, no other process adds images to a folder; the lock lets go of itself when a process ends.

    The file stands beside the folder, in which nnU-Net looks for nothing but cases.

    Raises:
        MissingRequirement: the file system has no file locks.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except (NotImplementedError, OSError) as error:
        raise MissingRequirement(
            f"the file system of {target} has no file locks ({error}). They keep two processes from preprocessing the same "
            f"image. Put nnUNet_preprocessed elsewhere."
        ) from error
    try:
        yield
    finally:
        lock.release()
