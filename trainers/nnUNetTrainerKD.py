"""`-tr nnUNetTrainerKD`: any weighted mix of objectives from the settings."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerKD(DistillationTrainer):
    """The reduced student with the objectives that the settings name, and no recipe of its own."""

    recipe = "student"
    objectives = None
