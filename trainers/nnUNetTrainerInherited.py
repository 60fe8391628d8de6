"""`-tr nnUNetTrainerInherited`: a student that starts inside its teacher, trained on labels alone."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerInherited(DistillationTrainer):
    """The reduced student with weights computed from its teacher's: what every objective has to beat."""

    recipe = "inherited"
    objectives = ()
    requires_start = True
