"""Evaluation, the same for all wires: metrics.py, baselines.py (the conditions that a score stands
beside), harness.py (one loop over passages and conditions).
"""
