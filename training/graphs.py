"""One training step, on a GPU as a CUDA graph: at this size, launching kernels takes longer than running them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from loop import Average

Tensors = dict[str, torch.Tensor]
LossOf = Callable[[str, Tensors], tuple[torch.Tensor, Tensors]]

WARM_UP = 3
"""Steps of each kind of batch before its graph is captured: compilation, kernel choice and the optimizer's state."""


@dataclass(frozen=True)
class _Captured:
    """A step that reads `batch` and leaves its figures in `figures` each time it is replayed."""

    graph: torch.cuda.CUDAGraph
    batch: Tensors
    figures: Tensors


class Steps:
    """Loss, gradients, clipping, optimizer and average. Figures are the loss, the gradient's norm and the loss's own;
    they are overwritten by the next step of the same kind."""

    def __init__(
        self,
        parameters: list[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        average: Average,
        loss_of: LossOf,
        *,
        graphs: bool,
    ) -> None:
        self._parameters, self._optimizer, self._average, self._loss_of = parameters, optimizer, average, loss_of
        self._graphs = graphs
        self._seen: Counter[str] = Counter()
        self._captured: dict[str, _Captured] = {}

    def __call__(self, kind: str, batch: Tensors, rate: float) -> Tensors:
        """A step on `batch`, whose shapes are those of every batch of its kind, at learning rate `rate`."""
        self._set_rate(rate)
        self._average.advance()
        self._seen[kind] += 1
        if not self._graphs:
            return self._step(kind, batch)
        if self._seen[kind] <= WARM_UP:
            return self._on_a_side_stream(kind, batch)
        if kind not in self._captured:
            self._captured[kind] = self._capture(kind, batch)
        captured = self._captured[kind]
        for name, tensor in batch.items():
            captured.batch[name].copy_(tensor)
        captured.graph.replay()
        return captured.figures

    def _step(self, kind: str, batch: Tensors) -> Tensors:
        # Without gradients to add to, a graph writes them anew at every replay.
        self._optimizer.zero_grad(set_to_none=True)
        loss, figures = self._loss_of(kind, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._average.update()
        return {"loss": loss.detach(), "gradient_norm": norm, **figures}

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _on_a_side_stream(self, kind: str, batch: Tensors) -> Tensors:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            figures = self._step(kind, batch)
        torch.cuda.current_stream().wait_stream(side)
        return figures

    def _capture(self, kind: str, batch: Tensors) -> _Captured:
        static = {name: tensor.clone() for name, tensor in batch.items()}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            figures = self._step(kind, static)
        return _Captured(graph, static, figures)
