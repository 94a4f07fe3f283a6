"""Peers: what others publish to make the same pipeline faster, run on the same workload by the same benchmark.

A recipe (`recipes/`) is a list of techniques (`techniques/`), which are optimizations like ours but taken from other
projects. A peer is asked for as the preset `peer:NAME`; `resolve_peer` turns it into a plan.
"""
