"""After installation nnU-Net finds the trainers, with no variable set: wheel, parent environment, spawned workers."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import nnunet_kd
from nnunet_kd.nnunet.environment import find_trainer, trainer_names

ROOT = Path(__file__).resolve().parents[1]

LOOK = """
import contextlib, io, multiprocessing, os, sys
def look(name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    with contextlib.redirect_stdout(io.StringIO()):
        return recursive_find_trainer_class_by_name(name)
if __name__ == "__main__":
    names = sys.argv[1:]
    for name in names:
        assert look(name).__name__ == name
    found = os.environ.pop("nnUNet_extTrainer")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert [cls.__module__ for cls in pool.map(look, names)] == [f"nnunet_kd.trainers.{name}" for name in names]
    print(found)
"""


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet", "PYTHON", "NNUNET"))}
    return {**kept, **more}


def look(python: Path, folder: Path, **variables: str) -> str:
    script = folder / "look.py"
    script.write_text(LOOK)
    finished = subprocess.run(
        [str(python), str(script), *trainer_names()],
        capture_output=True,
        text=True,
        env=clean_environment(**variables),
        cwd=folder,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip().splitlines()[-1]


def test_this_environment_parent_and_spawned_workers(tmp_path: Path) -> None:
    assert look(Path(sys.executable), tmp_path).endswith("_ext")


@pytest.mark.nightly
def test_a_users_own_folder_is_kept(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    found = look(Path(sys.executable), tmp_path, nnUNet_extTrainer=str(own))
    assert found.split(os.pathsep)[0] == str(own)


@pytest.mark.nightly
def test_wheel_beside_an_nnunet_outside_of_its_own_site_packages(tmp_path: Path) -> None:
    """The new environment sees nnU-Net through a path entry, exactly as it sees an editable installation."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"nnunet_kd_autoload.pth", "nnunet_kd_autoload.start"} <= set(names)
    assert "nnunet_kd/_shipped/trainers/nnUNetTrainerDCD.py" in names
    assert "nnunet_kd/_shipped/plans/recipes/paper.yaml" in names
    assert not any(name.startswith("nnunetv2") for name in names)

    venv.create(tmp_path / "new", with_pip=False)
    python = tmp_path / "new" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)], check=True
    )
    site = next((tmp_path / "new" / "lib").glob("python*/site-packages"))
    (site / "elsewhere.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert look(python, tmp_path) == str(site / "nnunet_kd" / "_ext")
    version = subprocess.run([str(python), "-c", "import nnunet_kd; print(nnunet_kd.__version__, nnunet_kd.__file__)"],
                             capture_output=True, text=True, env=clean_environment(), cwd=tmp_path)  # fmt: skip
    assert version.stdout.split() == [nnunet_kd.__version__, str(site / "nnunet_kd" / "__init__.py")]


def test_the_start_file_names_what_the_pth_file_runs(tmp_path: Path) -> None:
    """PEP 829: every line is resolved as pkgutil does it and called without arguments; ``-S`` leaves .pth files out."""
    (entry,) = (ROOT / "nnunet_kd_autoload.start").read_text().splitlines()
    code = (
        f"import os, pkgutil, sys; sys.path.insert(0, {str(ROOT)!r}); before = os.environ.get('nnUNet_extTrainer'); "
        f"call = pkgutil.resolve_name({entry!r}); call(); call(); print(before, os.environ['nnUNet_extTrainer'])"
    )
    finished = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=tmp_path,
        check=True,
    )
    assert finished.stdout.split() == ["None", str(ROOT / "nnunet_kd" / "_ext")]


def test_the_bridge_answers_for_shipped_names_only() -> None:
    from nnunet_kd._ext import nnunet_kd_bridge

    assert [name for name in trainer_names() if hasattr(nnunet_kd_bridge, name)] == trainer_names()
    assert not hasattr(nnunet_kd_bridge, "nnUNetTrainerOfAnotherLab")
    assert not hasattr(nnunet_kd_bridge, "__path__")


def test_python_starts_without_importing_anything_heavy() -> None:
    code = "import sys; print(sorted({'torch', 'numpy', 'nnunetv2', 'nnunet_kd._autoload'} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment())
    assert finished.stdout.strip() == "['nnunet_kd._autoload']"


@pytest.mark.parametrize("name", trainer_names())
def test_trainers_are_thin(name: str) -> None:
    cls = find_trainer(name)
    assert cls.__doc__
    assert set(vars(cls)) - {"__module__", "__doc__", "__firstlineno__", "__static_attributes__"} <= {
        "recipe",
        "objectives",
        "requires_start",
        "starts_at_random",
    }
