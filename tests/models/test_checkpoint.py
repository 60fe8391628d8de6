"""Checkpoints on disk: the last two always exist, damaged ones give way, and none of them is code."""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.settings_sources import SETTINGS_FILE
from nnunet_kd.errors import CheckpointError, MissingRequirement, SettingsError
from nnunet_kd.models.checkpoint import PREVIOUS, newest_checkpoint, read_checkpoint, save_with_entry
from nnunet_kd.system.files import _computer, remove_leftovers, write_atomically
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer
from tests.conftest import REAL_TEACHER, needs_real_teacher
from tests.training.tiny_trainer import CPU, close_epoch, ready, save, steps, trainer

RAN: list[str] = []


def record(text: str) -> None:
    RAN.append(text)


def fold(made: DistillationTrainer) -> Path:
    return Path(made.output_folder)


def trained(plans: dict, *names: str) -> DistillationTrainer:
    """One epoch per name, each saved under its name."""
    made = ready("nnUNetTrainerDCD", plans)
    for index, name in enumerate(names):
        steps(made, 1, index)
        close_epoch(made)
        save(made, name)
        with contextlib.redirect_stdout(io.StringIO()):
            made.on_train_epoch_start()
    return made


def continued(plans: dict, asked_for: Path) -> DistillationTrainer:
    made = trainer("nnUNetTrainerDCD", plans, continue_training=True)
    made.load_checkpoint(str(asked_for))
    return made


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped bit":
        with zipfile.ZipFile(path) as archive:
            tensor = max(
                (info for info in archive.infolist() if "/data/" in info.filename), key=lambda info: info.file_size
            )
            with archive.open(tensor) as opened:
                values = opened.read()
        content[content.index(values) + len(values) // 2] ^= 1
    else:
        del content[0 if how == "empty" else len(content) // 2 :]
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped bit"])
@pytest.mark.parametrize("newest", ["checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"])
def test_a_damaged_newest_gives_way_to_the_one_before(
    tiny: dict, how: str, newest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fold(trained(tiny, newest, newest))
    expected = read_checkpoint(folder / PREVIOUS)
    damage(folder / newest, how)
    resumed = continued(tiny, folder / newest)
    assert resumed.current_epoch == 1
    told = capsys.readouterr().out
    assert f"WARNING: the checkpoint {folder / newest} cannot be read" in told
    assert f"Continuing from {PREVIOUS} instead" in told
    weights = resumed.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in expected["network_weights"].items())
    with contextlib.redirect_stdout(io.StringIO()):
        resumed.prepare_distillation()
        resumed.on_train_epoch_start()
    steps(resumed, 1)
    close_epoch(resumed)
    save(resumed, newest)
    # the damaged file is no reason to give up the whole one
    assert read_checkpoint(folder / PREVIOUS)["current_epoch"] == 1
    assert read_checkpoint(folder / newest)["current_epoch"] == 2


def test_what_got_furthest_is_continued_whatever_its_name(tiny: dict) -> None:
    made = trained(tiny, "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
    assert continued(tiny, fold(made) / "checkpoint_final.pth").current_epoch == 3
    # without --c (validation), exactly the file that was asked for
    validating = trainer("nnUNetTrainerDCD", tiny)
    validating.load_checkpoint(str(fold(made) / "checkpoint_final.pth"))
    assert validating.current_epoch == 1
    # of one epoch, the file that was saved last: it knows the best validation
    made.current_epoch -= 1
    save_again = fold(made) / "checkpoint_latest.pth"
    made.save_checkpoint(str(save_again))
    assert newest_checkpoint(fold(made)) == (save_again, {})


def test_if_all_are_damaged_it_says_so(tiny: dict) -> None:
    folder = fold(trained(tiny, "checkpoint_latest.pth", "checkpoint_best.pth"))
    for path in folder.glob("checkpoint_*.pth"):
        damage(path, "truncated")
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint .* can be continued from.*latest.*best.*Without --c the training starts anew and overwrites them",
    ):
        continued(tiny, folder / "checkpoint_latest.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer("nnUNetTrainerDCD", tiny).load_checkpoint(str(folder / "checkpoint_best.pth"))


def test_one_without_its_epoch_is_told_and_another_is_continued(tmp_path: Path) -> None:
    torch.save({"network_weights": {}}, tmp_path / "checkpoint_latest.pth")
    with pytest.raises(CheckpointError, match=r"latest\.pth does not say its epoch.*Without --c"):
        newest_checkpoint(tmp_path)
    torch.save({"current_epoch": 3}, tmp_path / "checkpoint_best.pth")
    path, problems = newest_checkpoint(tmp_path)
    assert (path.name, [one.name for one in problems]) == ("checkpoint_best.pth", ["checkpoint_latest.pth"])


def test_a_damaged_compression_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", bytes(range(256)) * 64)
    content = bytearray(path.read_bytes())
    content[60:80] = b"\xff" * 20
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive, pytest.raises(lzma.LZMAError):
        archive.testzip()
    with pytest.raises(CheckpointError, match="no whole zip archive"):
        read_checkpoint(path)


def test_one_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*checkpoint_final\.pth"):
        read_checkpoint(tmp_path / "checkpoint_final.pth")


def test_a_stock_checkpoint_can_be_continued(tiny: dict) -> None:
    made = trained(tiny, "checkpoint_latest.pth")
    path = fold(made) / "checkpoint_latest.pth"
    checkpoint = torch.load(path, weights_only=False)
    stock = make_trainer("nnUNetTrainer", checkpoint["init_args"]["plans"], "3d_fullres", DATASET_JSON, CPU)
    with contextlib.redirect_stdout(io.StringIO()):
        stock.load_checkpoint(str(path))
        stock.current_epoch = 4
        stock.save_checkpoint(str(path))
    assert continued(tiny, path).current_epoch == 5


def test_the_old_file_keeps_a_name_also_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, previous = tmp_path / "a", tmp_path / "b"
    for content in (b"1", b"2", b"3"):
        write_atomically(path, lambda file, content=content: file.write(content), keep_as=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")

    def refuse(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(path, lambda file: file.write(b"4"), keep_as=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"4", b"3")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_failed_write_costs_neither_of_the_two(tmp_path: Path) -> None:
    path, previous = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"2")
    previous.write_bytes(b"1")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(MissingRequirement, match="disk full"):
        write_atomically(path, fail, keep_as=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"2", b"1")


def test_pytorchs_word_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = tmp_path / "checkpoint_latest.pth", {"optimizer_state": {"state": {}, "param_groups": []}}
    path.write_bytes(b"before")
    original = torch.save

    def refuse(content: Any, file: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(MissingRequirement, match=r"PytorchStreamWriter failed .* GB free"):
        save_with_entry(lambda buffer: original(state, buffer), {}, path)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"before"]


def test_only_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    """Of a process that runs, on this computer or perhaps on another, nothing goes: it would not find its file."""
    nobody = 1 << 30  # above every process number of Linux
    left = [tmp_path / f"checkpoint_latest.pth.{nobody}.tmp", tmp_path / f"case.b2nd.{_computer()}.{nobody}.tmp"]
    kept = [
        tmp_path / name
        for name in ("notes.tmp", f"case_1.b2nd.{os.getpid()}.tmp", f"case_2.b2nd.0123abcd.{nobody}.tmp")
    ]
    for path in (*left, *kept):
        path.touch()
    old = tmp_path / f"case_3.b2nd.0123abcd.{nobody}.tmp"
    old.touch()
    os.utime(old, (0, 0))
    assert sorted(remove_leftovers(tmp_path)) == sorted([*left, old])
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_file_being_written_survives_the_start_of_another_process(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"whole")
        assert remove_leftovers(tmp_path) == []

    write_atomically(tmp_path / "case.b2nd", write)
    assert (tmp_path / "case.b2nd").read_bytes() == b"whole"


# security -------------------------------------------------------------------------------------------------------------


class Malicious:
    """What a checkpoint from a stranger may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return record, ("code of the checkpoint",)


def test_every_checkpoint_we_write_is_data(tiny: dict) -> None:
    path = fold(trained(tiny, "checkpoint_latest.pth")) / "checkpoint_latest.pth"
    assert set(read_checkpoint(path)) == set(torch.load(path, weights_only=False))


@needs_real_teacher
def test_a_real_nnunet_checkpoint_is_data() -> None:
    path = REAL_TEACHER / "fold_0" / "checkpoint_final.pth"
    read, full = read_checkpoint(path), torch.load(path, weights_only=False, map_location="cpu")
    assert read["logging"] == full["logging"]
    assert all(torch.equal(value, full["network_weights"][key]) for key, value in read["network_weights"].items())


def test_numpy_numbers_and_arrays_are_data(tmp_path: Path) -> None:
    values = {"a": np.float32(1.5), "b": [np.float64(2)], "c": np.arange(3), "d": np.int64(4), "e": np.bool_(True)}
    torch.save(values, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert all(np.array_equal(read[key], value) for key, value in values.items())


def test_checkpoints_written_with_numpy_1_are_data(tmp_path: Path) -> None:
    torch.save({"a": np.float64(1.5)}, tmp_path / "new.pth")
    import zipfile

    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            assert not name.endswith("data.pkl") or b"numpy._core.multiarray" in content
            old.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(tmp_path / "old.pth") == {"a": 1.5}


def test_a_checkpoint_that_is_code_is_refused(tiny: dict) -> None:
    RAN.clear()
    path = fold(trained(tiny, "checkpoint_latest.pth")) / "checkpoint_latest.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"]["surprise"] = Malicious()
    torch.save(checkpoint, path)
    torch.load(path, weights_only=False)
    assert RAN.pop()
    for made in (trainer("nnUNetTrainerDCD", tiny), trainer("nnUNetTrainerDCD", tiny, continue_training=True)):
        with pytest.raises(
            CheckpointError, match=r"holds more than data: loading it runs tests\.models\.test_checkpoint\.record"
        ):
            made.load_checkpoint(str(path))
    assert RAN == []


# settings -------------------------------------------------------------------------------------------------------------


def test_the_commands_refuse_changed_settings(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained(tiny, "checkpoint_latest.pth")
    (fold(made) / SETTINGS_FILE).write_text(json.dumps(made.settings.as_dict()))
    dataset = Path(os.environ["nnUNet_preprocessed"]) / "Dataset998_Tiny"
    (dataset / "nnunet_kd.yaml").write_text("reduction: 2\n")
    monkeypatch.delenv("NNUNET_KD_SET", raising=False)
    before = {path: path.read_bytes() for path in fold(made).iterdir()}

    # nnUNetv2_train
    from nnunetv2.run.run_training import run_training

    with pytest.raises(SettingsError, match=r"reduction: was 4.0, now 2"), contextlib.redirect_stdout(io.StringIO()):
        run_training("998", "3d_fullres", 0, "nnUNetTrainerDCD", continue_training=True, device=CPU)
    # nnunet-kd train
    if not cli.app.registered_commands:
        cli._register()
    arguments = ["train", "998", "3d_fullres", "0", "-m", "dcd", "-device", "cpu", "--c"]
    refused = CliRunner().invoke(cli.app, arguments)
    assert isinstance(refused.exception, SettingsError)
    assert "reduction: was 4.0, now 2" in str(refused.exception)
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(dataset / "nnUNetPlans_3d_fullres")  # stops the training, once the settings are agreed on
    agreed = CliRunner().invoke(cli.app, [*arguments, "--set", "reduction=4"])
    assert not isinstance(agreed.exception, SettingsError)
