"""The benchmark of a wire runs every case and divides what it says it divides."""

import json
import sys

import pytest
from tiny import tiny_lm

from latentwire.__main__ import main
from latentwire.bench import wire as bench
from latentwire.bench.measure import Cost
from latentwire.lm import FrozenLM
from latentwire.wire.wire import Wire, WireConfig


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_case_is_measured(family, tmp_path, monkeypatch, capsys):
    lm, path = tiny_lm(family), tmp_path / "bench.json"
    config = WireConfig(lm.name, window=64, rank=2, format_tokens=2)
    Wire(lm, config).save_pretrained(tmp_path / "wire")
    monkeypatch.setattr(FrozenLM, "from_pretrained", lambda *_, **__: lm)
    monkeypatch.setattr(bench, "TIMES", 1)
    options = ["--lengths", "12", "40", "--rows", "1", "3", "--json", str(path)]
    monkeypatch.setattr(
        sys, "argv", ["latentwire", "bench", "wire", "--wire", str(tmp_path / "wire"), *options]
    )
    main()
    cases = json.loads(path.read_text())[lm.name]["cases"]
    assert list(cases) == ["12x1", "12x3", "40x1", "40x3"]
    for case in cases.values():
        seconds = case["seconds"]
        for clock in ("cpu", "wall"):
            assert case[clock].keys() == bench.RATIOS.keys()
            assert case[clock]["compress"] == pytest.approx(
                seconds["compress"][clock] / seconds["hf_prefill"][clock]
            )
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 5 and "token_to_slots" in shown[0] and "40x3" in shown[-1]


def test_the_least_of_each_counts():
    costs = {
        name: [Cost(seconds=2.0, cpu=1.0, memory=300), Cost(seconds=1.0, cpu=0.5, memory=100)]
        for pair in bench.RATIOS.values()
        for name in pair
    }
    costs["compress"] = [Cost(seconds=9.0, cpu=3.0, memory=250), Cost(3.0, 2.0, memory=150)]
    summary = bench._summary(costs)
    assert summary["cpu"]["compress"] == 4.0 and summary["wall"]["compress"] == 3.0
    assert summary["memory"] == 1.5


def test_a_benchmark_of_no_rows_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latentwire", "bench", "wire", "--rows", "0"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected at least 1 of each" in line
