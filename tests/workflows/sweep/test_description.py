"""What a sweep trains, as a file and the command line say it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nnunet_kd.errors import SettingsError
from nnunet_kd.workflows.sweep.description import describe_sweep, parse_arguments, parse_seeds, parse_variant

LEAST = {"dataset": "998", "configuration": "3d_fullres", "methods": ["student", "dcd"]}


def test_a_variant_on_the_command_line() -> None:
    assert parse_variant("dcd-S: objectives.dcd.bands=S objectives.dcd.weight=1e-2") == (
        "dcd-S",
        {"method": "dcd", "settings": {"objectives": {"dcd": {"bands": "S", "weight": 0.01}}}},
    )
    name, values = parse_variant("wide: method=dcd recipe=paper reduction=2 'teacher.folds=[0, 1]'")
    assert (name, values["method"], values["recipe"]) == ("wide", "dcd", "paper")
    assert values["settings"] == {"reduction": 2, "teacher": {"folds": [0, 1]}}
    for wrong in ("dcd-S objectives.dcd.bands=S", ": a=1", "x: 'a=1", "x: a"):
        with pytest.raises(SettingsError, match="--"):
            parse_variant(wrong)


def test_seeds() -> None:
    assert parse_seeds("0, 2,") == [0, 2]
    for wrong in ("", "a", "0,-1", "all", "²"):
        with pytest.raises(SettingsError, match="--seeds"):
            parse_seeds(wrong)


def test_a_command_line_as_fields() -> None:
    options = {
        "methods": "student, dcd",
        "variants": ["dcd-S: objectives.dcd.bands=S"],
        "folds": ["0", "2,all"],
        "seeds": "0,1",
        "settings": ["epochs=5"],
        "slurm": [],
        "teacher": None,
        "save_probabilities": False,
    }
    fields = {
        "methods": ["student", "dcd"],
        "variants": dict([parse_variant("dcd-S: objectives.dcd.bands=S")]),
        "folds": [0, 2, "all"],
        "seeds": [0, 1],
        "settings": {"epochs": 5},
    }
    assert parse_arguments("998", options) == (None, {"dataset": "998", **fields})
    assert parse_arguments("sweep.yaml", options) == (Path("sweep.yaml"), fields)


def test_the_command_line_lies_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                **LEAST,
                "folds": [0, 1],
                "settings": {"epochs": 5, "ema": 0.9},
                "variants": {"dcd-S": {"method": "dcd", "settings": {"objectives": {"dcd": {"bands": "S"}}}}},
            }
        )
    )
    described = describe_sweep(file, {"settings": {"epochs": 7}, "seeds": [3]})
    assert described.name == "bench"
    assert list(described.rows()) == ["student", "dcd", "dcd-S"]
    assert described.settings == {"epochs": 7, "ema": 0.9}
    assert (described.folds, described.seeds) == ([0, 1], [3])
    assert list(describe_sweep(file, {"methods": ["logits"]}).rows()) == ["logits"]
    chosen = describe_sweep(file, {"methods": ["logits", "dcd-S"]})
    assert (chosen.methods, chosen.variants) == (["logits"], {"dcd-S": described.variants["dcd-S"]})
    assert describe_sweep(file, {"methods": ["dcd-S"]}).rows() == {"dcd-S": described.variants["dcd-S"]}
    again = tmp_path / "again.yaml"
    again.write_bytes(described.as_yaml())
    assert describe_sweep(again, {}) == described


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metods": []}, r"unknown key 'metods'; known here: dataset, configuration"),
        ({"variants": {"x": {"method": "dcd", "sed": 1}}}, "unknown key 'variants.x.sed'; known here: method, recipe"),
        ({"methods": ["dcx"]}, "no method 'dcx'"),
        ({"variants": {"x": {"method": "dcx"}}}, "no method 'dcx'"),
        ({"methods": []}, "nothing to train"),
        ({"methods": ["dcd", "dcd"]}, "twice"),
        ({"seeds": [-1]}, "no negative"),
        ({"folds": ["0", "some"]}, "folds: a fold is a number or all, got 'some'"),
        ({"settings": {"seed": 1}}, "--seeds 0,1"),
        ({"variants": {"dcd": {"method": "dcd"}}}, "both a method and a variant"),
        ({"variants": {"a/b": {"method": "dcd"}}}, "to name a folder"),
        ({"variants": {"DCD": {"method": "dcd"}}}, "upper and lower case"),
        ({"device": "tpu"}, "device"),
        ({"configuration": None}, "configuration"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        describe_sweep(None, {**LEAST, **change})


@pytest.mark.parametrize(
    ("written", "read"), [("4", "4"), ("004", "004"), ("010", "010"), ("'4'", "4"), ("Dataset004_Hippocampus", None)]
)
def test_a_dataset_in_a_file_is_what_is_written_there(written: str, read: str | None, tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(f"dataset: {written}\nconfiguration: 3d_fullres\nmethods: [dcd]\n")
    assert describe_sweep(file, {}).dataset == (read or written)
    assert describe_sweep(file, {"dataset": "5"}).dataset == "5"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"there is no file papr\.yaml\. Give a YAML file that describes a sweep"
    ) as told:
        describe_sweep(Path("papr.yaml"), {})
    assert "recipe" not in str(told.value)
    with pytest.raises(SettingsError, match="there is no file"):
        describe_sweep(tmp_path, {})
