"""Latent codes: one frozen LM reads a text, and LMs of other families answer from its reading.

Measured: `interlingua`, which smollm2-135m writes, and gemma3-270m and smollm2-135m read
(docs/results.md). Read in this order: code.py (states of the source as codes of a few bits),
decoder.py (codes as a reader's keys and values), message.py (codes as bytes), wire.py (a source and
its readers); then what trains them: config.py, recording.py (outputs of frozen models on disk),
fitting.py (code and decoders in closed form), attention.py and answers.py (the two trained stages),
training.py (all of them).
"""
