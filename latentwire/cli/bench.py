"""Benchmarks: bench wire, bench seek, bench lens, bench train."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from latentwire.cli.command_line import check_folder, run_command, write_json


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


def train(
    model: str = "smollm2-135m",
    data: str | None = None,
    batch_size: int = 4,
    steps: int = 5,
    dtype: Literal["float32", "bfloat16"] = "float32",
    mixed_precision: Literal["no", "bf16"] = "no",
    gradient_checkpointing: bool = False,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure a step of training a wire beside what the machine's matmuls can do.

    Args:
        model: Zoo name, Hugging Face id or local folder.
        data: JSONL as for training; the shipped almanac if not given.
        batch_size: Passages of a step.
        steps: Steps that are timed; their median counts.
        dtype: Number type of the frozen weights.
        mixed_precision: bf16 computes losses under autocast to bfloat16.
        gradient_checkpointing: Run blocks again for the gradient in place of keeping activations.
        json_out: Write the result as JSON to this file.
    """
    from latentwire.bench.train import bench_train
    from latentwire.lm.frozen import FrozenLM
    from latentwire.tasks.qa import by_context, load_questions
    from latentwire.train.settings import Session
    from latentwire.wire.evaluation import ALMANAC

    check_folder(json_out)
    if min(batch_size, steps) < 1:
        raise ValueError(f"--batch-size {batch_size} --steps {steps}; expected at least 1 of each")
    read = by_context(load_questions(data or ALMANAC, least=batch_size))
    session = Session(mixed_precision, gradient_checkpointing=gradient_checkpointing)
    result = bench_train(FrozenLM.from_pretrained(model, dtype), read, steps, batch_size, session)
    print(f"{'part':15} {'seconds':>8} {'GFLOP':>8} {'of the ceiling':>15}")
    for name, row in {**result["parts"], "all": result}.items():
        print(f"{name:15} {row['seconds']:8.3f} {row['flops'] / 1e9:8.1f} {row['share']:15.0%}")
    memory = "" if result["memory"] is None else f", {result['memory'] / 1e6:.0f} MB at its peak"
    print(
        f"{result['tokens_per_second']:.0f} tokens/s{memory}; ceiling "
        f"{result['ceiling'] / 1e9:.0f} GFLOP/s; {result['over_matmuls']:.2f}x its matmuls; "
        f"{result['busy']:.0%} of the time on a core"
    )
    write_json(json_out, result)


def wire(
    wire: str = "default",
    lengths: tuple[int, ...] = (200, 1000, 4000),
    rows: tuple[int, ...] = (1, 16),
    ratio: int | None = None,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure compressing, the first token and a decoded token beside Hugging Face on full text.

    Args:
        wire: Folder or hub id of a wire of slots, or a shipped one; all its readers are measured.
        lengths: Tokens of a text.
        rows: Rows that are decoded together.
        ratio: Tokens in per latent out, where it is to be another than the wire's own.
        json_out: Write the result as JSON to this file.
    """
    from latentwire.bench.wire import RATIOS, bench_wire
    from latentwire.wire.load import load_with
    from latentwire.wire.text_wire import TextWire
    from latentwire.wire.wire import Wire

    check_folder(json_out)
    if min(*lengths, *rows) < 1:
        raise ValueError(f"--lengths {lengths} --rows {rows}; expected at least 1 of each")
    loaded, results = load_with(wire, ratio), {}
    if not isinstance(loaded, Wire | TextWire):
        raise ValueError(f"{wire} has learned codes; expected a wire of slots, such as default")
    columns = " ".join(f"{name:>15}" for name in (*RATIOS, "memory"))
    print(f"{'CPU (wall) time to HF':23} {columns}")
    for reader in loaded.readers:
        slots = reader if isinstance(reader, Wire) else reader.wire
        results[reader.reader] = result = bench_wire(slots, lengths, rows)
        for case, row in result["cases"].items():
            shown = [f"{row['cpu'][name]:.2f} ({row['wall'][name]:.2f})" for name in RATIOS]
            shown.append("-" if row["memory"] is None else f"{row['memory']:.2f}")
            line = " ".join(f"{x:>15}" for x in shown)
            print(f"{reader.reader} {case:10} {line}", flush=True)
    write_json(json_out, results)


def bench(arguments: list[str]) -> None:
    """Measure our work: `latentwire bench wire`, `bench seek`, `bench lens`, `bench train`."""
    commands = {"wire": wire, "seek": seek, "lens": lens, "train": train}
    run_command(commands, arguments, "latentwire bench")
