"""The student for others: an archive for stock nnU-Net, and ONNX with its JSON."""

from __future__ import annotations

from nnunet_kd.errors import NnunetKdError
from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.export.onnx_export import OnnxOptions, export_onnx
from nnunet_kd.inference.onnx_metadata import json_path
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import Places
from nnunet_kd.workflows.shrink.training import student_model


def export_student(places: Places, teacher: Teacher) -> str | None:
    """Write ``student.zip``, ``student.onnx`` and ``student.json``.

    Returns:
        Why there is no ONNX file; ``None``: there is one.

    Raises:
        ModelError, MissingRequirement: the archive cannot be written.
    """
    model = student_model(places, teacher)
    export_folder(model, places.student_zip, FolderOptions(overwrite=True))
    if teacher.without_onnx is not None:
        return teacher.without_onnx
    try:
        export_onnx(model, places.student_onnx, OnnxOptions(overwrite=True))
    except NnunetKdError as error:
        for path in (places.student_onnx, json_path(places.student_onnx)):
            path.unlink(missing_ok=True)
        return str(error)
    return None
