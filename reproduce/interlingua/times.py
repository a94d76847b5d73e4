"""Time to first token from a message of latent codes beside a reader's own prefill of the text.

    python reproduce/interlingua/times.py squad_dev.jsonl times.json

CPU seconds of one thread, median of three, in turn; multiply-adds by hand: a decoder's weights per
token of the message against the reader's block weights per token of its own text, attention apart.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from latentwire.lm import Prompt
from latentwire.tasks.qa import by_context, load_questions, question_prompt, with_soft_prompt
from latentwire.wire.load import load_wire

torch.set_num_threads(1)
data, out = sys.argv[1], Path(sys.argv[2])
passages = by_context(load_questions(data))
wire = load_wire("interlingua")


def text_of(tokens: int) -> str:
    """Passages one after another, of about so many tokens of the source."""
    text, i = "", 0
    while len(wire.source.tokenize(text, remember=False)) < tokens:
        text, i = f"{text}\n\n{passages[i].context}".strip(), i + 1
    ids = wire.source.tokenize(text, remember=False)[:tokens]
    return wire.source.detokenize(ids)


def first_token(lm, soft_prompt, prefix) -> int:
    prompt = question_prompt(
        lm, ["What is this text about?"], with_soft_prompt(lm, soft_prompt, prefix)
    )
    return int(lm.head(lm.last_hidden(prompt)[:, -1]).argmax())


def seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


rows = []
for tokens in (200, 1000, 4000):
    text = text_of(tokens)
    (message,) = wire.send([text])
    for reader in wire.readers:
        lm, spent = reader.lm, {"message": [], "prefill": []}
        ids = torch.cat([lm.frame.prefix, lm.tokenize(text)])

        def from_message(lm=lm, reader=reader, message=message):
            first_token(lm, reader.format, reader.receive([message]))

        def from_text(lm=lm, reader=reader, ids=ids):
            first_token(lm, reader.format, lm.prefill(Prompt.from_ids(lm, [ids])))

        with torch.no_grad():
            for turn in range(4):
                for name, work in (("message", from_message), ("prefill", from_text)):
                    took = seconds(work)
                    if turn:  # the first is a warm-up
                        spent[name].append(took)
        medians = {name: statistics.median(times) for name, times in spent.items()}
        decoder = reader.decoder
        weights = sum(x.numel() for x in (decoder.weight, decoder.down, decoder.up))
        weights += decoder.score_weight.numel()
        blocks = sum(p.numel() for p in lm.blocks.parameters())
        rows.append(
            {
                "reader": reader.reader,
                "tokens": tokens,
                **{f"{name}_cpu_seconds": value for name, value in medians.items()},
                "time_ratio": medians["message"] / medians["prefill"],
                "multiply_adds_ratio": weights * len(message) / (blocks * (len(ids) - 1)),
                "message_bytes": len(message.to_bytes()),
                "text_bytes": len(text.encode()),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
out.write_text(json.dumps(rows, indent=1))
