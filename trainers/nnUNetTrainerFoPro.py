"""`-tr nnUNetTrainerFoPro`: FoPro-KD, a teacher explored by Fourier prompts."""

from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerFoPro(DistillationTrainer):
    """The reduced student, which follows what its teacher says of images with prompted amplitudes."""

    recipe = "fopro"
    objectives = ("fopro",)
