"""What this package needs of nnU-Net and of the libraries that it is made of, and what of it an installation lacks.

``python -m nnunet_kd.nnunet.contract`` prints nnU-Net's version and everything that is missing, and exits with 1 if anything is.
Names are looked up and signatures bound; nothing is trained.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from nnunet_kd.nnunet.checkpoints import KEYS
from nnunet_kd.system.counts import counted

TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer"
PREDICTOR = "nnunetv2.inference.predict_from_raw_data:nnUNetPredictor"
PLANS = "nnunetv2.utilities.plans_handling.plans_handler"
LABELS = "nnunetv2.utilities.label_handling.label_handling"
LOADER = "nnunetv2.training.dataloading.data_loader:nnUNetDataLoader"
DATASETS = "nnunetv2.training.dataloading.nnunet_dataset"
TRANSFORMS = "batchgeneratorsv2.transforms"
BLOCKS = "dynamic_network_architectures.building_blocks"

CALLS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    (
        "nnunetv2.run.run_training:get_trainer_from_args",
        3,
        ("trainer_name", "plans_identifier", "continue_training", "device"),
    ),
    (
        "nnunetv2.run.run_training:run_training",
        6,
        (
            "num_gpus", "export_validation_probabilities", "continue_training", "only_run_validation", "val_with_best",
            "device",
        ),
    ),
    ("nnunetv2.run.load_pretrained_weights:load_pretrained_weights", 3, ()),
    ("nnunetv2.utilities.find_objects:recursive_find_trainer_class_by_name", 1, ()),
    ("nnunetv2.utilities.find_class_by_name:recursive_find_python_class", 4, ()),
    ("nnunetv2.preprocessing.resampling.utils:recursive_find_resampling_fn_by_name", 1, ()),
    ("nnunetv2.utilities.get_network_from_plans:get_network_from_plans", 5, ("allow_init", "deep_supervision")),
    ("nnunetv2.utilities.dataset_name_id_conversion:find_candidate_datasets", 1, ()),
    (
        "nnunetv2.dataset_conversion.generate_dataset_json:generate_dataset_json",
        1,
        ("channel_names", "labels", "num_training_cases", "file_ending", "regions_class_order"),
    ),
    ("nnunetv2.inference.data_iterators:PreprocessAdapter", 7, ()),
    ("nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor", 0, ("verbose",)),
    ("nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor.run_case_save", 7, ()),
    (
        "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor._sample_foreground_locations",
        2,
        (),
    ),
    ("nnunetv2.inference.export_prediction:export_prediction_from_logits", 7, ()),
    ("nnunetv2.inference.sliding_window_prediction:compute_steps_for_sliding_window", 3, ()),
    ("nnunetv2.evaluation.evaluate_predictions:region_or_label_to_mask", 2, ()),
    ("nnunetv2.evaluation.evaluate_predictions:compute_metrics_on_folder", 8, ("chill",)),
    ("nnunetv2.evaluation.evaluate_predictions:compute_metrics_on_folder_simple", 5, ("chill",)),
    (f"{LOADER}.get_indices", 1, ()),
    (f"{LOADER}.get_bbox", 4, ()),
    (f"{LOADER}.generate_train_batch", 1, ()),
    (f"{DATASETS}:comp_blosc2_params", 3, ()),
    (f"{DATASETS}:nnUNetDatasetBlosc2.save_case", 4, ("blocks", "chunks", "blocks_seg", "chunks_seg")),
    ("acvl_utils.cropping_and_padding.bounding_boxes:crop_and_pad_nd", 3, ()),
    ("acvl_utils.cropping_and_padding.padding:pad_nd_image", 6, ()),
    ("nnunetv2.imageio.reader_writer_registry:determine_reader_writer_from_dataset_json", 2, ("verbose",)),
    ("nnunetv2.imageio.reader_writer_registry:recursive_find_reader_writer_by_name", 1, ()),
    (
        LOADER,
        5,
        ("oversample_foreground_percent", "probabilistic_oversampling", "transforms"),
    ),
    (f"{LABELS}:convert_labelmap_to_one_hot", 2, ("output_dtype",)),
    (f"{LABELS}:determine_num_input_channels", 3, ()),
    (f"{LABELS}:LabelManager", 2, ()),
    (f"{LABELS}:LabelManager.apply_inference_nonlin", 2, ()),
    (f"{LABELS}:LabelManager.convert_probabilities_to_segmentation", 2, ()),
    ("nnunetv2.imageio.base_reader_writer:BaseReaderWriter.read_seg", 2, ()),
    (f"{PLANS}:PlansManager", 1, ()),
    (f"{PLANS}:PlansManager.get_configuration", 2, ()),
    (f"{PLANS}:PlansManager.get_label_manager", 2, ()),
    (TRAINER, 5, ()),
    (f"{TRAINER}.initialize", 1, ()),
    (f"{TRAINER}.build_network_architecture", 5, ()),
    (f"{TRAINER}.configure_rotation_dummyDA_mirroring_and_inital_patch_size", 1, ()),
    (f"{TRAINER}.get_dataloaders", 1, ()),
    (f"{TRAINER}.do_split", 1, ()),
    (f"{TRAINER}.get_tr_and_val_datasets", 1, ()),
    (
        f"{TRAINER}.get_training_transforms",
        5,
        ("use_mask_for_norm", "is_cascaded", "foreground_labels", "regions", "ignore_label"),
    ),
    (
        f"{TRAINER}.get_validation_transforms",
        1,
        ("is_cascaded", "foreground_labels", "regions", "ignore_label"),
    ),
    (f"{TRAINER}.run_training", 1, ()),
    (f"{TRAINER}.on_train_start", 1, ()),
    (f"{TRAINER}.on_train_end", 1, ()),
    (f"{TRAINER}.on_train_epoch_start", 1, ()),
    (f"{TRAINER}.on_train_epoch_end", 2, ()),
    (f"{TRAINER}.on_validation_epoch_start", 1, ()),
    (f"{TRAINER}.on_epoch_end", 1, ()),
    (f"{TRAINER}.train_step", 2, ()),
    (f"{TRAINER}.validation_step", 2, ()),
    (f"{TRAINER}.save_checkpoint", 2, ()),
    (f"{TRAINER}.load_checkpoint", 2, ()),
    (f"{TRAINER}.perform_actual_validation", 1, ()),
    (f"{TRAINER}.print_to_log_file", 2, ()),
    (f"{TRAINER}._build_loss", 1, ()),
    (f"{TRAINER}._do_i_compile", 1, ()),
    (f"{TRAINER}._get_deep_supervision_scales", 1, ()),
    (
        PREDICTOR,
        0,
        (
            "tile_step_size", "use_mirroring", "perform_everything_on_device", "device", "verbose",
            "verbose_preprocessing", "allow_tqdm",
        ),
    ),
    (f"{PREDICTOR}.manual_initialization", 8, ()),
    (f"{PREDICTOR}.initialize_from_trained_model_folder", 4, ()),
    (f"{PREDICTOR}.predict_logits_from_preprocessed_data", 2, ()),
    (f"{PREDICTOR}.predict_sliding_window_return_logits", 2, ()),
    (f"{PREDICTOR}._internal_get_sliding_window_slicers", 2, ()),
    (f"{PREDICTOR}._internal_maybe_mirror_and_predict", 2, ()),
)  # fmt: skip
"""Callable, number of positional arguments (with ``self``), and keyword arguments that it is given."""

ATTRIBUTES = (
    "nnunetv2.run.run_training:load_pretrained_weights",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:DDP",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetDataLoader",
    f"{DATASETS}:nnUNetBaseDataset",
    f"{DATASETS}:infer_dataset_class",
    "nnunetv2.utilities.ddp_allgather:AllGatherGrad",
    "nnunetv2.utilities.default_n_proc_DA:get_allowed_n_proc_DA",
    "nnunetv2.training.loss.deep_supervision:DeepSupervisionWrapper",
    "nnunetv2.configuration:default_num_processes",
    "nnunetv2.imageio.base_reader_writer:BaseReaderWriter",
    "nnunetv2.imageio.natural_image_reader_writer:NaturalImage2DIO",
    "nnunetv2.imageio.nibabel_reader_writer:NibabelIO",
    "nnunetv2.imageio.nibabel_reader_writer:NibabelIOWithReorient",
    "nnunetv2.imageio.simpleitk_reader_writer:SimpleITKIO",
    "nnunetv2.imageio.simpleitk_reader_writer:SimpleITKIOWithReorient",
    f"{LABELS}:LabelManager",
    f"{LABELS}:LabelManager.num_segmentation_heads",
    f"{LABELS}:LabelManager.has_regions",
    f"{LABELS}:LabelManager.ignore_label",
    f"{PLANS}:PlansManager.image_reader_writer_class",
    f"{PLANS}:ConfigurationManager",
    f"{PLANS}:ConfigurationManager.network_arch_class_name",
    f"{PLANS}:ConfigurationManager.network_arch_init_kwargs",
    f"{PLANS}:ConfigurationManager.network_arch_init_kwargs_req_import",
    f"{PLANS}:ConfigurationManager.previous_stage_name",
    f"{PLANS}:ConfigurationManager.preprocessor_class",
    "dynamic_network_architectures.architectures.unet:PlainConvUNet",
    "dynamic_network_architectures.architectures.unet:ResidualEncoderUNet",
    f"{BLOCKS}.residual:StackedResidualBlocks",
    f"{BLOCKS}.simple_conv_blocks:ConvDropoutNormReLU",
    f"{BLOCKS}.simple_conv_blocks:StackedConvBlocks",
)
"""What is read, or put another in the place of."""

WRITTEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (f"{TRAINER}.save_checkpoint", tuple(f"'{key}'" for key in KEYS)),
    (f"{TRAINER}.load_checkpoint", ("was_initialized", "self.initialize()")),
    (
        f"{TRAINER}.__init__",
        (
            "inspect.signature(self.__init__)", "continue_training", "self.output_folder", "self.grad_scaler",
            "self.local_rank", "self.is_ddp", "self.num_epochs", "self.num_iterations_per_epoch",
            "self.num_val_iterations_per_epoch", "self.initial_lr", "self.save_every", "self.disable_checkpointing",
            "self.folder_with_segs_from_previous_stage", "self.inference_allowed_mirroring_axes",
        ),
    ),
    (f"{TRAINER}.initialize", ("DDP(", "self._build_loss()", "device_ids")),
    # labels are made whole numbers where they are read
    (
        "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor.run_case",
        ("plans_manager.image_reader_writer_class()", ".read_seg("),
    ),
    # maps of soft labels are batchgeneratorsv2's regression target
    (f"{LOADER}.generate_train_batch", ("self.get_indices()", "self.get_bbox(", "self.transforms(**")),
    (f"{TRANSFORMS}.base.basic_transform:BasicTransform.apply", ("self._apply_to_regr_target(data_dict['regression_target']",)),
    (f"{TRANSFORMS}.spatial.spatial:SpatialTransform._apply_to_regr_target", ("self._apply_to_image(",)),
    (f"{TRANSFORMS}.spatial.mirroring:MirrorTransform._apply_to_regr_target", ("torch.flip(",)),
    (f"{TRANSFORMS}.utils.pseudo2d:Convert3DTo2DTransform._apply_to_regr_target", ("self._apply_to_image(",)),
    (f"{TRANSFORMS}.utils.pseudo2d:Convert2DTo3DTransform._apply_to_regr_target", ("reshape(",)),
    (f"{TRAINER}.run_training", ("on_train_start", "on_epoch_end", "on_train_end", "current_epoch")),
)  # fmt: skip
"""Function, and what its source must still say: checkpoint keys, attributes, calls of what is overridden."""


def missing_parts() -> list[str]:
    """What the installed nnU-Net and its libraries lack of what this package needs, in words; empty if nothing."""
    return [*_missing_calls(), *_missing_attributes(), *_missing_words()]


def _missing_calls() -> Iterator[str]:
    for name, positional, keywords in CALLS:
        found = find(name)
        if found is None:
            yield f"{name} is not there"
            continue
        try:
            signature = inspect.signature(found)
            signature.bind(*[None] * positional, **dict.fromkeys(keywords))
        except TypeError as error:
            given = f"{positional} positional arguments" + (f" and {', '.join(keywords)}" if keywords else "")
            yield f"{name}{signature} does not take {given}: {error}"


def _missing_attributes() -> Iterator[str]:
    yield from (f"{name} is not there" for name in ATTRIBUTES if find(name) is None)


def _missing_words() -> Iterator[str]:
    for name, words in WRITTEN:
        found = find(name)
        if found is None:
            yield f"{name} is not there"
            continue
        source = inspect.getsource(found).replace('"', "'")
        yield from (f"{name} no longer says {word}" for word in words if word not in source)


def find(name: str) -> Any:
    """``module:Class.attribute``, or ``None``."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


if __name__ == "__main__":
    missing = missing_parts()
    print(f"nnunetv2 {version('nnunetv2')}: {counted(len(missing), 'part')} missing")
    for part in missing:
        print(f"- {part}")
    sys.exit(bool(missing))
