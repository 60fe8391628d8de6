"""The student's plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import MissingRequirement, PlanError
from nnunet_kd.models.plans import (
    MARK,
    build_meta_network,
    named_student_plans,
    parameter_count,
    provenance,
    read_plans,
    reduce_plans,
    stage_channels,
    write_plans,
)
from nnunet_kd.system.files import write_atomically
from nnunet_kd.system.shipped import shipped_folder
from tests.conftest import make_plans


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "teacher", "student"),
    [("brats2024", 4, 5, "101.945", "6.381"), ("isles2022", 3, 2, "102.351", "6.406")],
)
def test_table_3_of_the_dcd_paper(name: str, inputs: int, outputs: int, teacher: str, student: str) -> None:
    plans = read_plans(shipped_folder("plans") / "reference" / f"{name}.json")
    sizes = [
        f"{parameter_count(build_meta_network(p, '3d_fullres', inputs, outputs)) / 1e6:.3f}"
        for p in (plans, reduce_plans(plans, 4))
    ]
    assert sizes == [teacher, student]


@pytest.mark.parametrize("architecture", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize(
    ("reduction", "expected"), [(1, (8, 16, 33)), (2, (4, 8, 16)), (3, (2, 5, 11)), (2.5, (3, 6, 13))]
)
def test_channels_are_divided_and_rounded_down(architecture: str, reduction: float, expected: tuple[int, ...]) -> None:
    plans = make_plans(architecture, features=(8, 16, 33))
    before = json.dumps(plans)
    reduced = reduce_plans(plans, reduction)
    assert stage_channels(reduced, "3d_fullres") == expected
    assert json.dumps(plans) == before
    build_meta_network(reduced, "3d_fullres", 1, 3)
    assert provenance(reduced, "3d_fullres") == {
        "reduction": reduction, "teacher_plans_name": "nnUNetPlans", "teacher_features_per_stage": [8, 16, 33],
    }  # fmt: skip


def test_channels_are_never_divided_twice() -> None:
    once = reduce_plans(make_plans(), 4)
    assert reduce_plans(once, 4) == once
    named = named_student_plans(make_plans(), 4)
    assert (named["plans_name"], reduce_plans(named, 2)) == ("nnUNetPlans_r4", named)
    with pytest.raises(PlanError, match="a student's already"):
        named_student_plans(named, 2)


def test_inheriting_configurations_follow_their_parent() -> None:
    plans = make_plans(features=(8, 16, 32))
    own = json.loads(json.dumps(plans["configurations"]["3d_fullres"]["architecture"]))
    own["arch_kwargs"]["features_per_stage"] = [16, 32, 64]
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"]["wide"] = {"inherits_from": "3d_cascade_fullres", "architecture": own}
    reduced = reduce_plans(plans, 4)
    assert stage_channels(reduced, "3d_cascade_fullres") == (2, 4, 8)
    assert stage_channels(reduced, "wide") == (4, 8, 16)
    assert MARK not in reduced["configurations"]["3d_cascade_fullres"]
    assert provenance(reduced, "3d_cascade_fullres") is not None
    assert reduce_plans(reduced, 4) == reduced


def test_stem_and_bottleneck_channels_shrink_too() -> None:
    plans = make_plans("ResidualEncoderUNet", features=(8, 16, 32))
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {
        "stem_channels": 16,
        "features_per_stage": [8, 16, 32],
    }
    arguments = reduce_plans(plans, 4)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert (arguments["stem_channels"], arguments["features_per_stage"]) == (4, [2, 4, 8])


def test_plans_of_old_nnunet_versions() -> None:
    plans = make_plans()
    configuration = plans["configurations"]["3d_fullres"]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 32, "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2], "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": arguments["strides"], "conv_kernel_sizes": arguments["kernel_sizes"],
    }  # fmt: skip
    reduced = reduce_plans(plans, 4)
    assert PlansManager(reduced).get_configuration("3d_fullres").network_arch_init_kwargs["features_per_stage"] == [
        8,
        16,
        32,
    ]


def test_architectures_without_stages_are_refused_by_name() -> None:
    plans = make_plans()
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.primus.Primus"
    del architecture["arch_kwargs"]["features_per_stage"]
    for required in (None, "3d_fullres"):
        with pytest.raises(PlanError, match=r"primus\.Primus, has no features_per_stage"):
            reduce_plans(plans, 4, required)
    plans["configurations"]["plain"] = make_plans()["configurations"]["3d_fullres"]
    assert provenance(reduce_plans(plans, 4), "3d_fullres") is None


def test_too_large_or_small_a_reduction() -> None:
    with pytest.raises(PlanError, match="less than one of 8 channels"):
        reduce_plans(make_plans(), 9)
    with pytest.raises(PlanError, match="at least 1"):
        reduce_plans(make_plans(), 0.5)


def test_unreadable_plans(tmp_path: Path) -> None:
    (tmp_path / "nnUNetResEncPlans.json").write_text("{")
    with pytest.raises(PlanError, match=r"no plan at .*Plans found beside it: nnUNetResEncPlans"):
        read_plans(tmp_path / "nnUNetPlans.json")
    with pytest.raises(PlanError, match="not valid JSON"):
        read_plans(tmp_path / "nnUNetResEncPlans.json")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(PlanError, match="no plans_name, dataset_name, configurations"):
        read_plans(tmp_path / "a.json")
    with pytest.raises(PlanError, match="no configuration '2d'; it has 3d_fullres"):
        reduce_plans(make_plans(), 4, "2d")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "nnUNetPlans_r4.json"
    write_plans({"a": 1}, path)

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(MissingRequirement, match=r"No space left on device.*still there, undamaged"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("null", "it holds no JSON object"),
        ("3", "it holds no JSON object"),
        ('["plans_name"]', "it holds no JSON object"),
        ("{}", "it has no plans_name, dataset_name, configurations"),
        ('{"plans_name": "a", "dataset_name": "b", "configurations": 3}', "its configurations are no JSON object"),
    ],
)
def test_json_that_is_no_plan(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(content)
    with pytest.raises(PlanError, match=rf"nnUNetPlans\.json is not an nnU-Net plan: {said}"):
        read_plans(path)


def test_a_plan_that_may_not_be_read_and_one_with_other_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nnUNetPlans.json"
    path.write_bytes(json.dumps({**make_plans(), "plans_name": "Köln"}, ensure_ascii=False).encode())
    asked: list[Any] = []
    read_text = Path.read_text

    def read(self: Path, *arguments: Any, **options: Any) -> str:
        asked.append(options.get("encoding"))
        return read_text(self, *arguments, **options)

    with monkeypatch.context() as changed:
        changed.setattr(Path, "read_text", read)
        assert (read_plans(path)["plans_name"], asked) == ("Köln", ["utf-8"])

    def refuse(self: Path, *arguments: Any, **options: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PlanError, match=r"nnUNetPlans\.json cannot be read: Permission denied"):
        read_plans(path)


def test_a_plan_with_other_content_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "nnUNetPlans_r4.json"
    plans = named_student_plans(make_plans(), 4)
    write_plans(plans, path)
    write_plans(plans, path)  # the same again
    edited = json.loads(path.read_text())
    edited["configurations"]["3d_fullres"]["batch_size"] = 3
    path.write_text(json.dumps(edited))
    with pytest.raises(PlanError, match=r"--name NAME, or replace it with --overwrite"):
        write_plans(plans, path)
    assert json.loads(path.read_text()) == edited
    write_plans(plans, path, overwrite=True)
    assert read_plans(path) == plans
    path.write_text("{")
    with pytest.raises(PlanError, match="with other content"):
        write_plans(plans, path)
