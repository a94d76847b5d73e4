"""Training of latent codes. Read in this order: config.py, recording.py (what frozen models gave,
kept on disk), fitting.py (code and decoders in closed form), attention.py and answers.py (the two
trained stages), training.py (all of them)."""
