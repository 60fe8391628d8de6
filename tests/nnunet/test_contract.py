"""The contract with nnU-Net: it holds, it names what is missing, and what is private is touched in one place."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.nnunet.checkpoints import KEYS
from nnunet_kd.nnunet.contract import ATTRIBUTES, CALLS, TRAINER, find, missing_parts
from tests.training.tiny_trainer import close_epoch, ready, save, steps, trainer

PACKAGE = Path(__file__).resolve().parents[2] / "nnunet_kd"
PUBLIC = {
    "PlansManager", "ConfigurationManager", "LabelManager", "nnUNetTrainer", "nnUNetDataLoader", "nnUNetPredictor",
    "BaseReaderWriter", "determine_reader_writer_from_dataset_json",
}  # fmt: skip
"""What may be imported from nnU-Net anywhere: documented, and the same for years."""


def test_the_installed_release_has_everything() -> None:
    assert missing_parts() == []


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nnUNetTrainer, "_do_i_compile")
    monkeypatch.delattr(trainer_module, "DDP")
    monkeypatch.setattr(nnUNetTrainer, "train_step", lambda self: None)

    def save_checkpoint(self: Any, filename: str) -> None:
        torch.save({"weights": self.network.state_dict()}, filename)

    monkeypatch.setattr(nnUNetTrainer, "save_checkpoint", save_checkpoint)
    monkeypatch.delattr(DataLoader, "get_indices")
    monkeypatch.delattr(SpatialTransform, "_apply_to_regr_target")  # the one that it inherits drops the target
    found = "\n".join(missing_parts())
    assert "nnUNetDataLoader.get_indices is not there" in found
    assert "SpatialTransform._apply_to_regr_target no longer says self._apply_to_image(" in found
    assert f"{TRAINER}._do_i_compile is not there" in found
    assert "nnUNetTrainer:DDP is not there" in found
    assert f"{TRAINER}.train_step(self) does not take 2 positional arguments" in found
    assert f"{TRAINER}.save_checkpoint no longer says 'network_weights'" in found


@pytest.mark.parametrize("given", ["path", "text", "dictionary"])
def test_checkpoints_load_whatever_nnunet_calls_them(
    given: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net's development branch calls the argument `checkpoint`, and takes a path or a dictionary."""
    made = ready("nnUNetTrainerDCD", tiny)
    steps(made, 2)
    close_epoch(made)
    path = save(made)
    original = nnUNetTrainer.load_checkpoint

    def load_checkpoint(self: nnUNetTrainer, checkpoint: dict[str, Any] | str, /) -> None:
        if not self.was_initialized:
            self.initialize()
        original(self, checkpoint)

    with monkeypatch.context() as changed:
        changed.setattr(nnUNetTrainer, "load_checkpoint", load_checkpoint)
        assert missing_parts() == []
        resumed = trainer("nnUNetTrainerDCD", tiny, "seed=2")
        with contextlib.redirect_stdout(io.StringIO()):
            resumed.load_checkpoint(
                {"path": path, "text": str(path), "dictionary": torch.load(path, weights_only=False)}[given]
            )
            resumed.prepare_distillation()
    for ours, theirs in zip(resumed.network.parameters(), made.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert resumed.history.epochs == made.history.epochs


def sources() -> list[tuple[str, ast.Module]]:
    return [
        (str(path.relative_to(PACKAGE)), ast.parse(path.read_text()))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ("nnunet", "trainers")
    ]


def test_only_the_adapter_imports_what_may_change() -> None:
    wrong = [
        f"{place}:{node.lineno} imports {alias.name}"
        for place, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).startswith("nnunetv2") and alias.name not in PUBLIC
    ]
    assert not wrong, "\n".join(wrong)


def test_everything_imported_is_listed() -> None:
    libraries = {"nnunetv2", "acvl_utils", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures"}
    imported = {
        f"{node.module}:{alias.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in libraries
        for alias in node.names
    }
    listed = {*ATTRIBUTES, *(name for name, *_ in CALLS)}
    modules = {name.partition(":")[0] for name in listed}
    assert len(imported) > 30
    assert [name for name in sorted(imported - listed) if name.replace(":", ".") not in modules] == []


def test_only_subclasses_and_the_adapter_use_private_names() -> None:
    private = {name.rpartition(".")[2] for name, *_ in CALLS if name.rpartition(".")[2].startswith("_")}
    assert private == {
        "_build_loss", "_do_i_compile", "_get_deep_supervision_scales", "_internal_get_sliding_window_slicers",
        "_internal_maybe_mirror_and_predict", "_sample_foreground_locations",
    }  # fmt: skip
    wrong = [
        f"{place}:{node.lineno} uses {node.attr}"
        for place, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in private and not isinstance(node.value, ast.Call)
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_adapter_spells_checkpoint_keys() -> None:
    wrong = [
        f"{place}:{node.lineno} spells {node.value}"
        for place, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in set(KEYS) - {"logging"}
    ]
    assert not wrong, "\n".join(wrong)


def test_everything_named_is_looked_up() -> None:
    assert all(find(name) is not None for name in (*ATTRIBUTES, *(name for name, *_ in CALLS)))
    assert find("nnunetv2.training:nothing.at.all") is None
    assert find("nnunetv2.no_such_module:x") is None


@pytest.mark.nightly
@pytest.mark.parametrize("release", ["==2.8.0", ""])
def test_other_releases_beside_this_one(release: str, tmp_path: Path) -> None:
    """The oldest that we say we run with must fit; what the newest lacks is told, and stops nobody."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    installed = subprocess.run([*install, f"nnunetv2{release}"], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip cannot install nnunetv2{release} here: {installed.stderr.strip().splitlines()[-1]}")
    finished = subprocess.run(
        [sys.executable, "-m", "nnunet_kd.nnunet.contract"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"},
        capture_output=True,
        text=True,
    )
    if release:
        assert f"nnunetv2 {release.removeprefix('==')}: 0 parts missing" in finished.stdout, finished.stdout
    elif finished.returncode:
        warnings.warn(f"the newest nnU-Net does not fit:\n{finished.stdout}{finished.stderr}", stacklevel=1)
