"""How well the student agrees with its teacher on images that it was not trained on, and both with labels."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnunet_kd.evaluation.comparison import Comparison, compare
from nnunet_kd.evaluation.folders import evaluate_folder, evaluate_pairs
from nnunet_kd.evaluation.labels import read_labels
from nnunet_kd.evaluation.pairs import CasePair
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.workflows.shrink.dataset import Split, write_context
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import Places


@dataclass(frozen=True)
class Agreement:
    """What was measured.

    Attributes:
        with_teacher: the student's segmentations against the teacher's.
        against_labels: both against true labels, on those images kept aside that have any; ``None``: none has.
        warnings: about files that were compared though they are not quite as they should be.
    """

    with_teacher: Evaluation
    against_labels: Comparison | None
    warnings: list[str] = field(default_factory=list)


def measure_agreement(images: Images, split: Split, teacher: Teacher, places: Places) -> Agreement:
    """Dice, HD95 and NSD of every class and image kept aside.

    Raises:
        DataError: files cannot be read.
    """
    for who in ("teacher", "student"):
        write_context(places.predictions(who), teacher)
    description = places.predictions("teacher") / "dataset.json"
    own = evaluate_folder(
        places.predictions("student"),
        places.predictions("teacher"),
        description,
        cases=split.held_out,
        title="agreement",
    )
    labelled = {case: images.labels[case] for case in split.held_out if case in images.labels}
    if not labelled:
        return Agreement(own, None, list(own.warnings))
    labels, reader = read_labels(teacher.dataset_json, description), teacher.reader
    found = {}
    for who in ("teacher", "student"):
        folder = places.predictions(who)
        pairs = [CasePair(case, folder / f"{case}{labels.file_ending}", path) for case, path in labelled.items()]
        folders = (folder, next(iter(labelled.values())).parent)
        found[who] = evaluate_pairs(pairs, labels, reader, folders, title=f"{who} against labels")
    warnings = [*own.warnings, *(warning for one in found.values() for warning in one.warnings)]
    return Agreement(own, compare(found, "teacher"), list(dict.fromkeys(warnings)))
