"""Where a trainer's soft labels come from: chosen and checked before training, loaded with every patch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.distillation.objectives.soft import SoftSettings
from nnunet_kd.distillation.soft_labels.choice import choose_maps
from nnunet_kd.distillation.soft_labels.student import student_of
from nnunet_kd.errors import MissingRequirement, SettingsError
from nnunet_kd.nnunet.datasets import JoinedDataset, preprocessed_cases
from nnunet_kd.nnunet.environment import optional_folder
from nnunet_kd.nnunet.training import loader_processes, training_loader
from nnunet_kd.system.memory import available_bytes
from nnunet_kd.training.distributed import gather, rank_zero_first
from nnunet_kd.training.soft_label_loader import SoftLabelLoader
from nnunet_kd.training.started import StartedTrainer
from nnunet_kd.training.unlabelled import share_of_labels, unlabelled_cases, unlabelled_folder


class SoftLabelTrainer(StartedTrainer):
    """Stored soft labels, where the objective ``soft`` reads them.

    Attributes:
        soft_labels: the folder of the maps; ``None``: none are read.
        maps_in_batches: whoever makes the batches brings the maps too (benchmarks), so that none are looked for.
        unlabelled: cases without labels, which are trained on beside the fold's own; see :mod:`nnunet_kd.training.unlabelled`.
    """

    soft_labels: Path | None = None
    maps_in_batches: bool = False
    unlabelled: frozenset[str] = frozenset()

    def reads_maps(self) -> bool:
        """Whether an objective in use learns from stored maps."""
        return any(objective.reads_maps for objective in self.settings.active_objectives().values())

    def choose_soft_labels(self) -> None:
        """Find and check the maps; the settings then say which they are, and what their teachers' training mirrored.

        Raises:
            DataError: see :func:`~nnunet_kd.distillation.soft_labels.choice.choose_maps`.
            MissingRequirement: patches with maps of so many classes do not fit into memory.
            SettingsError: there are cases without labels, and what they cannot be used with.
        """
        wanted = self.settings.active_objectives().get("soft")
        if not isinstance(wanted, SoftSettings) or not wanted.reads_maps or self.maps_in_batches:
            return
        if self.is_ddp:
            with rank_zero_first():
                training, validation = self.do_split()
        else:
            training, validation = self.do_split()
        cases, plans = Path(self.preprocessed_dataset_folder), self.plans_manager.plans
        unlabelled = unlabelled_cases(self, [*map(str, training), *map(str, validation)])
        self._check_unlabelled(unlabelled)
        student = student_of(
            cases, plans, self.configuration_name, self.dataset_json, self.fold, training, validation, unlabelled,
            self.settings, optional_folder("nnUNet_results"), self.device.type,
        )  # fmt: skip
        self._check_memory(len(student.heads), live_helps=not unlabelled and wanted.maps is None)
        chosen = choose_maps(wanted, student)
        pinned, description = chosen.settings, chosen.description
        self.soft_labels, self.unlabelled = Path(str(pinned.maps)), frozenset(unlabelled)
        objectives = self.settings.objectives.model_copy(update={"soft": pinned})
        changes: dict[str, Any] = {"objectives": objectives}
        if self.settings.mirror_axes is None and not self.settings.runs_teacher():
            changes["mirror_axes"] = list(description.trained_mirror_axes)
        self.settings = self.settings.model_copy(update=changes)
        self.print_to_log_file(
            f"Soft labels: {pinned.maps} (SHA-256 {pinned.maps_sha256}), {len(description.teachers)} teacher(s)"
        )
        if unlabelled:
            self.print_to_log_file(
                f"{len(unlabelled)} cases without labels train along. The labels' loss is that of the other samples alone."
            )
        for told in chosen.warnings:
            self.print_to_log_file(f"WARNING: {told}")

    def _check_unlabelled(self, cases: list[str]) -> None:
        if not cases:
            return
        folder = unlabelled_folder(self)
        readers = [name for name in self.settings.active_objectives() if OBJECTIVES[name].reads_labels]
        if readers:
            raise SettingsError(
                f"{folder} holds cases without labels, but {', '.join(readers)} depends on labels. Leave that objective out, or "
                f"move the folder away."
            )
        if self.is_ddp and self.configuration_manager.batch_dice:
            raise SettingsError(
                f"{folder} holds cases without labels. With several processes and nnU-Net's batch_dice they cannot be trained "
                f"on, because every process needs as many samples with labels. Use one process, or move the folder away."
            )

    def labelled_samples(self, batch: Mapping[str, Any]) -> list[int] | None:
        """Places of a batch's samples that have labels; ``None``: all do."""
        if not self.unlabelled:
            return None
        labelled = [place for place, case in enumerate(batch["keys"]) if str(case) not in self.unlabelled]
        return None if len(labelled) == len(batch["keys"]) else labelled

    def labels_share(self, batch: Mapping[str, Any]) -> float:
        """What the labels' loss of this process counts; see :func:`~nnunet_kd.training.unlabelled.share_of_labels`."""
        if not self.unlabelled or not self.is_ddp:
            return 1.0
        labelled = sum(str(case) not in self.unlabelled for case in batch["keys"])
        return share_of_labels(labelled, gather(labelled))

    def get_tr_and_val_datasets(self) -> Any:
        """nnU-Net's own, with the cases without labels among those to train on."""
        training, validation = super().get_tr_and_val_datasets()
        if self.unlabelled:
            more = preprocessed_cases(unlabelled_folder(self), sorted(self.unlabelled))
            training = JoinedDataset([training, more] if training.identifiers else [more])
        return training, validation

    def _check_memory(self, channels: int, live_helps: bool = True) -> None:
        """In every loader process a cropped map in bytes and float32, the batch's samples, and these together; and what waits."""
        # nnU-Net's own: which axes are mirrored is told when the teachers are known
        _, _, patch, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        workers, cached = loader_processes()
        loading = max(1, workers)
        batch = math.prod(self.configuration_manager.patch_size) * self.configuration_manager.batch_size
        needed = channels * ((1 + 4) * math.prod(patch) * loading + 4 * batch * (2 * loading + cached + 1))
        available = available_bytes()
        if available is not None and needed > available:
            other = "set objectives.soft.source=live" if live_helps else "use a computer with more memory"
            raise MissingRequirement(
                f"soft labels of {channels} classes take about {needed / 2**30:.1f} GiB of memory in {workers} loader processes, "
                f"and {available / 2**30:.1f} GiB are free. Lower nnUNet_n_proc_DA, or {other}."
            )

    def get_dataloaders(self) -> Any:
        """nnU-Net's own, whose training patches bring their maps."""
        if self.soft_labels is None:
            return super().get_dataloaders()
        with training_loader(partial(SoftLabelLoader, self.soft_labels)):
            return super().get_dataloaders()
