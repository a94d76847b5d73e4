"""Compares vLLM behind stored contexts with our own path: log probabilities of the first token and
greedy answers to a question about each of the first passages of a file, then through the OpenAI
server. Exit status 1 where they differ.

    python reproduce/vllm-compare.py squad_dev.jsonl [PASSAGES]
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # its own process for the server alone
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")

import torch
from openai import InternalServerError, OpenAI
from vllm import LLM, SamplingParams

from latentwire import Contexts, Greedy, Prompt, Store, Wire
from latentwire.lm.zoo import locate
from latentwire.tasks.qa import ANSWER_TOKENS, by_context, question_ids, read_questions

READER, PASSAGES, TOLERANCE = "smollm2-135m", 40, 1e-3
LENGTH, BLOCK, BLOCKS = 1024, 32, 64  # too few blocks for all at once, so that some come back
TOP = 20
Asked = list[tuple[str, str]]


def transfer(store: Path) -> dict[str, Any]:
    """What vLLM is told of the connector."""
    return {
        "kv_connector": "LatentwireConnector",
        "kv_connector_module_path": "latentwire.serve.vllm",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"store": str(store)},
    }


@torch.no_grad()
def ours(contexts: Contexts, asked: Asked) -> list[tuple[torch.Tensor, str]]:
    """First token's log probabilities, and the answer, to each question."""
    lm, results = contexts.lm(), []
    for name, question in asked:
        prefix, _ = contexts.stored([name])
        prompt = Prompt.from_ids(lm, [question_ids(lm, question)], prefix)
        first = lm.head(lm.last_hidden(prompt)[:, -1])[0].float().log_softmax(-1)
        answer = lm.generate(prompt, Greedy(), ANSWER_TOKENS, stop_strings=("\n",)).texts[0]
        results.append((first, answer.strip()))
    return results


def sampling(context: Any = None, **more: Any) -> SamplingParams:
    """Greedy, with what a request names."""
    extra = None if context is None else {"kv_transfer_params": {"context": context, **more}}
    options = {"temperature": 0, "max_tokens": ANSWER_TOKENS, "stop": ["\n"], "logprobs": TOP}
    return SamplingParams(**options, extra_args=extra)


def worst(outputs: list[Any], expected: list[tuple[torch.Tensor, str]]) -> float:
    """The largest difference among the first tokens' most probable ones."""
    return max(
        abs(first[i].item() - found.logprob)
        for output, (first, _) in zip(outputs, expected, strict=True)
        for i, found in output.outputs[0].logprobs[0].items()
    )


def alike(texts: list[str], expected: list[tuple[torch.Tensor, str]]) -> int:
    """Number of answers that are the same."""
    return sum(text.strip() == answer for text, (_, answer) in zip(texts, expected, strict=True))


def check(what: str, passed: bool) -> None:
    """Print a line, and end where it is not so."""
    print(f"{what}: {'as it should be' if passed else 'WRONG'}", flush=True)
    if not passed:
        sys.exit(1)


def offline(contexts: Contexts, asked: Asked, expected: list[tuple[torch.Tensor, str]]) -> None:
    """Ask vLLM in this process."""
    lm = contexts.lm()
    suffix = lm.tokenizer.decode(lm.frame.suffix)
    engine = LLM(
        str(locate(READER)),
        **{"dtype": "float32", "enforce_eager": True, "max_model_len": LENGTH},
        **{"block_size": BLOCK, "num_gpu_blocks_override": BLOCKS},
        distributed_executor_backend="uni",
        kv_transfer_config=transfer(contexts.store.folder),
    )
    prompts = [f"\n\n{question}{suffix}" for _, question in asked]
    for time_asked in ("first", "again, from the prefix cache"):
        outputs = engine.generate(prompts, [sampling(name) for name, _ in asked], use_tqdm=False)
        difference = worst(outputs, expected)
        same = alike([output.outputs[0].text for output in outputs], expected)
        print(f"{time_asked}: first token's {TOP} largest log probabilities within", end=" ")
        print(f"{difference:.1e}, {same} of {len(asked)} answers the same", flush=True)
        check(f"{time_asked}", difference < TOLERANCE and same == len(asked))
    chats = [[{"role": "user", "content": question}] for _, question in asked]
    outputs = engine.chat(chats, [sampling(name) for name, _ in asked], use_tqdm=False)
    same = alike([output.outputs[0].text for output in outputs], expected)
    check(f"chat: {same} of {len(asked)} answers the same", same == len(asked))
    (plain,) = engine.generate(prompts[:1], sampling(), use_tqdm=False)
    # Not the prompt's text: to our tokenizer the ends of turns in it are words.
    ids = question_ids(lm, asked[0][1])
    bare = lm.head(lm.last_hidden(Prompt.from_ids(lm, [ids]))[:, -1])[0]
    difference = worst([plain], [(bare.float().log_softmax(-1), "")])
    check(f"the same words without a context: within {difference:.1e}", difference < TOLERANCE)
    wrong = [sampling("none"), sampling(asked[0][0], colour=1), sampling("competing")]
    wrong.append(SamplingParams(prompt_logprobs=1, extra_args=sampling(asked[0][0]).extra_args))
    outputs = engine.generate(prompts[:1] * len(wrong), wrong, use_tqdm=False)
    reasons = {output.outputs[0].finish_reason for output in outputs}
    check("unknown context or field, unlike heads, prompt_logprobs: refused", reasons == {"error"})
    (output,) = engine.generate(prompts[:1], sampling(asked[0][0]), use_tqdm=False)
    check("and the engine goes on", alike([output.outputs[0].text], expected[:1]) == 1)


def served(
    client: OpenAI, contexts: Contexts, asked: Asked, expected: list[tuple[torch.Tensor, str]]
) -> None:
    """Ask vLLM's server with OpenAI's client."""
    lm = contexts.lm()
    suffix = lm.tokenizer.decode(lm.frame.suffix)
    model = client.models.list().data[0].id
    options: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": ANSWER_TOKENS}
    for (name, question), (first, answer) in zip(asked, expected, strict=True):
        named = {"kv_transfer_params": {"context": name}}
        done = client.completions.create(
            prompt=f"\n\n{question}{suffix}", logprobs=5, stop="\n", extra_body=named, **options
        )
        logprobs = done.choices[0].logprobs
        assert logprobs is not None and logprobs.token_logprobs is not None
        difference = abs(logprobs.token_logprobs[0] - first.max().item())
        turn: Any = [{"role": "user", "content": question}]
        pieces = client.chat.completions.create(
            messages=turn, stream=True, extra_body=named, stop="\n", **options
        )
        streamed = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        print(f"{done.choices[0].text.strip()!r}, streamed {streamed!r}", end=" ")
        passed = done.choices[0].text.strip() == streamed.strip() == answer
        check(f"(log probability within {difference:.1e})", passed and difference < TOLERANCE)
    try:
        client.completions.create(
            prompt="\n\nWho?", extra_body={"kv_transfer_params": {"context": "none"}}, **options
        )
        check("an unknown context: answered", False)
    except InternalServerError as error:
        check(f"an unknown context: {error.status_code}", error.status_code == 500)


def server(folder: Path, store: Path) -> tuple[subprocess.Popen, OpenAI]:
    """Start vLLM's server, its log in the folder, and wait until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The `vllm` command of vllm-cpu 0.32.0 looks for a distribution of that name, and ends.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(locate(READER))]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(LENGTH), "--kv-transfer-config", json.dumps(transfer(store))]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    for _ in range(900):
        try:
            client.models.list()
            return process, client
        except Exception:  # not yet
            time.sleep(1)
        if process.poll() is not None:
            break
    process.terminate()
    raise SystemExit((folder / "log").read_text()[-4000:])


def main() -> None:
    """Print a line for each comparison."""
    count = int(sys.argv[2]) if len(sys.argv) > 2 else PASSAGES
    passages = by_context(read_questions(Path(sys.argv[1])))[:count]
    wire = Wire.from_pretrained("default")
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        names = [f"passage {number}" for number in range(len(passages))]
        texts = dict(zip(names, (p.context for p in passages), strict=True))
        slots = [entry.latents for entry in store.add(wire.uniform(), texts)]
        list(store.add(wire, {"competing": passages[0].context}))
        asked = [(n, p.questions[0].question) for n, p in zip(names, passages, strict=True)]
        contexts = Contexts(wire, store)
        expected = ours(contexts, asked)
        print(f"{READER}, {len(asked)} questions about as many contexts", end=" ")
        print(f"of {min(slots)} to {max(slots)} slots; blocks of {BLOCK}", flush=True)
        offline(contexts, asked, expected)
        process, client = server(Path(folder), store.folder)
        try:
            served(client, contexts, asked[:3], expected[:3])
            log = (Path(folder) / "log").read_text()
            check("the server's log names it", "no context 'none' in" in log)
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
