"""The wire: a text becomes a few slots of keys and values, which frozen LMs read in its place.

Read in this order: config.py and wire.py (a wire of one reader), windows.py (how a text is cut),
compressor.py (from states to slots), selectors/ (which tokens stay), corrector.py (a learned
residual that moves them), compressed_kv.py, message.py and codec.py (slots as bytes), verbatim.py
(spans that stay as text); text_code.py, text_message.py and text_wire.py (one message for several
readers); load.py (a wire of any kind, by its name). Then recipe.py, training.py, scorer_fit.py,
importance.py and training_checks.py; evaluation.py and costs.py (one reader, as protocol.py has
it), joint.py (several), and sweep.py (a grid of recipes). codes/ holds latent codes that travel
between models, learned/ a wing that was never trained to a result.
"""
