"""Many edits on one pipeline, several in a call where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.edit import EditRequest, EditResult, edit_together, make_request, plan_for

LAUNCH_BOUND_PARAMETERS = 10**9
"""A GPU spends the edits of a smaller transformer on launching kernels, so that a batch takes hardly longer."""
LAUNCH_BOUND_BATCH = 64


def edit_many(
    pipe: Any,
    edits: Iterable[EditRequest | tuple[Any, str]],
    *,
    batch: int | Literal["auto"] = "auto",
    on_image: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    **options: Any,
) -> list[EditResult]:
    """One result for each of `edits`, in their order: requests, or pairs of image and instruction with `options`.

    `batch` is how many share a call at most. "auto" is one at a time on weights of full size, where a batch gains next
    to nothing and takes memory, and many on a small checkpoint on a GPU. `on_image(done, total)` is called after each
    call. All requests are checked before the first one runs.
    Raises what `edit` raises.
    """
    requests = [edit if isinstance(edit, EditRequest) else _of_pair(edit, options) for edit in edits]
    size = images_per_call(pipe) if batch == "auto" else batch
    if not isinstance(size, int) or size < 1:
        raise InvalidInput(f'The batch is {batch!r}; give a whole number of at least 1, or "auto".')
    results: dict[int, EditResult] = {}
    for positions in _calls(pipe, requests, size):
        together = edit_together(pipe, [requests[position] for position in positions], should_stop=should_stop)
        results.update(zip(positions, together, strict=True))
        if on_image is not None:
            on_image(len(results), len(requests))
    return [results[position] for position in range(len(requests))]


def images_per_call(pipe: Any) -> int:
    """How many images of one call pay on this checkpoint and device."""
    parameters = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    small = parameters < LAUNCH_BOUND_PARAMETERS
    return LAUNCH_BOUND_BATCH if small and pipe._execution_device.type == "cuda" else 1


def _of_pair(edit: Any, options: dict[str, Any]) -> EditRequest:
    if not isinstance(edit, tuple | list) or len(edit) != 2:
        raise InvalidInput('Each edit is an EditRequest or a pair such as ("photo.jpg", "make the car red").')
    image, instruction = edit
    return make_request(image, instruction, **options)


def _calls(pipe: Any, requests: list[EditRequest], size: int) -> Iterable[list[int]]:
    """Positions of requests that can share a call, `size` images at most in each."""
    alike: dict[object, list[int]] = {}
    for position, request in enumerate(requests):
        plan = plan_for(pipe, request.image.size if request.image else None, request.size)
        key = (
            *(request.steps, request.guidance, request.true_cfg, request.image is None, request.negative is None),
            *(plan.size, plan.reference_size),
        )
        alike.setdefault(key, []).append(position)
    for positions in alike.values():
        call: list[int] = []
        images = 0
        for position in positions:
            if call and images + requests[position].batch > size:
                yield call
                call, images = [], 0
            call.append(position)
            images += requests[position].batch
        yield call
