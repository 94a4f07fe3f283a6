"""A tape of the operations of one call, which can be run again without the Python code that chose them.

Libraries ask whether a CUDA graph is being captured and then take other paths, with other rounding: transformers
builds masks that it leaves out otherwise. So a call is taped while it runs as always, and what is captured is the tape.

On a CPU a tape behaves as a CUDA graph does: it reads the tensors that the call read, at their addresses, and whatever
Python decided is fixed.

A tape leaves out what nothing reads, and what is added more than once is first written in the order of its rows: the
scores of T5's attention get the same bias in all 24 layers, with the heads innermost in memory, which takes a GPU three
times as long to add. Where our kernels run, the softmax of masked scores is ours. None of it changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from kontext_fast.engine.dispatch import LOWEST_CAPABILITY, has_fused_kernels


@dataclass(frozen=True)
class _Slot:
    """Stands for a tensor."""

    index: int


@dataclass(frozen=True)
class _Op:
    function: Any
    args: Any
    """With slots in place of tensors, as `kwargs` and `results`."""
    kwargs: Any
    results: Any
    last_uses: tuple[int, ...] = ()
    """Slots that nothing after it reads."""


class OpTape:
    """The operations of one call."""

    def __init__(self, ops: Sequence[_Op], read: dict[int, Tensor], outputs: Sequence[_Slot]) -> None:
        self._ops = ops
        self._read = read
        self._outputs = outputs

    @classmethod
    def of(cls, call: Callable[[], Sequence[Tensor]]) -> tuple[OpTape, Sequence[Tensor]]:
        """The tape of `call`, and its result.

        Raises RuntimeError if the call lets Python see a number of a tensor, which no tape can repeat.
        """
        recorder = _Recorder()
        with recorder:
            outputs = call()
        slots = [recorder.slot(tensor) for tensor in outputs]
        ops = recorder.with_contiguous_addends()
        return cls(_with_last_uses(ops, slots), recorder.read, slots), outputs

    def __len__(self) -> int:
        return len(self._ops)

    def run(self) -> tuple[Tensor, ...]:
        """Run all operations again, on what is now in the tensors that the call read."""
        tensors = dict(self._read)

        def filled(value: Any) -> Any:
            return tensors[value.index] if isinstance(value, _Slot) else value

        for op in self._ops:
            results = op.function(*_mapped(filled, op.args), **_mapped(filled, op.kwargs))
            for slot, tensor in zip(_flat(op.results), _flat(results), strict=True):
                if isinstance(slot, _Slot):
                    tensors[slot.index] = tensor
            for index in op.last_uses:
                tensors.pop(index, None)
        return tuple(tensors[slot.index] for slot in self._outputs)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation below it. It holds only those tensors that no earlier operation returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[_Op] = []
        self.read: dict[int, Tensor] = {}
        self._slots: Any = WeakTensorKeyDictionary()
        self._count = 0
        self._addends: dict[int, list[int]] = {}
        """Of tensors that are added to contiguous ones and are not contiguous: which operations do it, by slot."""
        self._addend_storages: dict[int, int] = {}
        self._writes: list[tuple[int, int]] = []
        """Which operation writes to which storage that existed before it."""

    def slot(self, tensor: Tensor) -> _Slot:
        if tensor not in self._slots:
            self.read[self._new(tensor).index] = tensor
        slot: _Slot = self._slots[tensor]
        return slot

    def _new(self, tensor: Tensor) -> _Slot:
        slot = self._slots[tensor] = _Slot(self._count)
        self._count += 1
        return slot

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _depends_on_numbers(function, args):
            raise RuntimeError(f"{function} depends on the numbers of a tensor, so the call cannot be repeated")
        slotted = _mapped(self._slotted, (args, kwargs))
        function = _stand_in(function, args, kwargs) or function
        results = function(*args, **kwargs)
        # In place: the tensor keeps its slot.
        slotted_results = _mapped(
            lambda value: (self._slots.get(value) or self._new(value)) if isinstance(value, Tensor) else value, results
        )
        slotted_args, slotted_kwargs = slotted
        if function is torch.ops.aten.add.Tensor and _is_strided_addend(args[0], args[1], results):
            addend = slotted_args[1].index
            self._addends.setdefault(addend, []).append(len(self.ops))
            self._addend_storages[addend] = _storage(args[1])
        if _is_mutable(function):
            self._writes += [(len(self.ops), _storage(value)) for value in _tensors((args, kwargs))]
        self.ops.append(_Op(function, slotted_args, slotted_kwargs, slotted_results))
        return results

    def with_contiguous_addends(self) -> list[_Op]:
        """The operations; of `_addends`, what is added more than once and not changed in between is copied first."""
        ops, copies = list(self.ops), []
        for addend, places in self._addends.items():
            storage = self._addend_storages[addend]
            written = any(places[0] < at < places[-1] and to == storage for at, to in self._writes)
            if len(places) < 2 or written:
                continue
            copied = _Slot(self._count)
            self._count += 1
            keep_rows = {"memory_format": torch.contiguous_format}
            copies.append((places[0], _Op(torch.ops.aten.clone.default, [_Slot(addend)], keep_rows, copied)))
            for place in places:
                ops[place] = replace(ops[place], args=[ops[place].args[0], copied, *ops[place].args[2:]])
        for place, copy in sorted(copies, key=lambda item: item[0], reverse=True):
            ops.insert(place, copy)
        return ops

    def _slotted(self, value: Any) -> Any:
        return self.slot(value) if isinstance(value, Tensor) else value


def _depends_on_numbers(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether Python sees a number of a tensor, or the shape of the result depends on one."""
    if function is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in function.tags or torch.Tag.dynamic_output_shape in function.tags


def _mapped(function: Callable[[Any], Any], values: Any) -> Any:
    """`values` with `function` of everything in their lists, tuples and dictionaries, of which operations have no other
    kind; torch's own `tree_map`, which knows many, takes most of the time of a tape."""
    if isinstance(values, list | tuple):
        return [_mapped(function, value) for value in values]
    if isinstance(values, dict):
        return {name: _mapped(function, value) for name, value in values.items()}
    return function(values)


def _flat(results: Any) -> Sequence[Any]:
    return results if isinstance(results, list | tuple) else (results,)


def _tensors(values: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    _mapped(lambda value: tensors.append(value) if isinstance(value, Tensor) else None, values)
    return tensors


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_strided_addend(left: Any, right: Any, result: Tensor) -> bool:
    """Whether left + right reads a `right` that lies in another order than the `result`."""
    both = isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape
    return both and left.is_contiguous() and result.is_contiguous() and not right.is_contiguous()


def _stand_in(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What computes every bit of an operation in less time, or None."""
    if function is not torch.ops.aten._safe_softmax.default or len(args) != 2 or kwargs or not has_kernels(args[0]):
        return None
    scores, dim = args
    if dim not in (-1, scores.ndim - 1) or not scores.is_contiguous():
        return None
    from kontext_fast.engine.kernels.safe_softmax import safe_softmax

    return safe_softmax


def has_kernels(tensor: Tensor) -> bool:
    """Whether our kernels run where `tensor` is."""
    if not (tensor.is_cuda and has_fused_kernels()):
        return False
    return torch.cuda.get_device_capability(tensor.device) >= LOWEST_CAPABILITY["bf16"]


def _is_mutable(function: Any) -> bool:
    return isinstance(function, torch._ops.OpOverload) and function._schema.is_mutable


def _can_be_left_out(op: _Op) -> bool:
    """Whether an operation does nothing but return its results."""
    function = op.function
    if not isinstance(function, torch._ops.OpOverload):
        return True  # a stand-in
    seeded = torch.Tag.nondeterministic_seeded in function.tags
    return function.namespace == "aten" and not function._schema.is_mutable and not seeded


def _with_last_uses(ops: Sequence[_Op], outputs: Sequence[_Slot]) -> list[_Op]:
    used = {slot.index for slot in outputs}
    timed = []
    for op in reversed(ops):
        here: set[int] = set()

        def note(value: Any, here: set[int] = here) -> None:
            if isinstance(value, _Slot):
                here.add(value.index)

        _mapped(note, op.results)
        if here and not here & used and _can_be_left_out(op):
            continue
        _mapped(note, (op.args, op.kwargs))
        timed.append(replace(op, last_uses=tuple(here - used)))
        used |= here
    return timed[::-1]
