"""Where a training's first weights come from, and that this happens once, before anything else."""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import maybe_load_checkpoint
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.features import plain_module
from nnunet_kd.distillation.settings_sources import DATASET_FILE, SETTINGS_FILE
from nnunet_kd.distillation.starts.layer_fit import LayerFit
from nnunet_kd.errors import PlanError, SettingsError, TeacherError
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.training import started
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import random_batch
from tests.training.tiny_training import NAME, SHORT, train, validate, write_teacher_with_batch_norm

cli._register()
INHERITED, DCD, STUDENT = "nnUNetTrainerInherited", "nnUNetTrainerDCD", "nnUNetTrainerStudent"


def made(
    trainer: str, *assignments: str, continued: bool = False, before: Any = lambda made: None
) -> DistillationTrainer:
    """Prepared, and stopped before its first iteration."""

    class Ready(Exception):
        pass

    kept: list[DistillationTrainer] = []

    def prepare(one: DistillationTrainer) -> None:
        before(one)
        kept.append(one)
        one.on_train_start()
        raise Ready

    with pytest.raises(Ready):
        train(trainer, [*SHORT, *assignments], continued, before=prepare)
    return kept[0]


def weights(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in plain_module(trainer.network).state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log_of(trainer: DistillationTrainer) -> str:
    return Path(trainer.log_file).read_text()


def test_weights_given_by_hand_reach_one_of_several_processes(student: Path, tmp_path: Path) -> None:
    """nnU-Net itself would put them onto the GPU that has the process's number."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        trainer = made(DCD, "seed=6", before=lambda one: maybe_load_checkpoint(one, False, False, str(student)))
    finally:
        dist.destroy_process_group()
    given, own = read_checkpoint(student)["network_weights"], weights(trainer)
    assert {name for name in own if not torch.equal(own[name], given[name])} == {
        f"decoder.seg_layers.{scale}.{kind}" for scale, kind in ((0, "weight"), (1, "weight"), (1, "bias"))
    }, "the coarsest head's bias is 0 in both, as nothing trains it"
    assert f"Weights loaded from {student}" in log_of(trainer)


def test_it_starts_inside_its_teacher(results: Path) -> None:
    inherited = made(INHERITED, "reduction=1")
    teacher = read_checkpoint(results / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0" / "checkpoint_final.pth")
    network = plain_module(inherited.network).eval()
    image = random_batch(inherited)["data"]
    with torch.no_grad():
        started_with = network(image)[0]
        network.load_state_dict(teacher["network_weights"])
        of_teacher = network(image)[0]
    assert float((started_with - of_teacher).abs().max() / of_teacher.abs().max()) < 1e-4
    settings = yaml.safe_load((Path(inherited.output_folder) / SETTINGS_FILE).read_text())
    assert settings["start"] == "teacher"
    assert settings["teacher"]["sha256"]
    assert settings["mirror_axes"] == [0, 1, 2]
    assert "The student starts inside its teacher" in log_of(inherited)
    assert [fit.name for fit in inherited.start_fits if not fit.trained] == ["decoder.seg_layers.0"]


def test_the_same_start_again(dataset: Path) -> None:
    first = made(INHERITED)
    assert first.start_fits
    assert same(weights(first), weights(made(INHERITED)))
    assert not same(weights(first), weights(made(INHERITED, "inheritance.channels=regular")))
    assert not same(weights(first), weights(made(STUDENT)))


def test_random_generators_are_where_they_were(dataset: Path) -> None:
    inherited = made(INHERITED)
    teacher = inherited_teacher(inherited)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    started.training_patches(inherited, 3, True, 1)
    inherited._compute_start(teacher, [])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def inherited_teacher(trainer: DistillationTrainer) -> Any:
    from nnunet_kd.distillation.teacher import load_teachers

    teachers, _ = load_teachers(
        trainer.settings,
        Path(os.environ["nnUNet_results"]),
        trainer.plans_manager.plans,
        "3d_fullres",
        0,
        trainer.dataset_json,
        torch.device("cpu"),
        False,
        lambda text: None,
    )
    return teachers.members[0]


def test_it_happens_once(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = [0]
    original = started.inherit

    def counted(*arguments: Any, **options: Any) -> list[LayerFit]:
        count[0] += 1
        return original(*arguments, **options)

    monkeypatch.setattr(started, "inherit", counted)
    made(INHERITED, continued=True)
    assert count == [1], "--c without a checkpoint on disk is a new training"
    train(INHERITED, [*SHORT, "epochs=1"])
    assert count == [2]
    once = weights(made(INHERITED, "epochs=2", continued=True))
    assert count == [2], "a loaded checkpoint is no new training"
    assert same(
        once, read_checkpoint(next(results.glob(f"{INHERITED}*/fold_0/checkpoint_final.pth")))["network_weights"]
    )
    count[0] = 0
    validated = validate(INHERITED, [*SHORT, "epochs=1"])
    assert same(weights(validated), once)
    assert count == [0], "--val"


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(dataset: Path) -> None:
    whole = weights(train(INHERITED, [*SHORT, "epochs=2"]))
    first = train(INHERITED, [*SHORT, "epochs=2", "save_every=1"], before=_stop_after_one_epoch)
    assert first.current_epoch == 1
    assert same(weights(train(INHERITED, [*SHORT, "epochs=2", "save_every=1"], continued=True)), whole)


def _stop_after_one_epoch(trainer: DistillationTrainer) -> None:
    trainer.run_training = lambda: _one_epoch(trainer)  # type: ignore[method-assign]


def _one_epoch(trainer: DistillationTrainer) -> None:
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(trainer.num_iterations_per_epoch)]
    trainer.on_train_epoch_end(outputs)
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        validated = [
            trainer.validation_step(next(trainer.dataloader_val)) for _ in range(trainer.num_val_iterations_per_epoch)
        ]
    trainer.on_validation_epoch_end(validated)
    trainer.on_epoch_end()


def test_pretrained_weights_win(results: Path) -> None:
    train(STUDENT, [*SHORT, "epochs=1"])
    checkpoint = next(results.glob(f"{STUDENT}*/fold_0/checkpoint_final.pth"))

    def load(trainer: DistillationTrainer) -> None:
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(checkpoint))

    inherited = made(INHERITED, before=load)
    body = {name: value for name, value in weights(inherited).items() if ".seg_layers." not in name}
    pretrained = read_checkpoint(checkpoint)["network_weights"]
    assert all(torch.equal(value, pretrained[name]) for name, value in body.items())
    assert inherited.settings.start == "random"
    assert "start: teacher is not used" in log_of(inherited)


def test_an_average_starts_from_the_start(dataset: Path) -> None:
    inherited = made(INHERITED, "ema=0.9")
    assert inherited.average is not None
    assert same(inherited.average.other_weights(), weights(inherited))


def test_a_student_on_disk_as_start(results: Path) -> None:
    train(STUDENT, [*SHORT, "epochs=1"])
    folder = next(results.glob(f"{STUDENT}*"))
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    expected = read_checkpoint(checkpoint)["network_weights"]
    for path in (folder, checkpoint):
        one = made(INHERITED, f"start={path}")
        assert same(weights(one), expected), "every layer, heads included"
        assert one.settings.start == str(path.resolve())
        assert one.settings.start_sha256
    assert "WARNING: that student is of fold" not in Path(one.log_file).read_text()
    (folder / "fold_0").rename(folder / "fold_1")
    other = made(INHERITED, f"start={folder}")
    assert "WARNING: that student is of fold 1, and this is fold 0" in Path(other.log_file).read_text()
    (folder / "fold_1").rename(folder / "fold_0")
    again = made(INHERITED, f"start={folder}", f"start_sha256={one.settings.start_sha256}")
    assert same(weights(again), expected)
    with pytest.raises(SettingsError, match="it is another checkpoint than the one meant"):
        made(INHERITED, f"start={folder}", f"start_sha256={'a' * 64}")
    with pytest.raises(SettingsError, match=r"another network than the one to train.*8x1x3x3x3 there, 4x1x3x3x3 here"):
        made(INHERITED, "reduction=2", f"start={results / 'nnUNetTrainer__nnUNetPlans__3d_fullres'}")
    with pytest.raises(SettingsError, match=r"start: the model .*does not exist"):
        made(INHERITED, f"start={results / 'nowhere'}")


def test_the_student_without_a_teacher_stays_random(dataset: Path) -> None:
    plain = weights(made(STUDENT))
    (dataset / DATASET_FILE).write_text("start: teacher")
    assert same(weights(made(STUDENT)), plain)
    assert made(DCD).settings.start == "teacher"


def test_of_several_teachers_the_first_ones_weights(results: Path) -> None:
    model = results / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    shutil.copytree(model / "fold_0", model / "fold_1")
    path = model / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    content["network_weights"] = {name: 1.5 * value for name, value in content["network_weights"].items()}
    torch.save(content, path)
    first = weights(made(INHERITED, "teacher.fold=0"))
    assert same(weights(made(INHERITED, "teacher.folds=[0, 1]")), first)
    assert not same(weights(made(INHERITED, "teacher.folds=[1, 0]")), first)


def test_a_teacher_for_the_start_alone_can_be_done_without(results: Path) -> None:
    shutil.rmtree(results / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    with pytest.raises(TeacherError, match="teacher for the start alone: --set start=random begins without it"):
        made("nnUNetTrainerSoft", "objectives.soft.alpha=0", "objectives.soft.source=live")
    for needing in (INHERITED, DCD):
        with pytest.raises(TeacherError) as refused:
            made(needing)
        assert "start=random" not in str(refused.value)


def test_without_a_start_it_is_no_inherited_training(dataset: Path) -> None:
    with pytest.raises(SettingsError, match="nnUNetTrainerStudent, which starts from random weights"):
        made(INHERITED, "start=random")


def test_what_cannot_be_inherited_is_refused_or_passed_over(dataset: Path) -> None:
    write_teacher_with_batch_norm()
    both_plans = r"nnUNetPlans \(channels 2, 4, 4\).*nnUNetPlans \(channels 8, 16, 16\).*"
    with pytest.raises(PlanError, match=both_plans + "Train nnUNetTrainerStudent") as refused:
        made(INHERITED)
    assert "start=random" not in str(refused.value), "it would refuse that too"
    with pytest.raises(PlanError, match=both_plans + r"Set start=random \(--set start=random\)"):
        made(DCD, "start=teacher")
    preferred = made(DCD)
    assert preferred.settings.start == "random"
    assert "WARNING: a student of the plan" in log_of(preferred)
    assert same(weights(preferred), weights(made(DCD, "start=random")))
    result = CliRunner().invoke(cli.app, ["doctor", NAME])
    assert "trainers start at random, and nnUNetTrainerInherited refuses" in " ".join(result.output.split())
    (dataset / DATASET_FILE).write_text("start: teacher")
    os.environ.pop("NNUNET_KD_SET")
    result = CliRunner().invoke(cli.app, ["doctor", NAME])
    assert "trainers refuse, because nnunet_kd.yaml says start: teacher" in " ".join(result.output.split())


def test_fitted_projections_lower_the_loss(dataset: Path) -> None:
    """Through the benchmark that says of which objectives."""
    benchmark = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "projection_start.py"))
    options = argparse.Namespace(batches=2, prompt_iterations=1, device="cpu")
    methods = benchmark["METHODS"]
    losses = benchmark["losses_at_the_start"]((NAME, "3d_fullres", 0), ["inheritance.voxels=32768"], methods, options)
    assert set(losses["random"]) == set(losses["fitted"]) == set(methods), "every objective with projections"
    for name in ("dcd", "fitnet"):
        assert losses["fitted"][name] < 0.7 * losses["random"][name]
    assert "| dcd |" in benchmark["table"](losses).markdown()


def test_an_objective_without_projections_has_none_to_fit(dataset: Path) -> None:
    trainer = made("nnUNetTrainerCWD", "start=random", "objectives.cwd.projection_start=fitted")
    assert "objectives.cwd.projection_start is fitted, but with these settings it has none" in log_of(trainer)


def test_fitted_projections_keep_their_values_when_continued(dataset: Path) -> None:
    assignments = [*SHORT, "objectives.dcd.projection_start=fitted"]
    trained = train(DCD, [*assignments, "epochs=1"])
    saved = read_checkpoint(Path(trained.output_folder) / "checkpoint_final.pth")["nnunet_kd"]["distillation"]
    again = made(DCD, *assignments[len(SHORT) :], "epochs=2", continued=True)
    assert again.supervision is not None
    state = again.supervision.distillation.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.items())


def test_settings_are_checked_before_anything_is_built() -> None:
    os.environ.pop("NNUNET_KD_SET", None)
    from nnunet_kd.distillation.settings import validate_settings

    with pytest.raises(SettingsError, match=r"inheritance.channels"):
        validate_settings({"inheritance": {"channels": "best"}}, "test")
    with pytest.raises(SettingsError, match=r"unknown key 'inheritance.voxel' \(did you mean 'voxels'"):
        validate_settings({"inheritance": {"voxel": 3}}, "test")
    assert json.dumps(validate_settings({}, "test").as_dict()["start"]) == '"random"'
