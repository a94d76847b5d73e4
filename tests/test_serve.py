"""The server: OpenAI's own client against it, what it refuses, and what it survives."""

import errno
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from test_store import TEXTS, make_wire, pdf

from latentwire.lm import Greedy, Prompt
from latentwire.serve import decoding, searching
from latentwire.serve.context import Contexts, Turn, turn_ids
from latentwire.serve.guard import Limits
from latentwire.serve.server import create_app
from latentwire.serve.store import Store, id_of
from latentwire.tasks.qa import ask
from latentwire.wire.compressed_kv import head_of

MODEL = "tiny-llama"
http = httpx.Client(timeout=90)


@contextmanager
def serving(contexts, limits=None, **guard):
    """A real server on a free port of loopback; its URL."""
    app = create_app(contexts, limits or Limits(), **guard)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    while not server.started:
        time.sleep(0.01)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    wire = make_wire()
    store = Store(tmp_path_factory.mktemp("server") / "store")
    list(store.add(wire, TEXTS))
    return Contexts(wire, store)


@pytest.fixture(scope="module")
def url(contexts):
    with serving(contexts, Limits(rows=4, body=40_000, context_tokens=300)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def chat(client, words="Who?", context="a.txt", **options):
    options = {"model": MODEL, "max_tokens": 12, "extra_body": {"context": context}, **options}
    messages = [{"role": "user", "content": words}]
    return client.chat.completions.create(messages=messages, **options)


# -- OpenAI's own client --------------------------------------------------------------------------


def test_an_answer_is_the_one_that_ask_gives(client, contexts):
    (message,) = contexts.wire.send([TEXTS["a.txt"]])
    answer = chat(client, max_tokens=20, stop="\n")
    assert answer.choices[0].message.content == ask(contexts.wire, message, ["Who?"])[0]
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage.model_dump()
    head, prompt = head_of(contexts.lm()), turn_ids(contexts.lm(), [Turn("user", "Who?")])
    assert usage["prompt_tokens"] == len(head) + 3 + len(prompt)
    assert (usage["latents"], usage["context_tokens"]) == (13, 52)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_joins_to_the_whole_answer(client):
    options = {"max_tokens": 30, "stream_options": {"include_usage": True}}
    chunks = list(chat(client, stream=True, **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    whole = chat(client, max_tokens=30)
    assert text == whole.choices[0].message.content and len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_a_conversation_and_words_of_the_system_are_read(client, contexts):
    said = [("system", "Be brief."), ("user", "Who?"), ("assistant", "Ada."), ("user", "When?")]
    messages = [{"role": role, "content": text} for role, text in said]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=9, extra_body={"context": ["a.txt", "c.md"]}
    )
    lm = contexts.lm()
    prefix, _ = contexts.stored(["a.txt", "c.md"])
    ids = turn_ids(lm, [Turn(*turn) for turn in said])
    assert lm.spelled(ids).count("Be brief.\n\nWho?") == 1
    expected = lm.generate(Prompt.from_ids(lm, [ids], prefix), Greedy(), 9).texts[0].strip()
    assert answer.choices[0].message.content == expected


def test_completions_go_on_from_words(client, contexts):
    answer = client.completions.create(
        model=MODEL, prompt="It was", max_tokens=9, extra_body={"context": "a.txt"}
    )
    lm = contexts.lm()
    prompt = Prompt.from_ids(lm, [lm.tokenize("It was")], contexts.stored(["a.txt"])[0])
    assert answer.choices[0].text == lm.generate(prompt, Greedy(), 9).texts[0].strip()


def test_without_a_context_it_is_the_model_itself(client, contexts):
    lm = contexts.lm()
    answer = chat(client, extra_body=None, max_tokens=9)
    expected = lm.generate(Prompt.from_chat(lm, ["Who?"]), Greedy(), 9).texts[0].strip()
    assert answer.choices[0].message.content == expected and answer.usage.latents == 0


def test_text_stands_where_latents_would(client, contexts):
    lm, text = contexts.lm(), TEXTS["a.txt"]
    for most in (None, 13):
        answer = chat(client, extra_body={"text": text, "text_tokens": most, "soft_prompt": False})
        ids = [lm.frame.prefix, lm.tokenize(text)[:most], turn_ids(lm, [Turn("user", "Who?")])]
        prompt = Prompt.of(lm, [ids])
        expected = lm.generate(prompt, Greedy(), 12).texts[0].strip()
        assert answer.choices[0].message.content == expected


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "latentwire"


def test_requests_at_once_are_decoded_together_and_answered_as_alone(client, contexts, monkeypatch):
    rows, advance = [], decoding.advance

    def watched(lm, prompt):
        rows.append(len(prompt.mask))
        return advance(lm, prompt)

    asked = [(f"Who is {n}?", name, 3 + n % 9) for n, name in enumerate([*TEXTS] * 6)]
    asked = [{"words": words, "context": name, "max_tokens": most} for words, name, most in asked]
    alone = [chat(client, **one).choices[0].message.content for one in asked]
    monkeypatch.setattr(decoding, "advance", watched)
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: chat(client, **one), asked))
    assert [a.choices[0].message.content for a in answers] == alone
    assert max(rows) == 4  # as many as the server decodes together


# -- contexts -------------------------------------------------------------------------------------


def test_a_context_is_uploaded_asked_and_deleted(url, client, contexts):
    text = "Bob lives in room 12."
    made = http.post(f"{url}/v1/contexts", json={"text": text, "ratio": 2, "tokens": True})
    entry = made.json()
    assert made.status_code == 201 and (entry["ratio"], entry["tokens"]) == (2, len(text))
    assert "".join(piece for piece, _ in entry["kept"]) == text
    (message,) = contexts.wire.at(2).send([text])
    share = sum(share for _, share in entry["kept"]) * message.latents.lengths.numel()
    assert round(share, 1) == len(message.latents.keys)
    again = http.post(f"{url}/v1/contexts", json={"text": text, "ratio": 2}).json()
    assert again["id"] == entry["id"]
    shown = http.get(f"{url}/v1/contexts/{entry['id']}").json()
    assert shown.items() <= entry.items()
    listed = http.get(f"{url}/v1/contexts").json()["data"]
    assert entry["id"] in [one["id"] for one in listed] and len(listed) == len(TEXTS) + 1
    expected = ask(contexts.wire.at(2), message, ["Who?"])[0]
    answer = chat(client, context=entry["id"], max_tokens=20, stop="\n")
    assert answer.choices[0].message.content == expected
    assert http.delete(f"{url}/v1/contexts/{entry['id']}").json()["deleted"] is True
    with pytest.raises(openai.NotFoundError, match="no context"):
        chat(client, context=entry["id"])


def test_a_document_is_uploaded_as_it_is(url):
    headers = {"Content-Type": "application/pdf"}
    sent = pdf("John Smeaton built it.")
    entry = http.post(
        f"{url}/v1/contexts?name=it.pdf&tokens=true", content=sent, headers=headers
    ).json()
    assert "".join(piece for piece, _ in entry["kept"]).strip() == "John Smeaton built it."
    assert entry["name"] == "it.pdf"
    http.delete(f"{url}/v1/contexts/{entry['id']}")
    bad = http.post(f"{url}/v1/contexts", content=b"no", headers=headers)
    assert bad.status_code == 400 and "cannot be read" in bad.json()["error"]["message"]


def test_no_path_of_a_clients_is_opened(url, tmp_path):
    (tmp_path / "secret.context").write_text("secret")
    for name in ("../secret", "/etc/passwd", f"{tmp_path}/secret", "a\0b", "%2e%2e%2fsecret"):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "context": name}
        answer = http.post(f"{url}/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "context_not_found")
    assert http.get(f"{url}/v1/contexts/..%2f..%2fsecret").status_code == 404


def test_an_altered_context_is_refused_and_a_full_disk_is_told(url, contexts, monkeypatch):
    store = contexts.store
    path = store.folder / f"{id_of('c.md')}.context"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"x")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "context": "c.md"}
    contexts._ready.clear()
    answer = http.post(f"{url}/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "context_unusable")
    path.write_bytes(good)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    answer = http.post(f"{url}/v1/contexts", json={"text": "new words"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "no_space")
    monkeypatch.undo()
    assert http.post(f"{url}/v1/chat/completions", json=body).status_code == 200


# -- what it refuses ------------------------------------------------------------------------------

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}


@pytest.mark.parametrize(
    "body, status, code, words",
    [
        (b"{no json", 400, "invalid_json", "not JSON"),
        (b"[" * 9999, 400, "invalid_json", "not JSON"),
        (b"", 400, "invalid_json", "not JSON"),
        (b"\xff", 400, "invalid_json", "not JSON"),
        ({"messages": ASKED["messages"]}, 400, "invalid_value", "model: Field required"),
        ({**ASKED, "model": "gpt-9"}, 404, "model_not_found", "expected one of tiny-llama"),
        ({**ASKED, "context": "none"}, 404, "context_not_found", "no context 'none'"),
        ({**ASKED, "context": []}, 409, "context_unusable", "got no context"),
        ({**ASKED, "context": "a.txt", "text": "b"}, 400, "invalid_value", "expected one"),
        ({**ASKED, "messages": []}, 400, "invalid_value", "messages: "),
        ({**ASKED, "messages": [{"role": "user", "content": " "}]}, 400, "invalid_value", "empty"),
        ({**ASKED, "messages": [{"role": "cat", "content": "x"}]}, 400, "invalid_value", "role"),
        (
            {**ASKED, "messages": [{"role": "assistant", "content": "x"}]},
            400,
            "invalid_value",
            "last message is not the user's",
        ),
        ({**ASKED, "n": 2}, 400, "invalid_value", "n: "),
        ({**ASKED, "tools": []}, 400, "unsupported_parameter", "tools is not supported"),
        ({**ASKED, "max_tokens": 0}, 400, "invalid_value", "max_tokens: "),
        ({**ASKED, "temperature": -1}, 400, "invalid_value", "temperature: "),
        ({**ASKED, "stop": [""]}, 400, "invalid_value", "stop has at most"),
        ({**ASKED, "text": "word " * 61}, 413, "context_too_large", "305 tokens; this server"),
        ({**ASKED, "text": "x" * 32_769}, 413, "context_too_large", "32769 characters; this"),
        ({**ASKED, "text": "x", "user": "y" * 40_000}, 413, "body_too_large", "40000 bytes"),
        (
            {**ASKED, "messages": [{"role": "user", "content": "x" * 600}]},
            400,
            "context_length_exceeded",
            "tiny-llama has 512",
        ),
    ],
)
def test_bad_requests_are_told_what_is_wrong(url, body, status, code, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.post(f"{url}/v1/chat/completions", content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code) and words in error["message"]
    assert len(error["message"]) < 400 and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body, status, words",
    [
        ({"question": "Who?"}, 400, "model: Field required"),
        ({"model": "gpt-9", "question": "Who?"}, 404, "expected one of tiny-llama"),
        ({"model": MODEL, "question": " "}, 400, "question is empty"),
        ({"model": MODEL, "question": "Who?", "answer": " "}, 400, "answer is empty"),
        ({"model": MODEL, "question": "Who?", "steps": 0}, 400, "steps: "),
        ({"model": MODEL, "question": "Who?", "beam": 4}, 400, "beam is not supported"),
    ],
)
def test_a_search_that_cannot_be_is_told(url, body, status, words):
    answer = http.post(f"{url}/v1/search", json=body)
    assert answer.status_code == status and words in answer.json()["error"]["message"]


def test_a_search_streams_steps_and_gives_up_when_its_time_is_over(contexts, url):
    asked = {"model": MODEL, "question": "Who?", "steps": 2, "max_tokens": 12}
    lines = http.post(f"{url}/v1/search", json=asked).text.split("\n\n")
    *steps, last = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""] and [s["step"] for s in steps] == [0, 1, 2]
    assert last["reward"] == max(step["reward"] for step in steps)
    assert last["best"] == [s["reward"] for s in steps].index(last["reward"])
    long = http.post(f"{url}/v1/search", json={**asked, "question": "x" * 600}).text
    assert "do not fit tiny-llama" in long
    with serving(contexts, Limits(seconds=0.001)) as brief:
        assert "time limit" in http.post(f"{brief}/v1/search", json=asked).text


def test_searches_of_clients_that_left_are_not_run_beside_others(contexts, monkeypatch):
    running, most, search = [], [], searching.searched

    def slowly(*asked):
        running.append(1)
        most.append(len(running))
        try:
            time.sleep(0.5)
            return search(*asked)
        finally:
            running.pop()

    monkeypatch.setattr(searching, "searched", slowly)
    asked = {"model": MODEL, "question": "Who?", "steps": 1, "max_tokens": 4}
    with serving(contexts) as url:
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                http.post(f"{url}/v1/search", json=asked, timeout=0.2)
        assert "[DONE]" in http.post(f"{url}/v1/search", json=asked).text
    assert set(most) == {1}
    with serving(contexts, Limits(seconds=0.4)) as url, ThreadPoolExecutor(2) as pool:
        post = partial(http.post, f"{url}/v1/search", json=asked)
        texts = [one.text for one in pool.map(lambda _: post(), range(2))]
    assert sum("could begin" in text for text in texts) == 1


def test_half_a_surrogate_and_unknown_paths(url):
    half = b'{"text": "a \\ud800 b"}'
    for answer in (
        http.post(f"{url}/v1/contexts", content=half),
        http.post(f"{url}/v1/contexts", json={"text": " "}),
        http.post(f"{url}/v1/contexts", json={"text": "words", "ratio": 0}),
        http.get(f"{url}/v1/nothing"),
        http.put(f"{url}/v1/models"),
        http.get(f"{url}/page.py"),
    ):
        assert answer.status_code in (400, 404, 405) and answer.json()["error"]["message"]


def test_junk_requests_lose_nothing(url, client, contexts):
    before = contexts.store.entries()
    with httpx.Client() as junk:
        for number in range(300):
            data = bytes((number * i * 7 + i) % 256 for i in range(number))
            path = ("/v1/contexts", "/v1/chat/completions", "/v1/completions")[number % 3]
            assert junk.post(url + path, content=data).status_code == 400
    assert contexts.store.entries() == before and chat(client).choices


def test_a_key_is_asked_for_and_other_sites_are_refused(contexts):
    with serving(contexts, api_key="secret") as url:
        assert http.get(f"{url}/v1/models").status_code == 401
        wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="Bearer"):
            wrong.models.list()
        right = openai.OpenAI(base_url=f"{url}/v1", api_key="secret")
        assert [model.id for model in right.models.list()] == [MODEL]
        assert http.get(f"{url}/healthz").json() == {"status": "ok"}
        assert http.get(f"{url}/metrics").status_code == 401
        key = {"Authorization": "Bearer secret"}
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            answer = http.get(f"{url}/v1/models", headers={**key, **headers})
            assert answer.status_code == 403
        same = http.get(f"{url}/v1/models", headers={**key, "Origin": url})
        assert same.status_code == 200


# -- load, time, going away -----------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch):
    """Each step of a generation takes a twentieth of a second; the steps' numbers of rows."""
    steps, advance = [], decoding.advance

    def slowly(lm, prompt):
        steps.append(len(prompt.mask))
        time.sleep(0.05)
        return advance(lm, prompt)

    monkeypatch.setattr(decoding, "advance", slowly)
    return steps


def test_beyond_the_queue_requests_are_refused_and_the_rest_answered(contexts, slow):
    with serving(contexts, Limits(rows=1, waiting=2)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def one(_):
            try:
                return chat(client).choices[0].message.content
            except openai.RateLimitError as error:
                assert error.response.headers["retry-after"] == "1"
                return error.code

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(one, range(8)))
        assert 1 <= answers.count("busy") <= 6 and len(set(answers)) == 2
        metrics = http.get(f"{url}/metrics").text
        path = 'path="/v1/chat/completions",status="429"'
        assert f"latentwire_requests_total{{{path}}} {answers.count('busy')}.0" in metrics
        assert 'latentwire_tokens_total{kind="latents"}' in metrics


def test_an_answer_that_takes_too_long_is_given_up(contexts, slow):
    with serving(contexts, Limits(seconds=0.3)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="time limit"):
            chat(client, max_tokens=200)
        with pytest.raises(openai.APIError, match="time limit"):
            list(chat(client, max_tokens=200, stream=True))


def test_a_client_that_goes_away_stops_its_generation(contexts, slow):
    with serving(contexts) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = chat(client, max_tokens=300, stream=True, temperature=1.5)
        next(iter(stream))
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            chat(client, max_tokens=300, temperature=1.5, timeout=0.3)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            count = len(slow)
            time.sleep(0.3)
            if len(slow) == count:
                break
        assert len(slow) == count < 60


def test_a_request_on_which_the_model_fails_is_told_and_the_server_goes_on(contexts, monkeypatch):
    with serving(contexts) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def broken(lm, prompt):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(decoding, "advance", broken)
        with pytest.raises(openai.InternalServerError, match="its log says why"):
            chat(client)
        monkeypatch.undo()
        assert chat(client).choices


# -- the command, with a real model ---------------------------------------------------------------


def test_serve_with_a_real_model_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "latentwire", "serve", "--store", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split()[0].rstrip("/")
            text = "The lighthouse was finished in 1759 by John Smeaton."
            entry = http.post(f"{url}/v1/contexts", json={"text": text}, timeout=90).json()
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
            answer = client.chat.completions.create(
                model="smollm2-135m",
                messages=[{"role": "user", "content": "Who finished the lighthouse?"}],
                max_tokens=16,
                extra_body={"context": entry["id"]},
            )
            assert answer.choices[0].message.content == "John Smeaton"
        finally:
            process.kill()
    assert [e.id for e in Store(tmp_path).entries()[0]] == [entry["id"]]
