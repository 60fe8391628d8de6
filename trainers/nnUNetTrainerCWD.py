"""`-tr nnUNetTrainerCWD`: channel-wise distillation."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerCWD(DistillationTrainer):
    """The reduced student, which learns where in space its teacher's channels are active."""

    recipe = "cwd"
    objectives = ("cwd",)
