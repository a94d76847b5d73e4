"""The search: its gradient by hand, its tokens against Hugging Face, a batch against its rows."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from tiny import CONFIGS, tiny_lm

from latentwire.bench.measure import measured
from latentwire.bench.seek import bench_seek
from latentwire.lm import FrozenLM, Generation
from latentwire.seek.answers import Answers, prompt_ids
from latentwire.seek.found import threshold_of
from latentwire.seek.policy import Policy
from latentwire.seek.recipe import SeekRecipe
from latentwire.seek.region import (
    Explicit,
    Fraction,
    RegionError,
    Section,
    Span,
    character_bounds,
)
from latentwire.seek.rewards.base import Rating, rate
from latentwire.seek.rewards.confidence import Confidence, confidence
from latentwire.seek.rewards.exact import Exact
from latentwire.seek.rewards.self_verify import CHECKS, SelfVerify, verdict
from latentwire.seek.search import Seek, SeekConfig
from latentwire.tasks.base import Problem

LONG = [
    "Name a river.",
    "What is two and two, and why?",
    "x",
    "Say something in Greek, then stop: αβγ.",
    "A much longer question than the others, so that a batch of them is ragged on the left.",
    "1 + 1",
    "Who?",
    "Count to ten in steps of two, please.",
]
PROBLEMS = [Problem(str(i), text, text) for i, text in enumerate(LONG)]


@pytest.fixture(scope="module", params=list(CONFIGS))
def lm(request):
    return tiny_lm(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny_lm("llama")


@dataclass
class Told:
    """A reward that is told what to give, by problem and call."""

    values: list[float] = field(default_factory=lambda: [-1.0])
    low: float = -1.0
    high: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)

    def __call__(self, attempts):
        ratings = []
        for attempt in attempts:
            call = self.calls.get(attempt.problem.id, 0)
            self.calls[attempt.problem.id] = call + 1
            ratings.append(Rating(self.values[min(call, len(self.values) - 1)]))
        return ratings


@dataclass(frozen=True)
class ByText:
    """A reward that depends on the text alone, so that a batch and a single see the same."""

    low: float = -1.0
    high: float = 0.0

    def __call__(self, attempts):
        return [Rating(-0.3 - 0.7 * (sum(map(ord, a.text)) % 97) / 97) for a in attempts]


CONFIG = SeekConfig(region=Fraction(0.5), steps=4, lr=0.3, max_new_tokens=24)


# -- the policy ---------------------------------------------------------------------------------


def policy_of(lm: FrozenLM, tokens: list[int], free: list[bool], **options) -> Policy:
    torch.manual_seed(1)
    span = Span(0, len(tokens), torch.tensor(free))
    return Policy(
        lm, torch.randn(len(tokens), lm.width), span, torch.tensor(tokens), 0.1, **options
    )


def test_gradient_is_the_one_worked_by_hand(llama):
    policy = policy_of(llama, [5, 9, 7], [True, True, False], temperature=1.3)
    actions, advantages = [torch.tensor([5, 9, 7]), torch.tensor([8, 9, 7])], [-0.5, 0.25]
    policy.loss(actions, advantages).backward()
    head = llama.model.get_output_embeddings().weight
    probs = (policy.z.detach() @ head.T / 1.3).softmax(-1)
    expected = torch.zeros_like(policy.z)
    for action, advantage in zip(actions, advantages, strict=True):
        for i in (0, 1):  # token 2 is fixed
            hot = torch.nn.functional.one_hot(action[i], probs.shape[-1])
            expected[i] -= advantage * ((hot - probs[i]) @ head) / 1.3 / len(actions)
    torch.testing.assert_close(policy.z.grad, expected, atol=1e-6, rtol=1e-5)


def test_a_reward_of_zero_moves_nothing(llama):
    policy = policy_of(llama, [5, 9], [True, True])
    before = policy.z.detach().clone()
    policy.update([policy.tokens], [0.0])
    assert torch.equal(policy.z, before)


def test_a_good_answer_becomes_likelier_and_a_bad_one_less_likely(llama):
    for advantage, likelier in ((1.0, True), (-1.0, False)):
        policy = policy_of(llama, [5, 9], [True, True])
        before = policy.loss([policy.tokens], [-1.0])
        policy.update([policy.tokens], [advantage])
        assert (policy.loss([policy.tokens], [-1.0]) > before) == likelier


def test_clipping_bounds_the_gradient(llama):
    policy = policy_of(llama, [5, 9], [True, True], clip=1e-3)
    policy.update([policy.tokens], [-1.0])
    assert policy.z.grad.norm() <= 1.001e-3


def test_original_adds_the_published_epsilons(llama):
    policy = policy_of(llama, [5], [True], original=True)
    probs = (policy.z.detach() @ llama.model.get_output_embeddings().weight.T).softmax(-1)
    expected = -math.log(float(probs[0, 5]) + 1e-8 + 1e-10)
    assert policy.loss([policy.tokens], [1.0]).item() == pytest.approx(expected, abs=1e-6)


# -- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("start", [0, 1, 7, 19])
def test_states_stand_for_the_tokens_of_the_answer_from_any_start(lm, start, temperature):
    answers = Answers(lm, [prompt_ids(lm, p) for p in PROBLEMS[:3]], temperature)
    rows, empty = range(3), torch.zeros(0, dtype=torch.long)
    ids = answers.finish(rows, [empty] * 3, [20] * 3, [7, 8, 9])
    for row, states in zip(rows, answers.states(rows, ids), strict=True):
        begin = min(start, len(ids[row]) - 1)
        span = Span(begin, len(ids[row]), torch.ones(len(ids[row]) - begin, dtype=torch.bool))
        policy = Policy(lm, states[begin:], span, ids[row][begin:], 0.1)
        chosen = policy.choose(answers.sampler([7 + row], [begin]))
        assert torch.equal(chosen, ids[row][begin:])


def test_continuation_of_a_shared_prefill_equals_hugging_face_on_the_whole(lm):
    prompts = [prompt_ids(lm, p) for p in PROBLEMS[:4]]
    heads = [lm.tokenize("abc"), lm.tokenize("a"), lm.tokenize("much longer"), lm.tokenize("??")]
    order = [2, 0, 1, 2]
    states = Answers(lm, prompts).states(order, heads)
    for row, head, state in zip(order, heads, states, strict=True):
        whole = torch.cat([prompts[row], head])
        theirs = lm.model(whole[None]).logits[0, len(prompts[row]) - 1 : -1]
        torch.testing.assert_close(lm.head(state), theirs, atol=1e-4, rtol=0)


def test_finish_keeps_to_each_budget_and_to_the_head(llama):
    prompts = [prompt_ids(llama, p) for p in PROBLEMS[:3]]
    heads = [llama.tokenize("ab"), llama.tokenize("c"), llama.tokenize("def")]
    ids = Answers(llama, prompts).finish([0, 1, 2], heads, [0, 3, 9], [0, 0, 0])
    assert torch.equal(ids[0], heads[0])
    for row, head, most in zip(ids[1:], heads[1:], (3, 9), strict=True):
        assert torch.equal(row[: len(head)], head) and len(row) <= len(head) + most


# -- the search ---------------------------------------------------------------------------------


def test_a_batch_equals_its_problems_one_by_one(lm):
    assert_batch_equals_problems(lm, CONFIG)


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, temperature=0.7),
        replace(CONFIG, samples=3, baseline=True),
        replace(CONFIG, update="random_sign"),
    ],
    ids=["sampled start", "sampled spans", "random sign"],
)
def test_a_batch_of_another_kind_equals_its_problems_one_by_one(llama, config):
    assert_batch_equals_problems(llama, config)


def assert_batch_equals_problems(lm: FrozenLM, config: SeekConfig) -> None:
    seek, problems = Seek(lm, ByText(), config), PROBLEMS[:5]
    for together, problem in zip(seek(problems), problems, strict=True):
        alone = seek([problem])[0]
        assert together.text == alone.text and together.reward == alone.reward
        assert [s.text for s in together.trace] == [s.text for s in alone.trace]
        assert together.tokens == alone.tokens


def test_the_search_changes_the_span_and_keeps_what_is_before_it(llama):
    found = Seek(llama, ByText(), replace(CONFIG, region=Explicit(4, 10)))(PROBLEMS[:1])[0]
    assert found.span == (4, 10) and any(step.flipped for step in found.trace)
    assert len({step.text[:4] for step in found.trace}) == 1


def test_falling_rewards_return_the_first_answer(llama):
    found = Seek(llama, Told([-0.5, -0.6, -0.7, -0.8, -0.9]), CONFIG)(PROBLEMS[:1])[0]
    assert found.reward == -0.5 and found.text == found.trace[0].text
    config = replace(CONFIG, compat="original")
    last = Seek(llama, Told([-0.5, -0.6, -0.7, -0.8, -0.9]), config)(PROBLEMS[:1])[0]
    assert last.reward == last.trace[-1].reward and last.text == last.trace[-1].text


def test_a_reward_above_the_threshold_ends_one_search_and_not_the_others(llama):
    class Some(Told):
        def __call__(self, attempts):
            return [Rating(-0.1 if a.problem.id == "1" else -1.0) for a in attempts]

    found = Seek(llama, Some(), CONFIG)(PROBLEMS[:3])
    assert [len(f.trace) for f in found] == [5, 1, 5]


def test_an_answer_seen_before_is_not_rated_again(llama):
    reward = Told([-1.0])
    found = Seek(llama, reward, replace(CONFIG, lr=1e-9))(PROBLEMS[:2])
    assert reward.calls == {"0": 1, "1": 1}
    assert all(step.tokens == 0 and step.flipped == 0 for f in found for step in f.trace[1:])


def test_a_baseline_leaves_the_first_step_without_gradient(llama):
    config = replace(CONFIG, samples=2, baseline=True, steps=1)
    seek = Seek(llama, ByText(), config)
    still = Seek(llama, ByText(), replace(config, lr=1e3))
    assert [s.text for s in seek(PROBLEMS[:1])[0].trace] == [
        s.text for s in still(PROBLEMS[:1])[0].trace
    ]


def test_a_stop_token_inside_the_span_ends_the_answer(llama):
    seek = Seek(llama, ByText(), CONFIG)
    stop = llama.stop_ids[0]
    prompts = [prompt_ids(llama, PROBLEMS[0])]
    answers = Answers(llama, prompts)
    first = answers.finish([0], [prompts[0][:0]], [24], [0])[0]
    span = Span(2, 8, torch.ones(6, dtype=torch.bool))
    policy = Policy(llama, torch.randn(6, llama.width), span, first[2:8], 0.1)
    search = _search(policy, first, prompts[0])
    action = torch.cat([first[2:4], torch.tensor([stop]), first[5:8]])
    ended = seek._finish(answers, [(search, action)])[0]
    assert torch.equal(ended, torch.cat([first[:4], torch.tensor([stop])]))
    original = Seek(llama, ByText(), replace(CONFIG, compat="original"))
    assert len(original._finish(answers, [(search, action)])[0]) > 8


def _search(policy, first, prompt):
    from latentwire.seek.search import _Search

    return _Search(0, PROBLEMS[0], 0, prompt, first, policy)


@pytest.mark.parametrize("value", [math.nan, 0.5, -1.5, math.inf])
def test_a_reward_outside_of_its_range_fails_its_problem_only(llama, value):
    class Broken(Told):
        def __call__(self, attempts):
            return [Rating(value if a.problem.id == "0" else -1.0) for a in attempts]

    bad, good = Seek(llama, Broken(), CONFIG)(PROBLEMS[:2])
    assert "expected -1.0 to 0.0" in bad.failure and bad.reward is None and bad.text
    assert good.failure is None and len(good.trace) == 5


def test_what_cannot_be_searched_is_said_and_the_rest_goes_on(llama):
    long = Problem("long", "q", "z" * 600)
    room, fine = Seek(llama, ByText(), CONFIG)([long, PROBLEMS[0]])
    assert "window of 512" in room.failure and room.text == "" and fine.failure is None
    short = Seek(llama, ByText(), replace(CONFIG, region=Explicit(0, 200)))(PROBLEMS[:1])[0]
    assert "span 0..200" in short.failure and short.text == fine.trace[0].text
    assert short.reward is None


def test_an_empty_first_answer_is_a_failure(llama):
    class Silent(FrozenLM):
        def generate(self, prompt, *args, **kwargs):
            out = super().generate(prompt, *args, **kwargs)
            stop = torch.full_like(out.ids[:, :1], self.stop_ids[0])
            return Generation(stop, out.mask[:, :1], out.log_probs[:, :1], out.embeds[:, :1], [""])

    silent = Silent(llama.model, llama.tokenizer, "silent")
    found = Seek(silent, ByText(), CONFIG)(PROBLEMS[:1])[0]
    assert "empty" in found.failure and found.reward is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"baseline": True}, "set samples"),
        ({"lr": 0.0}, "more than 0"),
        ({"clip": -1.0}, "more than 0"),
        ({"steps": -1}, "steps is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"compat": "original", "samples": 2}, "greedy"),
    ],
)
def test_contradictions_in_a_configuration_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        SeekConfig(**options)


def test_a_threshold_outside_of_the_reward_is_refused(llama):
    with pytest.raises(ValueError, match=r"expected -1.0 to 0.0"):
        Seek(llama, ByText(), SeekConfig(threshold=0.5))


def test_rows_of_one_batch_keep_to_their_own_room(llama):
    """A long prompt with a long head beside a short one with a short head fits the window."""
    prompts = [llama.tokenize("q" * 490), llama.tokenize("ww")]
    heads = [llama.tokenize("a" * 16), llama.tokenize("bb")]
    rows = Answers(llama, prompts).finish([0, 1], heads, [6, 20], [0, 0])
    assert len(rows[0]) <= 22 and len(rows[1]) <= 22


def test_tokens_are_the_positions_that_the_model_ran_over(llama):
    seek = Seek(llama, ByText(), replace(CONFIG, region=Explicit(2, 9), samples=2))
    with measured(llama) as cost:
        found = seek(PROBLEMS[1:2])[0]
    # Rows of one decode are padded to the longest of them, which the model runs over too.
    longest = 2 * (len(found.trace) // 2) * 24
    assert found.tokens <= cost.forwards <= found.tokens + longest
    with measured(llama) as cost:
        single = Seek(llama, ByText(), CONFIG)(PROBLEMS[1:2])[0]
    assert single.tokens == cost.forwards


# -- regions ------------------------------------------------------------------------------------

TEXT = "# 说明 😀\nThe café 漢字 flips.\n# Program\nok"


def test_character_bounds_of_tokens_that_split_characters(llama):
    ids = llama.tokenize(TEXT)  # one token a byte
    bounds = character_bounds(llama, ids)
    expected = [(i, i + 1) for i, char in enumerate(TEXT) for _ in char.encode()]
    assert bounds == expected


def test_a_section_is_found_among_emoji_and_cjk(llama):
    ids = llama.tokenize(TEXT)
    span = Section(r"# 说明 😀\n(.*?)\n# Program")(llama, ids)
    assert llama.detokenize(ids[span.start : span.stop]) == "The café 漢字 flips."
    assert span.free.all() and span.note == ""


def test_marker_tokens_of_a_section_are_fixed(llama):
    span = Section(r"# 说明.*# Program")(llama, llama.tokenize(TEXT))
    pieces = [TEXT[a:b] for a, b in character_bounds(llama, llama.tokenize(TEXT))]
    held = [
        p for p, free in zip(pieces[span.start : span.stop], span.free, strict=True) if not free
    ]
    assert held == ["#", "\n", "\n", "#"]


def test_fixed_tokens_never_change(llama):
    region = Section(r"(?s).*", markers=("e", " "))
    found = Seek(llama, ByText(), replace(CONFIG, region=region, lr=3.0))(PROBLEMS[:1])[0]
    first = found.trace[0].text
    fixed = [i for i, char in enumerate(first) if char in "e "]
    assert any(step.flipped for step in found.trace)
    assert all(step.text[i] == first[i] for step in found.trace for i in fixed if i < 10)


def test_a_section_that_is_not_there_falls_back_and_says_so(llama):
    ids = llama.tokenize("no headings here, none at all")
    span = Section(r"## Description\n(.*)")(llama, ids)
    assert (span.start, span.stop) == (0, int(0.1 * len(ids)))
    assert "no section" in span.note and "Fraction" in span.note


def test_the_defaults_are_the_published_ones():
    """The defaults of src/main.py in github.com/bigai-nlco/LatentSeek."""
    config, recipe = SeekConfig(), SeekRecipe()
    assert config.region == Fraction(k=0.1, cap=300)
    assert (config.steps, config.lr, config.clip, config.max_new_tokens) == (10, 0.03, None, 1024)
    assert threshold_of(Exact(lambda problem, text, finished=True: True)) == pytest.approx(-0.2)
    assert recipe.search() == config


def test_spans_that_an_answer_cannot_hold(llama):
    ids = llama.tokenize("abcd")
    for region in (Fraction(0.2), Fraction(1.0, start=2), Explicit(2, 5), Section(r"(#)")):
        with pytest.raises(RegionError):
            region(llama, ids)
    assert (Fraction(0.5, cap=1)(llama, ids).stop, len(Fraction(1.0)(llama, ids))) == (1, 4)
    for wrong in ({"k": 0.0}, {"k": 1.1}, {"k": math.nan}, {"cap": 0}, {"start": -1}):
        with pytest.raises(ValueError, match="expected"):
            Fraction(**wrong)
    with pytest.raises(ValueError, match="expected 0 <= a < b"):
        Explicit(3, 3)
    with pytest.raises(ValueError, match="does not compile"):
        Section("(")


# -- rewards ------------------------------------------------------------------------------------


def test_confidence_is_bounded_by_certainty_and_indifference():
    certain, even = torch.tensor([[100.0, 0, 0, 0, 0]]), torch.tensor([[3.0, 3, 3, -99, -99]])
    assert confidence(certain, 3).item() == pytest.approx(0.0, abs=1e-6)
    assert confidence(even, 3).item() == pytest.approx(-1.0, abs=1e-6)


def test_a_search_does_not_end_because_its_first_answer_is_confident(llama):
    config = SeekConfig(Fraction(1.0), steps=2, max_new_tokens=4)
    (found,) = Seek(llama, Confidence(llama, 2), config)([Problem("1", "Who?", "Who?")])
    assert found.first_reward > -0.2 and len(found.trace) == 3


def test_confidence_reads_the_probabilities_that_hugging_face_gives(llama):
    texts = ["abc", "", *("d" * n for n in range(1, 12))]  # more than one pass
    attempts = [_attempt(t, llama.tokenize(t)) for t in texts]
    ratings = rate(Confidence(llama, 4), attempts)
    assert ratings.pop(1).failure == "an answer without tokens has no confidence"
    for attempt, rating in zip(attempts[:1] + attempts[2:], ratings, strict=True):
        prompt = prompt_ids(llama, attempt.problem)
        whole = torch.cat([prompt, attempt.ids])
        probs = llama.model(whole[None]).logits[0, len(prompt) - 1 : -1].softmax(-1)
        expected = -(4 * probs.topk(4).values.log().mean(-1).exp()).mean().item()
        assert rating.value == pytest.approx(expected, abs=1e-5)
        assert rating.tokens == len(whole)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Yes", True),
        ("yes.", True),
        ("**No**, since", False),
        (" NO", False),
        ("Yes and no", None),
        ("Yesterday", None),
        ("I think yes", None),
        ("True", None),
        ("", None),
    ],
)
def test_only_a_plain_verdict_counts(reply, expected):
    assert verdict(reply) is expected


class Replies(FrozenLM):
    """Decodes as the LM does, and says what it is told."""

    said = ("Yes", "No", "Yes", "maybe")

    def generate(self, prompt, *args, **kwargs):
        out = super().generate(prompt, *args, **kwargs)
        return replace(out, texts=list(self.said) * (len(out.texts) // 4))


def test_self_verify_weighs_the_checks_and_never_passes_an_abstention(llama):
    lm = Replies(llama.model, llama.tokenizer, "replies")
    rating = rate(SelfVerify(lm), [_attempt("2 + 2 = 4"), _attempt("5")])[1]
    # calculation 2 and completeness 2 passed, correct 1 failed, understanding 1 abstained
    assert rating.value == pytest.approx(-2 / 6)
    assert rating.parts == {
        "calculation": 1.0,
        "correct": 0.0,
        "completeness": 1.0,
        "understanding": 0.0,
        "abstained": 1.0,
    }
    assert sum(weight for weight, _ in CHECKS.values()) == 6


def test_self_verify_of_a_batch_equals_one_by_one(lm):
    attempts = [_attempt(text) for text in ("4", "a longer one, so that rows are ragged", "no")]
    together = rate(SelfVerify(lm), attempts)
    alone = [rate(SelfVerify(lm), [a])[0] for a in attempts]
    assert [r.parts for r in together] == [r.parts for r in alone]
    assert [r.tokens for r in together] == [r.tokens for r in alone]


def _attempt(text, ids=None):
    from latentwire.seek.rewards.base import Attempt

    return Attempt(PROBLEMS[0], torch.zeros(1, dtype=torch.long) if ids is None else ids, text)


def test_the_published_loop_finds_the_same_tokens(llama):
    ratios = bench_seek(llama, PROBLEMS[:2], (24,), 3)["lengths"]["24"]
    assert ratios["same_tokens"] and ratios["forwards_ratio"] > 3
