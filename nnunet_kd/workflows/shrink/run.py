"""``nnunet-kd shrink`` from end to end; every step goes on where a run before it was stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nnunet_kd.inference.session import RunOptions
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.system.cores import computing_threads
from nnunet_kd.system.counts import some
from nnunet_kd.system.files import remove_leftover_folders
from nnunet_kd.workflows.shrink import report, schedule, teacher, training
from nnunet_kd.workflows.shrink.agreement import Agreement, measure_agreement
from nnunet_kd.workflows.shrink.checks import look_at_everything
from nnunet_kd.workflows.shrink.dataset import FOLD, Split, describe_dataset, preprocess
from nnunet_kd.workflows.shrink.export import export_student
from nnunet_kd.workflows.shrink.facts import arguments_of, facts_of
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import Listener, Places, ShrinkRequest, loader_variables
from nnunet_kd.workflows.shrink.schedule import TrainingSchedule
from nnunet_kd.workflows.shrink.state import State, sole_use


@dataclass(frozen=True)
class Shrunk:
    """What came out.

    Attributes:
        places: of the output folder.
        agreement: on the images kept aside.
        iterations: of the training.
        minutes: of all runs together.
        without_onnx: why there is no ONNX file; ``None``: there is one.
    """

    places: Places
    agreement: Agreement
    iterations: int
    minutes: float
    without_onnx: str | None


def shrink(request: ShrinkRequest, listener: Listener) -> Shrunk:
    """Make a small student of a trained nnU-Net with nothing but images.

    Args:
        request: what of what, and how.
        listener: told what happens.

    Raises:
        NnunetKdError: the model, the images or the output folder do not hold, said before anything is computed; or the teacher
            finds nothing in most images.
    """
    request.check()
    with torch_threads(request.device), sole_use(Places(request.output.expanduser())):
        return _Run(request, listener).all()


@contextlib.contextmanager
def torch_threads(device: str) -> Iterator[None]:
    """Within, PyTorch computes on as many cores as are ours."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(computing_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """The steps in their order, and what they hand on to each other."""

    teacher: Teacher
    images: Images
    split: Split
    mirroring: bool
    maps: str

    def __init__(self, request: ShrinkRequest, listener: Listener) -> None:
        self.request, self.listener = request, listener
        self.places = Places(request.output.expanduser())
        self.warnings: list[str] = []
        self.foreign = False
        listener.step("the model and the images")
        self.state = State(self.places, arguments_of(request))

    def all(self) -> Shrunk:
        """Every step."""
        self._check()
        self._ask_teacher()
        self._preprocess()
        self._soften()
        self._start()
        fixed = self._schedule()
        self._train(fixed)
        return self._measure(fixed)

    # steps ------------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        found = look_at_everything(self.request, self.places, self.state, self.listener)
        self.teacher, self.images, self.split = found.teacher, found.images, found.split
        self.mirroring, self.foreign = found.mirroring, found.images.foreign
        self.warnings += found.warnings

    def _ask_teacher(self) -> None:
        self.listener.step("the teacher's segmentations of the images kept aside")
        self._predict("teacher")
        folder, ending = self.places.predictions("teacher"), self._ending
        empty = teacher.empty_segmentations(folder, self.split.held_out, ending, self.teacher)
        teacher.refuse_if_mostly_empty(empty, len(self.split.held_out), "images kept aside", self.request.allow_empty)
        self._note_empty(empty, "images kept aside", len(self.split.held_out))
        volumes = teacher.strange_volumes(folder, self.split.held_out, ending, self.teacher)
        if volumes is not None:
            self._warn(volumes[0].upper() + volumes[1:])
            self.foreign = True

    def _preprocess(self) -> None:
        self.listener.step("preprocessing with the model's plan")
        describe_dataset(self.places, self.teacher, self.split, self.images.labels)
        preprocess(self.images, self.split, self.teacher, self.places, self.listener.show)

    def _soften(self) -> None:
        self.listener.step("soft labels")
        with self._nnunet(training.assignments(self.request, self.teacher)):
            made = teacher.soften_training_cases(
                self._make, self.request, self.teacher, self.mirroring, self.state, self.listener.show
            )
        self.maps = str(made.folder.resolve())
        empty, count = teacher.empty_maps(made, self.split.training), len(self.split.training)
        teacher.refuse_if_mostly_empty(empty, count, "training images", self.request.allow_empty)
        self._note_empty(empty, "training images", count)

    def _start(self) -> None:
        self.listener.step("the student's start inside the teacher")
        own = training.assignments(self.request, self.teacher, self.maps, labelled=bool(self._labelled))
        with self._nnunet(own), variables_set_to({"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}):
            training.start_inside(self._make, self.places, self.state.counted(self.listener.show))

    def _schedule(self) -> TrainingSchedule:
        self.listener.step("the schedule")
        known = self.state.values.get("schedule")
        if known is None:
            chosen = (
                self._fitted()
                if self.request.minutes is not None
                else schedule.schedule_of(self.request.iterations or 1)
            )
            known = self.state.keep("schedule", asdict(chosen))
        fixed = TrainingSchedule(**known)
        expected = self.state.values.get("step_times")
        about = (
            f", about {schedule.StepTimes(**expected).of(fixed) / 60:.1f} minutes at {expected['iteration']:.2f} s each"
            if expected
            else ""
        )
        self.listener.tell(
            f"Training: {fixed.iterations} iterations ({fixed.epochs} epochs of {fixed.iterations_per_epoch}){about}."
        )
        return fixed

    def _fitted(self) -> TrainingSchedule:
        short = TrainingSchedule(2, schedule.TIMED, 1)
        with self._nnunet(self._training_settings(short)), variables_set_to(loader_variables(self.request.device)):
            times = schedule.measured_times(self._make, self.listener.show)
        self.state.keep("step_times", asdict(times))
        predicted = self.state.values.get("predicted_by_teacher", {"seconds": 0.0})["seconds"]
        assert self.request.minutes is not None
        left = schedule.left_for_training(
            self.request.minutes, self.state.seconds, predicted, len(self.teacher.model.folds)
        )
        chosen = schedule.fitted_schedule(left, times)
        if times.of(chosen) > left:
            self._warn(
                f"--minutes {self.request.minutes:g} leaves {max(0.0, left) / 60:.1f} minutes for the training. It takes "
                f"{chosen.iterations} iterations all the same, about {times.of(chosen) / 60:.1f} minutes."
            )
        return chosen

    def _train(self, fixed: TrainingSchedule) -> None:
        self.listener.step("training")
        if training.is_trained(self.places, self.teacher):
            return
        with self._nnunet(self._training_settings(fixed)), variables_set_to(loader_variables(self.request.device)):
            training.train(self._make, self.places, self.teacher, fixed.iterations, self.state, self.listener.show)

    def _measure(self, fixed: TrainingSchedule) -> Shrunk:
        self.listener.step("the student's segmentations of the images kept aside")
        self._predict("student")
        self.listener.step("agreement")
        agreement = measure_agreement(self.images, self.split, self.teacher, self.places)
        agreement.with_teacher.write_json(self.places.agreement)
        self.listener.step("exports and report")
        remove_leftover_folders(self.places.output)
        with self._log():
            without_onnx = export_student(self.places, self.teacher)
        if without_onnx is not None:
            self._warn(f"student.onnx was not written: {without_onnx}")
        told = report.Told(
            self.teacher,
            self.images,
            self.split,
            agreement,
            facts_of(
                self.request, self.teacher, self.images, self.split, self._labelled, self.mirroring, fixed, self.state
            ),
            [*self.warnings, *agreement.warnings],
            self.foreign,
            self._seconds_by_model(),
            without_onnx,
        )
        report.write(told, self.places, self.request.device)
        self.state.save()
        return Shrunk(self.places, agreement, fixed.iterations, self.state.seconds / 60, without_onnx)

    # what they share --------------------------------------------------------------------------------------------------

    @property
    def _ending(self) -> str:
        return str(self.teacher.dataset_json["file_ending"])

    @property
    def _labelled(self) -> list[str]:
        return training.labelled_cases(self.split.training, list(self.images.labels))

    def _make(self, continued: bool = False) -> Any:
        return training.make_trainer(self.request, self.teacher, continued)

    def _training_settings(self, chosen: TrainingSchedule) -> str:
        return training.assignments(
            self.request, self.teacher, self.maps, str(self.places.start.resolve()), chosen, bool(self._labelled)
        )

    @contextlib.contextmanager
    def _nnunet(self, assignments: str) -> Iterator[None]:
        with self.places.as_nnunet_folders(assignments), self._log():
            yield

    @contextlib.contextmanager
    def _log(self) -> Iterator[None]:
        """Within, what libraries print goes into a file."""
        with (
            self.places.log.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log,
            contextlib.redirect_stdout(log),
        ):
            yield

    def _predict(self, who: str) -> None:
        own = who == "student"
        model = training.student_model(self.places, self.teacher) if own else self.teacher.model
        options = RunOptions(
            device=self.request.device,
            folds=(str(FOLD),) if own else model.folds,
            checkpoint=model.checkpoint,
            mirroring=self.mirroring,
            threads=computing_threads() if self.request.device == "cpu" else None,
            trusted=self.request.trusted and not own,
        )
        with self._log():
            teacher.predict_held_out(
                who,
                model.folder,
                options,
                self.images,
                self.split.held_out,
                self.places,
                self._ending,
                self.state,
                self.listener.show,
            )

    def _seconds_by_model(self) -> dict[str, float]:
        found = {}
        for who in ("teacher", "student"):
            timed = self.state.values.get(f"predicted_by_{who}")
            if timed and timed["images"]:
                found[who] = timed["seconds"] / timed["images"]
        return found

    # what is told -----------------------------------------------------------------------------------------------------

    def _warn(self, line: str) -> None:
        self.warnings.append(line)
        self.listener.warn(line)

    def _note_empty(self, empty: list[str], what: str, of: int) -> None:
        if empty:
            self._warn(f"The model finds nothing in {len(empty)} of {of} {what}: {some(empty)}.")


def resumed_line(request: ShrinkRequest) -> str:
    """What to say when a run was stopped."""
    return f"Stopped. Run the same line again to go on; what is done is in {request.output / 'work'}."
