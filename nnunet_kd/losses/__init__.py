"""Wavelets and losses: tensors in, tensors out, for any two networks.

Must know neither nnU-Net nor settings. Every loss is a plain ``nn.Module`` for one pair of features or logits; what it learns are
its parameters, which belong into the student's optimizer. Sum over a network's stages. Give the teacher's tensors detached:
some losses would else send a gradient to them.
"""

from nnunet_kd.losses.cwd import CWDLoss
from nnunet_kd.losses.dcd import DCDLoss
from nnunet_kd.losses.fgbvd import ExpectationGenerator, FGBVDLoss
from nnunet_kd.losses.figkd import FiGKDLoss
from nnunet_kd.losses.fitnet import FitNetLoss
from nnunet_kd.losses.freekd import FreeKDLoss
from nnunet_kd.losses.ifvd import IFVDLoss
from nnunet_kd.losses.logits import LogitsLoss
from nnunet_kd.losses.projection import ChannelProjection
from nnunet_kd.losses.soft import SoftLabelLoss
from nnunet_kd.losses.wavelets import dwt, idwt

__all__ = [
    "CWDLoss",
    "ChannelProjection",
    "DCDLoss",
    "ExpectationGenerator",
    "FGBVDLoss",
    "FiGKDLoss",
    "FitNetLoss",
    "FreeKDLoss",
    "IFVDLoss",
    "LogitsLoss",
    "SoftLabelLoss",
    "dwt",
    "idwt",
]
