"""One edit on several GPUs: sequence parallelism after DeepSpeed-Ulysses (Jacobs et al., arXiv 2309.14509).

P processes run the same request. In a step each holds a share of the joint sequence, S / P neighbouring tokens, and
computes everything but attention for these alone. For attention it gets H / P heads of all tokens, in their order, so
that a head sums what it sums on one GPU; afterwards every token's heads come back, in the last block those of tokens
with an output. All processes get the whole velocity at the end of a step, so that schedulers, solvers and rules for
skipped steps do the same in each.

Neither size needs to divide: shares differ by one token or head at most, and one may hold no text or no token with an
output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from kontext_fast.engine.ops import JointQKV, Ops, QKNorm, Rope
from kontext_fast.errors import InvalidInput

if TYPE_CHECKING:
    from kontext_fast.engine.ranks import Ranks
    from kontext_fast.engine.weights import EngineWeights

COST_OF_TEXT = 0.03
"""Of the first share, as a part of all tokens: it alone has text, and in double blocks two products, of few rows each,
where others have one. Only in bfloat16 and with peer memory, where it was measured to pay; in 8 bit it costs time."""

Transport = Literal["collectives", "peer_memory"]
"""How heads change places: by collectives of torch.distributed, or written by each process to the others' memory."""


@dataclass(frozen=True)
class Layout:
    """The sizes of one request, and which rank has what of it."""

    tokens: int
    """S."""
    text: int
    """T, of these: the first ones."""
    batch: int
    heads: int
    """H."""
    head_dim: int
    dtype: torch.dtype
    """Of query, key and value."""
    attended: torch.dtype
    """Of what attention gives."""
    rank: int
    size: int
    """P."""
    fewer: int = 0
    """Tokens that the first rank has less than others."""

    @cached_property
    def tokens_of(self) -> list[range]:
        """By rank."""
        first = (self.tokens + self.fewer) // self.size - self.fewer
        rest = _shares(self.tokens - first, self.size - 1)
        return [range(first), *(range(first + share.start, first + share.stop) for share in rest)]

    @cached_property
    def heads_of(self) -> list[range]:
        """By rank."""
        return _shares(self.heads, self.size)

    @property
    def own(self) -> range:
        """The tokens of this rank."""
        return self.tokens_of[self.rank]

    def places_of(self, tokens: range) -> list[range]:
        """By rank, where its own of neighbouring `tokens` are among these."""

        def place(token: int) -> int:
            return min(max(token, tokens.start), tokens.stop) - tokens.start

        return [range(place(share.start), place(share.stop)) for share in self.tokens_of]

    def shape(self, tokens: int, rank: int) -> tuple[int, ...]:
        """Of query, key and value of `tokens`, for the heads of `rank`."""
        return tokens, 3, self.batch, len(self.heads_of[rank]), self.head_dim

    def width(self, rank: int) -> int:
        """Channels of the heads of `rank`."""
        return len(self.heads_of[rank]) * self.head_dim

    def joint(self, rows: Tensor, rank: int) -> JointQKV:
        """`rows` [tokens, 3, B, heads of `rank`, D] as what is written and read."""
        query, key, value = (tensor.transpose(0, 1) for tensor in rows.unbind(1))
        return JointQKV(query, key, value, first_head=self.heads_of[rank].start)


def _shares(count: int, ranks: int) -> list[range]:
    return [range(*ends) for ends in pairwise(rank * count // ranks for rank in range(ranks + 1))]


class Exchange(Protocol):
    """The buffers of a step, and how they change places."""

    layout: Layout
    received: Tensor
    """[S, 3, B, heads of this rank, D], of all tokens."""
    outgoing: list[Tensor]
    """By rank, [own tokens, 3, B, heads of that rank, D]: where this rank writes them."""

    def send(self, rank: int, rows: slice) -> None:
        """Begin to bring `rows` of `outgoing[rank]` there, while this GPU computes."""

    def deliver(self) -> None:
        """Have what all ranks sent in `received`."""

    def give_back(self, attended: Tensor, tokens: range) -> Tensor:
        """[B, own of `tokens`, W], which the next call may write to, of `attended` [B, `tokens`, heads x D] of all
        ranks."""


class Collectives:
    """`Exchange` by collectives: on any device, and the reference of the other one."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        shapes = [layout.shape(len(layout.own), rank) for rank in range(layout.size)]
        self._sent = torch.empty(sum(map(prod, shapes)), dtype=layout.dtype, device=device)
        parts = self._sent.split([prod(shape) for shape in shapes])  # type: ignore[no-untyped-call]
        self.outgoing: list[Tensor] = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        self.received = torch.empty(layout.shape(layout.tokens, layout.rank), dtype=layout.dtype, device=device)

    def send(self, rank: int, rows: slice) -> None:
        """Nothing: beside a product NCCL's kernels take so much longer that nothing is gained."""

    def deliver(self) -> None:
        parts = [self.received[share.start : share.stop] for share in self.layout.tokens_of]
        _all_to_all(self.received, self._sent, parts, self.outgoing)

    def give_back(self, attended: Tensor, tokens: range) -> Tensor:
        layout, places = self.layout, self.layout.places_of(tokens)
        sent = attended.transpose(0, 1).contiguous()
        parts = [sent[place.start : place.stop] for place in places]
        shapes = [(len(places[layout.rank]), layout.batch, layout.width(rank)) for rank in range(layout.size)]
        back = attended.new_empty(sum(map(prod, shapes)))
        heads = back.split([prod(shape) for shape in shapes])  # type: ignore[no-untyped-call]
        _all_to_all(back, sent, heads, parts)
        return torch.cat([part.view(shape).transpose(0, 1) for part, shape in zip(heads, shapes, strict=True)], dim=2)


def _all_to_all(target: Tensor, source: Tensor, target_parts: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    """Exchange the parts, by rank, that make up these tensors; as bytes, since no backend takes every dtype."""
    dist.all_to_all_single(
        _bytes(target), _bytes(source), [part.nbytes for part in target_parts], [part.nbytes for part in parts]
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


class PeerMemory:
    """`Exchange` by writing to the memory of the other GPUs.

    Query, key and value go in whole pieces, which copy engines move on a stream of their own: kernels that write to
    another GPU themselves would keep the next product waiting. Two barriers a block keep it in order: nobody reads
    before all have written, and nobody writes to what another still reads, since between two writes to a buffer lies a
    barrier that its reader enters after reading.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        ranks, width = range(layout.size), layout.heads * layout.head_dim
        received = max(prod(layout.shape(layout.tokens, rank)) for rank in ranks) * layout.dtype.itemsize
        begin = -(-received // _ALIGNED) * _ALIGNED
        tokens = max(map(len, layout.tokens_of)) * layout.batch * width * layout.attended.itemsize
        self._handle = _rendezvous(begin + tokens, device)
        all_received = [
            self._handle.get_buffer(rank, layout.shape(layout.tokens, rank), layout.dtype, 0) for rank in ranks
        ]
        self.received: Tensor = all_received[layout.rank]
        self._places = [rows[layout.own.start : layout.own.stop] for rows in all_received]
        self.outgoing: list[Tensor] = [
            place if rank == layout.rank else torch.empty_like(place) for rank, place in enumerate(self._places)
        ]
        self._sending = _sending_on(device)
        self._attended: list[Tensor] = [
            self._handle.get_buffer(
                rank,
                (layout.batch, len(layout.tokens_of[rank]), width),
                layout.attended,
                begin // layout.attended.itemsize,
            )
            for rank in ranks
        ]

    def send(self, rank: int, rows: slice) -> None:
        if rank != self.layout.rank:
            with self._sending.beside():
                self._places[rank][rows].copy_(self.outgoing[rank][rows])

    def deliver(self) -> None:
        self._sending.wait()
        self._handle.barrier(0)

    def give_back(self, attended: Tensor, tokens: range) -> Tensor:
        layout, places = self.layout, self.layout.places_of(tokens)
        heads = layout.heads_of[layout.rank]
        columns = slice(heads.start * layout.head_dim, heads.stop * layout.head_dim)
        for rank, (target, place) in enumerate(zip(self._attended, places, strict=True)):
            with nullcontext() if rank == layout.rank else self._sending.beside():
                # By 16 bytes, the most that a thread writes at once.
                wide = attended[:, place.start : place.stop].view(torch.complex128)
                target[:, : len(place), columns].view(torch.complex128).copy_(wide)
        self._sending.wait()
        self._handle.barrier(1)
        return self._attended[layout.rank][:, : len(places[layout.rank])]


class _Sending:
    """A stream of one GPU for what leaves it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def beside(self) -> Iterator[None]:
        """For what begins after all that was asked for before, and runs while this GPU goes on."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """Have this GPU wait until all has left."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


_sending_on = cache(_Sending)


_ALIGNED = 1024
_memory: dict[torch.device, list[tuple[int, Tensor, Any]]] = {}
"""Memory that other processes can write to, and its size and handle. It takes long to set up, so one request uses it
after the other; it grows with the largest one."""


def _rendezvous(size: int, device: torch.device) -> Any:
    """The handle of at least `size` bytes on `device`, the same in all processes."""
    import torch.distributed._symmetric_memory as symmetric_memory

    held = _memory.setdefault(device, [])
    if not held or held[-1][0] < size:
        memory = symmetric_memory.empty(size, dtype=torch.uint8, device=device)
        # What was held is kept, since recorded steps go on using it.
        held.append((size, memory, symmetric_memory.rendezvous(memory, dist.group.WORLD)))  # type: ignore[arg-type]
    return held[-1][2]


@dataclass(frozen=True)
class ParallelJoint(JointQKV):
    """The heads of this rank of all tokens, which attention reads."""

    parts: tuple[tuple[int, JointQKV], ...] = ()
    """Of every rank, where this one writes the heads of that one, of its own tokens; the own rank comes last."""
    exchange: Exchange | None = None
    tokens: range = range(0)
    """Of all, those whose queries attend."""
    outputs: range = range(0)
    """Of all, those with an output."""

    def only(self, rows: slice) -> ParallelJoint:
        """With the queries of all tokens with an output, of which `rows` are this rank's."""
        queries = self.query[:, self.outputs.start : self.outputs.stop]
        return replace(self, query=queries, tokens=self.outputs)


class ParallelOps:
    """Operations on a `ParallelJoint`: what writes takes own tokens, and `attention` gives them. All else as it was."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def write_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV, offset: int) -> None:
        parallel = cast("ParallelJoint", joint)
        for rank, part in parallel.parts:
            self._ops.write_qkv(qkv, norm, rope, replace(part, scales=joint.scales), offset)
            cast("Exchange", parallel.exchange).send(rank, slice(offset, offset + qkv.shape[1]))

    def write_all_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV) -> JointQKV:
        self.write_qkv(qkv, norm, rope, joint, 0)
        return joint

    def attention(self, joint: JointQKV, into: Tensor | None = None) -> Tensor:
        parallel = cast("ParallelJoint", joint)
        exchange = cast("Exchange", parallel.exchange)
        exchange.deliver()
        attended = exchange.give_back(self._ops.attention(joint), parallel.tokens)
        return attended if into is None else into.copy_(attended)


class Share:
    """What one rank does in the steps of a request."""

    def __init__(self, layout: Layout, exchange: Callable[[], Exchange], outputs: int) -> None:
        """Of a sequence of text, then `outputs` tokens with an output, then others."""
        text = layout.text
        self.sizes = (layout, outputs)
        """Of all shares: those of two requests may be alike in one rank, and differ in another."""
        self.own = layout.own
        self._exchange = exchange
        self._text = text
        self._with_output = range(text, text + outputs)
        self._outputs = [len(place) for place in layout.places_of(self._with_output)]
        self.outputs = self._outputs[layout.rank]
        """How many of the own tokens have an output."""

    def joint(self) -> ParallelJoint:
        """Buffers for the blocks of a step."""
        exchange = self._exchange()
        layout = exchange.layout
        order = [(layout.rank + step) % layout.size for step in range(1, layout.size + 1)]
        parts = tuple((rank, layout.joint(exchange.outgoing[rank], rank)) for rank in order)
        whole = layout.joint(exchange.received, layout.rank)
        return ParallelJoint(
            whole.query,
            whole.key,
            whole.value,
            parts=parts,
            exchange=exchange,
            tokens=range(layout.tokens),
            outputs=self._with_output,
        )

    def of(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The own tokens of `text` [B, T, ...] and `image` [B, N + R, ...], views."""
        begin, end = self.own.start, self.own.stop
        return text[:, begin:end], image[:, max(0, begin - self._text) : max(0, end - self._text)]

    def gathered(self, velocity: Tensor) -> Tensor:
        """[B, N, C] of the own outputs of all ranks, [B, own outputs, C] each."""
        own = velocity.new_zeros(len(velocity), max(self._outputs), velocity.shape[2])
        own[:, : self.outputs] = velocity
        everywhere = own.new_empty(len(self._outputs), *own.shape)
        dist.all_gather_into_tensor(
            _bytes(everywhere), _bytes(own)
        )  # of one size, since not every backend takes others
        return torch.cat([part[:, :count] for part, count in zip(everywhere, self._outputs, strict=True)], dim=1)


@dataclass(frozen=True)
class SequenceParallel:
    """How an engine shares its steps with other processes."""

    ranks: Ranks
    transport: Transport

    def ops(self, ops: Ops) -> Ops:
        """`ops` on the buffers of a share."""
        return cast("Ops", ParallelOps(ops))

    def share(self, weights: EngineWeights, dtype: torch.dtype, batch: int, tokens: tuple[int, int, int]) -> Share:
        """What this process does of a request with so many tokens of text, with an output, and of the reference.

        `dtype` is that of query, key and value. Raises InvalidInput where there are more processes than tokens.
        """
        whole, text = sum(tokens), tokens[0]
        pays = self.transport == "peer_memory" and not weights.quantized
        only_first_has_text = 0 < text < whole // self.ranks.size
        layout = Layout(
            tokens=whole,
            text=text,
            batch=batch,
            heads=weights.heads,
            head_dim=weights.head_dim,
            dtype=dtype,
            attended=weights.dtype,
            rank=self.ranks.rank,
            size=self.ranks.size,
            fewer=int(whole * COST_OF_TEXT) if pays and only_first_has_text else 0,
        )
        for what, count in (("heads", layout.heads), ("tokens", layout.tokens)):
            if count < layout.size:
                raise InvalidInput(f"{layout.size} processes cannot share {count} {what}; use at most {count}.")
        kind: type[Collectives | PeerMemory] = PeerMemory if self.transport == "peer_memory" else Collectives
        exchange = partial(kind, layout, weights.device)
        exchange()  # memory that GPUs share is set up now, since a graph could not, and may be refused
        return Share(layout, exchange, tokens[1])
