"""Calls of one model from several threads give what they give alone, to the bit.

A pass is stopped in its middle, where all that it puts on the model is there, until another
thread's pass is through or has had half a second to be. Whoever lets that one in lets it see what
is not its own.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from tiny import tiny_lm

from latentwire.lm import (
    FrozenLM,
    Greedy,
    Memory,
    Patch,
    Prompt,
    gradient_checkpointing,
)
from latentwire.lm.adapters import fresh_lora, lora_config
from latentwire.lm.doctor import make_case
from latentwire.lm.turns import turn
from latentwire.tasks.qa import ask
from latentwire.wire import text_code
from latentwire.wire.wire import Wire, WireConfig

WAIT = 0.5


class Stop:
    """A place in a pass where its thread waits, once, for another thread's work."""

    def __init__(self):
        self.reached, self.done = threading.Event(), threading.Event()

    def __call__(self, x, *_):
        if not self.reached.is_set():
            self.reached.set()
            self.done.wait(WAIT)
        return x

    def beside(self, stopped: Callable, other: Callable) -> tuple:
        """What both give, the other one called from where the first is stopped."""
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(stopped)
            assert self.reached.wait(60)
            try:
                second = other()
            finally:
                self.done.set()
            return first.result(60), second


@pytest.fixture
def lm():
    return tiny_lm("llama")


def prompt_of(lm: FrozenLM, text: str = "The capital of France is the city of", patches=()):
    return Prompt.from_ids(lm, [lm.tokenize(text)], patches=patches)


def stopping(lm: FrozenLM, prompt: Prompt, stop: Callable) -> Prompt:
    """The prompt, whose pass stops behind the first block."""
    prefix = prompt.prefix
    if prefix is None:
        prefix = lm.prefill(prompt_of(lm, "Once"))
    none = torch.zeros(1, 1, 0, 1)
    memory = Memory(0, stop, none, none, torch.zeros(1, 0, dtype=torch.bool))
    return replace(prompt, prefix=replace(prefix, memories=(memory,)))


def noisy(view: FrozenLM) -> FrozenLM:
    torch.manual_seed(0)
    for parameter in view.adapter_parameters().values():
        parameter.data.normal_(std=0.3)
    return view


def kinds(lm: FrozenLM) -> dict[str, tuple[Prompt, Callable[[Prompt], object]]]:
    """Passes by what they put on the model."""
    patch = Patch(1, torch.tensor([[2]]), 50 * torch.ones(1, 1, lm.width))
    view = noisy(lm.add_lora("x", lora_config(lm.model.config, 4, 3)))
    plain = prompt_of(lm)
    return {
        "patch": (prompt_of(lm, patches=[patch]), lm.last_hidden),
        "LoRA": (plain, view.last_hidden),
        "head slots": (make_case(lm, "ragged", False).prompt, lm.last_hidden),
        "hidden": (plain, lambda p: lm.hidden(p, 1)),
        "states": (plain, lambda p: lm.states(p).inputs),
        "attentions": (plain, lambda p: torch.cat(lm.attentions(p))),
    }


KINDS = ("patch", "LoRA", "head slots", "hidden", "states", "attentions")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_plain_pass_sees_nothing_of_one_in_another_thread(lm, kind):
    prompt, run = kinds(lm)[kind]
    plain, stop = prompt_of(lm, "Copper conducts heat."), Stop()

    @torch.no_grad()
    def stopped():
        return run(stopping(lm, prompt, stop))

    found, other = stop.beside(stopped, lambda: lm.last_hidden(plain))
    assert torch.equal(other, lm.last_hidden(plain))
    assert torch.equal(found, stopped())


@torch.no_grad()
def test_an_adapter_that_another_thread_asks_for_is_not_on_in_the_middle_of_a_pass(lm):
    view = noisy(lm.add_lora("x", lora_config(lm.model.config, 4, 3)))
    prompt, plain, adapted = prompt_of(lm), Stop(), Stop()
    plain.done = adapted.reached
    alone = [
        run(stopping(lm, prompt, lambda x, *_: x)) for run in (lm.last_hidden, view.last_hidden)
    ]

    @torch.no_grad()
    def second():
        return view.last_hidden(stopping(lm, prompt, adapted))

    @torch.no_grad()
    def first():
        try:
            return lm.last_hidden(stopping(lm, prompt, plain))
        finally:
            adapted.done.set()

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert plain.reached.wait(60)
        other = pool.submit(second)
        assert torch.equal(one.result(60), alone[0])
        assert torch.equal(other.result(60), alone[1])


def test_a_thread_that_takes_turn_after_turn_lets_others_in_between(lm):
    done, counts = threading.Event(), [0]

    def loop():
        while not done.is_set():
            with turn(lm.model):
                counts[0] += 1
                time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(loop)
        try:
            while counts[0] == 0:
                time.sleep(0.001)
            for _ in range(20):
                before = counts[0]
                with turn(lm.model):
                    waited = counts[0] - before
                assert waited <= 2
        finally:
            done.set()


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_run_again_for_the_gradient_see_nothing_of_other_threads(lm, kind):
    prompt, run = kinds(lm)[kind]
    stop = Stop()

    @torch.no_grad()
    def stopped():
        return run(stopping(lm, prompt, stop))

    def gradient(checkpointed: bool, backward: Callable[[Callable], object]):
        embeds = prompt_of(lm, "Copper conducts heat.").embeds.requires_grad_()
        plain = prompt_of(lm, "Copper conducts heat.")
        with gradient_checkpointing(checkpointed):
            loss = lm.last_hidden(replace(plain, embeds=embeds)).square().sum()
        backward(loss.backward)
        return embeds.grad

    alone = gradient(True, lambda backward: backward())
    torch.testing.assert_close(alone, gradient(False, lambda backward: backward()))
    beside = gradient(True, lambda backward: stop.beside(stopped, backward))
    assert torch.equal(beside, alone)


def test_attention_runs_again_for_the_gradient_as_it_ran(lm):
    def gradient(checkpointed: bool):
        plain = prompt_of(lm)
        embeds = plain.embeds.requires_grad_()
        with gradient_checkpointing(checkpointed):
            maps = lm.attentions(replace(plain, embeds=embeds))
        torch.cat(maps).square().sum().backward()
        return embeds.grad

    torch.testing.assert_close(gradient(True), gradient(False))


@torch.no_grad()
def test_a_generation_lets_others_in_between_its_steps_and_shows_them_no_adapter(lm):
    view = noisy(lm.add_lora("x", lora_config(lm.model.config, 4, 3)))
    other = noisy(lm.add_lora("y", lora_config(lm.model.config, 4, 2)))
    prompt, stop = prompt_of(lm), Stop()
    alone = {v.adapter: v.last_hidden(prompt) for v in (lm, view, other)}

    class Sampler(Greedy):
        def __call__(self, logits, step):
            return super().__call__(stop(logits) if step == 2 else logits, step)

    @torch.no_grad()
    def generated():
        return view.generate(prompt, Sampler(), 8, stop_ids=()).log_probs

    began = stop.done
    found, finals = stop.beside(
        generated, lambda: {v.adapter: v.last_hidden(prompt) for v in (lm, view, other)}
    )
    assert began.is_set()
    assert all(torch.equal(finals[name], alone[name]) for name in alone)
    assert torch.equal(found, generated())
    raw = lm.model(inputs_embeds=prompt.embeds, use_cache=False).logits
    torch.testing.assert_close(lm.head(lm.last_hidden(prompt)), raw)  # nothing is left on


@torch.no_grad()
def test_generations_that_end_in_another_order_than_they_began_leave_no_adapter_on(lm):
    views = [noisy(lm.add_lora(n, lora_config(lm.model.config, 4, 3))) for n in ("x", "y")]
    prompt, stop = prompt_of(lm), Stop()
    want = lm.model(inputs_embeds=prompt.embeds, use_cache=False).logits
    begun = threading.Event()

    class Until(Greedy):
        """Stops at its first step until the other generation is at its second."""

        def __call__(self, logits, step):
            if step == 0:
                stop.reached.set()
                begun.wait(60)
            return super().__call__(logits, step)

    class Begin(Greedy):
        def __call__(self, logits, step):
            if step == 1:
                begun.set()
                first.result(60)
            return super().__call__(logits, step)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: views[0].generate(prompt, Until(), 2, stop_ids=()))
        assert stop.reached.wait(60)
        views[1].generate(prompt, Begin(), 4, stop_ids=())
    assert torch.equal(lm.model(inputs_embeds=prompt.embeds, use_cache=False).logits, want)


@torch.no_grad()
def test_a_lora_on_the_head_is_on_where_a_view_scores_as_where_it_generates(lm):
    view = noisy(lm.add_lora("x", LoraConfig(target_modules=["lm_head"])))
    prompt = prompt_of(lm)
    out = view.generate(prompt, Greedy(), 4, stop_ids=())
    torch.testing.assert_close(view.score(prompt, out.ids), out.log_probs)
    assert (lm.score(prompt, out.ids) - out.log_probs).abs().max() > 0.1


def test_questions_asked_by_eight_threads_are_answered_as_by_one(lm):
    torch.manual_seed(0)
    wire = Wire(lm, WireConfig("tiny-llama", rank=4, window=64))
    torch.nn.init.normal_(wire.scorer.weight)
    messages = wire.send([f"Text {i} tells of river {7 * i}." for i in range(4)])
    asked = [(messages[i % 4], f"What of {i}?" + " And then?" * (i % 3)) for i in range(24)]

    def answered(pair):
        return ask(wire, pair[0], [pair[1]])

    alone = [answered(pair) for pair in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answered, asked)) == alone
    assert len({answer for (answer,) in alone}) > 8


def test_a_model_that_has_had_turns_can_be_copied(lm):
    lm.last_hidden(prompt_of(lm))
    copy = deepcopy(lm)
    assert torch.equal(copy.last_hidden(prompt_of(lm)), lm.last_hidden(prompt_of(lm)))


@torch.no_grad()
def test_continuations_of_one_prefix_grow_into_columns_of_their_own(lm):
    prefix = lm.prefill(Prompt.from_ids(lm, [lm.tokenize("go on")], lm.prefill(prompt_of(lm))))
    texts = ["north", "south", "west", "!"] * 2

    @torch.no_grad()
    def continued(text):
        last = prefix
        for token in lm.tokenize(text):
            last = lm.prefill(Prompt.from_ids(lm, [token[None]], last))
        return torch.stack([*last.keys, *last.values])

    alone = [continued(text) for text in texts]
    for _ in range(3):
        prefix = lm.prefill(Prompt.from_ids(lm, [lm.tokenize("go on")], lm.prefill(prompt_of(lm))))
        with ThreadPoolExecutor(4) as pool:
            assert all(map(torch.equal, pool.map(continued, texts), alone))


def test_loras_made_at_once_have_their_own_names_and_begin_the_same(lm):
    seen = {n: p.clone() for n, p in own(fresh_lora(tiny_lm("llama"), 2, 3)).items()}
    with ThreadPoolExecutor(4) as pool:
        views = list(pool.map(lambda _: fresh_lora(lm, 2, 3), range(8)))
    assert len({view.adapter for view in views}) == 8
    for view in views:
        assert all(torch.equal(p, seen[n]) for n, p in own(view).items())


def own(view: FrozenLM) -> dict[str, torch.Tensor]:
    return {n.replace(f".{view.adapter}.", "."): p for n, p in view.adapter_parameters().items()}


def test_switching_freezes_no_adapter_while_another_thread_runs_backward(lm):
    view = lm.add_lora("x", lora_config(lm.model.config, 4, 3))
    other = lm.add_lora("y", lora_config(lm.model.config, 4, 3))
    parameters, prompt = view.adapter_parameters(), prompt_of(lm)
    seen: list[bool] = []
    for parameter in parameters.values():
        view_of = parameter.requires_grad_

        def watched(wanted=True, view_of=view_of):
            seen.append(wanted)
            return view_of(wanted)

        parameter.requires_grad_ = watched
    other.last_hidden(prompt)
    lm.last_hidden(prompt)
    view.last_hidden(prompt)
    assert not seen
    assert all(p.requires_grad for p in parameters.values())


def test_a_tokenizer_is_used_by_one_thread_at_a_time(lm):
    used, most, lock = [0], [0], threading.Lock()
    tokenizer = lm.tokenizer

    class Watched:
        def __getattr__(self, name):
            value = getattr(tokenizer, name)
            return self._watched(value) if callable(value) else value

        def __call__(self, *args, **kwargs):
            return self._watched(tokenizer)(*args, **kwargs)

        def _watched(self, call):
            def watched(*args, **kwargs):
                with lock:
                    used[0] += 1
                    most[0] = max(most[0], used[0])
                try:
                    threading.Event().wait(0.01)
                    return call(*args, **kwargs)
                finally:
                    with lock:
                        used[0] -= 1

            return watched

    lm.tokenizer = Watched()
    ids = torch.tensor([70, 71])
    calls = [
        lambda: lm.tokenize("new", remember=False),
        lambda: lm.offsets("new"),
        lambda: lm.detokenize(ids),
        lambda: lm.spelled(ids),
        lambda: lm.bos,
        lambda: lm.frame,
        lambda: lm.generate(Prompt.from_ids(lm, [ids]), Greedy(), 1),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()
    assert most[0] == 1


def test_full_precision_lasts_as_long_as_anybody_needs_it():
    backend = torch.backends.mkldnn.matmul
    before, backend.fp32_precision = backend.fp32_precision, "tf32"
    try:
        first, second = text_code._full_precision("cpu"), text_code._full_precision("cpu")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert backend.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before
