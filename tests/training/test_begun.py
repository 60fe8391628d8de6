"""Several trainings in one folder: ``--c`` goes on with the one that began last, and with nothing else."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SETTINGS_FILE
from nnunet_kd.errors import CheckpointError, SettingsError
from nnunet_kd.models.checkpoint import ENTRY, TRAINING, read_checkpoint, save_to
from nnunet_kd.training.begun import Begun, read_begun
from nnunet_kd.training.trainer import DistillationTrainer
from tests.training.test_start import DCD
from tests.training.test_start_continued import loading
from tests.training.tiny_training import SHORT, train, validate

LOGITS = "nnUNetTrainerLogits"
FIRST = [*SHORT, "epochs=2", "start=random"]
SECOND = [*FIRST, "save_every=1", "seed=9", "objectives.logits.weight=7"]


class _Crash(Exception):
    """The machine went down."""


def crash_after(epoch: int) -> Callable[[DistillationTrainer], None]:
    def prepare(trainer: DistillationTrainer) -> None:
        end = trainer.on_epoch_end

        def ended() -> None:
            end()
            if trainer.current_epoch > epoch:
                raise _Crash

        trainer.on_epoch_end = ended

    return prepare


def crash_at_start(trainer: DistillationTrainer) -> None:
    start = trainer.on_train_start

    def started() -> None:
        start()
        raise _Crash

    trainer.on_train_start = started


def quietly_validated(trainer: DistillationTrainer, probabilities: bool = False) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.perform_actual_validation(probabilities)


def weight_of(path: Path) -> float:
    return read_checkpoint(path)[ENTRY]["settings"]["objectives"]["logits"]["weight"]


@pytest.fixture
def folder(results: Path) -> Path:
    """The folder of a finished training."""
    return Path(train(LOGITS, FIRST).output_folder)


def test_the_new_training_goes_on_though_the_old_one_got_further(folder: Path) -> None:
    old = read_checkpoint(folder / "checkpoint_final.pth")
    with pytest.raises(_Crash):
        train(LOGITS, SECOND, before=crash_after(0))
    assert (weight_of(folder / "checkpoint_final.pth"), weight_of(folder / "checkpoint_latest.pth")) == (1, 7)
    resumed = train(LOGITS, [], continued=True)
    assert resumed.restored_from is not None
    assert resumed.restored_from.name != "checkpoint_final.pth"
    final = read_checkpoint(folder / "checkpoint_final.pth")
    assert weight_of(folder / "checkpoint_final.pth") == 7
    assert final[ENTRY][TRAINING] != old[ENTRY][TRAINING]
    assert not all(torch.equal(value, old["network_weights"][key]) for key, value in final["network_weights"].items())
    # once it has ended, --c has nothing to do, as ever
    assert train(LOGITS, [], continued=True).restored[TRAINING] == final[ENTRY][TRAINING]


def test_a_new_training_without_a_checkpoint_starts_anew(folder: Path) -> None:
    with pytest.raises(_Crash):
        train(LOGITS, SECOND, before=crash_at_start)
    assert weight_of(folder / "checkpoint_final.pth") == 1
    begun = read_begun(folder / SETTINGS_FILE)
    resumed = train(LOGITS, [], continued=True)
    assert (resumed.restored_from, resumed.begun) == (None, begun)
    assert "has saved no checkpoint yet, so it starts anew" in Path(resumed.log_file).read_text()
    assert weight_of(folder / "checkpoint_final.pth") == 7
    # one that cannot be read may be the new one's
    (folder / "checkpoint_best.pth").write_bytes(b"damaged")
    text = (folder / SETTINGS_FILE).read_text()
    (folder / SETTINGS_FILE).write_text(text.replace(resumed.begun.name, "0" * 32) if resumed.begun else text)
    with pytest.raises(CheckpointError, match=r"best.*cannot be read.*final\.pth is of an earlier training"):
        train(LOGITS, [], continued=True)


def test_an_earlier_training_that_is_not_finished_is_not_lost(results: Path) -> None:
    with pytest.raises(_Crash):
        train(LOGITS, [*FIRST, "save_every=1"], before=crash_after(0))
    folder = next(results.glob(f"{LOGITS}*")) / "fold_0"
    kept = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    file = folder / SETTINGS_FILE
    begun, settings = read_begun(file), file.read_text()
    assert begun is not None

    def trial(trainer: DistillationTrainer) -> None:
        trainer.disable_checkpointing = True

    with pytest.raises(_Crash):
        train(LOGITS, SECOND, before=lambda trainer: (trial(trainer), crash_after(0)(trainer)))
    train(LOGITS, FIRST, before=trial)
    assert file.read_text() == settings, "a trial leaves the record alone"
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == kept, "also where it comes to its end"
    with pytest.raises(_Crash):
        train(LOGITS, SECOND, before=crash_at_start)
    assert read_begun(file) != begun
    with pytest.raises(
        CheckpointError, match=r"saved no checkpoint yet.*is not finished\. To go on with the earlier one"
    ):
        train(LOGITS, [], continued=True)
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == kept
    # what the message says
    file.write_text("\n".join(line for line in settings.splitlines() if not line.startswith("# training")))
    resumed = train(LOGITS, [], continued=True)
    assert resumed.begun == begun
    assert resumed.restored[TRAINING] == begun.name


def test_a_first_training_may_be_continued(results: Path) -> None:
    """As the scripts in examples/ do, whether they were interrupted or not."""
    first = train(LOGITS, FIRST, continued=True)
    assert (first.restored_from, first.current_epoch) == (None, 2)
    again = train(LOGITS, FIRST, continued=True)
    assert again.restored_from == Path(first.output_folder) / "checkpoint_final.pth"
    assert again.restored[TRAINING] == read_checkpoint(again.restored_from)[ENTRY][TRAINING]


def test_a_trial_validates_beside_a_finished_training(folder: Path) -> None:
    def trial(trainer: DistillationTrainer) -> None:
        trainer.disable_checkpointing = True

    validate(LOGITS, FIRST)
    before = {path.name: path.read_bytes() for path in (folder / "validation").iterdir()}
    tried = train(LOGITS, [*FIRST, "seed=9"], before=trial)
    quietly_validated(tried)
    assert {path.name: path.read_bytes() for path in (folder / "validation").iterdir()} == before
    assert (folder.with_name("trial_fold_0") / "validation" / "summary.json").is_file()
    assert tried.output_folder == str(folder)


def test_probabilities_of_an_earlier_training_go_with_its_segmentations(folder: Path) -> None:
    quietly_validated(train(LOGITS, FIRST), probabilities=True)
    kept = sorted(path.name for path in (folder / "validation").iterdir())
    assert sum(name.endswith((".npz", ".pkl")) for name in kept) == 4
    validate(LOGITS, FIRST)  # of the same weights
    assert sorted(path.name for path in (folder / "validation").iterdir()) == kept
    quietly_validated(train(LOGITS, [*FIRST, "seed=9"]))
    assert not [path for path in (folder / "validation").iterdir() if path.suffix in (".npz", ".pkl")]


def test_older_and_stock_checkpoints_go_on(folder: Path) -> None:
    path, file = folder / "checkpoint_final.pth", folder / SETTINGS_FILE
    checkpoint = read_checkpoint(path)
    name = checkpoint[ENTRY].pop(TRAINING)
    assert read_begun(file) == Begun(name)
    for other in folder.glob("checkpoint_*.pth"):
        other.unlink()
    with path.open("wb") as opened:
        save_to(checkpoint, opened)
    text = file.read_text()
    file.write_text(text.replace(Begun(name).line(), ""))
    older = train(LOGITS, [], continued=True)
    assert older.restored_from == path
    assert older.begun is None
    assert read_begun(file) is None
    del checkpoint[ENTRY]
    with path.open("wb") as opened:
        save_to(checkpoint, opened)
    file.write_text(text)
    stock = train(LOGITS, [], continued=True)
    assert stock.restored_from == path
    assert stock.begun == Begun(name)


def test_the_settings_file_is_still_one_to_train_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / SETTINGS_FILE
    begun = read_begun(file)
    monkeypatch.setenv(CONFIG_VARIABLE, str(file.rename(folder.parent / "again.yaml")))
    other = train(LOGITS, [])
    assert other.begun is not None
    assert other.begun != begun


def test_weights_given_by_hand_are_asked_for_again(student: Path) -> None:
    with pytest.raises(_Crash):
        train(DCD, [*SHORT, "epochs=1"], before=lambda trainer: (loading(student)(trainer), crash_at_start(trainer)))
    with pytest.raises(SettingsError, match=r"began with -pretrained_weights.*Give them again and leave --c out"):
        train(DCD, [], continued=True)
    again = train(DCD, [*SHORT, "epochs=1"], before=loading(student))
    assert again.begun is not None
    assert again.begun.pretrained
    train(DCD, [], continued=True)


@pytest.mark.parametrize("more", [[], ["ema=0.9"]])
def test_the_best_checkpoint_can_be_validated_after_training(results: Path, more: list[str]) -> None:
    trained = train(DCD, [*SHORT, "epochs=1", *more])
    # what --val_best does then
    trained.load_checkpoint(os.path.join(trained.output_folder, "checkpoint_best.pth"))
    assert len(trained.optimizer.param_groups) == 1
    saved = read_checkpoint(Path(trained.output_folder) / "checkpoint_best.pth")["network_weights"]
    assert all(torch.equal(value, saved[name]) for name, value in trained.network.state_dict().items())
