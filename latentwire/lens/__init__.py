"""The lens: an activation in words, and back from the words.

Read in this order: activations.py (where vectors come from), decoder.py (vector to words),
encoder.py (words to vector), lens.py (both, saved as one), objectives.py, interventions.py (swap or
edit an activation). Then config.py, steps.py, training.py and training_checks.py, which train it,
evaluation.py and explain.py.
"""
