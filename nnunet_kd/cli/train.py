"""``nnunet-kd train``: nnU-Net's training command with distillation's settings on the command line."""

from __future__ import annotations

import contextlib
from typing import Annotated, Optional

import typer

from nnunet_kd.cli import training_options as options
from nnunet_kd.cli.options import option
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.folds import parse_fold
from nnunet_kd.system.counts import counted


def train(
    dataset: options.Dataset,
    configuration: options.Configuration,
    fold: options.Fold,
    method: Annotated[Optional[str], option("method", f"{options.METHODS} Default: dcd.")] = None,  # noqa: UP045  typer on Python 3.10
    trainer: Annotated[
        Optional[str],  # noqa: UP045
        option("trainer", "Of this package, in place of -m, such as nnUNetTrainerDCD."),
    ] = None,
    teachers: options.Teachers = None,
    recipe: options.Recipe = None,
    assignments: options.Assignments = None,
    plans_name: options.PlansName = "nnUNetPlans",
    device: options.Device = "cuda",
    gpus: Annotated[int, option("num-gpus", "GPUs to train on.", min=1)] = 1,
    pretrained_weights: Annotated[
        Optional[str],  # noqa: UP045
        option("pretrained-weights", "Checkpoint of a student of the same plan to start from."),
    ] = None,
    continue_training: Annotated[bool, option("continue", "Continue from the latest checkpoint.")] = False,
    validate: Annotated[bool, typer.Option("--val", help="Only validate a finished training.")] = False,
    validate_best: Annotated[
        bool, option("val-best", "Validate with checkpoint_best, after the training; with --val without training.")
    ] = False,
    probabilities: Annotated[bool, option("save-probabilities", "Save the validation's probabilities.")] = False,
    no_checkpoints: Annotated[bool, option("disable-checkpointing", "Save no checkpoints, to try things out.")] = False,
) -> None:
    """Distil a student. The same as nnUNetv2_train -tr nnUNetTrainer<METHOD>, whose options it takes; also under torchrun."""
    import torch

    from nnunet_kd.training.distributed import launched_by_torchrun, process_group

    chosen = options.chosen_trainer(method, trainer)
    options.check_device(device)
    own_fold = str(parse_fold(fold))
    if launched_by_torchrun() and gpus > 1:
        raise SettingsError("torchrun says how many processes there are (--nproc-per-node); leave -num_gpus out.")
    if launched_by_torchrun() and device == "mps":
        raise SettingsError("several processes need CUDA devices or -device cpu.")
    if gpus > 1 and device != "cuda":
        raise SettingsError("-num_gpus needs CUDA devices; for several processes on the CPU use torchrun.")
    if gpus > 1 and gpus > torch.cuda.device_count():
        found = counted(torch.cuda.device_count(), "CUDA device")
        raise SettingsError(f"-num_gpus {gpus}: this process sees {found}. Give that number at most.")
    if continue_training and validate:
        raise SettingsError("--c goes on with a training, and --val validates a finished one. Leave one of them out.")
    if validate_best and no_checkpoints:
        raise SettingsError(
            "--val_best needs checkpoint_best, and --disable_checkpointing saves none. Leave one of them out."
        )
    options.pass_settings(teachers or [], recipe, assignments or [])
    if pretrained_weights is not None and continue_training:
        raise SettingsError(
            "--c continues with the weights of the training's own checkpoint. Leave --c or -pretrained_weights out."
        )
    folder = options.fold_folder(chosen, dataset, configuration, plans_name, own_fold)
    if validate:
        options.check_validation(folder, validate_best)
    begun = (continue_training or validate) and any(folder.glob("checkpoint_*.pth"))
    settings, pretrained_weights = options.check_settings(
        chosen, dataset, configuration, plans_name, own_fold, pretrained_weights, begun
    )
    if not begun and pretrained_weights is None:
        options.check_start(chosen, settings.start, own_fold)
    options.check_places(folder, dataset)

    from nnunet_kd.nnunet.training import nothing_left_if_refused, run_training

    if device != "cpu":
        torch.set_num_threads(1)  # as nnU-Net does; on the CPU, PyTorch's default or OMP_NUM_THREADS holds
    joined = process_group(device) if launched_by_torchrun() else contextlib.nullcontext(torch.device(device))
    with nothing_left_if_refused(folder), joined as own_device:
        run_training(
            dataset,
            configuration,
            own_fold,
            chosen,
            plans_name,
            own_device,
            pretrained_weights,
            gpus,
            probabilities,
            continue_training,
            validate,
            validate_best,
            no_checkpoints,
        )
