"""Plans, datasets and teachers small enough for tests, and the real ones where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders, write_untrained_teacher

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"
REAL_TEACHER = SHARED / "teacher" / "Dataset004_Hippocampus" / "nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres"
needs_real_teacher = pytest.mark.skipif(
    not REAL_TEACHER.is_dir(),
    reason="needs the hippocampus teacher of docs/results.md, which is not part of the repository",
)

ARCHITECTURES = "dynamic_network_architectures.architectures.unet"


def make_plans(
    architecture: str = "PlainConvUNet",
    dimensions: int = 3,
    features: tuple[int, ...] = (8, 16, 32),
    patch: tuple[int, ...] = (16, 16, 16),
    strides: tuple[tuple[int, ...], ...] | None = None,
    configuration: str | None = None,
    channels: int = 1,
) -> dict[str, Any]:
    """A complete nnU-Net plan with one configuration (``3d_fullres`` or ``2d``)."""
    stages = len(features)
    patch = patch[:dimensions]
    blocks = "n_conv_per_stage" if architecture == "PlainConvUNet" else "n_blocks_per_stage"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    name = configuration or ("3d_fullres" if dimensions == 3 else "2d")
    return {
        "dataset_name": "Dataset998_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [16] * 3,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            name: {
                "data_identifier": f"nnUNetPlans_{name}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch),
                "median_image_size_in_voxels": [float(size) for size in patch],
                "spacing": [1.0] * dimensions,
                "normalization_schemes": ["ZScoreNormalization"] * channels,
                "use_mask_for_norm": [False] * channels,
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "batch_dice": dimensions == 2,
                "architecture": {
                    "network_class_name": f"{ARCHITECTURES}.{architecture}",
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(features),
                        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                        "kernel_sizes": [[3] * dimensions] * stages,
                        "strides": [
                            list(s) for s in strides or ((1,) * dimensions, *((2,) * dimensions,) * (stages - 1))
                        ],
                        blocks: [1] * stages,
                        "n_conv_per_stage_decoder": [1] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that at the end no worker is left alone with them; nightly ones when asked for."""
    if "nightly" not in config.option.markexpr:
        kept = [item for item in items if not item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """Empty nnU-Net folders, set as nnU-Net's variables."""
    with nnunet_folders(tmp_path):
        yield tmp_path


@pytest.fixture
def tiny(folders: Path) -> dict[str, Any]:
    """A dataset on disk with an untrained teacher; returns its plan."""
    plans = make_plans()
    write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    return plans
