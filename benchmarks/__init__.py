"""Checks and measurements that need a machine of their own."""
