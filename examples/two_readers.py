"""Send one message to models of two families: only the first one ever runs over the text.

python examples/two_readers.py examples/lighthouse.txt "How many candles were there?"
"""

import sys
from pathlib import Path

from latentwire import CodeMessage, CodeWire, ask

FILE = Path(__file__).parent / "lighthouse.txt"
QUESTION = "Who finished the lighthouse?"


def main(path: Path = FILE, question: str = QUESTION) -> None:
    codes = CodeWire.from_pretrained("interlingua")
    text = path.read_text()
    (message,) = codes.send([text])  # smollm2-135m reads
    data = message.to_bytes()
    print(f"{codes.source.name} wrote {len(data):,} bytes for {len(text.encode())} of text")
    for reader in codes.readers:
        received = CodeMessage.from_bytes(data)  # the reader gets bytes and no text
        (answer,) = ask(reader, received, [question])
        print(f"{reader.reader}: {answer}")


if __name__ == "__main__":
    main(*(Path(a) for a in sys.argv[1:2]), *sys.argv[2:])
