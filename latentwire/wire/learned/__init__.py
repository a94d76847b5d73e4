"""Learned codes: measured on learning eight passages by heart, never trained to a result.

Measured too are uncompressed principal components (reproduce/wire-table/pca.py). Nothing here says
how well such a wire answers about passages that it has not seen.

Read in this order: shared_wire.py (what the parts make together), encoders/ (a text as a few
latents), pooling.py, fsq.py (latents as codes), shared_message.py, reader.py and adapter.py (one
reader of it), injectors/ (how a reader takes latents in), saving.py (config and folder); then
config.py, data.py, objectives.py and training.py, which train it.
"""
