"""A hundred clients at once against `latentwire serve`: none lost, none wrong, and how fast.

    python reproduce/serve/load.py [CLIENTS] | tee reproduce/serve/load.txt

Questions of the shipped almanac are asked of a real server on loopback: one after another, then all
at once, and again one after another of Hugging Face's generate with the full text in the prompt. An
answer is wrong where it is not the one that the same request has alone.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import torch

from latentwire import Wire, ask
from latentwire.tasks.qa import ANSWER_TOKENS, load_questions, question_ids
from latentwire.wire.evaluation import ALMANAC

CLIENTS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
BY_PROGRAM = 20
"""Questions that are also asked of `latentwire.ask`, which has no batch."""


def timed(name: str, call: Callable[[], list[str]], process: int | None = None) -> list[str]:
    """What a call gives; time passed, and time that this process or another one computed."""
    start, computed = time.perf_counter(), cpu_seconds(process)
    answers = call()
    seconds, computed = time.perf_counter() - start, cpu_seconds(process) - computed
    rate = len(answers) / computed
    print(
        f"{name}: {len(answers)} answers in {seconds:.1f} s, of which {computed:.1f} s computed; "
        f"{rate:.2f} a second of computing"
    )
    return answers


def cpu_seconds(process: int | None) -> float:
    """Time that a process has computed (Linux), this one if None: other programs do not count."""
    if process is None:
        return time.process_time()
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    rows = load_questions(ALMANAC, CLIENTS)
    command = [sys.executable, "-m", "latentwire", "serve", "--port", "0", "--seconds", "3600"]
    with tempfile.TemporaryDirectory() as store:
        server = subprocess.Popen([*command, "--store", store], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            answered = through_server(server.stdout.readline().split()[0], rows, server.pid)
        finally:
            server.kill()
    wire = Wire.from_pretrained("default")
    some = rows[:BY_PROGRAM]
    plain = timed("latentwire.ask", lambda: [by_program(wire, row) for row in some])
    different = sum(a != b for a, b in zip(plain, answered, strict=False))
    print(f"different from latentwire.ask: {different} of {len(plain)}")
    timed("Hugging Face generate on full text, one at a time", lambda: full_text(wire, rows))


def through_server(url: str, rows: list, process: int) -> list[str]:
    """The answers at once, compared with those alone."""
    contexts = {}
    for text in dict.fromkeys(row.context for row in rows):
        made = httpx.post(f"{url}v1/contexts", json={"text": text}, timeout=600).json()
        contexts[text] = made["id"]
    client = openai.OpenAI(base_url=f"{url}v1", api_key="none", timeout=3600, max_retries=0)

    def one(row) -> str:
        answer = client.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": row.question}],
            max_tokens=ANSWER_TOKENS,
            stop="\n",
            extra_body={"context": contexts[row.context]},
        )
        return answer.choices[0].message.content or ""

    print(f"{len(rows)} questions of {len(contexts)} contexts, {torch.get_num_threads()} thread(s)")
    alone = timed("single requests in a loop", lambda: [one(row) for row in rows], process)
    with ThreadPoolExecutor(len(rows)) as pool:
        together = timed(f"{len(rows)} clients at once", lambda: list(pool.map(one, rows)), process)
    wrong = [(a, b) for a, b in zip(alone, together, strict=True) if a != b]
    print(f"lost: {len(rows) - len(together)}; wrong: {len(wrong)}")
    for pair in wrong:
        print(f"  alone {pair[0]!r}, together {pair[1]!r}")
    return together


def by_program(wire: Wire, row) -> str:
    return ask(wire, wire.send([row.context])[0], [row.question])[0]


def full_text(wire: Wire, rows: list) -> list[str]:
    """What the same model says with all of the text before it, by its own library."""
    lm, said = wire.lm, []
    for row in rows:
        parts = [lm.frame.prefix, lm.tokenize(row.context), question_ids(lm, row.question)]
        ids = torch.cat(parts)[None]
        out = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER_TOKENS, do_sample=False
        )
        said.append(lm.detokenize(out[0, ids.shape[1] :]))
    return said


if __name__ == "__main__":
    main()
