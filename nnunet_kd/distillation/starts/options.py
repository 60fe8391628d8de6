"""How a student's weights are computed from its teacher's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nnunet_kd.distillation.settings_model import SettingsModel
from nnunet_kd.distillation.starts.channels import ChannelChoice


class InheritanceSettings(SettingsModel):
    """What the defaults rest on is in docs/explanation-inheritance.md; the other values are for comparison."""

    voxels: int = Field(
        2_000_000,
        ge=1,
        description="voxels of training patches that the teacher looks at; 4 patches at least, 512 at most",
    )
    ridge: float = Field(
        1e-3, gt=0, description="strength of the ridge regression, as a share of the mean diagonal of the Gram matrix"
    )
    prior: Literal["interpolated", "teacher", "zero"] = Field(
        "teacher",
        description="weights that the ridge regression stays near. `teacher`: the teacher's kernel at the chosen outputs and "
        "inputs; `interpolated`: at the chosen outputs, its other inputs replaced by what the chosen ones say of them; `zero`",
    )
    channels: ChannelChoice = Field(
        "spanning",
        description="which of the teacher's channels are kept. `spanning`: those that span the others best; `random` ones; "
        "`regular`: every r-th",
    )
    heads: Literal["probabilities", "logits"] = Field(
        "probabilities",
        description="what segmentation heads are fitted to: the teacher's `probabilities` (convex, iterative) or its `logits`",
    )
    refit: bool = Field(
        True,
        description="false: nothing is fitted, every layer has the weights of `prior` as they are; with `prior: teacher` these "
        "are the teacher's own kernels at the chosen channels. Not with `prior: zero`",
    )
    rescale: bool = Field(
        False,
        description="true: each kernel before a norm is scaled to the norm of nnU-Net's random one, which changes how fast it "
        "learns and not what the network computes; false: it keeps the norm that the fit gives it",
    )
    augmented: bool = Field(True, description="false: patches are not augmented, as in nnU-Net's validation")

    @model_validator(mode="after")
    def _has_weights(self) -> InheritanceSettings:
        if self.prior == "zero" and not self.refit:
            raise ValueError("`refit: false` takes the weights of `prior` as they are, which `zero` does not have")
        return self
