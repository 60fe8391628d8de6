"""Import path of the trainers in the top-level ``trainers/`` folder: ``nnunet_kd.trainers.<class name>``."""

from nnunet_kd.system.shipped import shipped_folder

__path__ = [str(shipped_folder("trainers"))]
