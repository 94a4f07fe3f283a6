"""Static calls: inputs and results stay the caller's own, and on a GPU a graph computes the bits of the call."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kontext_fast.engine.graphs.recording import CudaGraphs, StaticCall, recorder_for
from tests.engine.graphs.taped import TapeRecorder
from tests.needs import gpu


def double(inputs: Sequence[Tensor]) -> list[Tensor]:
    x, weight = inputs
    return [x @ weight, (x * 2).t()]


def test_outputs_follow_the_inputs_of_each_call() -> None:
    recorder = TapeRecorder()
    call = StaticCall(recorder, double, [torch.zeros(2, 3), torch.zeros(3, 4)])
    for _ in range(2):
        inputs = [torch.randn(2, 3), torch.randn(3, 4)]
        assert all(torch.equal(*pair) for pair in zip(call(inputs), double(inputs), strict=True))
    assert recorder.recorded == 1


def test_outputs_are_copies() -> None:
    inputs = [torch.randn(2, 3), torch.randn(3, 4)]
    call = StaticCall(TapeRecorder(), double, inputs)
    first = call(inputs)
    kept = [output.clone() for output in first]
    call([torch.randn(2, 3), torch.randn(3, 4)])
    assert all(torch.equal(*pair) for pair in zip(first, kept, strict=True))
    first[0].fill_(0)
    assert torch.equal(call(inputs)[0], kept[0])


def test_buffers_keep_strides_and_are_no_inference_tensors() -> None:
    strides = []

    def note(inputs: Sequence[Tensor]) -> list[Tensor]:
        strides.append([x.stride() for x in inputs])
        return [inputs[0] + 1]

    x = torch.randn(3, 2).t()
    with torch.inference_mode():
        call = StaticCall(TapeRecorder(), note, [x])
        inside = call([x])[0]
    assert strides == [[x.stride()]]
    assert torch.equal(call([x])[0], inside)


def test_a_cpu_has_no_recorder() -> None:
    assert recorder_for(torch.device("cpu")) is None


def test_error_in_the_call_is_raised_and_ends_the_turn() -> None:
    def fail(_: Sequence[Tensor]) -> list[Tensor]:
        raise RuntimeError("no")

    recorder = TapeRecorder()
    with pytest.raises(RuntimeError, match="no"):
        StaticCall(recorder, fail, [torch.zeros(1)])
    with recorder.turn():
        pass


@gpu
@pytest.mark.parametrize("taped", [False, True])
def test_cuda_graph_computes_the_bits_of_the_call(taped: bool) -> None:
    device = torch.device("cuda")
    recorder = CudaGraphs(device)
    inputs = [torch.randn(64, 64, device=device), torch.randn(64, 64, device=device)]
    double(inputs)
    call = StaticCall(recorder, double, inputs, taped=taped)
    other = StaticCall(recorder, lambda tensors: [tensors[0].exp()], inputs[:1])
    for _ in range(3):
        inputs = [torch.randn(64, 64, device=device), torch.randn(64, 64, device=device)]
        mine, theirs = call(inputs), other(inputs[:1])
        assert all(torch.equal(*pair) for pair in zip(mine, double(inputs), strict=True))
        assert torch.equal(theirs[0], inputs[0].exp())
    assert recorder.memory_bytes > 0


@gpu
def test_threads_on_streams_of_their_own_take_turns() -> None:
    device = torch.device("cuda")
    recorder = CudaGraphs(device)
    call = StaticCall(recorder, lambda tensors: [tensors[0] @ tensors[0]], [torch.zeros(512, 512, device=device)])
    wrong: list[int] = []

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream(device)):
            x = torch.randn(512, 512, device=device, generator=torch.Generator(device).manual_seed(seed))
            expected = x @ x
            wrong.extend(seed for _ in range(50) if not torch.equal(call([x])[0], expected))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
