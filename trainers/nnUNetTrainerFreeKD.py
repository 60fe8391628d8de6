"""`-tr nnUNetTrainerFreeKD`: FreeKD, frequency bands masked by prompts."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerFreeKD(DistillationTrainer):
    """The reduced student, which imitates its teacher where tuned prompts find points of interest."""

    recipe = "freekd"
    objectives = ("freekd",)
