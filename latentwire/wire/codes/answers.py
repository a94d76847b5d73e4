"""The second trained stage: a reader's answers from decoded codes, through the frozen reader.

The reader's own answers to the same questions from the full text are the target (KL to its
distributions), beside cross-entropy of the right answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latentwire.tasks.qa import Passage, answer_targets, passages_prompt
from latentwire.train.losses import distillation, token_loss
from latentwire.wire.codes.reader import CodeReader, Codes

CE = 0.5
"""Weight of cross-entropy beside KL."""


def answer_losses(
    reader: CodeReader,
    passages: Sequence[Passage],
    codes: Sequence[Codes],
    teacher: Tensor,
) -> dict[str, Tensor]:
    """kl and ce in nats per answer token. teacher [k, d]: the states that predict the answers after
    the full text, of all tokens in the order of the passages' questions."""
    lm = reader.lm
    targets, mask = answer_targets(lm, passages)
    prompt = passages_prompt(lm, reader.format, passages, reader.prefix(codes))
    student = lm.packed_logits(prompt, targets, mask)
    return {
        "kl": distillation(lm.head(teacher.to(lm.dtype)), student),
        "ce": CE * token_loss(student, targets[mask]),
    }
