"""Data sets and their metrics.

base.py says what a task is; qa.py holds questions about passages, and the rest are a file each:
maths.py and answers.py, arc.py and its sandbox.py, needles.py.
"""
