"""`-tr nnUNetTrainerKD`: any weighted mix of objectives from the settings."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerKD(DistillationTrainer):
    """The reduced student with the objectives that the settings name, which starts inside its teacher where it can."""

    recipe = "inherited"
    objectives = None
