"""Knowledge distillation for nnU-Net v2.

Kept free of imports: this module runs whenever Python starts in an environment that has the package (see `_autoload`). Its public
names are loaded when they are first asked for.
"""

__version__ = "0.2.0.dev0"

TYPE_CHECKING = False
if TYPE_CHECKING:  # for type checkers and editors; the same names as in _PUBLIC
    from nnunet_kd.distillation.objectives.base import Objective as Objective
    from nnunet_kd.distillation.settings import Settings as Settings
    from nnunet_kd.errors import NnunetKdError as NnunetKdError
    from nnunet_kd.evaluation.folders import evaluate_folder as evaluate_folder
    from nnunet_kd.export.folder_export import export_folder as export_folder
    from nnunet_kd.export.onnx_export import export_onnx as export_onnx
    from nnunet_kd.inference.session import predict as predict
    from nnunet_kd.losses import CWDLoss as CWDLoss
    from nnunet_kd.losses import DCDLoss as DCDLoss
    from nnunet_kd.losses import FGBVDLoss as FGBVDLoss
    from nnunet_kd.losses import FiGKDLoss as FiGKDLoss
    from nnunet_kd.losses import FitNetLoss as FitNetLoss
    from nnunet_kd.losses import FreeKDLoss as FreeKDLoss
    from nnunet_kd.losses import IFVDLoss as IFVDLoss
    from nnunet_kd.losses import LogitsLoss as LogitsLoss
    from nnunet_kd.losses import SoftLabelLoss as SoftLabelLoss
    from nnunet_kd.losses import dwt as dwt
    from nnunet_kd.losses import idwt as idwt
    from nnunet_kd.models.folder import open_model as open_model
    from nnunet_kd.models.plans import reduce_plans as reduce_plans
    from nnunet_kd.training.trainer import DistillationTrainer as DistillationTrainer

_PUBLIC = {
    "CWDLoss": "losses",
    "DCDLoss": "losses",
    "FGBVDLoss": "losses",
    "FiGKDLoss": "losses",
    "FitNetLoss": "losses",
    "FreeKDLoss": "losses",
    "IFVDLoss": "losses",
    "LogitsLoss": "losses",
    "SoftLabelLoss": "losses",
    "DistillationTrainer": "training.trainer",
    "NnunetKdError": "errors",
    "Objective": "distillation.objectives.base",
    "Settings": "distillation.settings",
    "dwt": "losses",
    "evaluate_folder": "evaluation.folders",
    "export_folder": "export.folder_export",
    "export_onnx": "export.onnx_export",
    "idwt": "losses",
    "open_model": "models.folder",
    "predict": "inference.session",
    "reduce_plans": "models.plans",
}
"""Name: the module of this package that it is loaded from."""

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
