"""Commands about models and runs: fetch, doctor, report."""

from pathlib import Path
from typing import Annotated

import tyro

from latentwire.cli.command_line import MODEL, Positional, out


def fetch(name: MODEL) -> None:
    """Bring a model to this machine, and say where it is.

    Args:
        name: smollm2-135m, gemma3-270m, all-minilm-l6-v2, or a Hugging Face id.
    """
    from latentwire.lm.zoo import locate

    print(locate(name))


def doctor(model: MODEL) -> int:
    """Check that every path through a model agrees: prefill, cache, padding, patches, scores,
    gradients, and Hugging Face's own output. Exit status 1 where one does not.

    Args:
        model: Zoo name, Hugging Face id or local folder.
    """
    from latentwire.lm.doctor import examine
    from latentwire.lm.frozen import FrozenLM

    failed = 0
    out.print(f"{'check':34}{'input':11}{'batch':8}{'difference':>12}{'allowed':>10}")
    for f in examine(FrozenLM.from_pretrained(model)):
        failed += not f.passed
        batch, word = ("ragged" if f.ragged else "one row"), ("" if f.passed else "  FAILED")
        line = f"{f.check:34}{f.kind:11}{batch:8}{f.difference:12.1e}{f.tolerance:10.0e}{word}"
        out.print(line, style="red" if word else None)
    out.print(f"{failed} checks failed" if failed else "all checks passed")
    return min(failed, 1)


def report(run: Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]) -> None:
    """Write RUN/report.html from what a run folder holds.

    Args:
        run: Of a training, an evaluation, a search or a sweep.
    """
    from latentwire.report.page import write_report

    print(write_report(run))
