"""Search one answer at test time with a reward of your own; the model is never trained.

python examples/search.py "Name the largest planet of the solar system."
"""

import sys

from latentwire import FrozenLM, Problem, Rating, Seek, SeekConfig
from latentwire.seek.region import Fraction

PROMPT = "Name the largest planet of the solar system."


class Short:
    """Rates an answer by its length: 0 for one word, -1 for twenty words or more."""

    low, high = -1.0, 0.0  # a value outside of this range is refused

    def __call__(self, attempts):
        words = [max(1, len(attempt.text.split())) for attempt in attempts]
        return [Rating(max(-1.0, -(n - 1) / 19)) for n in words]


def main(prompt: str = PROMPT) -> None:
    lm = FrozenLM.from_pretrained("smollm2-135m")
    # Three steps on the hidden states of the first half of the answer.
    config = SeekConfig(Fraction(0.5), steps=3, lr=0.02, max_new_tokens=24)
    (found,) = Seek(lm, Short(), config)([Problem("one", prompt, prompt)])
    for step in found.trace:
        print(f"step {step.step}: reward {step.reward:.2f}, {step.flipped} tokens changed")
        print(f"  {step.text.strip()!r}")
    print(f"best, {found.reward:.2f}: {found.text.strip()!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
