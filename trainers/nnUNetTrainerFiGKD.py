"""`-tr nnUNetTrainerFiGKD`: FiGKD, the fine detail of the logits."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerFiGKD(DistillationTrainer):
    """The reduced student, aligned with the wavelet details of its teacher's logits."""

    recipe = "figkd"
    objectives = ("figkd",)
