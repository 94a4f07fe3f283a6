"""Several processes compute the step that one computes alone, whatever the sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from kontext_fast.engine import sequence_parallel
from kontext_fast.engine.graphs.recorded_calls import StepGraphs
from kontext_fast.engine.ops import PortableOps, Precision
from kontext_fast.engine.ranks import join
from kontext_fast.engine.sequence_parallel import Layout, SequenceParallel, Transport
from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.engine.weights import take_weights
from kontext_fast.errors import InvalidInput
from tests.engine.transformers import SHAPES, Shape, inputs_for, prepare, random_transformer, relative_error, stepped
from tests.ranks import Ranks, ranks

SIZES: dict[str, dict[str, Any]] = {
    "edit": {},
    "batch": {"batch": 2, "text": 12, "image": (7, 3), "reference": (1, 1)},
    "text-to-image": {"reference": (0, 0)},
    "one-token-of-text": {"text": 1, "image": (1, 1), "reference": (5, 3)},
    "no-output-in-a-share": {"text": 30, "image": (1, 2), "reference": (1, 2)},
}
"""Shares differ, some have no text and some nothing else."""


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    random_transformer(Shape())  # imports what the processes, which are forked, then need not
    with ranks(request.param) as processes:
        yield processes


def _errors(
    _rank: int,
    size: int,
    shape: Shape,
    precision: Precision,
    names: tuple[str, ...],
    transport: Transport = "collectives",
) -> dict[str, float]:
    """By name of sizes, how far the velocity of all processes is from that of this one alone."""
    transformer, errors = random_transformer(shape), {}
    with ExitStack() as undo:
        weights, ops = take_weights(transformer, precision, undo), PortableOps(precision=precision)
        alone = EngineTransformer(weights, ops)
        parallel = SequenceParallel(join(size, torch.device("cpu")), transport)
        shared = EngineTransformer(weights, ops, parallel=parallel)
        for name in names:
            inputs = inputs_for(transformer, **SIZES[name])
            expected = stepped(alone, prepare(alone, inputs), inputs)
            result = stepped(shared, prepare(shared, inputs), inputs)
            errors[name] = relative_error(result, expected) if result.shape == expected.shape else float("inf")
    return errors


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_step_equals_that_of_one_process(together: Ranks, precision: Precision) -> None:
    """5 heads divide by neither number of processes, and tokens by neither in most of the sizes."""
    by_rank = together.run(_errors, together.size, Shape(heads=5), precision, tuple(SIZES))
    for errors in by_rank:
        assert set(errors) == set(SIZES)
        # Sums of rows are split otherwise, and a number that is rounded the other way is a step of fp8 off.
        assert max(errors.values()) < {"bf16": 1e-5, "fp8": 2e-2, "int8": 1e-2}[precision], errors


class _Files:
    """Memory that all processes write to, in files, in place of that of GPUs; what is sent arrives at once."""

    def __init__(self, folder: Path, size: int) -> None:
        self._memory = [
            torch.from_file(str(folder / str(rank)), shared=True, size=1 << 20, dtype=torch.uint8)
            for rank in range(size)
        ]
        self.beside = nullcontext

    def get_buffer(self, rank: int, shape: Sequence[int], dtype: torch.dtype, offset: int) -> Tensor:
        begin = offset * dtype.itemsize
        return self._memory[rank][begin : begin + prod(shape) * dtype.itemsize].view(dtype).view(*shape)

    def barrier(self, _channel: int) -> None:
        dist.barrier()

    def wait(self) -> None:
        """Nothing is on its way."""


def _errors_in_files(rank: int, size: int, folder: Path, precision: Precision) -> dict[str, float]:
    """`_errors` where each process writes its heads into the memory of the others."""
    with pytest.MonkeyPatch.context() as patch:
        files = _Files(folder, size)
        patch.setattr(sequence_parallel, "_rendezvous", lambda *_: files)
        patch.setattr(sequence_parallel, "_sending_on", lambda _: files)
        patch.setattr(sequence_parallel, "COST_OF_TEXT", 0.2)  # of few tokens more than none
        return _errors(rank, size, Shape(heads=5), precision, tuple(SIZES), "peer_memory")


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_heads_written_to_other_memory_are_in_place(together: Ranks, precision: Precision, tmp_path: Path) -> None:
    for errors in together.run(_errors_in_files, together.size, tmp_path, precision):
        assert set(errors) == set(SIZES)
        assert max(errors.values()) < {"bf16": 1e-5, "int8": 1e-2}[precision], errors


class _CallAgain:
    """A recorder whose recordings call again, on the same tensors; a tape would not wait for a collective.

    In the rank `refusing` nothing can be recorded.
    """

    memory_bytes = 0

    def __init__(self, rank: int, refusing: int | None) -> None:
        self._refuses = rank == refusing
        self.turn = nullcontext

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Any:
        outputs = tuple(call())
        if self._refuses:
            raise RuntimeError("operation not permitted")

        def replay() -> None:
            for output, now in zip(outputs, call(), strict=True):
                output.copy_(now)

        recording = type("Recording", (), {"outputs": outputs, "replay": staticmethod(replay)})
        for output in outputs:  # as a capture, which runs nothing
            output.fill_(float("nan"))
        return recording


ALIKE_IN_RANK_0: tuple[dict[str, Any], ...] = (
    {"text": 4, "image": (2, 2), "reference": (1, 2)},
    {"text": 4, "image": (1, 6), "reference": (0, 0)},
)


def _recorded(rank: int, size: int, refusing: int | None) -> tuple[dict[str, Any], bool]:
    """What is recorded of steps of two layouts in turn, and whether they have the bits of steps without recordings."""
    transformer, same = random_transformer(Shape(heads=4)), True
    with ExitStack() as undo:
        weights, ops = take_weights(transformer, "bf16", undo), PortableOps(precision="bf16")
        together = join(size, torch.device("cpu"))
        parallel = SequenceParallel(together, "collectives")
        graphs = StepGraphs(_CallAgain(rank, refusing), None, together.everywhere)
        plain = EngineTransformer(weights, ops, parallel=parallel)
        recording = EngineTransformer(weights, ops, parallel=parallel, graphs=graphs)
        for repeat in range(3):
            for sizes in ALIKE_IN_RANK_0:
                inputs = inputs_for(transformer, **sizes)
                inputs["hidden_states"] *= 1 + repeat
                expected = stepped(plain, prepare(plain, inputs), inputs)
                same &= torch.equal(stepped(recording, prepare(recording, inputs), inputs), expected)
        return graphs.facts, same


def test_recorded_steps_have_the_bits_of_steps_without(together: Ranks) -> None:
    for facts, same in together.run(_recorded, together.size, None):
        assert same
        assert (facts["graphs"], facts["replays"]) == (2, 2)


def test_steps_that_one_process_cannot_record_run_in_all(together: Ranks) -> None:
    by_rank = together.run(_recorded, together.size, 1)
    for facts, same in by_rank:
        assert same
        assert (facts["graphs"], facts["replays"]) == (0, 0)
    assert by_rank[0][0]["unrecorded"]["cannot be recorded in another process"] == 4
    assert by_rank[1][0]["unrecorded"]["cannot be recorded (operation not permitted)"] == 4


def test_blocks_of_one_kind_are_shared_too(together: Ranks) -> None:
    for name in ("double-only", "single-only"):
        shape = Shape(**{**vars(SHAPES[name]), "heads": 4})
        assert max(together.run(_errors, together.size, shape, "bf16", ("edit",))[0].values()) < 1e-5


def test_more_processes_than_heads_are_refused(together: Ranks) -> None:
    shape = Shape(heads=1, head_dim=32, axes=(16, 8, 8))
    for error in together.run(_errors, together.size, shape, "bf16", ("edit",)):
        assert isinstance(error, InvalidInput)
        assert "cannot share 1 heads" in str(error)


def test_shares_hold_every_token_and_head_once() -> None:
    layout = Layout(8705, 512, 1, 24, 128, torch.bfloat16, torch.bfloat16, 1, 7)
    for fewer in (0, 100):
        tokens = replace(layout, fewer=fewer).tokens_of
        assert [token for share in tokens for token in share] == list(range(8705))
        assert max(map(len, tokens[1:])) - min(map(len, tokens[1:])) <= 1
        assert 0 <= len(tokens[1]) - len(tokens[0]) - fewer <= 1
    assert [head for share in layout.heads_of for head in share] == list(range(24))


def test_program_of_one_process_is_told_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InvalidInput, match="torchrun --nproc-per-node 2 PROGRAM"):
        join(2, torch.device("cpu"))
