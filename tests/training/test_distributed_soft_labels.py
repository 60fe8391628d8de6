"""Two processes choose the same maps, each loads patches of its own with theirs, and both make the same step."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.soft_labels.maps import write_map
from nnunet_kd.nnunet.datasets import preprocessed_cases
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.workflows.bench.pair import nnunet_folders
from tests.training.test_distributed_start import prepared
from tests.training.tiny_training import CASES, NAME, write_tiny_dataset


def phantom(image: Any) -> Any:
    """What the maps of a case say of its first class, twice."""
    return (image + 5) / 10


def _worker(root: str, rank: int) -> None:
    torch.set_num_threads(1)
    with nnunet_folders(Path(root)), contextlib.redirect_stdout(io.StringIO()):
        dist.init_process_group("gloo", init_method=f"file://{root}/group", rank=rank, world_size=2)
        made = prepared("nnUNetTrainerSoft", "start=random")
        made.on_train_start()
        made.on_train_epoch_start()
        batch = next(made.dataloader_train)
        made.train_step(batch)
        found = {
            "settings": made.settings.as_dict()["objectives"]["soft"],
            "maps": str(made.soft_labels),
            "shape": list(batch[KEY].shape),
            "gradients": [one.grad.clone() for one in made.network.parameters() if one.grad is not None],
            "losses": made.history.close_epoch(0),
        }
        loader = made.dataloader_train.data_loader
        loader._transform_image = lambda **sample: sample  # the patch as it was cut
        cut = next(made.dataloader_train)
        inside = cut[KEY].sum(1) > 0
        found["data"] = cut["data"]
        found["inside"] = float(inside.float().mean())
        found["worst"] = float((phantom(cut["data"][:, 0]) - 2 * cut[KEY][:, 0])[inside].abs().max())
        dist.barrier()
        dist.destroy_process_group()
        torch.save(found, f"{root}/{rank}.pt")


@pytest.mark.xdist_group("processes")
def test_maps_and_their_patches_in_two_processes(tmp_path: Path) -> None:
    with nnunet_folders(tmp_path):
        write_tiny_dataset()
        cli._register()
        soften = ["soften", "998", "3d_fullres", "0", "-device", "cpu", "--no-mirroring"]
        assert CliRunner().invoke(cli.app, soften).exit_code == 0
        preprocessed = Path(os.environ["nnUNet_preprocessed"]) / NAME
        (folder,) = preprocessed.glob("soft_labels/*/*")
        cases = preprocessed_cases(preprocessed / "nnUNetPlans_3d_fullres")
        for case in CASES[:4]:
            said = phantom(np.asarray(cases.load_case(case)[0][:]))
            write_map(folder, case, np.concatenate([said, 1 - said]) / 2, (8, 8, 8))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.training.test_distributed"])
    children = [processes.Process(target=_worker, args=(str(tmp_path), rank)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(200)
        assert child.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["maps"] == second["maps"] == str(folder.resolve())
    assert first["settings"] == second["settings"]
    assert first["settings"]["maps_sha256"]
    assert first["shape"] == second["shape"] == [1, 2, 8, 8, 8]
    assert len(first["gradients"]) > 10
    assert all(torch.equal(*pair) for pair in zip(first["gradients"], second["gradients"], strict=True))
    assert first["losses"] == second["losses"]
    assert np.isfinite(first["losses"]["soft"])
    assert not torch.equal(first["data"], second["data"]), "both processes train on the same patches"
    for found in (first, second):
        assert found["inside"] > 0.3
        assert found["worst"] <= 2 / 510 + 1e-5
