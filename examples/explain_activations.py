"""Explain activations that another tool took: here transformers' own hidden states.

python examples/explain_activations.py "The Danube rises in the Black Forest"

A lens takes any tensor [rows, width] of outputs of block k of its model, wherever they come from:
`model.model.layers[k].output[0].save()` in nnsight, `cache["blocks.k.hook_resid_post"]` in
TransformerLens (`from_pretrained_no_processing`, or they are centred), or a dump of your own.
"""

import sys

import torch

from latentwire import Lens

TEXT = "She put the cake into the oven"


def main(text: str = TEXT) -> None:
    lens = Lens.from_pretrained("default")
    model, tokenizer = lens.lm.model, lens.lm.tokenizer  # or your own copy of the same weights
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        states = model(ids.to(model.device), output_hidden_states=True).hidden_states
    # hidden_states[0] is the embeddings, so the output of block k is hidden_states[k + 1].
    activations = states[lens.config.layer + 1][0, 1:]  # not the first token: an attention sink
    for token, (best,) in zip(ids[0, 1:], lens.explain(activations), strict=True):
        print(f"{tokenizer.decode(token)!r}, explained {1 - best.error:.2f}: {best.text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
