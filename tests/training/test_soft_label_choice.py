"""Soft labels that must not be learned from, and commands that make what is missing: run as they are printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.settings import validate_settings
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.distillation.soft_labels.description import FILE, read_description
from nnunet_kd.distillation.soft_labels.maps import open_map
from nnunet_kd.errors import DataError, SettingsError, TeacherError
from nnunet_kd.models.folder import ModelFolder, load_predictor, new_predictor
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.system.files import sha256
from nnunet_kd.workflows.sweep.description import SweepDescription
from nnunet_kd.workflows.sweep.runs import plan_sweep
from tests.training.test_soft_labels import SOFT, made_maps, ready, soften
from tests.training.tiny_training import CASES, NAME, SHORT

MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"
SWEEP = SweepDescription(name="soft", dataset="998", configuration="3d_fullres", methods=["soft"], folds=[0])


@pytest.fixture(autouse=True)
def _two_passes(dataset: Path) -> None:
    """A teacher that mirrored one axis: four times faster than one that mirrored all."""
    path = model_folder() / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "inference_allowed_mirroring_axes": (0,)}, path)


def model_folder() -> Path:
    return Path(os.environ["nnUNet_results"], NAME, MODEL)


def change_weights(checkpoint: Path, factor: float = 1.5) -> None:
    content = torch.load(checkpoint, weights_only=False)
    content["network_weights"] = {name: value * factor for name, value in content["network_weights"].items()}
    torch.save(content, checkpoint)


def fold_of(model: Path, fold: int) -> Path:
    """One more trained fold, with other weights."""
    shutil.copytree(model / "fold_0", model / f"fold_{fold}")
    change_weights(model / f"fold_{fold}" / "checkpoint_final.pth")
    return model / f"fold_{fold}"


def run_command(error: pytest.ExceptionInfo[Any]) -> tuple[str, Path]:
    """Type what a refusal names; returns it, and where the maps are."""
    command = re.findall(r"`(nnunet-kd soften .*?)`", str(error.value))[0]
    result = CliRunner().invoke(cli.app, shlex.split(command)[1:])
    assert result.exit_code == 0, (command, result.output, result.exception)
    return command, Path("".join(result.output.split("Soft labels: ")[1].splitlines()))


def log_of(made: Any) -> str:
    return Path(made.log_file).read_text()


def test_maps_of_a_teacher_that_was_trained_again(dataset: Path) -> None:
    before = made_maps()
    change_weights(model_folder() / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(DataError, match=r"no soft labels for fold 0 .*made by another checkpoint than lies in"):
        ready()
    named = f"objectives.soft.maps={before.name}"
    with pytest.raises(DataError, match="cannot be used: they were made by another checkpoint") as error:
        ready(named)
    with pytest.raises(DataError, match="another checkpoint than lies in"):
        plan_sweep(SWEEP)
    _, after = run_command(error)
    assert ready().soft_labels == after != before
    begun = ready(named, f"objectives.soft.maps_sha256={sha256(before / FILE)}")  # a training that goes on
    assert begun.soft_labels == before
    assert "WARNING: the soft labels: they were made by another checkpoint" in log_of(begun)
    shutil.rmtree(before)
    (run,) = plan_sweep(SWEEP)
    assert str(after) in " ".join(run.arguments)


def test_a_sweep_knows_what_a_student_without_a_teacher_will_mirror(dataset: Path) -> None:
    made_maps()
    (run,) = plan_sweep(SWEEP.model_copy(update={"settings": {"start": "random"}}))
    axes = ready().settings.mirror_axes
    assert axes is not None
    assert run.settings["mirror_axes"] == list(axes)


def test_maps_of_another_teacher_than_the_training_uses(dataset: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / MODEL
    shutil.copytree(model_folder(), other)
    change_weights(other / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(DataError, match=f"-t {other}"):
        ready(f"teacher={other}")
    maps = made_maps("-t", str(other))
    assert ready(f"teacher={other}").soft_labels == maps
    assert ready().soft_labels == maps, "no teacher is loaded or named"
    with pytest.raises(DataError, match="made by another teacher of fold 0 than this training uses"):
        ready("start=teacher")
    with pytest.raises(DataError, match="made by another teacher of fold 0 than this training uses") as error:
        ready(f"teacher={model_folder()}")
    both = ready(f"teacher={model_folder()}", f"objectives.soft.maps={maps}")
    assert "WARNING: the soft labels: they were made by another teacher of fold 0" in log_of(both)
    _, own = run_command(error)
    assert ready(f"teacher={model_folder()}").soft_labels == own, "the other set does not count"
    (own / "case_1.b2nd").unlink()
    (maps / "case_2.b2nd").unlink()
    for folder, option in ((maps, f"-t {other}"), (own, "")):
        with pytest.raises(DataError, match="have no map") as error:
            ready(f"objectives.soft.maps={folder.name}")
        command, there = run_command(error)
        assert there == folder
        assert option in command
        assert (" -t " in command) == bool(option)


def test_the_command_names_plan_and_choices(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_folder()
    named = model.with_name(MODEL.replace("nnUNetPlans", "nnUNetPlans3mm"))
    shutil.copytree(model, named)
    plans = {**json.loads((dataset / "nnUNetPlans.json").read_text()), "plans_name": "nnUNetPlans3mm"}
    for path in (dataset / "nnUNetPlans3mm.json", named / "plans.json"):
        path.write_text(json.dumps(plans))
    shutil.rmtree(model)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def prepare(*assignments: str) -> Any:
        monkeypatch.setenv(SET_VARIABLE, json.dumps([*SHORT, "start=random", *assignments]))
        made = trainer_of_dataset(NAME, "3d_fullres", 0, SOFT, "nnUNetPlans3mm", torch.device("cpu"))
        made.prepare_distillation()
        return made

    with pytest.raises(DataError, match="no soft labels") as error:
        prepare()
    command, folder = run_command(error)
    assert "-p nnUNetPlans3mm" in command
    assert prepare().soft_labels == folder
    other = made_maps("-p", "nnUNetPlans3mm", "--mirroring")
    (other / "case_0.b2nd").unlink()
    with pytest.raises(DataError, match="1 of 4 training cases have no map") as error:
        prepare(f"objectives.soft.maps={other.name}")
    assert run_command(error)[1] == other
    assert prepare(f"objectives.soft.maps={other.name}").soft_labels == other


def test_a_student_of_all_cases(dataset: Path) -> None:
    halves = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
    (dataset / "splits_final.json").write_text(json.dumps(halves))
    fold_of(model_folder(), 1)
    with pytest.raises(DataError, match="no soft labels for fold all") as error:
        ready(fold="all")
    command, folder = run_command(error)
    assert command.endswith("--out-of-fold -device cpu -f 0 1")
    assert ready(fold="all").soft_labels == folder
    (folder / "case_5.b2nd").unlink()
    with pytest.raises(DataError, match="have no map") as error:
        ready(fold="all")
    assert run_command(error)[1] == folder

    mean = made_maps("-f", "0", "1", fold="all")
    with pytest.raises(DataError, match="several sets"):
        ready(fold="all")
    made = ready(f"objectives.soft.maps={mean.name}", "start=teacher", "teacher.fold=0", fold="all")
    assert made.soft_labels == mean
    assert "WARNING: the soft labels" not in log_of(made)
    image = torch.from_numpy(nnUNetDatasetBlosc2(str(dataset / "nnUNetPlans_3d_fullres")).load_case("case_4")[0][:])
    logits = []
    for fold in ("0", "1"):
        predictor = new_predictor(mirroring=False)
        load_predictor(ModelFolder(model_folder(), (fold,), "checkpoint_final.pth"), predictor)
        logits.append(predictor.predict_logits_from_preprocessed_data(image).float())
    wanted = ((logits[0] + logits[1]) / 2).softmax(0)[1:].numpy()
    # the predictor hands over half precision
    assert np.abs(open_map(mean, "case_4")[:] / 255 - wanted).max() <= 1 / 510 + 1e-3
    refused = soften("--out-of-fold", "-f", "0", "1", fold="0").exception
    assert isinstance(refused, SettingsError)
    assert "fold 0 validates on cases that some of these teachers were trained on" in str(refused)


def test_a_leak_names_the_command_of_this_folds_teacher(dataset: Path) -> None:
    halves = [{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}]
    (dataset / "splits_final.json").write_text(json.dumps(halves))
    other = fold_of(model_folder(), 1) / "checkpoint_final.pth"
    made_maps("-t", str(other), "--allow-leak")
    with pytest.raises(DataError, match=r"fold 1 on 2 of 2.*Take maps of the teacher of this fold") as error:
        ready(f"teacher={other}", "objectives.soft.maps=nnUNetTrainer_fold_1_not_mirrored")
    command, own = run_command(error)
    assert f"-t {model_folder()} " in f"{command} "
    assert [one.fold for one in read_description(own).teachers] == [0]
    allowed = ("objectives.soft.allow_leak=true", "objectives.soft.maps=nnUNetTrainer_fold_1_not_mirrored")
    leaking = ready(*allowed).soft_labels
    assert leaking is not None
    (leaking / "case_1.b2nd").unlink()
    with pytest.raises(DataError, match="have no map") as error:
        ready(*allowed)
    command, there = run_command(error)
    assert "--allow-leak" in command
    assert there == leaking


def test_a_trusted_teacher(dataset: Path) -> None:
    path = model_folder() / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "share": Fraction(1, 2)}, path)
    refused = soften().exception
    assert "holds more than data" in str(refused)
    with pytest.raises(DataError, match="no soft labels for fold 0") as error:
        ready("teacher.trusted=true")
    command, folder = run_command(error)
    assert "--trusted" in command
    assert ready("teacher.trusted=true").soft_labels == folder


def test_rounding_at_another_temperature_is_told(dataset: Path) -> None:
    made_maps("--no-mirroring")
    assert "stored probabilities below" not in log_of(ready())
    assert "stored probabilities below 1/510 are 0" in log_of(ready("objectives.soft.temperature=2"))


def test_folds_that_the_teachers_path_does_not_have(dataset: Path) -> None:
    checkpoint = model_folder() / "fold_0" / "checkpoint_final.pth"
    for path in (checkpoint, checkpoint.parent):
        refused = soften("-t", str(path), "-f", "0", "1", fold="all").exception
        assert isinstance(refused, TeacherError)
        assert (
            f"-f names fold 1, and the teacher's path is of fold 0 alone. Give the model folder, -t {model_folder()}"
            in str(refused)
        )
    twice = soften("-f", "0", "0", fold="all").exception
    assert isinstance(twice, SettingsError)
    assert "-f 0 0: a fold is named twice" in str(twice)


def test_a_set_that_is_not_complete_or_cannot_be_read_is_no_choice(dataset: Path) -> None:
    trial = made_maps("--no-mirroring")
    (trial / "case_1.b2nd").unlink()
    whole = made_maps("--mirroring")
    broken = whole.with_name("broken")
    broken.mkdir()
    (broken / FILE).write_text("{")
    assert ready().soft_labels == whole
    assert ready("objectives.soft.maps=nnUNetTrainer_fold_0_mirrored").soft_labels == whole
    shutil.rmtree(trial)
    (whole / FILE).write_text("{")
    with pytest.raises(DataError, match=f"Found, but not usable: .*{whole.name}.*Delete the folder"):
        ready()
    refused = soften("--mirroring").exception
    assert isinstance(refused, DataError)
    assert "Delete the folder" in str(refused)
    for path in whole.glob("*.b2nd"):
        path.unlink()
    assert made_maps("--mirroring") == whole
    assert ready().soft_labels == whole


def test_a_training_goes_on_where_the_preprocessed_data_moved(dataset: Path, tmp_path: Path) -> None:
    folder = made_maps("--no-mirroring")
    digest = f"objectives.soft.maps_sha256={sha256(folder / FILE)}"
    before = f"objectives.soft.maps=/scratch/job_1/{folder.name}"
    assert ready(before, digest).soft_labels == folder
    with pytest.raises(DataError, match="is no folder of soft labels"):
        ready(before)


def test_cases_that_every_teacher_was_trained_on(dataset: Path) -> None:
    splits = [{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    fold_of(model_folder(), 1)
    made_maps("--out-of-fold", "-f", "0", "1", fold="all")
    with pytest.raises(
        DataError, match=r"2 of 6 .* because every teacher of this set was trained on them: case_2"
    ) as error:
        ready(fold="all")
    _, whole = run_command(error)
    assert ready(f"objectives.soft.maps={whole.name}", fold="all").soft_labels == whole


def test_teachers_of_another_dataset(dataset: Path) -> None:
    other = model_folder().parents[1] / "Dataset997_Other" / MODEL
    shutil.copytree(model_folder(), other)
    plans = json.loads((other / "plans.json").read_text())
    (other / "plans.json").write_text(json.dumps({**plans, "dataset_name": "Dataset997_Other"}))
    result = soften("-t", str(other))
    assert f"WARNING: what {MODEL}/fold_0 was trained on is not known" in result.output.replace("\n", " ")
    made = ready()
    assert f"WARNING: what {MODEL}/fold_0 was trained on is not known" in log_of(made)
    shutil.rmtree(dataset / "soft_labels")
    split = dataset.with_name("Dataset997_Other") / "splits_final.json"
    split.parent.mkdir()
    split.write_text(json.dumps([{"train": CASES[1:], "val": CASES[:1]}]))
    folder = made_maps("-t", str(other), "--allow-leak")
    assert read_description(folder).teachers[0].trained_on == CASES[1:]
    with pytest.raises(DataError, match=r"trained on validation cases of fold 0 \(fold 0 on 2 of 2\)"):
        ready()


def test_maps_of_other_images(dataset: Path) -> None:
    folder = made_maps("--no-mirroring")
    cases = dataset / "nnUNetPlans_3d_fullres"
    copied = cases / "case_1.b2nd"
    os.utime(copied, (1, 1))
    assert ready().soft_labels == folder, "a copy of the same image"
    data, segmentation, _, properties = nnUNetDatasetBlosc2(str(cases)).load_case("case_2")
    changed = np.array(data[:])
    changed[0, 3, 3, 3] += 0.5
    labels = segmentation[:]
    for path in cases.glob("case_2*.b2nd"):
        path.unlink()
    nnUNetDatasetBlosc2.save_case(changed, labels, properties, str(cases / "case_2"))
    before = open_map(folder, "case_2")[:]
    with pytest.raises(DataError, match=r"1 of 4 training cases have a map of another image .* case_2") as error:
        ready()
    assert run_command(error)[1] == folder
    assert not np.array_equal(open_map(folder, "case_2")[:], before)
    assert ready().soft_labels == folder
    for record in folder.glob("*.image.json"):
        record.unlink()
    assert ready().soft_labels == folder, "of an older version"


def test_a_share_of_nothing_needs_no_teacher(dataset: Path) -> None:
    shutil.rmtree(model_folder())
    made = ready("objectives.soft.source=live", "objectives.soft.alpha=0")
    made.on_train_start()
    made.on_train_epoch_start()
    made.train_step(next(made.dataloader_train))
    made.on_train_end()


def test_every_is_for_a_teacher_that_runs() -> None:
    with pytest.raises(SettingsError, match=r"objectives\.soft: `every` spares runs of a teacher"):
        validate_settings({"objectives": {"soft": {"every": 2}}}, "here")
    validate_settings({"objectives": {"soft": {"every": 2, "source": "live"}}}, "here")
