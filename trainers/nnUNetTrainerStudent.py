"""`-tr nnUNetTrainerStudent`: the reduced network without distillation."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerStudent(DistillationTrainer):
    """What every distilled student is compared with: same plan, same schedule, no teacher."""

    recipe = "student"
    objectives = ()
    starts_at_random = True
