"""The trainer: real steps, checkpoints, resuming, and nothing of it left for stock nnU-Net to trip over."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.errors import PlanError, SettingsError, TeacherError
from nnunet_kd.models.plans import named_student_plans, stage_channels
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer, random_batch, write_untrained_teacher
from tests.conftest import make_plans
from tests.training.tiny_trainer import CPU, ready, steps, trainer


def test_a_real_step_and_its_terms(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    (loss,) = steps(made, 1)
    means = made.history.close_epoch(0)
    terms = ["segmentation", "dcd", "dcd/stage0", "dcd/stage1", "dcd/stage2"]
    assert list(means) == terms
    assert loss == pytest.approx(means["segmentation"] + 5 * means["dcd"], rel=1e-5)
    assert means["dcd"] == pytest.approx(sum(means[term] for term in terms[2:]), rel=1e-5)


def test_a_cpu_has_the_students_weights_with_channels_last(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    made.network.eval()
    kernels = [weight for weight in made.network.parameters() if weight.dim() == 5 and weight.shape[1] > 1]
    assert kernels
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in kernels)
    # the optimizer has the weights of the network, and they answer as in any other layout
    held = {id(weight) for group in made.optimizer.param_groups for weight in group["params"]}
    assert held >= {id(weight) for weight in made.network.parameters()}
    image = random_batch(made)["data"]
    with torch.no_grad():
        answer = made.network(image)[0]
        for weight in kernels:
            weight.data = weight.data.contiguous()
        torch.testing.assert_close(answer, made.network(image)[0], rtol=1e-4, atol=1e-5)


def test_distillation_alone_reaches_the_encoder_and_only_it(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    made.loss.segmentation.forward = lambda output, target: 0.0 * output[0].sum()
    made.optimizer.param_groups[0]["weight_decay"] = 0
    steps(made, 1)
    changed = {name for name, value in made.network.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("encoder") for name in changed)
    assert not any("seg_layers" in name for name in changed)


def test_a_learned_projection_aligns_better_than_a_fixed_one(tiny: dict) -> None:
    final = {}
    for projection in ("learned", "fixed"):
        made = ready(
            "nnUNetTrainerDCD",
            tiny,
            "objectives.dcd.every=1",
            "objectives.dcd.weight=10",
            f"objectives.dcd.projection={projection}",
        )
        batch = random_batch(made)
        first = made.train_step(batch) and made.history.close_epoch(0)["dcd"]
        for _ in range(30):
            made.train_step(batch)
        made.history.close_epoch(1)
        made.train_step(batch)
        final[projection] = made.history.close_epoch(2)["dcd"]
        assert final[projection] < first
    assert final["learned"] < final["fixed"]


def test_fixed_projections_stay(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, "objectives.dcd.projection=fixed")
    before = [parameter.clone() for parameter in made.supervision.distillation.parameters()]
    steps(made, 2)
    assert len(made.optimizer.param_groups) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, made.supervision.distillation.parameters(), strict=True))


def test_student_trainer_needs_no_teacher(folders: Path) -> None:
    plans = make_plans()
    shutil.rmtree(write_untrained_teacher(plans, "3d_fullres", DATASET_JSON))
    made = ready("nnUNetTrainerStudent", plans)
    steps(made, 1)
    assert list(made.history.close_epoch(0)) == ["segmentation"]
    assert made.configuration_manager.network_arch_init_kwargs["features_per_stage"] == [2, 4, 8]


def test_before_its_schedule_starts_an_objective_costs_nothing(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, "objectives.dcd.schedule={start: 1, kind: constant}")
    made.supervision.teachers.outputs = None  # would fail if called
    steps(made, 1)
    assert list(made.history.close_epoch(0)) == ["segmentation"]


def test_after_its_schedule_ends_labels_alone_teach(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, "objectives.dcd.schedule={end: 1}")
    steps(made, 1)
    assert "dcd" in made.history.close_epoch(0)
    made.supervision.teachers.outputs = None  # would fail if called
    learned = [parameter.clone() for parameter in made.supervision.distillation.parameters()]
    made.current_epoch = 1
    steps(made, 2)  # with the momentum of the first step
    assert list(made.history.close_epoch(1)) == ["segmentation"]
    assert learned
    for before, after in zip(learned, made.supervision.distillation.parameters(), strict=True):
        assert torch.equal(before, after)


def test_evaluation_is_stock(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    steps(made, 1)
    made.on_validation_epoch_start()
    batch = random_batch(made)
    with torch.no_grad():
        validated = made.validation_step(batch)
        output = made.network(batch["data"])
        labels = made.loss.segmentation(output, batch["target"])  # nnU-Net's own
    assert float(validated["loss"]) == pytest.approx(float(labels), rel=1e-6)
    assert (made.supervision._capture.features, made.supervision._capture.image) == ([], None)
    made.network.eval()
    made.supervision.remove()
    assert not made.network.encoder._forward_hooks


def test_the_plan_is_the_students_and_is_reduced_once(tiny: dict) -> None:
    made = trainer("nnUNetTrainerDCD", tiny)
    stored = made.my_init_kwargs["plans"]
    assert made.plans_manager.plans is stored
    assert stored["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] == [2, 4, 8]
    again = type(made)(**made.my_init_kwargs)
    assert again.configuration_manager.network_arch_init_kwargs["features_per_stage"] == [2, 4, 8]


def test_a_named_student_plan_is_used_as_it_is(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", named_student_plans(tiny, 2))
    assert made.configuration_manager.network_arch_init_kwargs["features_per_stage"] == [4, 8, 16]
    assert made.output_folder_base.endswith("nnUNetTrainerDCD__nnUNetPlans_r2__3d_fullres")
    assert made.supervision.teachers.channels == (8, 16, 32)


def test_what_is_wrong_comes_out_before_training(tiny: dict) -> None:
    with pytest.raises(PlanError, match="less than one"):
        trainer("nnUNetTrainerDCD", tiny, "reduction=9")
    with pytest.raises(SettingsError, match="did you mean 'epochs'"):
        trainer("nnUNetTrainerDCD", tiny, "epochz=9")
    with pytest.raises(TeacherError, match="does not exist"), contextlib.redirect_stdout(io.StringIO()):
        trainer("nnUNetTrainerDCD", tiny, "teacher=/nowhere").on_train_start()
    with (
        pytest.raises(TeacherError, match="another checkpoint than the one meant"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        trainer("nnUNetTrainerDCD", tiny, f"teacher.sha256='{'0' * 64}'").on_train_start()


def test_a_teacher_of_another_fold_is_allowed_with_a_warning(tiny: dict, capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer("nnUNetTrainerDCD", tiny, "teacher.fold=0", fold=1)
    made.prepare_distillation()
    assert "has seen the student's validation cases" in capsys.readouterr().out


def cascade_plans() -> dict[str, Any]:
    plans = make_plans(configuration="3d_cascade_fullres")
    plans["configurations"]["3d_cascade_fullres"]["previous_stage"] = "3d_lowres"
    plans["configurations"]["3d_lowres"] = make_plans()["configurations"]["3d_fullres"] | {
        "next_stage": "3d_cascade_fullres"
    }
    return plans


def test_cascade_takes_the_previous_stage_from_the_teachers_trainer(folders: Path) -> None:
    plans = cascade_plans()
    teacher = write_untrained_teacher(plans, "3d_cascade_fullres", DATASET_JSON)
    made = make_trainer("nnUNetTrainerStudent", plans, "3d_cascade_fullres", DATASET_JSON, CPU)
    with (
        pytest.raises(TeacherError, match="needs the first stage's segmentations"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        made.initialize()
    previous = (
        teacher.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres") / "predicted_next_stage" / "3d_cascade_fullres"
    )
    previous.mkdir(parents=True)
    made = make_trainer("nnUNetTrainerDCD", plans, "3d_cascade_fullres", DATASET_JSON, CPU)
    with contextlib.redirect_stdout(io.StringIO()):
        made.prepare_distillation()
    assert made.folder_with_segs_from_previous_stage == str(previous)
    steps(made, 1)  # image and one-hot segmentations: three input channels, for the teacher too
    assert made.num_input_channels == 3


def test_validation_of_a_cascade_reads_what_its_own_teachers_first_stage_says(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, configuration = cascade_plans(), "3d_cascade_fullres"
    teacher = write_untrained_teacher(plans, configuration, DATASET_JSON)
    first = teacher.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres")
    (first / "predicted_next_stage" / configuration).mkdir(parents=True)
    other = Path(shutil.copytree(teacher.parent, folders / "other"))
    monkeypatch.setenv(SET_VARIABLE, json.dumps([f"teacher={other / teacher.name}"]))
    made = make_trainer("nnUNetTrainerStudent", plans, configuration, DATASET_JSON, CPU)
    with contextlib.redirect_stdout(io.StringIO()):
        made.prepare_distillation()
    path = folders / "checkpoint_final.pth"
    made.save_checkpoint(str(path))
    for chosen, said in ((other, []), (teacher.parent, [f"teacher={teacher}"])):
        monkeypatch.setenv(SET_VARIABLE, json.dumps(said))
        validating = make_trainer("nnUNetTrainerStudent", plans, configuration, DATASET_JSON, CPU)
        with contextlib.redirect_stdout(io.StringIO()):
            validating.load_checkpoint(str(path))
        expected = chosen / first.name / "predicted_next_stage" / configuration
        assert validating.folder_with_segs_from_previous_stage == str(expected)


def test_validation_of_a_cascade_looks_for_a_teacher_that_has_moved(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, configuration = cascade_plans(), "3d_cascade_fullres"
    teacher = write_untrained_teacher(plans, configuration, DATASET_JSON)
    previous = teacher.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres") / "predicted_next_stage" / configuration
    previous.mkdir(parents=True)
    elsewhere = Path(shutil.copytree(teacher.parent, folders / "elsewhere"))
    monkeypatch.setenv(SET_VARIABLE, json.dumps([f"teacher={elsewhere / teacher.name}"]))
    made = make_trainer("nnUNetTrainerStudent", plans, configuration, DATASET_JSON, CPU)
    with contextlib.redirect_stdout(io.StringIO()):
        made.prepare_distillation()
    made.save_checkpoint(str(folders / "checkpoint_final.pth"))
    shutil.rmtree(elsewhere)
    monkeypatch.setenv(SET_VARIABLE, "[]")
    validating = make_trainer("nnUNetTrainerStudent", plans, configuration, DATASET_JSON, CPU)
    with contextlib.redirect_stdout(io.StringIO()):
        validating.load_checkpoint(str(folders / "checkpoint_final.pth"))
    assert validating.folder_with_segs_from_previous_stage == str(previous)


def test_a_students_plan_says_its_reduction(tiny: dict) -> None:
    plans = named_student_plans(tiny, 2, "nnUNetPlans")
    for said in ([], ["reduction=2"]):
        made = trainer("nnUNetTrainerStudent", plans, *said)
        assert made.settings.reduction == 2
        assert stage_channels(made.plans_manager.plans, "3d_fullres") == stage_channels(plans, "3d_fullres")
    with pytest.raises(SettingsError, match=r"--set reduction=8: the plan is a student's of reduction 2.*-p nnUNet"):
        trainer("nnUNetTrainerStudent", plans, "reduction=8")


def test_a_date_is_a_seed(tiny: dict) -> None:
    steps(ready("nnUNetTrainerStudent", tiny, "seed=20261128093000"), 1)


def test_cascade_refuses_an_archive_and_leaves_nothing_of_it(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first stage segmented lies beside a model folder, not beside an archive."""
    plans = cascade_plans()
    teacher = write_untrained_teacher(plans, "3d_cascade_fullres", DATASET_JSON)
    archive = shutil.make_archive(str(folders / "teacher"), "zip", teacher.parent, teacher.name)
    monkeypatch.setenv(SET_VARIABLE, json.dumps([f"teacher={archive}"]))
    made = make_trainer("nnUNetTrainerStudent", plans, "3d_cascade_fullres", DATASET_JSON, CPU)
    temporary = folders / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(
        TeacherError, match=r"teacher\.zip\. Unpack it beside the folder of its first stage \(3d_lowres\)"
    ):
        made.previous_stage_segmentations()
    assert list(temporary.iterdir()) == []


def test_learning_rate_and_length_of_validation_are_what_is_set(tiny: dict) -> None:
    plain = ready("nnUNetTrainerStudent", tiny)
    made = ready(
        "nnUNetTrainerStudent", tiny, "learning_rate=0.003", "validation_iterations=2", "iterations_per_epoch=3"
    )
    assert (plain.initial_lr, plain.num_val_iterations_per_epoch, plain.num_iterations_per_epoch) == (0.01, 50, 250)
    assert (made.initial_lr, made.num_val_iterations_per_epoch, made.num_iterations_per_epoch) == (0.003, 2, 3)
    assert [group["lr"] for group in made.optimizer.param_groups] == [0.003]
