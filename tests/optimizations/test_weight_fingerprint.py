"""Weights that changed since they were looked at are noticed, however they changed."""

from __future__ import annotations

import copy

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
    for _ in range(2):  # The first one replaces a parameter that was written to, the second one has its version.
        module.bias = torch.nn.Parameter(module.bias.detach().clone())
        assert fingerprint.changed([module])
    with torch.no_grad():
        module.bias.add_(0)
    assert fingerprint.changed([module])
    copied = layer()
    copied.load_state_dict(module.state_dict())
    assert fingerprint.changed([copied])
    assert fingerprint.changed([None])


def test_replaced_module_with_the_same_parameters_is_noticed() -> None:
    module, fingerprint = layer(), WeightFingerprint()
    fingerprint.changed([module])
    assert fingerprint.changed([copy.copy(module)])


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


def test_each_of_sixteen_matrices_is_looked_at_whatever_vectors_are_between() -> None:
    layers = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=index > 0) for index in range(16))
    fingerprint = WeightFingerprint()
    fingerprint.changed([layers])
    for index, matrix in enumerate(linear.weight for linear in layers):
        matrix.data += 1
        assert fingerprint.changed([layers]), index


def test_a_few_numbers_of_a_large_model_are_remembered() -> None:
    layers, fingerprint = torch.nn.ModuleList(torch.nn.Linear(100, 100) for _ in range(40)), WeightFingerprint()
    assert fingerprint.changed([layers])
    for linear in layers:
        linear.weight.data *= 1.01
    assert fingerprint.changed([layers])
    assert sum(kept.numel() for kept in fingerprint._numbers) < 16 * 2 * 64 * 4
