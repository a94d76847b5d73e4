"""Explain an activation in words, change the words, and see what the model then predicts.

python examples/explain_and_edit.py "The Danube rises in the" " the ship sails into the"
"""

import sys

import torch

from latentwire import Lens, edited, explain_text, tokens_of

TEXT, WORDS = "She put the cake into the", " he drove the car into the"


def main(text: str = TEXT, words: str = WORDS) -> None:
    lens = Lens.from_pretrained("default")  # the middle layer of smollm2-135m
    whole = tokens_of(lens.lm, text)
    last = len(whole.ids) - 1
    (row,) = explain_text(lens, text, [last - whole.bos])
    explanation = row.explanations[0]
    print(f"activation of {row.token!r}: {explanation.text!r}")
    print(f"its words explain {1 - explanation.error:.2f} of its variance")

    with torch.no_grad():
        rebuilt = lens.reconstruct([words])[0]  # the activation that other words stand for
    error = ((rebuilt - row.vector) / lens.spread).square().sum().item()
    print(f"{words!r} would explain {1 - error:.2f}")

    before, after = edited(lens, whole, last, words)
    for name, tokens in (("as it is", before), ("edited", after)):
        print(f"{name}: " + ", ".join(f"{token!r} {p:.1%}" for token, p in tokens[:3]))


if __name__ == "__main__":
    main(*sys.argv[1:])
