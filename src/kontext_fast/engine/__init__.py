"""Our own FLUX forward: fused operations, fp8, reuse of reference tokens and of steps. Knows nothing of pipelines."""
