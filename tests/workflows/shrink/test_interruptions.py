"""Stopped anywhere and started again with the same line: it goes on, and ends with the same student."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_kd.errors import MissingRequirement
from nnunet_kd.inference.cases import InputCase
from nnunet_kd.inference.image_folders import ImageCase
from nnunet_kd.inference.session import RunOptions
from nnunet_kd.nnunet.environment import VARIABLES
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.demo.commands import script
from nnunet_kd.workflows.shrink import run as run_module
from nnunet_kd.workflows.shrink import teacher as teacher_module
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.request import Places
from nnunet_kd.workflows.shrink.run import _Run
from nnunet_kd.workflows.shrink.state import State
from nnunet_kd.workflows.shrink.teacher import predict_held_out
from tests.workflows.shrink.tiny_shrink import FAST, prepare, shrink, state_of, write_images, write_model, zip_alone

LINE = ("--iterations", "20", "--seed", "3")  # two epochs of ten


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    prepare(monkeypatch)
    monkeypatch.setattr(run_module, "export_student", zip_alone)
    return monkeypatch


def weights(output: Path) -> dict[str, torch.Tensor]:
    (path,) = (output / "work" / "nnUNet_results").glob("*/*/fold_0/checkpoint_final.pth")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=False)["network_weights"]
    return found


def stop_before(patch: pytest.MonkeyPatch, place: Any, name: str, error: BaseException, calls: int = 1) -> None:
    """Raise ``error`` in the ``calls``-th call of something; later calls work."""
    original, seen = getattr(place, name), []

    def stopped(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == calls:
            raise error
        return original(*arguments, **options)

    patch.setattr(place, name, stopped)


STOPS: dict[str, tuple[Any, str, int]] = {
    "preprocessing": (run_module, "preprocess", 1),
    "soft labels": (teacher_module, "soften", 1),
    "start": (_Run, "_start", 1),
    "training": (DistillationTrainer, "train_step", 14),
    "agreement": (run_module, "measure_agreement", 1),
}


def test_it_goes_on_after_ctrl_c_in_training(tmp_path: Path, fast: pytest.MonkeyPatch) -> None:
    """In the second epoch: the same schedule, and bit for bit the student of a run that nobody stopped."""
    model, images = write_model(tmp_path), write_images(tmp_path / "images")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert shrink(model, images, whole, *LINE).exit_code == 0
    with fast.context() as patch:
        stop_before(patch, DistillationTrainer, "train_step", KeyboardInterrupt(), calls=14)
        result = shrink(model, images, stopped, *LINE)
    assert result.exit_code == 130
    assert "Run the same line again to go on" in result.output
    schedule = state_of(stopped)["values"]["schedule"]
    again = shrink(model, images, stopped, *LINE)
    assert again.exit_code == 0, (again.output, again.exception)
    assert state_of(stopped)["values"]["schedule"] == schedule == state_of(whole)["values"]["schedule"]
    assert all(torch.equal(value, weights(stopped)[name]) for name, value in weights(whole).items())


@pytest.mark.nightly
@pytest.mark.parametrize("place", list(STOPS))
@pytest.mark.parametrize("kind", ["interrupt", "full disk"])
def test_it_goes_on_wherever_it_was_stopped(place: str, kind: str, tmp_path: Path, fast: pytest.MonkeyPatch) -> None:
    model, images = write_model(tmp_path), write_images(tmp_path / "images")
    assert shrink(model, images, tmp_path / "whole", *LINE).exit_code == 0
    error = KeyboardInterrupt() if kind == "interrupt" else MissingRequirement("the disk is full")
    owner, name, calls = STOPS[place]
    with fast.context() as patch:
        stop_before(patch, owner, name, error, calls)
        assert shrink(model, images, tmp_path / "stopped", *LINE).exit_code != 0
    again = shrink(model, images, tmp_path / "stopped", *LINE)
    assert again.exit_code == 0, (again.output, again.exception)
    own = weights(tmp_path / "stopped")
    assert all(torch.equal(value, own[name]) for name, value in weights(tmp_path / "whole").items())


def test_a_stopped_prediction_keeps_its_time(tmp_path: Path, fast: pytest.MonkeyPatch) -> None:
    """The time of the images that were done, which the schedule and the report are made of."""
    images, places = write_images(tmp_path / "images"), Places(tmp_path / "out")
    cases = {f"patient_{number}": ImageCase(f"patient_{number}", (images,)) for number in range(5)}
    state, stopped = State(places, {}), [True]

    def predict_cases(todo: list[InputCase]) -> Iterator[InputCase]:
        for count, case in enumerate(todo):
            if count == 3 and stopped.pop():
                raise KeyboardInterrupt
            time.sleep(0.02)
            case.output.touch()
            yield case

    @contextlib.contextmanager
    def opened(*arguments: Any) -> Iterator[Any]:
        yield SimpleNamespace(predictor=SimpleNamespace(predict_cases=predict_cases))

    fast.setattr(teacher_module, "open_predictor", opened)

    def predict(own: State) -> dict[str, float]:
        everything: Any = (RunOptions(), Images(cases, {}, {}), list(cases), places, ".nii.gz", own)
        predict_held_out("teacher", tmp_path, *everything, lambda *progress: None)
        return dict(own.values["predicted_by_teacher"])

    with pytest.raises(KeyboardInterrupt):
        predict(state)
    again = State(places, {})  # from disk, as the same line reads it
    before = dict(again.values["predicted_by_teacher"])
    assert before["images"] == 3
    assert before["seconds"] >= 0.05
    stopped.append(False)
    after = predict(again)
    assert after["images"] == 5
    assert after["seconds"] >= before["seconds"] + 0.03


def test_the_log_takes_any_name(tmp_path: Path) -> None:
    """On Windows, too, where text is written in a code page unless something else is said."""
    places = Places(tmp_path)
    places.work.mkdir()
    with _Run._log(SimpleNamespace(places=places)):  # type: ignore[arg-type]
        print("w\u0105troba \udcff")
    assert places.log.read_bytes().decode("utf-8") == "w\u0105troba \\udcff\n".replace("\n", os.linesep)


def _has_soft_labels(output: Path) -> bool:
    return any(output.glob("work/nnUNet_preprocessed/*/soft_labels/*/*/*.b2nd"))


def _has_checkpoint(output: Path) -> bool:
    return any(output.glob("work/nnUNet_results/*/*/fold_0/checkpoint_latest.pth"))


def _has_begun(output: Path) -> bool:
    return (output / "work" / "state.json").is_file()


@pytest.mark.nightly
@pytest.mark.parametrize("reached", [_has_begun, _has_soft_labels, _has_checkpoint])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_goes_on_after_a_kill(reached: Callable[[Path], bool], number: int, tmp_path: Path) -> None:
    """Of the whole process, as soon as something is on disk."""
    model, images = write_model(tmp_path), write_images(tmp_path / "images")
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment["nnUNet_n_proc_DA"] = "0"

    def command(output: Path) -> list[str]:
        program = [script("nnunet-kd"), "shrink", str(model), str(images), str(output)]
        return [*program, *LINE[:1], "40", *LINE[2:], *FAST]

    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True)
    process = subprocess.Popen(
        command(tmp_path / "out"),
        env=environment,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    deadline = time.monotonic() + 300
    while not reached(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) != 0
    subprocess.run(command(tmp_path / "out"), env=environment, check=True, capture_output=True)
    own = weights(tmp_path / "out")
    assert all(torch.equal(value, own[name]) for name, value in weights(tmp_path / "whole").items())
