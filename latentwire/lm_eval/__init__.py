"""A model of lm-evaluation-harness whose documents go through a wire (extra "lm-eval").

    python -m latentwire.lm_eval run --model latentwire --model_args wire=default,ratio=8 \\
      --include_path examples/lm_eval --tasks latentwire_qa --metadata data=squad_dev.jsonl

This is the harness's own command line, with the model "latentwire" registered; whoever calls
`lm_eval.simple_evaluate` imports this module before.
"""

from importlib.util import find_spec

if find_spec("lm_eval"):  # without it nobody can ask for the model, and __main__ says what it needs
    from latentwire.lm_eval.model import CONDITIONS, WireLM

    __all__ = ["CONDITIONS", "WireLM"]
