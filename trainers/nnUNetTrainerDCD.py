"""`-tr nnUNetTrainerDCD`: Detail Consistent Distillation."""

from nnunet_kd.trainer import DistillationTrainer


class nnUNetTrainerDCD(DistillationTrainer):
    """The reduced student, aligned with its teacher's wavelet details at every encoder stage."""

    recipe = "dcd"
    objectives = ("dcd",)
