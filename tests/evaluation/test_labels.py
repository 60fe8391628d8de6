"""A dataset.json that does not describe labels."""

from __future__ import annotations

import json

import pytest

from nnunet_kd.errors import DataError
from tests.evaluation.helpers import DATASET_JSON, evaluated


@pytest.mark.parametrize(
    "broken",
    [{"labels": {"core": 1}}, {"labels": {"background": 0, "whole": [1, 2]}}, {"file_ending": None, "labels": None}],
)
def test_a_wrong_dataset_json_is_an_error_for_people(tmp_path, dataset, broken):
    (dataset / "dataset.json").write_text(json.dumps({**DATASET_JSON, **broken}))
    with pytest.raises(DataError, match=r"dataset\.json does not describe labels"):
        evaluated(tmp_path, dataset)
    (dataset / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json is not valid JSON"):
        evaluated(tmp_path, dataset)
    (dataset / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset\.json does not exist"):
        evaluated(tmp_path, dataset)
