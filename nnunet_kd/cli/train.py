"""``nnunet-kd train``: nnU-Net's training command with distillation's settings on the command line."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Annotated, Optional

import typer

from nnunet_kd.environment import find_trainer, method_trainer, preprocessed_dataset, required_folder
from nnunet_kd.errors import SettingsError


def train(
    dataset: Annotated[str, typer.Argument(help="Dataset number or name.")],
    configuration: Annotated[str, typer.Argument(help="2d, 3d_fullres, ...")],
    fold: Annotated[str, typer.Argument(help="0 to 4, or all.")],
    method: Annotated[str, typer.Option("-m", "--method", help="dcd, student, ...")] = "dcd",
    teachers: Annotated[
        Optional[list[str]],  # noqa: UP045  typer on Python 3.10
        typer.Option(
            "-t",
            "--teacher",
            help="Model folder, checkpoint_*.pth or exported zip; repeat it for several teachers. Default: searched for.",
        ),
    ] = None,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--recipe", help="A shipped recipe's name or a YAML file."),
    ] = None,
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, for example --set epochs=300; repeatable."),
    ] = None,
    plans_name: Annotated[
        str, typer.Option("-p", "--plans", help="The teacher's plan, or a student's.")
    ] = "nnUNetPlans",
    device: Annotated[str, typer.Option("-device", "--device", help="cuda, cpu or mps.")] = "cuda",
    gpus: Annotated[int, typer.Option("-num_gpus", help="GPUs to train on.")] = 1,
    pretrained_weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("-pretrained_weights", help="Checkpoint of a student of the same plan to start from."),
    ] = None,
    continue_training: Annotated[bool, typer.Option("--c", help="Continue from the latest checkpoint.")] = False,
    validate: Annotated[bool, typer.Option("--val", help="Only validate a finished training.")] = False,
    validate_best: Annotated[bool, typer.Option("--val_best", help="Validate checkpoint_best.")] = False,
    probabilities: Annotated[bool, typer.Option("--npz", help="Save the validation's probabilities.")] = False,
) -> None:
    """Distil a student. The same as nnUNetv2_train -tr nnUNetTrainer<METHOD>, whose options it takes; also under torchrun."""
    import torch

    from nnunet_kd.distributed import launched_by_torchrun, process_group
    from nnunet_kd.plans import read_plans, reduce_plans
    from nnunet_kd.settings_sources import CONFIG_VARIABLE, SET_VARIABLE, resolve_settings

    trainer = method_trainer(method)
    if device not in ("cuda", "cpu", "mps"):
        raise SettingsError(f"-device must be cuda, cpu or mps, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("there is no CUDA device here; train on the CPU with `-device cpu`.")
    if launched_by_torchrun() and gpus > 1:
        raise SettingsError("torchrun says how many processes there are (--nproc-per-node); leave -num_gpus out.")
    if launched_by_torchrun() and device == "mps":
        raise SettingsError("several processes need CUDA devices or -device cpu.")
    if gpus > 1 and device != "cuda":
        raise SettingsError("-num_gpus needs CUDA devices; for several processes on the CPU use torchrun.")
    if fold != "all" and not fold.isdigit():
        raise SettingsError(f"the fold must be a number or all, got {fold!r}.")
    required_folder("nnUNet_results")
    given = list(assignments or [])
    paths = [os.path.abspath(os.path.expanduser(teacher)) for teacher in teachers or []]
    if len(paths) == 1:
        given.append(f"teacher.path={json.dumps(paths[0])}")
    elif paths:
        given.append(f"teacher={json.dumps(paths)}")
    if recipe is not None:
        os.environ[CONFIG_VARIABLE] = os.path.abspath(recipe) if os.path.isfile(recipe) else recipe
    os.environ[SET_VARIABLE] = json.dumps(given)

    folder, _ = preprocessed_dataset(dataset)
    trainer_class = find_trainer(trainer)
    settings = resolve_settings(trainer_class.recipe, trainer_class.objectives, folder)
    reduce_plans(read_plans(folder / f"{plans_name}.json"), settings.reduction, required=configuration)

    from nnunetv2.run.run_training import run_training

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
            pretrained_weights,
            num_gpus=gpus,
            export_validation_probabilities=probabilities,
            continue_training=continue_training,
            only_run_validation=validate,
            val_with_best=validate_best,
            device=own_device,
        )
