"""The shipped lens, in a file of its own so that it runs beside the other real models."""

from latentwire.lens.evaluation import LensEvaluation, evaluate_lens
from latentwire.lens.lens import Lens
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.evaluation import ALMANAC


def test_the_shipped_lens_explains_text_it_has_never_seen(tmp_path):
    passages = by_context(load_questions(ALMANAC, 80))
    text = tmp_path / "almanac.txt"
    text.write_text("\n\n".join(p.context for p in passages))
    lens = Lens.from_pretrained("default")
    result = evaluate_lens(lens, [text], LensEvaluation(documents=16, positions=2))
    assert result["fve"] > 0.3
    for name in ("mean", "zero", "other_text", "current_token", "untrained_decoder", "logit_lens"):
        assert result["differences"][name]["low"] > 0, name
