"""`-tr nnUNetTrainerFGBVD`: FGBVD-KD, bias and variance guided by frequency."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerFGBVD(DistillationTrainer):
    """The reduced student; bias is learned from the teacher's low frequencies, variance from its high ones."""

    recipe = "fgbvd"
    objectives = ("fgbvd",)
