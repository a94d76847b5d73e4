"""Benchmarks: ours against a plain implementation of the same thing, in one process."""
