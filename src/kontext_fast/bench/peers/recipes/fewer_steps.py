"""No technique at all: fewer steps."""

from __future__ import annotations

from kontext_fast.bench.peers.common_stack import GPU_BASE
from kontext_fast.bench.peers.peer import Peer
from kontext_fast.bench.peers.techniques.fewer_steps import FewerSteps

FEWER_STEPS = tuple(
    Peer(
        name=f"steps-{steps}",
        summary=f"{steps} steps where 28 are asked for, and no cache",
        source="https://huggingface.co/docs/diffusers/main/en/api/pipelines/flux",
        needs=(FewerSteps(steps_of_28=steps),),
        where_possible=GPU_BASE,
    )
    for steps in (8, 12, 20)
)
