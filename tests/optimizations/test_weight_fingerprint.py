"""Weights that changed since they were looked at are noticed, however they changed."""

from __future__ import annotations

import torch

from kontext_fast.optimizations.weight_fingerprint import WeightFingerprint


def layer() -> torch.nn.Linear:
    return torch.nn.Linear(40, 30)


def test_unchanged_modules_are_the_same_after_the_first_look() -> None:
    modules, fingerprint = (layer(), None, layer()), WeightFingerprint()
    assert fingerprint.changed(modules)
    assert not fingerprint.changed(modules)
    assert not fingerprint.changed(modules)


def test_replaced_parameter_with_the_same_numbers_is_noticed() -> None:
    module, fingerprint = layer(), WeightFingerprint()
    fingerprint.changed([module])
    module.bias = torch.nn.Parameter(module.bias.detach().clone())
    assert fingerprint.changed([module])
    with torch.no_grad():
        module.bias.add_(0)
    assert fingerprint.changed([module])
    copied = layer()
    copied.load_state_dict(module.state_dict())
    assert fingerprint.changed([copied])
    assert fingerprint.changed([None])


def test_numbers_written_past_torch_are_noticed() -> None:
    module, fingerprint = layer(), WeightFingerprint()
    fingerprint.changed([module])
    module.weight.data.mul_(1.01)
    assert fingerprint.changed([module])
    assert not fingerprint.changed([module])


def test_each_number_of_a_small_matrix_is_looked_at() -> None:
    module, fingerprint = torch.nn.Linear(3, 3), WeightFingerprint()
    fingerprint.changed([module])
    for row in range(3):
        for column in range(3):
            module.weight.data[row, column] += 1
            assert fingerprint.changed([module]), (row, column)
