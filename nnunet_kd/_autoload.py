"""Runs at every start of Python and tells nnU-Net where our trainers are.

Started by ``nnunet_kd_autoload.pth``, and from Python 3.15 on by ``nnunet_kd_autoload.start`` in its place (PEP 829). nnU-Net
looks up external trainers in the folders of the environment variable ``nnUNet_extTrainer`` (since 2.8.0). We append our folder,
keep what the user set, and import nothing, so that the start-up cost stays below a millisecond. Child processes inherit the
variable, and set it themselves when it was dropped.
"""

import os

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_ext")
_VARIABLE = "nnUNet_extTrainer"


def register() -> None:
    """Append our folder to ``nnUNet_extTrainer``, once."""
    folders = [folder for folder in os.environ.get(_VARIABLE, "").split(os.pathsep) if folder]
    if _FOLDER not in folders:
        os.environ[_VARIABLE] = os.pathsep.join([*folders, _FOLDER])
