"""nnU-Net's trainer with a smaller network and, beside its loss, a frozen teacher's advice.

Every hook calls nnU-Net's own first or last and adds to it. The training step itself is nnU-Net's: the student's features
are caught by a hook, and the distillation loss is added where nnU-Net computes its own, so that autocast, gradient scaling,
clipping and synchronisation hold for both.
"""

from __future__ import annotations

import io
import random
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import yaml
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import nnunet_kd
from nnunet_kd.averaging import StudentAverage
from nnunet_kd.checkpoint import ENTRY, add_learned_parameters, read_checkpoint, save_with_entry
from nnunet_kd.distillation import Distillation
from nnunet_kd.errors import TeacherError
from nnunet_kd.features import EncoderCapture, plain_module
from nnunet_kd.files import write_atomically
from nnunet_kd.history import LossHistory
from nnunet_kd.objectives.base import NetworkPair, StepOutputs
from nnunet_kd.plans import MARK, provenance, reduce_plans, stage_channels
from nnunet_kd.settings import Settings, merge, resolve_settings, saved_settings
from nnunet_kd.teacher import FrozenTeacher, TeacherSource, check_teacher, load_teacher, locate_teacher

SETTINGS_FILE = "distillation_settings.yaml"
CURVES_FILE = "distillation.png"


class _LossWithAdvice(nn.Module):
    """nnU-Net's loss, followed by whatever the trainer adds to it in training steps."""

    def __init__(self, segmentation: nn.Module, trainer: DistillationTrainer) -> None:
        super().__init__()
        self.segmentation = segmentation
        self._add = trainer.add_distillation

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        return self._add(self.segmentation(output, target))


class DistillationTrainer(nnUNetTrainer):
    """Trains a reduced network, with the objectives that the settings name.

    Attributes:
        recipe: the trainer's own recipe, the lowest layer of its settings.
        objectives: the objectives it takes from the settings; ``None``: any.
        settings: the run's resolved settings.
        history: mean losses per epoch.
    """

    recipe: ClassVar[str] = "student"
    objectives: ClassVar[tuple[str, ...] | None] = ()

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature, which it inspects
    ) -> None:
        continued = plans.pop("continue_training", False)
        self.settings = self._resolve_settings(plans, configuration, fold, continued)
        plans = reduce_plans(plans, self.settings.reduction, required=configuration)
        # nnU-Net takes this key out of the dictionary that it also stores
        plans["continue_training"] = continued
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.settings.epochs is not None:
            self.num_epochs = self.settings.epochs
        if self.settings.iterations_per_epoch is not None:
            self.num_iterations_per_epoch = self.settings.iterations_per_epoch
        if self.settings.validation_iterations is not None:
            self.num_val_iterations_per_epoch = self.settings.validation_iterations
        if self.settings.learning_rate is not None:
            self.initial_lr = self.settings.learning_rate
        self.history = LossHistory()
        self._teacher: FrozenTeacher | None = None
        self._distillation: Distillation | DistributedDataParallel | None = None
        self._capture: EncoderCapture | None = None
        self._average: StudentAverage | None = None
        self._restored: dict[str, Any] = {}
        self._in_train_step = False

    # settings and plan ------------------------------------------------------------------------------------------------

    def _resolve_settings(
        self, plans: dict[str, Any], configuration: str, fold: int | str, continued: bool
    ) -> Settings:
        dataset_folder = None
        if nnUNet_preprocessed.is_set():
            dataset_folder = Path(nnUNet_preprocessed.require()) / plans["dataset_name"]
        saved = None
        if continued and nnUNet_results.is_set():
            model = f"{type(self).__name__}__{plans['plans_name']}__{configuration}"
            folder = Path(nnUNet_results.require()) / plans["dataset_name"] / model / f"fold_{fold}"
            saved = saved_settings(folder / SETTINGS_FILE)
        return resolve_settings(self.recipe, self.objectives, dataset_folder, saved=saved)

    def initialize(self) -> None:
        """nnU-Net's own, after seeding; a cascade's previous segmentations come from the teacher's trainer."""
        if self.settings.seed is not None:
            # the same weights on every rank, other patches
            torch.manual_seed(self.settings.seed)
            np.random.seed(self.settings.seed + self.local_rank)  # noqa: NPY002  what nnU-Net's loaders draw from
            random.seed(self.settings.seed + self.local_rank)
        if self.is_cascaded:
            self.folder_with_segs_from_previous_stage = str(self._previous_stage_segmentations())
        super().initialize()

    def _previous_stage_segmentations(self) -> Path:
        source = self._locate_teacher(None)
        previous = self.configuration_manager.previous_stage_name
        model = f"{source.model_folder.name.rsplit('__', 1)[0]}__{previous}"
        folder: Path = source.model_folder.with_name(model) / "predicted_next_stage" / self.configuration_name
        if not folder.is_dir():
            raise TeacherError(
                f"{self.configuration_name} is the second stage of a cascade and needs the first stage's segmentations in "
                f"{folder}, which does not exist. They are written when the teacher's {previous} finishes its validation on "
                f"every fold (nnUNetv2_train ... {previous} FOLD --val)."
            )
        return folder

    # start ------------------------------------------------------------------------------------------------------------

    def _locate_teacher(self, unpack_to: Path | None) -> TeacherSource:
        marked = self.configuration_manager.configuration[MARK]
        return locate_teacher(
            self.settings.teacher,
            Path(nnUNet_results.require()) if nnUNet_results.is_set() else None,
            self.plans_manager.dataset_name,
            marked["teacher_plans_name"],
            self.configuration_name,
            self.fold,
            unpack_to,
        )

    def _prepare_teacher(self) -> None:
        """Find, check and load the teacher; the settings then say exactly which it is."""
        with tempfile.TemporaryDirectory(prefix="nnunet_kd_teacher_") as folder:
            source = self._locate_teacher(Path(folder))
            check_teacher(source, self.plans_manager.plans, self.configuration_name, self.dataset_json)
            digest = source.sha256()
            expected = self.settings.teacher.sha256
            if expected is not None and digest != expected:
                raise TeacherError(
                    f"the teacher {source} has SHA-256 {digest}, but the settings ask for {expected}: it is another checkpoint "
                    f"than the one meant. Give the right one, or leave `teacher.sha256` out of the settings."
                )
            self._teacher = load_teacher(source, self.device, compiled=self._do_i_compile())
        pinned = {
            "path": str((source.origin or source.model_folder).resolve()),
            "fold": source.fold if source.fold == "all" else int(source.fold),
            "checkpoint": source.checkpoint,
            "sha256": digest,
        }
        self.settings = Settings.model_validate(merge(self.settings.as_dict(), {"teacher": pinned}))
        self.print_to_log_file(f"Teacher: {source} (SHA-256 {digest})")
        if str(self.fold) != source.fold:
            self.print_to_log_file(
                f"WARNING: the teacher is of fold {source.fold}, the student of fold {self.fold}: the teacher has seen the "
                f"student's validation cases in training, so validation results will look better than they are."
            )

    def prepare_distillation(self) -> None:
        """Check the teacher, then build the networks and what objectives learn; needs no training data."""
        objectives = self.settings.active_objectives()
        if objectives:
            self._prepare_teacher()
        if not self.was_initialized:
            self.initialize()
        self._restore_average()
        if objectives:
            self._start_distillation()

    def on_train_start(self) -> None:
        """Everything that can be wrong with the teacher comes to light before nnU-Net starts its loaders."""
        self.prepare_distillation()
        super().on_train_start()
        if self.local_rank == 0:
            text = yaml.safe_dump(self.settings.as_dict(), sort_keys=False)
            header = f"# nnunet-kd {nnunet_kd.__version__}, trainer {type(self).__name__}; usable as NNUNET_KD_CONFIG\n"
            write_atomically(
                Path(self.output_folder) / SETTINGS_FILE, lambda file: file.write((header + text).encode())
            )
        reduction = provenance(self.plans_manager.plans, self.configuration_name)
        self.print_to_log_file(f"Student: {reduction}\nSettings: {self.settings.as_dict()}")

    def _start_distillation(self) -> None:
        assert self._teacher is not None
        networks = NetworkPair(
            teacher_channels=self._teacher.channels,
            student_channels=stage_channels(self.plans_manager.plans, self.configuration_name),
            dimensions=len(self.configuration_manager.patch_size),
        )
        distillation = Distillation(self.settings.active_objectives(), networks).to(self.device)
        if "distillation" in self._restored:
            distillation.load_state_dict(self._restored["distillation"])
        learned = [parameter for parameter in distillation.parameters() if parameter.requires_grad]
        if learned:
            add_learned_parameters(self.optimizer, learned, self._restored.get("optimizer"))
        self._distillation = distillation
        if self.is_ddp:
            for parameter in distillation.parameters():
                dist.broadcast(parameter.data, src=0)
            if learned:
                devices = [self.local_rank] if self.device.type == "cuda" else None
                self._distillation = DistributedDataParallel(distillation, device_ids=devices)
        # before the network is first called: compiled code would not see a later hook
        self._capture = EncoderCapture(self.network)

    def _restore_average(self) -> None:
        """Put the weights in training back into the network if the checkpoint held their average."""
        network = plain_module(self.network)
        if self.settings.ema is not None:
            self._average = StudentAverage(network, self.settings.ema)
        if "training_weights" in self._restored:
            network.load_state_dict(self._restored["training_weights"])

    # step -------------------------------------------------------------------------------------------------------------

    def _build_loss(self) -> nn.Module:
        return _LossWithAdvice(super()._build_loss(), self)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, with the student's features caught while any objective counts."""
        if self._capture is not None:
            assert self._distillation is not None
            self._capture.enabled = self._plain_distillation().active(self.current_epoch)
        self._in_train_step = True
        try:
            result: dict[str, Any] = super().train_step(batch)
        finally:
            self._in_train_step = False
            if self._capture is not None:
                self._capture.enabled = False
                self._capture.clear()
        if self._average is not None:
            self._average.update()
        return result

    def add_distillation(self, segmentation: torch.Tensor) -> torch.Tensor:
        """The training step's total loss; outside of training steps, the segmentation loss itself."""
        if not self._in_train_step:
            return segmentation
        self.history.add({"segmentation": segmentation.detach()})
        if self._capture is None or not self._capture.enabled:
            return segmentation
        assert self._teacher is not None
        assert self._distillation is not None
        assert self._capture.image is not None
        step = StepOutputs(
            student_features=self._capture.features,
            teacher_features=self._teacher.features(self._capture.image),
            epoch=self.current_epoch,
        )
        loss, terms = self._distillation(step)
        self.history.add(terms)
        total: torch.Tensor = segmentation + loss
        return total

    def _plain_distillation(self) -> Distillation:
        module = self._distillation
        plain = module.module if isinstance(module, DistributedDataParallel) else module
        assert isinstance(plain, Distillation)
        return plain

    # epoch ------------------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Also tell the epoch's losses apart: log file, and loggers such as W&B."""
        super().on_train_epoch_end(train_outputs)
        means = self.history.close_epoch(self.current_epoch)
        for line in self.history.describe(means):
            self.print_to_log_file(line)
        if self.local_rank == 0:
            for logger in self.logger.loggers:
                for name, value in means.items():
                    logger.log(f"kd/{name}", value, self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """With EMA, the average is what is validated and saved."""
        if self._average is not None and not self._average.in_use:
            self._average.swap()
        super().on_validation_epoch_start()

    def on_epoch_end(self) -> None:
        """Also draw the losses."""
        super().on_epoch_end()
        if self._average is not None and self._average.in_use:
            self._average.swap()
        if self.local_rank == 0:
            self.history.draw(Path(self.output_folder) / CURVES_FILE)

    def on_train_end(self) -> None:
        """Let go of everything that only training needed; with EMA, the average stays in the network."""
        if self._average is not None and not self._average.in_use:
            self._average.swap()
        super().on_train_end()
        if self._capture is not None:
            self._capture.remove()
        self._teacher = self._capture = None

    # checkpoint -------------------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """A plain nnU-Net checkpoint of the student, with what distillation needs to resume in one extra entry."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        entry: dict[str, Any] = {
            "version": nnunet_kd.__version__,
            "settings": self.settings.as_dict(),
            "history": self.history.epochs,
        }
        if self._distillation is not None:
            entry["distillation"] = self._plain_distillation().state_dict()
        if self._average is not None and self._average.in_use:
            entry["training_weights"] = self._average.other_weights()

        def save(buffer: io.BytesIO) -> None:
            super(DistillationTrainer, self).save_checkpoint(buffer)

        save_with_entry(save, entry, Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """nnU-Net's own, with the student as the checkpoint describes it, and what distillation had learned."""
        if not isinstance(filename_or_checkpoint, str):
            raise TypeError("load_checkpoint takes the path of a checkpoint file.")
        checkpoint = read_checkpoint(filename_or_checkpoint)
        if not self.was_initialized:
            # --val is run without the settings of the training, and with another reduction the network would not fit
            self.plans_manager = PlansManager(checkpoint["init_args"]["plans"])
            self.configuration_manager = self.plans_manager.get_configuration(self.configuration_name)
        super().load_checkpoint(filename_or_checkpoint)
        self._restored = checkpoint.get(ENTRY, {})
        self.history = LossHistory(self._restored.get("history", [])[: self.current_epoch])
