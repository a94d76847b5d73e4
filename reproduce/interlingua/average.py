"""The mean of a wire of codes and of one that was trained on from it: weights of one basin, as in
Wortsman et al. 2022, "Model soups", arXiv 2203.05482.

    python reproduce/interlingua/average.py interlingua runs/more/wire mean-wire
"""

import sys
from pathlib import Path

import torch

from latentwire.wire.codes.wire import CodeWire
from latentwire.wire.folder import WireError

SHARE = 0.5
"""Of the second wire."""


@torch.no_grad()
def main(first: str, second: str, out: str) -> None:
    wire, other = CodeWire.from_pretrained(first), CodeWire.from_pretrained(second)
    if wire.id != other.id:
        raise WireError(f"{second} has another code than {first}; it was not trained on from it")
    for reader in wire.readers:
        trained = dict(other.reader(reader.reader).decoder.named_parameters())
        for name, parameter in reader.decoder.named_parameters():
            parameter.lerp_(trained[name], SHARE)
    wire.save(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
