"""nnU-Net's trainer with a start of its own: random weights, a student's from disk, or weights computed from the teacher's."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn

from nnunet_kd.distillation.features import plain_module
from nnunet_kd.distillation.frozen_teacher import FrozenTeacher, Teachers
from nnunet_kd.distillation.objectives.base import Objective
from nnunet_kd.distillation.settings_sources import SET_VARIABLE, is_asked_for
from nnunet_kd.distillation.starts.fit import inherit
from nnunet_kd.distillation.starts.heads import unused_heads
from nnunet_kd.distillation.starts.layer_fit import LayerFit, Progress
from nnunet_kd.distillation.starts.pairing import pair
from nnunet_kd.distillation.starts.pretrained import find_pretrained, take_over
from nnunet_kd.distillation.starts.projections import PATCHES, fit_projections, has_projections
from nnunet_kd.distillation.starts.student import (
    RANDOM,
    TEACHER,
    pin_start,
    random_start_refused,
    start_from_student,
)
from nnunet_kd.errors import NnunetKdWarning, PlanError, SettingsError
from nnunet_kd.models.plans import stage_channels
from nnunet_kd.nnunet.environment import optional_folder
from nnunet_kd.nnunet.training import load_pretrained_weights_with, scale_weights
from nnunet_kd.system.cores import computing_threads
from nnunet_kd.system.counts import counted
from nnunet_kd.system.memory import freed_memory_kept
from nnunet_kd.training.averaged import AveragedTrainer
from nnunet_kd.training.distributed import in_first_process, is_distributed
from nnunet_kd.training.patches import patch_count, training_patches

SECONDS_BETWEEN_LINES = 10


class StartedTrainer(AveragedTrainer):
    """Knows of ``start`` and ``inheritance`` in the settings; a subclass loads the teachers and says when.

    Attributes:
        requires_start: whether it refuses to train from random weights.
        start_fits: how well the teacher's layers were fitted, if this process computed them.
        show_progress: told how far that is; default: lines in the log.
        foreground_share: of patches, whatever this process has of it.
    """

    requires_start: ClassVar[bool] = False
    start_fits: tuple[LayerFit, ...] = ()
    show_progress: Progress | None = None
    foreground_share: float
    _initial_weights = ""

    def initialize(self) -> None:
        """nnU-Net's own; remembers its random weights, and what it changes where there are several processes.

        The weights of ``-pretrained_weights`` are checked before they are loaded.
        """
        self.foreground_share = self.oversample_foreground_percent
        super().initialize()
        self._initial_weights = fingerprint(self.network)
        load_pretrained_weights_with(self.network, self._load_pretrained_weights)

    def _load_pretrained_weights(self, given: str) -> None:
        plans, configuration = self.plans_manager.plans, self.configuration_name
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NnunetKdWarning)
            try:
                found = find_pretrained(given, plans, configuration, self.dataset_json, self.fold)
            except SettingsError:
                self.remove_log()
                raise
        for told in caught:
            self.print_to_log_file(f"WARNING: {told.message}")
        take_over(found, plain_module(self.network))
        self.print_to_log_file(f"Weights loaded from {found.path} (SHA-256 {found.sha256}).")

    def remove_log(self) -> None:
        """Leave no trace of a training that is refused: nnU-Net's constructor has begun a log."""
        if self.local_rank == 0:
            Path(self.log_file).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                Path(self.output_folder).rmdir()

    def is_new(self) -> bool:
        """Whether no weights were loaded: no checkpoint, and none that nnU-Net was told to load (``-pretrained_weights``)."""
        if self.restored:
            return False
        return not self.was_initialized or fingerprint(self.network) == self._initial_weights

    def check_start(self, new: bool) -> None:
        """Compare the start that is set with what this trainer starts from, or has started from.

        Args:
            new: see :meth:`is_new`.

        Raises:
            SettingsError: a trainer that needs a start is to begin at random; a training is to go on that began with weights
                given by hand, and has saved none; or ``--set`` asks a begun training for another start than it had.
        """
        if new and self.begun is not None and self.begun.pretrained:
            raise SettingsError(
                f"the training in {self.output_folder} began with -pretrained_weights, and stopped before its first checkpoint. "
                f"Give them again and leave --c out."
            )
        if new and self.requires_start and self.settings.start == RANDOM:
            anew = " If it was begun with -pretrained_weights, give them again and leave --c out."
            raise SettingsError(random_start_refused(type(self).__name__) + (anew if self.continued else ""))
        saved = self.restored.get("settings")
        if saved is not None:
            self._keep_start(saved.get("start", RANDOM), saved.get("start_sha256"))

    def _keep_start(self, begun: str, digest: str | None) -> None:
        """What a checkpoint says of its training's start holds, whatever files prefer now."""
        asked = self.settings.start
        if is_asked_for("start", environment={SET_VARIABLE: os.environ.get(SET_VARIABLE, "")}) and asked != begun:
            # a student is known by its hash, wherever its folder was moved to
            students = {RANDOM, TEACHER}.isdisjoint((asked, begun))
            if not students or pin_start(asked, self.fold)[1] != digest:
                raise SettingsError(
                    f"--set start={asked}: the training to continue began with start: {begun}, which cannot be changed any more "
                    f"(it is random after -pretrained_weights, too). Leave start out, or begin a new training without --c."
                )
        self._set(start=begun, start_sha256=digest)

    def take_start(self, new: bool, teachers: Teachers | None) -> None:
        """Put the weights that the settings name in the place of nnU-Net's random ones; the settings then say what was done.

        Args:
            new: see :meth:`is_new`, before the trainer was initialised.
            teachers: needed for ``start: teacher``.

        Raises:
            PlanError: the student cannot start inside the teacher, and that was asked for.
            TeacherError: the teacher's weights are not finite.
            SettingsError: the student on disk is not there, or another network.
        """
        start, log = self.settings.start, self.print_to_log_file
        if not new:
            if not self.restored and start != RANDOM:
                log(f"Weights were loaded before training began; start: {start} is not used.")
                self._set(start=RANDOM, start_sha256=None)
        elif start == TEACHER:
            assert teachers is not None
            self._start_inside(teachers)
        elif start != RANDOM:
            path, digest, fold = start_from_student(self.network, start, self.fold, self.settings.start_sha256)
            self._set(start=path, start_sha256=digest)
            log(f"The student starts from {path} (SHA-256 {digest}).")
            if fold != str(self.fold):
                log(
                    f"WARNING: that student is of fold {fold}, and this is fold {self.fold}. If it was trained, it has seen "
                    f"validation cases of this fold, and validation results look better than they are."
                )

    def _set(self, **values: Any) -> None:
        self.settings = self.settings.model_copy(update=values)

    def _start_inside(self, teachers: Teachers) -> None:
        teacher = teachers.members[0]
        if self.settings.mirror_axes is None and not self.settings.runs_teacher():
            # nobody asks the teacher again when this training is continued
            self._set(mirror_axes=list(teachers.mirror_axes))
        try:
            with self._named_with_both_plans(teacher):
                heads = pair(teacher.network, plain_module(self.network)).heads
                self._compute_start(teacher, heads)
        except PlanError as error:
            if self._start_is_asked_for():
                raise
            self.print_to_log_file(f"WARNING: {error} The recipe only prefers that start: training starts at random.")
            self._set(start=RANDOM)

    @contextlib.contextmanager
    def _named_with_both_plans(self, teacher: FrozenTeacher) -> Iterator[None]:
        """Within, a PlanError becomes one that names both plans and what to do with this trainer."""
        try:
            yield
        except PlanError as error:
            plans = self.plans_manager.plans
            own = stage_channels(plans, self.configuration_name)
            instead = (
                "Train nnUNetTrainerStudent, which starts from random weights"
                if self.requires_start
                else "Set start=random (--set start=random)"
            )
            raise PlanError(
                f"a student of the plan {plans['plans_name']} ({_told(own)}) cannot start inside a teacher of the plan "
                f"{teacher.plans_name} ({_told(teacher.channels)}): {error}. {instead}, or take a teacher that differs from the "
                f"student in its channels only."
            ) from error

    def _start_is_asked_for(self) -> bool:
        preprocessed = optional_folder("nnUNet_preprocessed")
        dataset_folder = None if preprocessed is None else preprocessed / self.plans_manager.dataset_name
        return self.requires_start or is_asked_for("start", dataset_folder)

    def _compute_start(self, teacher: FrozenTeacher, heads: Sequence[str]) -> None:
        """In the first process; the others receive the weights, or the error."""
        self.start_fits = in_first_process(lambda: self._inherit(teacher, heads)) or ()
        if is_distributed():
            for value in plain_module(self.network).state_dict().values():
                dist.broadcast(value, src=0)
        if self.start_fits:
            # where the teacher has no signal, there is no share of it
            worst = max(
                (fit for fit in self.start_fits if fit.trained),
                key=lambda fit: (math.isfinite(fit.unexplained), fit.unexplained),
            )
            self.print_to_log_file(
                f"The student starts inside its teacher: {counted(len(self.start_fits), 'layer')} fitted. Least "
                f"explained is {worst.name}, "
                f"of whose signal {worst.unexplained:.0%} is left."
            )

    def _inherit(self, teacher: FrozenTeacher, heads: Sequence[str]) -> tuple[LayerFit, ...]:
        settings, seed = self.settings.inheritance, self.settings.seed or 0
        count = patch_count(settings.voxels, self.configuration_manager.patch_size)
        unused = unused_heads(heads, scale_weights(self.loss.segmentation))
        with _computing(self.device):
            fits = inherit(
                teacher.network,
                plain_module(self.network),
                training_patches(self, count, settings.augmented, seed),
                settings,
                seed,
                self.label_manager.has_regions,
                self.show_progress or self._log_progress(),
            )
        return tuple(replace(fit, trained=fit.name not in unused) for fit in fits)

    def _log_progress(self) -> Progress:
        last = time.monotonic()

        def tell(done: int, total: int, what: str) -> None:
            nonlocal last
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.print_to_log_file(f"Start from the teacher: {done} of {counted(total, 'part')} done, next: {what}")

        return tell

    def fit_projections(self, objectives: Mapping[str, Objective], teachers: Teachers) -> None:
        """Fit the projections of those objectives whose settings ask for it; see :func:`~.starts.projections.fit_projections`.

        In the first process; the others receive them when :meth:`TeacherSupervision.synchronise` is called.
        """
        active = self.settings.active_objectives()
        fitted = {
            name: objective
            for name, objective in objectives.items()
            if getattr(active[name], "projection_start", "random") == "fitted"
        }
        for name in [name for name, objective in fitted.items() if not has_projections(objective)]:
            self.print_to_log_file(
                f"objectives.{name}.projection_start is fitted, but with these settings it has none."
            )
            del fitted[name]
        if fitted:
            settings, seed = self.settings.inheritance, self.settings.seed or 0
            count = min(PATCHES, patch_count(settings.voxels, self.configuration_manager.patch_size))

            def fit() -> None:
                with _computing(self.device):
                    patches = training_patches(self, count, settings.augmented, seed)
                    fit_projections(fitted, teachers.feature_teacher(0), self.network, patches, seed)

            in_first_process(fit)
            self.print_to_log_file(f"Projections fitted on {count} patches: {', '.join(fitted)}")


def fingerprint(network: nn.Module) -> str:
    """Hash of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in plain_module(network).state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _told(channels: tuple[int, ...]) -> str:
    return f"channels {', '.join(map(str, channels))}" if channels else "without stages"


@contextlib.contextmanager
def _computing(device: torch.device) -> Iterator[None]:
    """Within, PyTorch takes the cores that are ours: nnU-Net gives it one on a GPU, and all of the machine on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(computing_threads())
    try:
        with freed_memory_kept(device.type == "cpu"):
            yield
    finally:
        torch.set_num_threads(before)
