"""How many iterations the training takes: as asked for, or as many as fit into what is left of the time."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_kd.training.gradient_shares import in_temporary_results
from nnunet_kd.training.trainer import DistillationTrainer

LONGEST_EPOCH = 250
"""nnU-Net's iterations of an epoch."""
MOST_EPOCHS = 1000
"""nnU-Net's number of epochs."""
EPOCHS, SHORTEST_EPOCH = 20, 10
"""Of a short training: the learning rate falls from epoch to epoch, so that there must be some, and nnU-Net draws its progress
after every one, so that they must not be too short."""
VALIDATION_SHARE = 0.1
"""Iterations of pseudo validation an epoch, as a share of those of training; nnU-Net: 0.2."""
FEWEST_ITERATIONS = 50
"""That are trained however little time is left."""
AFTER_TRAINING = 60.0
"""Seconds for exports, measuring and the report, beside predicting."""
STUDENT_SHARE = 0.9
"""Of the teacher's time for the same images with one fold that the student is reckoned to take: much of it is reading, placing
windows and writing."""
RESERVE = 0.05
"""Of the time for training, for what else a machine does meanwhile: steps were timed for seconds, and are run for hours."""
TIMED = 8
"""Iterations that are timed."""


@dataclass(frozen=True)
class TrainingSchedule:
    """Of a training.

    Attributes:
        epochs, iterations_per_epoch, validation_iterations: as in the settings.
    """

    epochs: int
    iterations_per_epoch: int
    validation_iterations: int

    @property
    def iterations(self) -> int:
        """Of the whole training."""
        return self.epochs * self.iterations_per_epoch

    def assignments(self) -> list[str]:
        """As settings of the trainer."""
        return [f"{name}={value}" for name, value in asdict(self).items()]


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one training iteration, one of pseudo validation, and what an epoch takes besides."""

    iteration: float
    validation: float
    epoch: float

    def of(self, schedule: TrainingSchedule) -> float:
        """Of a whole training."""
        return schedule.epochs * (
            schedule.iterations_per_epoch * self.iteration
            + schedule.validation_iterations * self.validation
            + self.epoch
        )


def schedule_of(iterations: int) -> TrainingSchedule:
    """nnU-Net's schedule for so many iterations: 250 an epoch, or in a short training up to :data:`EPOCHS` shorter ones.

    The learning rate falls over all of them. What does not divide is rounded to the nearest, at least one iteration.
    """
    epochs = min(MOST_EPOCHS, max(math.ceil(iterations / LONGEST_EPOCH), min(EPOCHS, iterations // SHORTEST_EPOCH), 1))
    each = max(1, round(iterations / epochs))
    return TrainingSchedule(epochs, each, max(1, min(50, round(VALIDATION_SHARE * each))))


def fitted_schedule(seconds: float, times: StepTimes) -> TrainingSchedule:
    """The longest schedule that takes no more than so many seconds, but at least :data:`FEWEST_ITERATIONS`."""
    low, high = FEWEST_ITERATIONS, MOST_EPOCHS * LONGEST_EPOCH
    if times.of(schedule_of(high)) <= seconds:
        return schedule_of(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if times.of(schedule_of(middle)) <= seconds else (low, middle)
    return schedule_of(low)


def left_for_training(minutes: float, spent: float, teacher_seconds: float, folds: int) -> float:
    """Seconds of a budget that the training may take.

    Args:
        minutes: the budget for everything.
        spent: seconds so far.
        teacher_seconds: that the teacher's segmentations of the images kept aside took, with so many ``folds``.
    """
    left = 60 * minutes - spent - AFTER_TRAINING - STUDENT_SHARE * teacher_seconds / folds
    return left * (1 - RESERVE)


def measured_times(make: Callable[[], DistillationTrainer], show: Callable[[float, float, str], Any]) -> StepTimes:
    """Train two short epochs in a temporary folder, and take the time.

    Args:
        make: builds the trainer; its settings say two epochs of :data:`TIMED` iterations.
        show: told how far it is.
    """
    ends: list[tuple[int, float]] = []
    validations: list[float] = []
    with in_temporary_results(make) as trainer:
        train_step, validation_step = trainer.train_step, trainer.validation_step
        epochs: list[float] = []
        on_epoch_start, on_epoch_end = trainer.on_epoch_start, trainer.on_epoch_end

        def timed_step(batch: dict[str, Any]) -> dict[str, Any]:
            result = train_step(batch)
            ends.append((trainer.current_epoch, time.perf_counter()))
            show(len(ends), 2 * TIMED, "measuring a step")
            return result

        def timed_validation(batch: dict[str, Any]) -> dict[str, Any]:
            began = time.perf_counter()
            result = validation_step(batch)
            validations.append(time.perf_counter() - began)
            return result

        def start_epoch() -> None:
            epochs.append(time.perf_counter())
            on_epoch_start()

        def end_epoch() -> None:
            on_epoch_end()
            epochs.append(time.perf_counter())

        trainer.train_step, trainer.validation_step = timed_step, timed_validation  # type: ignore[method-assign]
        trainer.on_epoch_start, trainer.on_epoch_end = start_epoch, end_epoch  # type: ignore[method-assign]
        trainer.run_training()
    between = [
        later - earlier for (epoch, earlier), (next_epoch, later) in itertools.pairwise(ends) if epoch == next_epoch
    ]
    iteration, validation = statistics.median(between), statistics.median(validations)
    last = epochs[-1] - epochs[-2]
    per_epoch = len(validations) // 2
    return StepTimes(iteration, validation, max(0.0, last - TIMED * iteration - per_epoch * validation))
