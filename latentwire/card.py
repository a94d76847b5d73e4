"""Writes the model card of a saved wire or lens: base models, how to load it, its evaluation.

save_card("runs/qwen3-4x/wire", "me/qwen3-4x", "runs/qwen3-eval/results.json")    # its README.md
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from latentwire.files import write_whole
from latentwire.reading import parse_json, read_regular, saved_config, shortened

LOADS = {
    "wire": """from latentwire import ask, load_wire

wire = load_wire("{repo}")
(message,) = wire.send(["The lighthouse was finished in 1759 by John Smeaton."])
for reader in wire.readers:
    print(reader.reader, ask(reader, message, ["Who finished the lighthouse?"]))""",
    "lens": """from latentwire import Lens, explain_text

lens = Lens.from_pretrained("{repo}")
print(explain_text(lens, "The Danube rises in the Black Forest")[-1].explanations[0].text)""",
}
"""A model card's snippet, for each kind of artifact."""
CARD = """---
library_name: latentwire
{base}tags:
- latentwire
- {kind}
---

# {title}

A {kind} of latentwire, made for {models}. Those models stay frozen and are not in this
repository.

## Load

```python
{snippet}
```

## Evaluation

{evaluation}
"""


def save_card(folder: str | Path, repo: str, results: str | Path | None = None) -> Path:
    """Write a model card, README.md, into the folder of a saved wire or lens: base models, how to
    load it from `repo`, and its evaluation. Raises ValueError, of one line, for a folder that holds
    none or that needs a model which nobody else has, and for results that cannot be read."""
    from latentwire.lm.zoo import HUB_ID, ZOO

    folder = Path(folder)
    names, kind = base_models(folder), "lens" if "layer" in _config(folder) else "wire"
    hub = [ZOO[name].hub_id if name in ZOO else name for name in names]
    if local := [name for name in hub if os.path.isdir(name) or not re.fullmatch(HUB_ID, name)]:
        raise ValueError(
            f"{folder} was made for {local[0]!r}, a folder of this machine, which nobody else has; "
            "give its Hugging Face id in config.json"
        )
    card = CARD.format(
        base="base_model:\n" + "".join(f"- {name}\n" for name in hub),
        kind=kind,
        title=repo.rpartition("/")[2],
        models=" and ".join(names),
        snippet=LOADS[kind].format(repo=repo),
        evaluation="None yet." if results is None else _evaluation(Path(results)),
    )
    write_whole(folder / "README.md", card)
    return folder / "README.md"


def base_models(folder: Path) -> list[str]:
    """Names of the frozen models that a saved wire or lens was made for, its source first. Raises
    ValueError for a folder that holds none."""
    record = _config(folder)
    try:
        code = record.get("code") or record.get("config") or record
        readers = record.get("readers") or code.get("readers") or ()
        names = [code.get("source"), record.get("model"), record.get("reader")]
        names += [r["name"] if isinstance(r, dict) else r for r in readers]
        names += [n for part in record.get("wires", ()) for n in base_models(folder / part)]
        assert all(name is None or isinstance(name, str) for name in names) and any(names)
    except (AttributeError, KeyError, TypeError, AssertionError):
        raise ValueError(
            f"{folder}/config.json names no model; expected a wire's or a lens's"
        ) from None
    return list(dict.fromkeys(name for name in names if name))


def _config(folder: Path) -> dict[str, Any]:
    try:
        record = saved_config(folder)
    except ValueError as error:
        raise ValueError(
            f"{folder} holds no wire and no lens ({error}); expected one that was saved"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(f"{folder}/config.json is {shortened(record)}; expected an object")
    return record


def _evaluation(path: Path) -> str:
    """The tables of an evaluation's results, one for each reader."""
    try:
        results = parse_json(read_regular(path))
        alone = str(results.get("reader") or results.get("model"))
        parts = results.get("readers") or {alone: results}
        return "\n".join(_table(name, part) for name, part in parts.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as results ({type(error).__name__}: {error}); expected what "
            "`latentwire eval --json` or `latentwire lens eval --json` wrote"
        ) from None


def _table(name: str, results: dict[str, Any]) -> str:
    """The rows of one reader's results, or a lens's, each with its 95% interval."""
    rows: dict[str, dict[str, float]]
    if "rows" in results:
        rows, key, scale, digits = results["rows"], "f1", 100, 1
        asked = f"{results['n']} questions"
    else:
        rows = {"lens": results, **results["controls"], **results["references"]}
        key, scale, digits, asked = "fve", 1, 2, f"{results['n']} activations"
    data = f" of {Path(results['data']).name}" if "data" in results else ""
    ratio = f", {results['ratio']} tokens in per latent out" if "ratio" in results else ""
    header = "F1, %" if key == "f1" else "fraction of variance explained"
    lines = [f"{name}: {asked}{data}{ratio}.", "", f"| | {header} (95% interval) |", "|---|---:|"]
    for condition, row in rows.items():
        mean, low, high = (scale * row[key + end] for end in ("", "_low", "_high"))
        interval = f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
        lines.append(f"| {condition.replace('_', ' ')} | {interval} |")
    return "\n".join([*lines, ""])
