"""Read a text once, keep it as a small cache, and ask it many questions.

python examples/compress_and_ask.py docs/titicaca.txt "What are the islands made of?"
"""

import sys
from pathlib import Path

from latentwire import Wire, ask

FILE = Path(__file__).parent.parent / "docs" / "titicaca.txt"
QUESTIONS = ["Which river carries water out of the lake?", "What are the islands made of?"]


def main(path: Path = FILE, *questions: str) -> None:
    wire = Wire.from_pretrained("default")  # smollm2-135m, which is fetched where it is not here
    text = path.read_text()
    (message,) = wire.send([text])  # the model's only pass over it
    tokens, latents = len(wire.lm.tokenize(text)), wire.latents(text)
    print(f"{wire.reader} read {tokens} tokens and keeps {latents}")
    asked = questions or QUESTIONS
    for question, answer in zip(asked, ask(wire, message, asked), strict=True):
        print(f"{question} {answer}")


if __name__ == "__main__":
    main(*(Path(a) for a in sys.argv[1:2]), *sys.argv[2:])
