"""Checks and measurements that need a GPU: `python -m benchmarks.gpu.NAME`."""
