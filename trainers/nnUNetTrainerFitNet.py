"""`-tr nnUNetTrainerFitNet`: FitNet, plain imitation of features."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerFitNet(DistillationTrainer):
    """The reduced student, whose projected features imitate its teacher's at every encoder stage."""

    recipe = "fitnet"
    objectives = ("fitnet",)
