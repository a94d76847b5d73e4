"""The server as replicas on a Ray: two of them, on one machine, over one store."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import openai
import pytest
import torch
from test_commands import run
from test_serve import chat as chat_of
from test_store import TEXTS
from test_sweep import ray, reader  # noqa: F401 (fixtures)

from latentwire.cli.serve import _app
from latentwire.lm import FrozenLM
from latentwire.runs.workers import connected
from latentwire.serve.guard import Limits
from latentwire.serve.replicas import deployed
from latentwire.serve.store import Store
from latentwire.tasks.qa import ask
from latentwire.wire.load import load_wire
from latentwire.wire.wire import Wire, WireConfig

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # Ray's


@pytest.fixture
def wire(reader, tmp_path):  # noqa: F811
    """A saved wire of a tiny model that every process can load."""
    made = Wire(FrozenLM.from_pretrained(reader), WireConfig(reader, rank=4, window=64))
    torch.manual_seed(0)
    torch.nn.init.normal_(made.scorer.weight)
    made.save_pretrained(tmp_path / "wire")
    return Wire.from_pretrained(tmp_path / "wire", made.lm)


def test_replicas_answer_alike_and_one_that_is_killed_takes_no_context(ray, wire, tmp_path):  # noqa: F811
    load = partial(load_wire, tmp_path / "wire")
    build = partial(_app, load, tmp_path / "store", Limits(), "default")
    with connected(ray) as cluster, deployed(ray, 2, "127.0.0.1", 0, Limits(), build) as url:
        client = openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=9, timeout=120)
        chat = partial(chat_of, client, model=wire.lm.name, max_tokens=20, stop="\n")
        with ThreadPoolExecutor(3) as pool:  # both have some to compress
            uploads = [{"name": name, "text": text} for name, text in TEXTS.items()]
            post = partial(httpx.post, f"{url}v1/contexts", timeout=120)
            made = list(pool.map(lambda upload: post(json=upload), uploads))
            assert [one.status_code for one in made] == [201] * 3
            expected = {
                name: ask(wire, wire.send([text])[0], ["Who?"])[0] for name, text in TEXTS.items()
            }
            names = [*TEXTS] * 4
            answers = list(pool.map(lambda name: chat(context=name), names))
        assert [a.choices[0].message.content for a in answers] == [expected[n] for n in names]
        pieces = [c.choices[0].delta.content or "" for c in chat(context="c.md", stream=True)]
        assert "".join(pieces) == expected["c.md"] and len(pieces) > 3
        (one, _other) = (
            actor["name"]
            for actor in cluster.util.list_named_actors(all_namespaces=True)
            if actor["name"].startswith("SERVE_REPLICA")
        )
        cluster.kill(cluster.get_actor(one, namespace="serve"))
        began = time.monotonic()
        for name in TEXTS:  # the client asks again where its request was on the one that died
            assert chat(context=name).choices[0].message.content == expected[name]
        assert time.monotonic() - began < 60
        assert [e.name for e in Store(tmp_path / "store").entries()[0]] == sorted(TEXTS)


def test_more_replicas_than_there_is_room_for(ray):  # noqa: F811
    with (
        pytest.raises(ValueError, match="--replicas is 99; that Ray has room for"),
        deployed(ray, 99, "127.0.0.1", 0, Limits(), lambda: None),
    ):
        pass


def test_a_mistake_is_told_before_a_ray_is_started(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        status, _, err = run(monkeypatch, capsys, "serve", "--ray", "127.0.0.1:1", "--port", taken)
    assert status == 2 and "already in use" in err and len(err.splitlines()) == 1
    for line, asked in {
        "expected at least 1, beside --ray ADDRESS": ["--replicas", "2"],
        "--replicas is 0; expected at least 1": ["--replicas", "0", "--ray", "local"],
        "is no wire; expected a folder": ["--ray", "local", "--wire", str(tmp_path / "none")],
        "no Ray answers": ["--ray", "127.0.0.1:99999", "--port", "0"],
        "the address is empty": ["--ray", "", "--port", "0"],
        "--port is 70000; expected": ["--port", "70000"],
        "seconds is nan; expected": ["--seconds", "nan"],
    }.items():
        status, _, err = run(monkeypatch, capsys, "serve", *asked)
        assert status == 2 and line in err and len(err.splitlines()) == 1, err
