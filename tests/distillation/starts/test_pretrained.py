"""Checkpoints for ``-pretrained_weights``: what differs is told, heads alone are no reason to refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_kd.distillation.starts.pretrained import find_pretrained
from nnunet_kd.errors import NnunetKdWarning, SettingsError
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import make_plans
from tests.training.tiny_trainer import trainer

THREE_LABELS = {**DATASET_JSON, "labels": {**DATASET_JSON["labels"], "third": 3}}
TWO_CHANNELS = {**DATASET_JSON, "channel_names": {"0": "T1", "1": "T2"}}


def test_other_heads_are_told(folders: Path, recwarn: pytest.WarningsRecorder) -> None:
    plans = make_plans()
    model = write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    found = find_pretrained(str(model), plans, "3d_fullres", DATASET_JSON, 0)
    assert found.path == model / "fold_0" / "checkpoint_final.pth"
    assert not [one for one in recwarn if issubclass(one.category, NnunetKdWarning)]
    with pytest.warns(
        NnunetKdWarning, match="has other heads .*3 there, 4 in the student.*heads, which start at random"
    ):
        assert find_pretrained(str(model), plans, "3d_fullres", THREE_LABELS, 0) == found


def test_other_input_channels_are_told(folders: Path) -> None:
    plans = make_plans()
    model = write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    with pytest.raises(SettingsError, match=r"What differs: encoder\S+: 8x1x3x3x3 there, 8x2x3x3x3 in the student"):
        find_pretrained(str(model), plans, "3d_fullres", TWO_CHANNELS, 0)


# as nnUNetv2_train gives it, which tells the trainer nothing of the file ------------------------------------------------


def test_nnunets_command_says_what_differs_before_training(tiny: dict) -> None:
    teacher = write_untrained_teacher(tiny, "3d_fullres", DATASET_JSON)
    for given in (teacher, teacher / "fold_0" / "checkpoint_final.pth"):
        made = trainer("nnUNetTrainerDCD", tiny, "reduction=2")
        with pytest.raises(SettingsError) as caught:
            maybe_load_checkpoint(made, False, False, str(given))
        assert not Path(made.output_folder).exists()
        message = str(caught.value)
        assert "channels of the stages: 8, 16, 32 there, 4, 8, 16 in the student" in message
        assert "`nnunet-kd train ... -t PATH --set start=teacher`" in message
        assert "tensor" not in message
        assert len(message) < 1000


def test_nnunets_command_loads_what_fits(tiny: dict, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_untrained_teacher(tiny, "3d_fullres", DATASET_JSON) / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(path, weights_only=False)["network_weights"]
    made = trainer("nnUNetTrainerStudent", tiny, "reduction=1", dataset=THREE_LABELS)
    maybe_load_checkpoint(made, False, False, str(path.parent.parent))
    loaded = made.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items() if ".seg_layers." not in name)
    assert not made.is_new()
    assert "has other heads" in capsys.readouterr().out
    stock = trainer("nnUNetTrainer", tiny)  # nnU-Net's own trainers are told by nnU-Net
    weights.pop("encoder.stages.0.0.convs.0.conv.weight")
    torch.save({"network_weights": weights}, path)
    with pytest.raises(AssertionError, match="is missing in the pretrained model weights"):
        maybe_load_checkpoint(stock, False, False, str(path))
