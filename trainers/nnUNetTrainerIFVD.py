"""`-tr nnUNetTrainerIFVD`: intra-class feature variation distillation."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerIFVD(DistillationTrainer):
    """The reduced student, which learns how its teacher's features vary within each class."""

    recipe = "ifvd"
    objectives = ("ifvd",)
