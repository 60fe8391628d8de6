"""Random generators go on only where as many processes draw from them as before."""

from __future__ import annotations

import torch

from nnunet_kd.training.random_states import own_random_states, random_states, restore_random_states

CPU = torch.device("cpu")


def test_states_of_another_number_of_processes_are_left() -> None:
    own = own_random_states(CPU)
    drawn = torch.rand(3)
    moved = own_random_states(CPU)
    assert restore_random_states([own, own], CPU) is False
    assert torch.equal(own_random_states(CPU)["torch"], moved["torch"])
    assert restore_random_states([], CPU) is False
    assert restore_random_states([own], CPU) is True
    assert torch.equal(torch.rand(3), drawn)
    assert len(random_states(CPU)) == 1
