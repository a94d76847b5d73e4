"""Documents and scores of the tasks beside this file, from a local file of questions."""

from datasets import Dataset

from latentwire.evals.metrics import exact_match, f1
from latentwire.tasks.needles import with_needles
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.evaluation import ALMANAC


def questions(data=ALMANAC, **_):
    """Rows of FILE.jsonl (--metadata data=FILE.jsonl), or of the almanac that is shipped."""
    return rows(load_questions(data))


def needles(data=ALMANAC, needle="number", **_):
    """Each passage of such a file with a number, or a UUID, hidden in it."""
    passages = with_needles(by_context(load_questions(data)), needle)
    return rows([passage.questions[0] for passage in passages])


def rows(asked):
    fields = ("id", "context", "question", "answers")
    listed = [{name: getattr(one, name) for name in fields} for one in asked]
    return {"test": Dataset.from_list(listed)}


def scores(doc, results):
    """SQuAD's figures."""
    (answer,), gold = results, doc["answers"]
    return {"f1": f1(answer, gold), "exact_match": exact_match(answer, gold)}


def copied(doc, results):
    """1 where the needle stands in the answer."""
    return {"copied": float(doc["answers"][0] in results[0])}
