"""Commands of the lens: explain, eval, train."""

from pathlib import Path
from typing import Annotated

import tyro

from latentwire.cli.command_line import (
    LENS,
    SEVERAL,
    TEXT,
    Positional,
    check_folder,
    run_command,
    run_training,
    write_json,
)

LEFT_OUT = "(left out: a first token without BOS before it; no lens is trained on its state)"
"""In the place of an explanation."""


def explain(
    lens: LENS,
    text: TEXT,
    token: int | None = None,
    every: Annotated[bool, tyro.conf.arg(name="all")] = False,
    k: int = 1,
    words: bool = False,
    html: Path | None = None,
    reader: SEVERAL = (),
) -> None:
    """Say in words what a model's activations hold, token by token; the last token if neither
    --token nor --all is given.

    Args:
        lens: A lens's folder or hub id, or default, the shipped one.
        text: What the model reads.
        token: Only this token, counted from 0.
        every: All tokens but a first one without BOS before it, which no lens is trained on.
        k: Draw so many explanations of each and show the best.
        words: Also show what each word of an explanation counts: how much less is explained
            without it.
        html: Also write a page on which a person points at tokens, with all k explanations.
        reader: PATH of the lens's model where it has another here.
    """
    from latentwire.lens.checks import LensError
    from latentwire.lens.explain import explain_text
    from latentwire.lens.interventions import salience
    from latentwire.lens.lens import Lens
    from latentwire.lm.loaded import models_given
    from latentwire.report.lens_page import write_lens_page

    if every and token is not None:
        raise LensError(f"--token {token} and --all; expected one of them")
    check_folder(html, "--html")
    loaded = Lens.from_pretrained(lens, models_given(reader))
    chosen = None if every else [len(loaded.lm.tokenize(text)) - 1 if token is None else token]
    rows = explain_text(loaded, text, chosen, k)
    print(f"{'':>5}{'token':14} {'explained':>9} {'KL':>6}  explanation")
    if every and rows[0].index > 0:
        first = loaded.lm.spelled(loaded.lm.tokenize(text)[:1])
        print(f"   0 {first!r:14} {'-':>9} {'-':>6}  {LEFT_OUT}")
    for row in rows:
        best = row.explanations[0]
        said = "".join(c if c.isprintable() else "·" for c in best.text.replace("\n", " / "))
        print(f"{row.index:>4} {row.token!r:14} {1 - best.error:9.2f} {row.kl:6.2f}  {said}")
        if words:
            counts = salience(loaded, row.vector, best.text)
            print(f"{'':37}" + "  ".join(f"{word} {worse:+.2f}" for word, worse in counts))
    if html is not None:
        facts = {"model": loaded.config.model, "layer": loaded.config.layer, "explanations": k}
        ids, decode = loaded.lm.tokenize(text), loaded.lm.spelled
        around = decode(ids[: rows[0].index]), decode(ids[rows[-1].index + 1 :])
        write_lens_page(html, facts, [row.record() for row in rows], around)


def edit(
    lens: LENS,
    text: TEXT,
    words: Positional[Annotated[str, tyro.conf.arg(metavar="WORDS")]],
    token: int | None = None,
    reader: SEVERAL = (),
) -> None:
    """Replace what a token's activation says by other words, and see what the model then predicts.

    Args:
        lens: A lens's folder or hub id, or default, the shipped one.
        text: What the model reads.
        words: What the activation shall say instead.
        token: Of this token, counted from 0; of the last one if it is not given.
        reader: PATH of the lens's model where it has another here.
    """
    from latentwire.lens.explain import explain_text, tokens_of
    from latentwire.lens.interventions import edited
    from latentwire.lens.lens import Lens
    from latentwire.lm.loaded import models_given

    loaded = Lens.from_pretrained(lens, models_given(reader))
    whole = tokens_of(loaded.lm, text)
    place = len(whole.ids) - whole.bos - 1 if token is None else token
    said = explain_text(loaded, text, [place])[0].explanations[0].text
    before, after = edited(loaded, whole, whole.bos + place, words)
    print(f"{'next token, as it is':32}next token, edited")
    for (one, p), (other, q) in zip(before, after, strict=True):
        print(f"{f'{p:6.1%} {one!r}':32}{q:6.1%} {other!r}")
    print(f"The activation said {said!r}; now it says {words!r}.")


def evaluate(
    lens: LENS,
    text: tuple[Path, ...],
    limit: int = 200,
    positions: int = 1,
    samples: int = 1,
    seed: int = 0,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    reader: SEVERAL = (),
) -> None:
    """Score a lens on the activations of a text, beside controls that say nothing of them.

    Args:
        lens: A lens's folder or hub id, or default, the shipped one.
        text: UTF-8 text files that it was not trained on, a document per block.
        limit: Only so many documents, chosen at random.
        positions: Activations of each, chosen at random.
        samples: Score the best of so many drawn explanations; 1 for the greedy one.
        seed: Of all choices.
        json_out: Write the result as JSON to this file.
        reader: PATH of the lens's model where it has another here.
    """
    from latentwire.lens.evaluation import LensEvaluation, evaluate_lens
    from latentwire.lens.lens import Lens
    from latentwire.lm.loaded import models_given
    from latentwire.report.comparison import lens_verdict

    check_folder(json_out)
    config = LensEvaluation(limit, positions, samples, seed=seed)
    result = evaluate_lens(Lens.from_pretrained(lens, models_given(reader)), text, config)
    rows = {"lens": result, **result["controls"], **result["references"]}
    print(f"{'':20} {'FVE (95% interval)':>24} {'cosine':>7} {'KL':>6} {'recovered':>9}")
    for name, row in rows.items():
        fve = f"{row['fve']:.3f} ({row['fve_low']:.3f} to {row['fve_high']:.3f})"
        figures = f"{row['cosine']:7.3f} {row['kl']:6.2f} {row['loss_recovered']:9.2f}"
        print(f"{name.replace('_', ' '):20} {fve:>24} {figures}")
    print(lens_verdict(result))
    write_json(json_out, result)


def train(arguments: list[str]) -> int:
    """Train a recipe for a lens; every field of it can be overridden on the command line. Exit
    status 3 where alarms stand at the end, or where --stop-on collapse ended it."""
    from latentwire.lens.training import RECIPES, train_lens

    return run_training(RECIPES, train_lens, arguments, "latentwire lens train", "lens")


def lens(arguments: list[str]) -> int:
    """Activations in words: `latentwire lens explain`, `lens edit`, `lens train`, `lens eval`."""
    if arguments[:1] == ["train"]:
        return train(arguments[1:])
    commands = {"explain": explain, "edit": edit, "eval": evaluate, "train": train}
    run_command(commands, arguments, "latentwire lens")
    return 0
