"""`-tr nnUNetTrainerLogits`: Hinton's distillation of class probabilities."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerLogits(DistillationTrainer):
    """The reduced student, which learns its teacher's softened probabilities."""

    recipe = "logits"
    objectives = ("logits",)
