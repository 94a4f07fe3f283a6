"""Measures plans on workloads, each in a process of its own: the parent (runner) plans, the child (worker) measures."""
