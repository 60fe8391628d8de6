"""``nnunet-kd train``: nnU-Net's training command with distillation's settings on the command line."""

from __future__ import annotations

import contextlib
from typing import Annotated, Optional

import typer

from nnunet_kd.cli import training_options as options
from nnunet_kd.cli.options import option
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.environment import method_trainer
from nnunet_kd.nnunet.folds import parse_fold


def train(
    dataset: options.Dataset,
    configuration: options.Configuration,
    fold: options.Fold,
    method: options.Method = "dcd",
    teachers: options.Teachers = None,
    recipe: options.Recipe = None,
    assignments: options.Assignments = None,
    plans_name: options.PlansName = "nnUNetPlans",
    device: options.Device = "cuda",
    gpus: Annotated[int, option("num-gpus", "GPUs to train on.")] = 1,
    pretrained_weights: Annotated[
        Optional[str],  # noqa: UP045  typer on Python 3.10
        option("pretrained-weights", "Checkpoint of a student of the same plan to start from."),
    ] = None,
    continue_training: Annotated[bool, option("continue", "Continue from the latest checkpoint.")] = False,
    validate: Annotated[bool, typer.Option("--val", help="Only validate a finished training.")] = False,
    validate_best: Annotated[bool, option("val-best", "Validate checkpoint_best.")] = False,
    probabilities: Annotated[bool, option("save-probabilities", "Save the validation's probabilities.")] = False,
) -> None:
    """Distil a student. The same as nnUNetv2_train -tr nnUNetTrainer<METHOD>, whose options it takes; also under torchrun."""
    import torch

    from nnunet_kd.training.distributed import launched_by_torchrun, process_group

    trainer = method_trainer(method)
    options.check_device(device)
    parse_fold(fold)
    if launched_by_torchrun() and gpus > 1:
        raise SettingsError("torchrun says how many processes there are (--nproc-per-node); leave -num_gpus out.")
    if launched_by_torchrun() and device == "mps":
        raise SettingsError("several processes need CUDA devices or -device cpu.")
    if gpus > 1 and device != "cuda":
        raise SettingsError("-num_gpus needs CUDA devices; for several processes on the CPU use torchrun.")
    options.pass_settings(teachers or [], recipe, assignments or [])
    if pretrained_weights is not None and continue_training:
        raise SettingsError(
            "--c continues with the weights of the training's own checkpoint. Leave --c or -pretrained_weights out."
        )
    _, pretrained_weights = options.check_settings(
        trainer, dataset, configuration, plans_name, fold, pretrained_weights
    )

    from nnunet_kd.nnunet.training import run_training

    if device != "cpu":
        torch.set_num_threads(1)  # as nnU-Net does; on the CPU, PyTorch's default or OMP_NUM_THREADS holds
    joined = process_group(device) if launched_by_torchrun() else contextlib.nullcontext(torch.device(device))
    with joined as own_device:
        run_training(
            dataset,
            configuration,
            fold,
            trainer,
            plans_name,
            own_device,
            pretrained_weights,
            gpus,
            probabilities,
            continue_training,
            validate,
            validate_best,
        )
