"""`-tr nnUNetTrainerSoft`: a student that starts inside its teacher and learns from its stored probabilities."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerSoft(DistillationTrainer):
    """The reduced student, taught by labels and by maps that ``nnunet-kd soften`` wrote; no teacher runs in training."""

    recipe = "soft"
    objectives = ("soft",)
