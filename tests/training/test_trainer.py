"""The trainer: real steps, checkpoints, resuming, and nothing of it left for stock nnU-Net to trip over."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.utils import convert_conv3d_weight_memory_format

from nnunet_kd.distillation.settings_sources import SETTINGS_FILE
from nnunet_kd.errors import MissingRequirement, PlanError, SettingsError, TeacherError
from nnunet_kd.models.checkpoint import ENTRY
from nnunet_kd.models.plans import named_student_plans
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer, random_batch, write_untrained_teacher
from tests.conftest import make_plans
from tests.training.tiny_trainer import CPU, close_epoch, ready, steps, trainer


def test_a_real_step_and_its_terms(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    (loss,) = steps(made, 1)
    means = made.history.close_epoch(0)
    terms = ["segmentation", "dcd", "dcd/stage0", "dcd/stage1", "dcd/stage2"]
    assert list(means) == terms
    assert loss == pytest.approx(means["segmentation"] + 0.05 * means["dcd"], rel=1e-5)
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
        made = ready("nnUNetTrainerDCD", tiny, "objectives.dcd.weight=10", f"objectives.dcd.projection={projection}")
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
    write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
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
    with torch.no_grad():
        made.validation_step(random_batch(made))
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


# checkpoints ----------------------------------------------------------------------------------------------------------


def save(made: DistillationTrainer, name: str = "checkpoint_latest.pth") -> Path:
    path = Path(made.output_folder) / name
    made.current_epoch -= 1  # nnU-Net saves within the epoch
    made.save_checkpoint(str(path))
    made.current_epoch += 1
    return path


def test_stock_trainer_continues_and_predicts_from_the_checkpoint(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    steps(made, 2)
    close_epoch(made)
    path = save(made)
    checkpoint = torch.load(path, weights_only=False)
    assert set(checkpoint["network_weights"]) == set(made.network.state_dict())
    assert len(checkpoint["optimizer_state"]["param_groups"]) == 1
    stock: nnUNetTrainer = make_trainer(
        "nnUNetTrainer", checkpoint["init_args"]["plans"], "3d_fullres", DATASET_JSON, CPU
    )
    with contextlib.redirect_stdout(io.StringIO()):
        stock.load_checkpoint(str(path))
    image = random_batch(made)["data"]
    made.network.eval()
    stock.network.eval()
    convert_conv3d_weight_memory_format(stock.network, torch.channels_last_3d)  # as ours, for the same rounding
    with torch.no_grad():
        assert torch.equal(made.network(image)[0], stock.network(image)[0])
    for ours, theirs in zip(made.network.parameters(), stock.network.parameters(), strict=True):
        momentum = made.optimizer.state[ours].get("momentum_buffer")
        assert momentum is None or torch.equal(stock.optimizer.state[theirs]["momentum_buffer"], momentum)


@pytest.mark.parametrize("options", [(), ("ema=0.9",), ("objectives.dcd.projection=fixed",)])
def test_resumed_training_goes_on_as_if_nothing_had_happened(tiny: dict, options: tuple[str, ...]) -> None:
    whole = ready("nnUNetTrainerDCD", tiny, *options)
    steps(whole, 3)
    close_epoch(whole)
    whole.on_validation_epoch_start()
    path = save(whole)
    if whole.average is not None:
        whole.average.swap()
    whole.network.train()
    expected = steps(whole, 3, first_seed=10)

    resumed = trainer("nnUNetTrainerDCD", tiny, "seed=2", *options)
    with contextlib.redirect_stdout(io.StringIO()):
        resumed.load_checkpoint(str(path))
        resumed.prepare_distillation()
    resumed.network.train()
    for group in resumed.optimizer.param_groups:
        group["lr"] = whole.optimizer.param_groups[0]["lr"]
    assert steps(resumed, 3, first_seed=10) == expected
    assert resumed.history.epochs == whole.history.epochs
    for ours, theirs in zip(
        resumed.supervision.distillation.parameters(), whole.supervision.distillation.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_ema_is_what_is_saved_and_deployed(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, "ema=0.5")
    name = next(iter(made.network.state_dict()))
    trajectory = [made.network.state_dict()[name].clone()]
    for index in range(2):
        steps(made, 1, index)
        trajectory.append(made.network.state_dict()[name].clone())
    first, second = 1 / 10, 2 / 11  # the warm-up's decays
    expected = second * (first * trajectory[0] + (1 - first) * trajectory[1]) + (1 - second) * trajectory[2]
    made.on_validation_epoch_start()
    checkpoint = torch.load(save(made), weights_only=False)
    torch.testing.assert_close(checkpoint["network_weights"][name], expected)
    torch.testing.assert_close(checkpoint[ENTRY]["training_weights"][name], trajectory[-1])
    made.average.swap()
    assert torch.equal(made.network.state_dict()[name], trajectory[-1])


def test_old_checkpoints_without_our_entry_resume(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    steps(made, 1)
    close_epoch(made)
    path = save(made)
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint[ENTRY]
    torch.save(checkpoint, path)
    resumed = trainer("nnUNetTrainerDCD", tiny)
    with contextlib.redirect_stdout(io.StringIO()):
        resumed.load_checkpoint(str(path))
        resumed.prepare_distillation()
    steps(resumed, 1)
    assert resumed.history.epochs == []


def test_validation_takes_the_reduction_from_the_checkpoint(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, "reduction=2")
    path = save(made, "checkpoint_final.pth")
    validating = trainer("nnUNetTrainerDCD", tiny)  # as --val does: without the training's --set
    with contextlib.redirect_stdout(io.StringIO()):
        validating.load_checkpoint(str(path))
    assert validating.configuration_manager.network_arch_init_kwargs["features_per_stage"] == [4, 8, 16]
    assert validating.supervision is None


def test_a_full_disk_keeps_the_old_checkpoint(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    path = save(made)
    before = path.read_bytes()
    real = torch.save

    def fail(value: Any, file: Any) -> None:
        if not isinstance(file, io.BytesIO):
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        real(value, file)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(MissingRequirement, match=r"No space left.*still there, undamaged"):
        save(made)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.tmp"))


def test_continuing_uses_the_saved_settings(tiny: dict) -> None:
    made = trainer("nnUNetTrainerDCD", tiny, "epochs=7", "objectives.dcd.weight=0.5")
    text = json.dumps(made.settings.as_dict())
    Path(made.output_folder, SETTINGS_FILE).write_text(text)
    again = trainer("nnUNetTrainerDCD", tiny, continue_training=True)
    assert (again.num_epochs, again.settings) == (7, made.settings)
    assert trainer("nnUNetTrainerDCD", tiny).num_epochs == 1000


def test_cascade_takes_the_previous_stage_from_the_teachers_trainer(folders: Path) -> None:
    plans = make_plans(configuration="3d_cascade_fullres")
    plans["configurations"]["3d_cascade_fullres"]["previous_stage"] = "3d_lowres"
    plans["configurations"]["3d_lowres"] = make_plans()["configurations"]["3d_fullres"] | {
        "next_stage": "3d_cascade_fullres"
    }
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


def _started(plans: dict, fold: int, *assignments: str) -> DistillationTrainer:
    """A student's training at the place where nnU-Net writes ``plans.json``; saved as if it had trained."""
    made = trainer("nnUNetTrainerStudent", plans, *assignments, fold=fold)
    made.print_to_log_file("a line")
    with contextlib.redirect_stdout(io.StringIO()):
        made.refuse_to_spoil_other_folds()
        made.initialize()
        made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    for name, content in (("plans", made.plans_manager.plans), ("dataset", made.dataset_json)):
        (Path(made.output_folder_base) / f"{name}.json").write_text(json.dumps(content))
    return made


def test_a_fold_that_would_make_another_unusable_is_refused_before_anything_is_written(tiny: dict) -> None:
    first = _started(tiny, 0, "reduction=4")
    folder = Path(first.output_folder_base)

    def content() -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    with contextlib.redirect_stdout(io.StringIO()):
        second = trainer("nnUNetTrainerStudent", tiny, "reduction=2", fold=1)
        second.print_to_log_file("a line")
        with pytest.raises(
            PlanError, match=r"holds fold 0, .*another architecture \(reduction=4; .* has 2\)"
        ) as caught:
            second.on_train_start()
    train = "nnUNetv2_train 998 3d_fullres 1 -tr nnUNetTrainerStudent -p nnUNetPlans_r2"
    assert f"nnunet-kd plan 998 -p nnUNetPlans -r 2 && {train}" in str(caught.value)
    assert content() == before
    assert not (folder / "fold_1").exists()
    # the way out, the same reduction, and the same fold anew
    assert Path(_started(named_student_plans(tiny, 2), 1, "reduction=2").output_folder_base) != folder
    _started(tiny, 1, "reduction=4")
    with pytest.raises(PlanError, match="holds fold 1"):
        _started(tiny, 0, "reduction=2")


def test_a_fold_alone_may_be_trained_anew_and_validated(tiny: dict) -> None:
    _started(tiny, 0, "reduction=4")
    assert _started(tiny, 0, "reduction=2").output_folder_base.endswith("nnUNetPlans__3d_fullres")
    _started(tiny, 1, "reduction=2")
    # --val makes a trainer without the settings of the training, and never starts it
    assert trainer("nnUNetTrainerStudent", tiny, fold=1).configuration_name == "3d_fullres"


def test_folds_of_another_spacing_or_other_labels_are_not_made_unusable(tiny: dict) -> None:
    _started(tiny, 0, "reduction=4")
    other = json.loads(json.dumps(tiny))
    other["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    with pytest.raises(PlanError, match=r"another spacing\. .*Give the plan another name|another spacing\."):
        _started(other, 1, "reduction=4")
    other = json.loads(json.dumps(tiny))
    other["configurations"]["3d_fullres"]["batch_size"] = 3
    _started(other, 1, "reduction=4")  # which weights do without
