"""nnU-Net's trainers: made, run, and what of them is private."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

import nnunetv2
import torch
from nnunetv2.run import run_training as nnunet_run
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_kd.errors import NnunetKdError
from nnunet_kd.nnunet.environment import quiet_search
from nnunet_kd.nnunet.processes import errors_of_processes

COMPILE_BACKEND = "inductor"
"""PyTorch's default, which nnU-Net leaves as it is."""
CLIPPED_NORM = 12.0
"""At which ``nnUNetTrainer.train_step`` clips the network's gradient."""
_LOGS = "training_log_*.txt"
_EPOCH = re.compile(r": Epoch [0-9]+\s*$", re.MULTILINE)
"""nnU-Net's line at an epoch's start, in its log."""


def trainer_of_dataset(
    dataset: str,
    configuration: str,
    fold: int | str,
    trainer: str,
    plans_name: str,
    device: torch.device,
    continue_training: bool = False,
) -> Any:
    """A trainer as ``nnUNetv2_train`` makes it, from the preprocessed dataset; with ``continue_training`` as its ``--c`` does."""
    return nnunet_run.get_trainer_from_args(
        dataset,
        configuration,
        fold,
        trainer_name=trainer,
        plans_identifier=plans_name,
        continue_training=continue_training,
        device=device,
    )


def run_training(
    dataset: str,
    configuration: str,
    fold: str,
    trainer: str,
    plans_name: str,
    device: torch.device,
    pretrained_weights: str | None = None,
    gpus: int = 1,
    probabilities: bool = False,
    continue_training: bool = False,
    validate: bool = False,
    validate_best: bool = False,
    no_checkpoints: bool = False,
) -> None:
    """``nnUNetv2_train``, with its own options.

    Raises:
        NnunetKdError: also one that a process of several raised.
    """
    with errors_of_processes():
        nnunet_run.run_training(
            dataset,
            configuration,
            fold,
            trainer,
            plans_name,
            pretrained_weights,
            num_gpus=gpus,
            export_validation_probabilities=probabilities,
            continue_training=continue_training,
            only_run_validation=validate,
            disable_checkpointing=no_checkpoints,
            val_with_best=validate_best,
            device=device,
        )


@contextlib.contextmanager
def nothing_left_if_refused(folder: Path) -> Iterator[None]:
    """Within, a training that is refused before its first epoch leaves no log and no folder; nnU-Net's constructor makes both.

    Args:
        folder: of the fold.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    before = set(folder.glob(_LOGS))
    try:
        yield
    except NnunetKdError:
        if os.environ.get("RANK", "0") == "0":  # of several processes the first one keeps the log
            for log in set(folder.glob(_LOGS)) - before:
                if _EPOCH.search(log.read_text(encoding="utf-8", errors="replace")) is None:
                    log.unlink()
            for place in missing:
                with contextlib.suppress(OSError):  # not empty
                    place.rmdir()
        raise


_LOADERS: MutableMapping[nn.Module, WeakMethod[Callable[[str], None]]] = WeakKeyDictionary()


def load_pretrained_weights_with(network: nn.Module, load: Callable[[str], None]) -> None:
    """Have a network's own function load the file of ``nnUNetv2_train -pretrained_weights``.

    nnU-Net tells its trainers nothing of that file. It reads it onto the device it was saved on, and of several processes onto
    the GPU that has the process's number among all. So a checkpoint of a GPU cannot be read on a machine without, and none
    can on a second machine. Other networks are loaded as before.

    Args:
        network: as nnU-Net's trainer holds it, compiled and wrapped.
        load: a method of the trainer, not kept alive by this. It takes the option's value.
    """
    if nnunet_run.load_pretrained_weights is not _load:
        nnunet_run.load_pretrained_weights = _load
    _LOADERS[network] = WeakMethod(load)


def _load(network: nn.Module, path: str, verbose: bool = False) -> None:
    held = _LOADERS.get(network)
    load = None if held is None else held()
    if load is None:
        load_pretrained_weights(network, path, verbose)
    else:
        load(path)


def build_network(trainer: type[Any], plans: PlansManager, configuration: str, inputs: int, heads: int) -> nn.Module:
    """The network that a trainer builds for prediction, without deep supervision.

    Trainers written for nnU-Net 2.6 and older take the parts of the architecture instead of the plan, as nnU-Net still allows.

    Args:
        trainer: a trainer class.
        plans: of the model.
        configuration: its name.
        inputs, heads: input channels and segmentation heads.
    """
    chosen = plans.get_configuration(configuration)
    described: tuple[Any, ...] = (plans, chosen)
    if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
        described = (
            chosen.network_arch_class_name, chosen.network_arch_init_kwargs, chosen.network_arch_init_kwargs_req_import,
        )  # fmt: skip
    network: nn.Module = trainer.build_network_architecture(*described, inputs, heads, enable_deep_supervision=False)
    return network


def ships_trainer(name: str) -> bool:
    """Whether a trainer is nnU-Net's own."""
    package = nnunetv2.__path__[0]
    with quiet_search():
        found = recursive_find_python_class(
            f"{package}/training/nnUNetTrainer", name, "nnunetv2.training.nnUNetTrainer", package
        )
    return found is not None


@contextlib.contextmanager
def wrapped_for(device: torch.device) -> Iterator[None]:
    """Within, nnU-Net wraps its network for ``device`` instead of for the GPU that has its rank's number."""
    original = nnunet_module.DDP

    def wrap(network: nn.Module, device_ids: object = None, **options: Any) -> DistributedDataParallel:
        own = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=own, **options)

    nnunet_module.DDP = wrap
    try:
        yield
    finally:
        nnunet_module.DDP = original


def compile_backend(trainer: nnUNetTrainer) -> str | None:
    """What the trainer's network is compiled with by ``torch.compile``; ``None``: it is not compiled."""
    return COMPILE_BACKEND if trainer._do_i_compile() else None


def deep_supervision_scales(trainer: nnUNetTrainer) -> list[list[float]]:
    """Size of every target of a batch as a share of the patch, by axis; the finest first."""
    scales = trainer._get_deep_supervision_scales()
    return [list(scale) for scale in scales or [[1.0] * len(trainer.configuration_manager.patch_size)]]


def loss_of_one_output(loss: nn.Module) -> nn.Module:
    """nnU-Net's loss as it is without deep supervision."""
    return loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss


def scale_weights(loss: nn.Module) -> tuple[float, ...]:
    """Weight of every deep-supervision scale in nnU-Net's loss, the finest first; ``(1.0,)`` without deep supervision."""
    return (
        tuple(float(weight) for weight in loss.weight_factors) if isinstance(loss, DeepSupervisionWrapper) else (1.0,)
    )


def loader_processes() -> tuple[int, int]:
    """How many processes load training patches, and how many batches wait; see nnU-Net's ``get_dataloaders``."""
    workers = int(get_allowed_n_proc_DA())
    return workers, max(6, workers // 2) if workers else 0


@contextlib.contextmanager
def training_loader(make: Callable[..., nnUNetDataLoader]) -> Iterator[None]:
    """Within, nnU-Net's ``get_dataloaders`` makes its loader of training cases, the first of the two, with ``make``.

    Args:
        make: takes what nnU-Net's loader takes.
    """
    original, makers = nnunet_module.nnUNetDataLoader, [make]

    def loader(*arguments: Any, **options: Any) -> nnUNetDataLoader:
        return (makers.pop() if makers else original)(*arguments, **options)

    nnunet_module.nnUNetDataLoader = loader
    try:
        yield
    finally:
        nnunet_module.nnUNetDataLoader = original


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The sum of every process's tensor, through which gradients flow as in nnU-Net's Dice of a whole batch."""
    gathered: torch.Tensor = AllGatherGrad.apply(value)
    return gathered.sum(0)


def patch_loader(trainer: nnUNetTrainer, augmented: bool, foreground_share: float) -> nnUNetDataLoader:
    """nnU-Net's own loader of training cases in this process, one patch a time.

    Args:
        trainer: initialised.
        augmented: as in training; ``False``: as in validation.
        foreground_share: how many of the patches are around foreground. In several processes the trainer's own is another one in
            each, 0 or 1 for example.
    """
    manager, labels = trainer.configuration_manager, trainer.label_manager
    scales = deep_supervision_scales(trainer)
    foreground = {
        "is_cascaded": trainer.is_cascaded,
        "foreground_labels": labels.foreground_labels,
        "regions": labels.foreground_regions if labels.has_regions else None,
        "ignore_label": labels.ignore_label,
    }
    initial_size = manager.patch_size
    if augmented:
        rotation, dummy_2d, initial_size, mirror_axes = (
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        transforms = trainer.get_training_transforms(
            manager.patch_size,
            rotation,
            scales,
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=manager.use_mask_for_norm,
            **foreground,
        )
    else:
        transforms = trainer.get_validation_transforms(scales, **foreground)
    dataset, _ = trainer.get_tr_and_val_datasets()
    return nnUNetDataLoader(
        dataset,
        1,
        initial_size,
        manager.patch_size,
        labels,
        oversample_foreground_percent=foreground_share,
        probabilistic_oversampling=True,
        transforms=transforms,
    )
