"""Small datasets and model folders in nnU-Net's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy import ndimage

from nnunet_kd.evaluation.folders import evaluate_folder

DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "core": 1, "rim": 2},
    "numTraining": 4,
    "file_ending": ".nii.gz",
}
SPACING = (1.0, 0.8, 2.0)  # as SimpleITK has it: x, y, z


def write_image(path, array, spacing=SPACING, origin=(5.0, -3.0, 2.0), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)):
    """Write (Z, Y, X) with a header."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection([float(value) for value in direction])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def labels(seed, wrong=0.0, shape=(10, 16, 14)):
    """A core in a rim; ``wrong`` voxels' share is perturbed."""
    grids = np.indices(shape) - (np.array(shape) / 2 - 0.5).reshape(3, 1, 1, 1)
    random = np.random.default_rng(seed)
    bumps = ndimage.gaussian_filter(random.normal(size=shape), 1.5) * 6
    if wrong:
        bumps += ndimage.gaussian_filter(np.random.default_rng(seed + 1000).normal(size=shape), 1.0) * 6 * wrong
    radius = np.sqrt((grids**2 * np.array([2.0, 1, 1]).reshape(3, 1, 1, 1)).sum(0)) + bumps
    return ((radius < 6).astype(np.uint8) + (radius < 3.5)).astype(np.uint8) % 3


def write_dataset(folder: Path, cases=4, methods=None):
    """``raw`` with images, labels and dataset.json, and one folder of predictions per method."""
    raw = folder / "raw" / "Dataset999_Shells"
    names = [f"case_{index}" for index in range(cases)]
    for seed, name in enumerate(names):
        write_image(raw / "labelsTr" / f"{name}.nii.gz", labels(seed))
        image = labels(seed) * 50.0 + np.random.default_rng(seed).normal(size=labels(seed).shape)
        write_image(raw / "imagesTr" / f"{name}_0000.nii.gz", image.astype(np.float32))
        for method, wrong in (methods or {}).items():
            write_image(folder / method / f"{name}.nii.gz", labels(seed, wrong))
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return raw


def plans(features=(4, 8), patch=(8, 16, 16)):
    """A small plan of nnU-Net 2."""
    stages = len(features)
    return {
        "dataset_name": "Dataset999_Shells",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "patch_size": list(patch),
                "batch_size": 2,
                "median_image_size_in_voxels": [10.0, 20.0, 30.0],
                "spacing": [2.0, 0.8, 1.0],
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(features),
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[3, 3, 3]] * stages,
                        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                        "n_conv_per_stage": [1] * stages,
                        "n_conv_per_stage_decoder": [1] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }


def write_model(folder: Path, fold="0", plan=None, entry=None, settings=None, dice=(0.1, 0.4, 0.6)):
    """A trained model folder, as stock nnU-Net leaves it; weights are random."""
    plan = plan or plans()
    configuration = PlansManager(plan).get_configuration("3d_fullres")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        3,
        deep_supervision=False,
    )
    fold_folder = folder / f"fold_{fold}"
    fold_folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "plans": plan, "fold": fold, "dataset_json": DATASET_JSON},
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "logging": {"ema_fg_dice": [np.float32(value) for value in dice], "train_losses": [-0.1, -0.2, -0.3]},
    }
    if entry is not None:
        checkpoint["nnunet_kd"] = entry
    torch.save(checkpoint, fold_folder / "checkpoint_final.pth")
    if settings is not None:
        (fold_folder / "distillation_settings.yaml").write_text(settings)
    return folder


def evaluated(tmp_path, raw, **options):
    return evaluate_folder(tmp_path / "pred", raw / "labelsTr", raw / "dataset.json", **options)
