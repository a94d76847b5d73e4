"""The wire: a text becomes a few slots of keys and values, which frozen LMs read in its place.

Read in this order: wire.py (a wire of one reader), scorer.py and corrector.py (which tokens stay,
and how a learned residual moves them), compressed_kv.py, message.py and codec.py (slots as bytes),
verbatim.py (spans that stay as text); text_code.py, text_message.py and text_wire.py (one message
for several readers); load.py (a wire of any kind, by its name). Then training.py and its
training_checks.py, evaluation.py (one reader), joint.py (several), and sweep.py (a grid of
recipes). codes/ holds latent codes that travel between models, learned/ a wing that was never
trained to a result.
"""
