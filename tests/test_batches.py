"""Which examples a step sees: all of them once an epoch, in batches that pad little."""

import random
import threading
from itertools import pairwise

import pytest

from latentwire.tasks.qa import Passage, Question, in_parts
from latentwire.train.batches import ahead, bucketed


@pytest.mark.parametrize(("count", "size"), [(1, 4), (5, 5), (7, 3), (40, 4), (1003, 4), (230, 1)])
def test_every_example_is_seen_once_an_epoch(count, size):
    lengths = random.Random(count).choices(range(20, 400), k=count)
    steps = -(-3 * count // size)
    seen = [i for step in range(steps) for i in bucketed(lengths, 7, step, size)]
    epochs = [seen[e * count : (e + 1) * count] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count > 20:
        assert epochs[0] != epochs[1] != epochs[2]
        assert seen[:size] != bucketed(lengths, 8, 0, size)


def test_a_step_depends_on_seed_and_step_alone():
    lengths = random.Random(0).choices(range(20, 400), k=333)
    forward = [bucketed(lengths, 1, step, 8) for step in range(60)]
    assert [bucketed(lengths, 1, step, 8) for step in reversed(range(60))] == forward[::-1]


def test_lengths_are_read_once_a_step():
    """They are those of all examples, which may be a million."""

    class Counted(list):
        reads = 0

        def __iter__(self):
            Counted.reads += 1
            return super().__iter__()

    bucketed(Counted(range(20, 400)), 0, 3, 64)
    assert Counted.reads == 1


def test_batches_of_similar_length_pad_little_and_come_in_any_order():
    lengths = random.Random(0).choices(range(20, 400), k=4000)
    batches = [bucketed(lengths, 0, step, 8) for step in range(500)]
    real = sum(lengths)
    padded = sum(8 * max(lengths[i] for i in batch) for batch in batches)
    by_chance = sum(8 * max(lengths[8 * k : 8 * k + 8]) for k in range(500))
    assert 1 - real / padded < 0.05 < 0.3 < 1 - real / by_chance
    longest = [max(lengths[i] for i in batch) for batch in batches]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 0.4 < rises / 499 < 0.6


def test_the_next_step_is_prepared_while_one_runs():
    prepared, may, done = [], threading.Event(), threading.Event()

    def prepare(step):
        assert threading.current_thread() is not threading.main_thread()
        prepared.append(step)
        if step == 5:
            done.set()
        if step == 6:
            may.wait(10)
        if step == 7:
            raise ValueError("told where its step begins")

    with ahead(prepare) as coming:
        coming(4)
        assert done.wait(10)  # while step 4 runs
        coming(5)
        threading.Timer(0.3, may.set).start()
        assert coming(6) > 0.2 and coming(6) < 0.1  # a step's second part waits for nothing
        assert prepared[:3] == [4, 5, 6]
        with pytest.raises(ValueError, match="told where its step begins"):
            coming(7)


def test_parts_hold_every_question_once():
    questions = tuple(Question(str(i), "c", "q?", ("a",)) for i in range(7))
    parts = in_parts([Passage("c", questions), Passage("d", questions[:2])], 3)
    assert [len(p.questions) for p in parts] == [3, 3, 1, 2]
    assert [p.context for p in parts] == ["c", "c", "c", "d"]
    assert sum((p.questions for p in parts[:3]), ()) == questions
