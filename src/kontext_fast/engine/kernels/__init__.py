"""Fused kernels behind the interface of `kontext_fast.engine.ops.Ops`.

The module `kontext_fast.engine.kernels.fused`, where it is installed, defines

    refusal(capability: tuple[int, int], precision: Precision) -> str | None
        why a GPU of that compute capability cannot run them, as one sentence that names the remedy, or None
    FusedOps(attention: AttentionKernel)
        an `Ops` whose `kernel` is "fused"

and is imported only on a machine with a CUDA device.
"""
