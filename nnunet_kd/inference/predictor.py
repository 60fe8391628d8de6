"""nnU-Net's predictor, case by case in this process: any backend, whole files or none, progress that one can see.

Preprocessing and export are nnU-Net's own code; so are sliding window, mirroring and Gaussian weights of PyTorch networks.
Those of an exported network (:class:`~nnunet_kd.inference.runtime_network.RuntimeNetwork`) are nnunet-kd-runtime's. The next
case is read and the last one written in two threads instead of in processes that each import PyTorch first, and files appear
under their name when complete.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import DataError, MissingRequirement
from nnunet_kd.inference.cases import InputCase
from nnunet_kd.inference.onnx_metadata import OnnxModel
from nnunet_kd.inference.runtime_network import RuntimeNetwork
from nnunet_kd.nnunet.environment import channel_names, variables_set_to
from nnunet_kd.nnunet.networks import network_inputs
from nnunet_kd.nnunet.prediction import export_case, read_case, remove_probabilities
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import folder_beside, free_space
from nnunet_kd.volumes.placing import move_all
from nnunet_kd.volumes.reading import check_file, dataset_reader, reading, voxels_without_number
from nnunet_kd.volumes.wholeness import error_line

if TYPE_CHECKING:  # it is optional
    from nnunet_kd_runtime.backends import Backend

Progress = Callable[[float], None]
"""Told the share of a case (0 to 1) that has been predicted since it was last told."""


class CasePredictor(nnUNetPredictor):
    """See the module.

    Initialise it with nnU-Net's ``initialize_from_trained_model_folder`` or with :meth:`initialize_from_onnx`.

    Attributes:
        progress: see :data:`Progress`; may be set.
        written: told of every case whose files are in their place; may be set.
    """

    def __init__(
        self,
        device: torch.device,
        use_mirroring: bool = True,
        tile_step_size: float = 0.5,
    ) -> None:
        """Prepare.

        Args:
            device: where PyTorch computes; sliding-window results lie there too on CUDA.
            use_mirroring: average over the mirror axes of the training.
            tile_step_size: distance of patches as a share of the patch.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # a remark on perform_everything_on_device
            super().__init__(
                tile_step_size=tile_step_size, use_mirroring=use_mirroring, device=device, allow_tqdm=False
            )
        self.progress: Progress = lambda share: None
        self.written: Callable[[InputCase], None] = lambda case: None
        self._patches = 1

    def initialize_from_onnx(self, model: OnnxModel, backend: Backend) -> None:
        """Put an exported network in the place of nnU-Net's, with the plan it was exported with."""
        plans = PlansManager(model.description["plans"])
        mirror = model.description["mirror_axes"]
        with variables_set_to({"nnUNet_compile": "f"}):  # there is nothing of PyTorch's to compile
            self.manual_initialization(
                RuntimeNetwork(backend),
                plans,
                plans.get_configuration(model.description["configuration"]),
                [{}],  # one "fold", whose weights the backend already has
                model.description["dataset_json"],
                model.description["trainer"],
                tuple(mirror) if mirror else None,
            )

    @property
    def input_channels(self) -> int:
        """Channels of the network's input, those of a cascade's previous stage included."""
        return network_inputs(self.plans_manager, self.configuration_manager, self.dataset_json)

    @property
    def reader(self) -> BaseReaderWriter:
        """The plan's."""
        return dataset_reader(self.dataset_json, self.plans_manager.plans)

    # one case ---------------------------------------------------------------------------------------------------------

    def preprocess(self, case: InputCase, previous_stage: Path | None = None) -> dict[str, Any]:
        """nnU-Net's preprocessing.

        Args:
            case: what to read.
            previous_stage: folder with the first stage's segmentations, for a cascade.

        Returns:
            ``data (channels, *spatial)`` float32 and ``data_properties``.

        Raises:
            DataError: the images are not whole, cannot be read, hold voxels that are no numbers, or do not have the model's
                channels.
        """
        ending = str(self.dataset_json["file_ending"])
        previous = previous_stage / f"{case.name}{ending}" if previous_stage else None
        for path in (*case.images, *([previous] if previous else [])):
            check_file(path, self.reader)
        what = f"case {case.name} ({', '.join(path.name for path in case.images)})"
        with reading(what, "cannot be read or preprocessed; cases finished before stay as they are"):
            item = read_case(self, case.images, previous)
        item["data"] = item["data"].to(dtype=torch.float32, memory_format=torch.contiguous_format)
        if item["data"].shape[0] != self.input_channels:
            raise DataError(
                f"case {case.name} has {counted(item['data'].shape[0], 'channel')}, but the model takes {self.input_channels}: "
                f"{', '.join(channel_names(self.dataset_json))}."
            )
        if not bool(torch.isfinite(item["data"]).all()):  # the network would say background everywhere
            count = sum(voxels_without_number(path, self.reader) for path in case.images)
            raise DataError(
                f"{what}: {counted(count, 'voxel') if count else 'after preprocessing, voxels are'} NaN or infinite. Replace "
                f"them by numbers, for example 0. Cases finished before stay as they are."
            )
        return item

    def export(self, logits: np.ndarray, properties: dict[str, Any], case: InputCase, probabilities: bool) -> None:
        """nnU-Net's export into a folder beside the output, then rename every file; the segmentation comes last.

        Raises:
            MissingRequirement: the disk refused.
        """
        try:
            with folder_beside(case.output) as temporary:
                export_case(self, logits, properties, temporary / case.name, probabilities, case.ending)
                if case.output.exists() and not probabilities:  # else they would be of what made the old segmentation
                    remove_probabilities(case.output.parent, case.name)
                move_all(temporary, case.output.parent, last=case.output.name)
                self.written(case)
        except RuntimeError as error:  # SimpleITK's word for a full disk
            raise MissingRequirement(
                f"{case.output} could not be written: {error_line(error)}. {free_space(case.output.parent)}"
            ) from error

    # all cases --------------------------------------------------------------------------------------------------------

    def predict_cases(
        self, cases: Sequence[InputCase], probabilities: bool = False, previous_stage: Path | None = None
    ) -> Iterator[InputCase]:
        """Predict and write every case; yields each when it is being written.

        One case is read ahead and one written behind, so at most three are in memory.

        Raises:
            DataError, MissingRequirement: see :meth:`preprocess`, :meth:`export`; finished cases stay.
        """
        written: Future[None] | None = None
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            upcoming = reader.submit(self.preprocess, cases[0], previous_stage) if cases else None
            for number, case in enumerate(cases):
                assert upcoming is not None
                item = upcoming.result()
                if number + 1 < len(cases):
                    upcoming = reader.submit(self.preprocess, cases[number + 1], previous_stage)
                logits = self.predict_logits_from_preprocessed_data(item["data"]).cpu().numpy()
                if written is not None:
                    written.result()
                written = writer.submit(self.export, logits, item["data_properties"], case, probabilities)
                yield case
            if written is not None:
                written.result()

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """Logits of one preprocessed image; of an exported network by nnunet-kd-runtime's window."""
        if isinstance(self.network, RuntimeNetwork):
            return self.network.predict(
                input_image,
                self.configuration_manager.patch_size,
                self.label_manager.num_segmentation_heads,
                (self.allowed_mirroring_axes or ()) if self.use_mirroring else (),
                self.tile_step_size,
                lambda share: self.progress(share),
            )
        logits: torch.Tensor = super().predict_sliding_window_return_logits(input_image)
        return logits

    # progress of PyTorch networks: counted where nnU-Net starts a sliding window and predicts a patch ------------------

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> list[Any]:
        slicers: list[Any] = super()._internal_get_sliding_window_slicers(image_size)
        self._patches = len(slicers) * len(self.list_of_parameters)
        return slicers

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        prediction: torch.Tensor = super()._internal_maybe_mirror_and_predict(x)
        self.progress(1 / self._patches)
        return prediction
