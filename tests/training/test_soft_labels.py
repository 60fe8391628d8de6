"""Soft labels from the command that makes them to the step that learns from them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.settings_sources import DATASET_FILE
from nnunet_kd.distillation.soft_labels.description import FILE, read_description
from nnunet_kd.distillation.soft_labels.maps import crop, open_map, write_map
from nnunet_kd.distillation.soft_labels.student import sets_folder
from nnunet_kd.errors import DataError, SettingsError, TeacherError
from nnunet_kd.models.folder import ModelFolder, load_predictor, new_predictor
from nnunet_kd.training.soft_label_loader import KEY, SoftLabelLoader
from nnunet_kd.training.trainer import DistillationTrainer
from tests.training.tiny_training import CASES, NAME, SHORT, train

cli._register()
SOFT, INHERITED = "nnUNetTrainerSoft", "nnUNetTrainerInherited"
RANDOM = "start=random"
TEACHER = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def soften(*options: str, fold: str = "0") -> Any:
    return CliRunner().invoke(cli.app, ["soften", "998", "3d_fullres", fold, "-device", "cpu", *options])


def made_maps(*options: str, fold: str = "0") -> Path:
    result = soften(*options, fold=fold)
    assert result.exit_code == 0, (result.output, result.exception)
    return Path("".join(result.output.split("Soft labels: ")[1].splitlines()))


def ready(*assignments: str, trainer: str = SOFT, fold: int | str = 0) -> DistillationTrainer:
    """Prepared, and stopped before its loaders start."""
    kept: list[DistillationTrainer] = []

    class Ready(Exception):
        pass

    def stop(one: DistillationTrainer) -> None:
        one.fold = fold
        kept.append(one)
        one.prepare_distillation()
        raise Ready

    with pytest.raises(Ready):
        train(trainer, [*SHORT, RANDOM, *assignments], before=stop)
    return kept[0]


def test_maps_are_what_nnunets_predictor_says(dataset: Path) -> None:
    folder = made_maps("--mirroring")
    assert folder.parent == dataset / "soft_labels" / "nnUNetPlans_3d_fullres"
    assert folder.name.startswith("nnUNetTrainer_fold_0_mirrored_")
    assert sorted(path.stem for path in folder.glob("*.b2nd")) == CASES[:4]
    model = Path(os.environ["nnUNet_results"], NAME, "nnUNetTrainer__nnUNetPlans__3d_fullres")
    predictor = new_predictor(mirroring=True)
    load_predictor(ModelFolder(model, ("0",), "checkpoint_final.pth"), predictor)
    cases = nnUNetDatasetBlosc2(str(dataset / "nnUNetPlans_3d_fullres"))
    for case in CASES[:2]:
        image = torch.from_numpy(cases.load_case(case)[0][:])
        wanted = predictor.predict_logits_from_preprocessed_data(image).float().softmax(0)[1:]
        stored = open_map(folder, case)[:]
        assert stored.dtype == np.uint8
        assert np.abs(stored / 255 - wanted.numpy()).max() <= 1 / 510 + 1e-6
    description = read_description(folder)
    assert (description.heads, description.mirror_axes) == (["1", "2"], [0, 1, 2])
    assert description.teachers[0].trained_on == CASES[:4]
    assert json.loads((folder / FILE).read_text())["teachers"][0]["fold"] == 0


def test_running_it_again_keeps_what_is_there(dataset: Path) -> None:
    folder = made_maps()
    assert "not_mirrored" in folder.name, "the default"
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    damaged, gone = folder / "case_0.b2nd", folder / "case_2.b2nd"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:100])
    gone.unlink()
    result = soften("--no-mirroring")
    assert "2 cases written, 2 kept" in result.output
    assert damaged.read_bytes() == content
    assert {path for path in folder.iterdir() if path.stat().st_mtime_ns != times[path]} == {damaged, gone}


def test_the_teacher_of_the_settings_file(dataset: Path, tmp_path: Path) -> None:
    results = Path(os.environ["nnUNet_results"], NAME)
    moved = (results / TEACHER).rename(tmp_path / TEACHER)
    assert "Point at one with `-t PATH`" in str(soften().exception)
    (dataset / DATASET_FILE).write_text(f"teacher: {moved}")
    maps = made_maps()
    assert ready(f"teacher={moved}").soft_labels == maps
    (dataset / DATASET_FILE).write_text(f"teacher: {{path: {moved}, folds: [0, 1]}}")
    assert isinstance(soften().exception, TeacherError), "there is no fold 1"
    assert made_maps("-t", str(moved), "-f", "0") == maps
    (dataset / DATASET_FILE).write_text(f"teacher: [{moved}, {moved / 'fold_0'}]")
    assert "name 2 teachers" in str(soften().exception)


def test_a_place_that_cannot_be_written_to(dataset: Path) -> None:
    folder = sets_folder(dataset / "nnUNetPlans_3d_fullres")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file")
    assert "the folder of soft labels" in str(soften().exception)
    assert "is no folder that can be written to" in str(soften().exception)


def test_parts_share_the_cases(dataset: Path) -> None:
    assert "2 cases written, 0 kept" in soften("-num_parts", "2", "-part_id", "1").output
    assert "2 cases written, 2 kept" in soften("-num_parts", "2", "-part_id", "0").output


def test_it_learns_without_a_teacher(dataset: Path) -> None:
    folder = made_maps()
    for path in Path(os.environ["nnUNet_results"], NAME).glob("**/checkpoint_final.pth"):
        path.unlink()  # would be missed if anything ran it
    made = train(SOFT, [*SHORT, RANDOM, "epochs=1"])
    assert made.history.epochs[0].keys() >= {"segmentation", "soft", "soft/scale0"}
    saved = made.settings.objectives.soft  # type: ignore[attr-defined]
    assert Path(saved.maps) == folder
    assert made.settings.mirror_axes == [0, 1, 2]
    continued = train(SOFT, [*SHORT, "epochs=2"], continued=True)
    assert len(continued.history.epochs) == 2


def test_alpha_0_is_training_on_labels_alone(dataset: Path) -> None:
    made_maps()
    weights = [
        train(name, [*SHORT, *options, "epochs=1"]).network.state_dict()
        for name, options in ((INHERITED, ()), (SOFT, ("objectives.soft.alpha=0",)))
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_loss_is_shared(dataset: Path) -> None:
    made_maps()
    for alpha in (0.25, 1.0):
        made = ready(f"objectives.soft.alpha={alpha}")
        made.on_train_start()
        batch = next(made.dataloader_train)
        made.on_train_epoch_start()
        loss = float(made.train_step(batch)["loss"])
        made.history.close_epoch(0)
        terms = made.history.epochs[0]
        assert loss == pytest.approx((1 - alpha) * terms["segmentation"] + alpha * terms["soft"], rel=1e-5)
        scales = [value for name, value in terms.items() if name.startswith("soft/")]
        assert sum(scales) == pytest.approx(terms["soft"], rel=1e-5)
        made.on_train_end()


@pytest.mark.parametrize("kind", ["blosc2", "numpy"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_maps_follow_their_images(dataset: Path, kind: str, dimensions: int, tmp_path: Path) -> None:
    """A phantom whose map is its image: after every spatial transform they must still be the same."""
    made = ready(trainer="nnUNetTrainerStudent")
    random = np.random.default_rng(0)
    shape = (10, 14, 12)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"))
    phantom = np.exp(-((grid - random.uniform(-0.3, 0.3, (3, 1, 1, 1))) ** 2).sum(0) * 3)[None].astype(np.float32)
    labels = (phantom > 0.5).astype(np.int8)
    properties = {"class_locations": {1: np.argwhere(labels)}}
    cases = tmp_path / "cases"
    cases.mkdir()
    writer = nnUNetDatasetBlosc2 if kind == "blosc2" else nnUNetDatasetNumpy
    writer.save_case(phantom, labels, properties, str(cases / "case"))
    write_map(tmp_path / "maps" if (tmp_path / "maps").mkdir() is None else tmp_path, "case", phantom, (8, 8, 8))

    patch = (8, 8, 8)[:dimensions]
    rotation, _, _, _ = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms = made.get_training_transforms(patch, rotation, None, tuple(range(dimensions)), False)
    chosen = [one for one in transforms.transforms if isinstance(one, (SpatialTransform, MirrorTransform))]
    spatial = type(transforms)(chosen)
    assert len(spatial.transforms) == 2
    spatial.transforms[0].p_rotation = spatial.transforms[0].p_scaling = 1
    loader = SoftLabelLoader(
        tmp_path / "maps",
        writer(str(cases)),
        3,
        (12, 12, 12)[:dimensions],
        patch,
        made.label_manager,
        transforms=spatial,
    )
    for _ in range(3):
        batch = loader.generate_train_batch()
        assert batch[KEY].shape == (3, 1, *patch)
        assert (batch["data"] - batch[KEY]).abs().max() <= 1 / 510 + 1e-5
        assert batch["data"].std() > 0.05


def test_every_intensity_transform_leaves_them_alone(dataset: Path) -> None:
    """With all of them at work, the maps are those of the spatial transform alone."""
    made = ready(trainer="nnUNetTrainerStudent")
    rotation, _, _, _ = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    composed = made.get_training_transforms((8, 8, 8), rotation, None, None, False)
    for one in composed.transforms:
        if isinstance(one, RandomTransform):
            one.apply_probability = 1
    (spatial,) = [one for one in composed.transforms if isinstance(one, SpatialTransform)]
    spatial.p_rotation = spatial.p_scaling = 1
    random = np.random.default_rng(0)
    sample = {
        "image": torch.from_numpy(random.random((1, 12, 12, 12), np.float32)),
        "segmentation": torch.zeros((1, 12, 12, 12), dtype=torch.int16),
        "regression_target": torch.from_numpy(random.random((2, 12, 12, 12), np.float32)),
    }
    found = []
    for transforms in (composed, type(composed)([spatial])):
        np.random.seed(0)  # noqa: NPY002  what the transforms draw from
        torch.manual_seed(0)
        found.append(transforms(**{name: value.clone() for name, value in sample.items()}))
    every, alone = found
    assert torch.equal(every["regression_target"], alone["regression_target"])
    assert not torch.equal(every["image"], alone["image"])
    assert sum(isinstance(one, RandomTransform) for one in composed.transforms) >= 5


def test_intensities_leave_them_alone(dataset: Path) -> None:
    folder = made_maps()
    made = ready()
    made.on_train_start()
    for _ in range(8):
        maps = next(made.dataloader_train)[KEY]
        assert 0 <= maps.min() <= maps.max() <= 1
        assert (maps.sum(1) <= 1 + 2 / 510).all()
    outside = crop(open_map(folder, CASES[0]), [(-5, 0), (0, 4), (0, 4)])
    assert not outside.any()


def test_the_same_patches_with_and_without_maps(dataset: Path) -> None:
    made_maps()
    batches = []
    for options in ((), ("objectives.soft.alpha=0",)):
        made = ready(*options)
        made.on_train_start()
        batches.append([next(made.dataloader_train) for _ in range(3)])
    for with_maps, without in zip(*batches, strict=True):
        assert torch.equal(with_maps["data"], without["data"])
        assert all(torch.equal(*pair) for pair in zip(with_maps["target"], without["target"], strict=True))
        assert KEY not in without


def test_live_is_the_teacher_itself(dataset: Path) -> None:
    made = ready("objectives.soft.source=live")
    assert made.supervision is not None
    assert made.soft_labels is None
    made.on_train_start()
    made.on_train_epoch_start()
    made.train_step(next(made.dataloader_train))
    made.history.close_epoch(0)
    assert np.isfinite(made.history.epochs[0]["soft"])


def test_refused_before_training(dataset: Path) -> None:
    with pytest.raises(
        DataError, match=r"no soft labels for fold 0 .* `nnunet-kd soften Dataset998_Tiny 3d_fullres 0 -device cpu`"
    ):
        ready()
    folder = made_maps("--mirroring")
    made_maps("--no-mirroring")
    with pytest.raises(DataError, match=r"several sets .* --set objectives.soft.maps=nnUNetTrainer_fold_0"):
        ready()
    named = f"objectives.soft.maps={folder.name}"
    ready(named)
    (folder / "case_3.b2nd").rename(folder / "kept")
    with pytest.raises(DataError, match=r"1 of 4 training cases have no map .*case_3"):
        ready(named)
    write_map(folder, "case_3", np.zeros((2, 5, 5, 5), np.float32), (8, 8, 8))
    with pytest.raises(DataError, match=r"1 of 4 training cases have a map that cannot be read, or of another shape"):
        ready(named)
    (folder / "kept").rename(folder / "case_3.b2nd")
    with pytest.raises(DataError, match="is no folder of soft labels"):
        ready("objectives.soft.maps=others")
    begun = ready("objectives.soft.maps=nnUNetTrainer_fold_0_mirrored")  # the other set is not_mirrored
    assert begun.soft_labels == folder
    with pytest.raises(DataError, match="nor how the name of just one begins"):
        ready("objectives.soft.maps=nnUNetTrainer_fold_0")
    with pytest.raises(DataError, match="are others than those this training began with"):
        ready(named, f'objectives.soft.maps_sha256="{"0" * 64}"')
    described = json.loads((folder / FILE).read_text())
    for key, value, said in (
        ("data", {**described["data"], "spacing": [2, 2, 2]}, r"preprocessed in another way \(spacing\)"),
        ("heads", ["1", "2", "3"], "they are of 1, 2, 3, and the student learns 1, 2"),
    ):
        (folder / FILE).write_text(json.dumps({**described, key: value}))
        with pytest.raises(DataError, match=said):
            ready(named)


def test_leaks(dataset: Path) -> None:
    splits = dataset / "splits_final.json"
    splits.write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}]))
    refused = soften("-f", "0", fold="1").exception
    assert isinstance(refused, TeacherError)
    assert "trained on validation cases of fold 1 (fold 0 on 2 of 2)" in str(refused)
    assert not (dataset / "soft_labels").exists(), "told before anything is made"
    folder = made_maps("-f", "0", "--allow-leak", fold="1")
    assert sorted(path.stem for path in folder.glob("*.b2nd")) == CASES[2:]
    with pytest.raises(DataError, match=r"trained on validation cases of fold 1 \(fold 0 on 2 of 2\)"):
        ready(fold=1)
    made = ready("objectives.soft.allow_leak=true", fold=1)
    log = Path(made.log_file).read_text()
    assert "allow_leak is set" in log
    assert "Mirrored axes" not in log  # before the loaders are made, nobody knows
    assert made.settings.as_dict()["objectives"]["soft"]["allow_leak"] is True


def test_a_split_that_has_changed_since_hides_no_leak(dataset: Path) -> None:
    """The teacher knows better than today's split what it was trained on: by the split beside it, or by what it validated."""
    splits, model = dataset / "splits_final.json", Path(os.environ["nnUNet_results"], NAME, TEACHER)
    before = json.dumps([{"train": CASES[2:], "val": CASES[:2]}])
    splits.write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:]}]))
    leak = r"trained on validation cases of fold 0 \(fold 0 on 2 of 2\)"
    (model / "splits_final.json").write_text(before)
    assert re.search(leak, str(soften().exception))
    (model / "splits_final.json").unlink()
    (model / "fold_0" / "validation").mkdir()
    per_case = [{"reference_file": f"/data/{case}.nii.gz"} for case in CASES[:2]]
    (model / "fold_0" / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": per_case}))
    assert re.search(leak, str(soften().exception))
    splits.write_text(before)
    made_maps("--no-mirroring")


def test_out_of_fold(dataset: Path) -> None:
    splits = dataset / "splits_final.json"
    splits.write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}]))
    assert isinstance(soften("--out-of-fold").exception, TeacherError)
    model = Path(os.environ["nnUNet_results"], NAME, "nnUNetTrainer__nnUNetPlans__3d_fullres")
    (model / "fold_1").mkdir()
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    checkpoint["network_weights"] = {name: value * 1.5 for name, value in checkpoint["network_weights"].items()}
    torch.save(checkpoint, model / "fold_1" / "checkpoint_final.pth")
    result = soften("--out-of-fold", "-f", "0", "1", fold="all")
    assert "Left out, since every teacher was trained on them: case_2, case_3." in result.output.replace("\n", " ")
    folder = Path("".join(result.output.split("Soft labels: ")[1].splitlines()))
    each = {}
    for fold in (0, 1):
        single = made_maps("-f", str(fold), fold="all")
        each[fold] = {case: open_map(single, case)[:] for case in CASES}
    for case, fold in (("case_0", 1), ("case_1", 1), ("case_4", 0), ("case_5", 0)):
        assert np.array_equal(open_map(folder, case)[:], each[fold][case])
        assert not np.array_equal(each[0][case], each[1][case])


def test_a_fold_without_training_cases(dataset: Path) -> None:
    (dataset / "splits_final.json").write_text(json.dumps([{"train": [], "val": CASES}]))
    result = soften()
    assert isinstance(result.exception, DataError), result.exception
    assert f"fold 0 of {NAME} has no training cases" in str(result.exception)


def test_weight_is_refused(dataset: Path) -> None:
    with pytest.raises(SettingsError, match="soft has no `weight`: `alpha`"):
        ready("objectives.soft.weight=2")
