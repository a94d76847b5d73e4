"""Benchmarks: bench seek, bench lens."""

from pathlib import Path
from typing import Annotated

import tyro

from latentwire.commands.shared import check_folder, write_json


def seek(
    model: str = "smollm2-135m",
    lengths: tuple[int, ...] = (64, 256, 1024),
    problems: int = 4,
    steps: int = 2,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time seek against the published loop: no cache, one problem and one verifier at a time.

    Args:
        model: Zoo name, Hugging Face id or local folder.
        lengths: Answer lengths in tokens. The plain loop's time grows with their square.
        problems: How many problems both search.
        steps: Steps of each search.
        json_out: Write the result as JSON to this file.
    """
    from latentwire.bench.seek import almanac_problems, bench_seek
    from latentwire.lm.frozen import FrozenLM

    check_folder(json_out)
    result = bench_seek(FrozenLM.from_pretrained(model), almanac_problems(problems), lengths, steps)
    for length, row in result["lengths"].items():
        memory = "" if row["memory_ratio"] is None else f", {row['memory_ratio']:.1f}x the memory"
        print(
            f"{length} tokens: the plain loop takes {row['time_ratio']:.1f}x the time, "
            f"{row['forwards_ratio']:.1f}x the token-forwards{memory}; "
            f"{'the same' if row['same_tokens'] else 'OTHER'} tokens"
        )
    write_json(json_out, result)


def lens(
    tokens: tuple[int, ...] = (16, 64, 128),
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure what a lens costs on smollm2-135m: differentiable generation and scoring.

    Args:
        tokens: Lengths of generation.
        json_out: Write the result as JSON to this file.
    """
    from latentwire.bench.lens import bench_lens

    check_folder(json_out)
    result = bench_lens(tokens=tokens)
    rows = [(f"{n}, {c} tokens", r) for c, m in result["generation"].items() for n, r in m.items()]
    rows.append(("scoring / full logits", result["scoring"]))
    print(f"{'':28} {'seconds':>9} {'MB':>8} {'time':>6} {'memory':>7}")
    for name, row in rows:
        seconds, size, *ratios = row.values()
        shown = [f"{x:.2f}" if x is not None else "-" for x in (seconds, *ratios)]
        used = "too many" if size is None else f"{size / 1e6:.0f}"
        print(f"{name:28} {shown[0]:>9} {used:>8} {shown[1]:>6} {shown[2]:>7}")
    write_json(json_out, result)


def bench(arguments: list[str]) -> None:
    """Time ours against a plain implementation: `latentwire bench seek`, `bench lens`."""
    commands = {"seek": seek, "lens": lens}
    tyro.extras.subcommand_cli_from_dict(commands, args=arguments, prog="latentwire bench")
