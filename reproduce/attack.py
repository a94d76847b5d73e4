"""Runs tests/test_fuzz.py and prints how many inputs were tried, and what came of them."""

import os
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "tests"
start = time.monotonic()
options = ["-p", "no:xdist", "-o", "addopts=-q", "--disable-warnings", "--showlocals"]
status = pytest.main([*options, str(TESTS / "test_fuzz.py")])
from hostile import TRIED  # noqa: E402  (pytest has put its folder on the path)

print(f"{os.environ.get('LATENTWIRE_FUZZ', '1')} times the inputs of the suite")
seconds, cpu = time.monotonic() - start, time.process_time()
print(f"{sum(TRIED.values()):,} inputs in {seconds:.0f} s, {cpu:.0f} s of one core")
for what, count in sorted(TRIED.items()):
    print(f"{count:>9,}  {what}")
sys.exit(status)
