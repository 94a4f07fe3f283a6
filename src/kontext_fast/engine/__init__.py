"""Our own FLUX forward: fused operations, fp8, reuse of steps. It does not depend on pipelines."""
