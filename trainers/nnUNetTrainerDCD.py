"""`-tr nnUNetTrainerDCD`: Detail Consistent Distillation."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerDCD(DistillationTrainer):
    """The reduced student, aligned with its teacher's wavelet details at every encoder stage."""

    recipe = "dcd"
    objectives = ("dcd",)
