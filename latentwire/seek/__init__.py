"""Seek: one answer, improved while it is asked for, by policy gradient on the LM's hidden states.
It is not shown to beat best of N at equal tokens anywhere (docs/results.md).

Read in this order: answers.py (prompts and answers as tokens), region.py (which tokens may change),
policy.py (one step), search.py (the loop), found.py (its outcome), rewards/ (a file each),
thoughts.py (the second strategy, soft tokens before the answer). Then recipe.py, run.py (a data set
with its controls), samples.py (best of N) and summary.py.
"""
