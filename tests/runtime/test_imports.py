"""The runtime works where PyTorch, nnU-Net and the optional formats cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from tests.deployment import segmentation
from tests.runtime.exported import export, write_images

PROGRAM = """
import sys

THIRD_PARTY = {"torch", "nnunetv2", "nnunet_kd", "batchgenerators", "batchgeneratorsv2", "skimage", "acvl_utils", "SimpleITK",
               "pandas", "sklearn", "matplotlib", "monai", "imageio", "tifffile", "PIL", "openvino", "rich", "typer", "pydantic",
               "dynamic_network_architectures", "blosc2", "einops", "cc3d", "yaml", "jinja2", "onnx", "onnxscript", "h5py"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in THIRD_PARTY:
            raise ImportError(f"{top} must not be needed")
        return None


sys.meta_path.insert(0, Refuse())
for name in [name for name in sys.modules if name.partition(".")[0] in THIRD_PARTY]:
    del sys.modules[name]
from nnunet_kd_runtime.command import main

code = main(sys.argv[1:])
loaded = {name.partition(".")[0] for name in sys.modules} & THIRD_PARTY
assert not loaded, loaded
sys.exit(code)
"""


def test_nothing_else_is_imported(tmp_path: Path) -> None:
    pair = export(tmp_path / "model")
    images = write_images(tmp_path / "images", 1, ((1.3, 0.8, 1.1),))
    arguments = [str(pair.onnx), str(images), "-o", str(tmp_path / "out"), "--threads", "1", "--save_probabilities"]
    finished = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    stock = pair.predict_stock(images, tmp_path / "stock", probabilities=True)
    found, expected = (segmentation(folder / "case0.nii.gz") for folder in (tmp_path / "out", stock))
    assert (found != expected).mean() <= 1e-4


def test_help_is_light() -> None:
    program = (
        "import sys\nfrom nnunet_kd_runtime.command import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'scipy', 'nibabel', 'onnxruntime'} & {name.partition('.')[0] for name in sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-S", "-c", f"import sys\n{_path()}{program}"],
                              capture_output=True, text=True)  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "kd-segment" in finished.stdout


def _path() -> str:
    """Without ``site``, so that no .pth file of the environment imports anything."""
    import nnunet_kd_runtime

    return f"sys.path.append({str(Path(nnunet_kd_runtime.__file__).parents[1])!r})\n"
